"""Our models inside lm-eval: any of its tasks on a checkpoint folder, with its prompts, its scoring and its results.

    python -m harness.lm_eval_model run --model emergence --model_args pretrained=FOLDER --tasks arc_easy \
        --output_path results.json

is lm-eval's own command with the model "emergence" known to it; `harness import lm-eval` reads what it writes. In
Python: `lm_eval.simple_evaluate(model=EmergenceLM(FOLDER), tasks=[...])`. Written against lm-eval 0.4.13."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    needed = f"harness.lm_eval_model needs the package {error.name!r}: pip install 'lm-eval>=0.4.13,<0.5'"
    raise (SystemExit if __name__ == "__main__" else ImportError)(needed) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from models.lm import LanguageModel


@register_model("emergence")
class EmergenceLM(LM):
    """Any `LanguageModel`, or a checkpoint folder, as a model of lm-eval.

    `device` counts where there is a GPU; elsewhere it is the CPU. `bos` is that of TransformerLM. lm-eval's batch sizes
    are accepted and not used: batches are cut by `batch_tokens`, and change no score.
    Generation is greedy; a request that asks for anything else raises ValueError."""

    def __init__(
        self,
        pretrained: str | Path | LanguageModel,
        *,
        device: str | None = None,
        batch_tokens: int | None = None,
        bos: bool | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str | Path):
            if not Path(pretrained).is_dir():
                raise ValueError(f"pretrained must be a checkpoint folder or a LanguageModel, got {str(pretrained)!r}")
            import torch

            from models.lm import TransformerLM

            # lm-eval's command asks for cuda:0 where it was told nothing.
            place = "cpu" if not torch.cuda.is_available() else device or "cuda"
            self.model: LanguageModel = TransformerLM.load(pretrained, place, batch_tokens=batch_tokens, bos=bos)
        else:
            self.model = pretrained

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nats of each continuation, and whether greedy decoding would write it."""
        pairs = [_space_to_continuation(*request.args) for request in requests]
        # lm-eval hands over the choices of a document one after the other: together they read their context once.
        grouped = [(context, [text for _, text in group]) for context, group in groupby(pairs, key=lambda p: p[0])]
        scored = (each for group in self.model.loglikelihood(grouped) for each in group)
        answers = [(each.logprob, each.n_greedy == each.n_tokens) for each in scored]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each whole text; 0 for an empty one, which has no token to score."""
        texts = [request.args[0] for request in requests]
        scored = iter(self.model.loglikelihood_rolling([text for text in texts if text]))
        nats = [next(scored).logprob if text else 0.0 for text in texts]
        for request, value in zip(requests, nats, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return nats

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy text after each prompt, up to the first of its stop strings."""
        settings = [_greedy(request.args[1]) for request in requests]
        said = self.model.generate(
            [request.args[0] for request in requests],
            stop=[[mark for mark in given["until"] if mark] for given in settings],
            max_tokens=[given["max_gen_toks"] for given in settings],
        )
        for request, generation in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, generation.text)
        return [generation.text for generation in said]


def _space_to_continuation(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to what follows, as in lm-eval's own models."""
    stem = context.rstrip()
    return stem, context[len(stem) :] + continuation


def _greedy(given: dict[str, Any]) -> dict[str, Any]:
    settings = normalize_gen_kwargs(given)
    if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
        raise ValueError(f"the model 'emergence' decodes greedily (do_sample: false, one beam), the task asks {given}")
    return settings


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
