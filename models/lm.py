"""A model as something that scores and continues text. Log-probabilities are in nats.

Every result depends on its own request alone: what is shared, padded and batched for speed changes no score beyond
rounding (1e-4 nats in float32), which `models.reference`, the same without any of it, is there to show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from models.batching import Budget
from models.checkpoint import quiet
from models.decoding import Watch, decode
from models.encoding import Encoding, Path, blocks
from models.network import Network, context_of
from models.scoring import score
from models.tokenizer import load_tokenizer

# Characters that are planned and scored at once: bounds what is held for them beside the model. What contexts share
# beyond a slice is read again.
_SLICE = 1 << 22


@dataclass(frozen=True)
class Scored:
    """One continuation given its context."""

    logprob: float  # nats, summed over its tokens
    n_tokens: int
    n_greedy: int  # tokens that were the model's first choice
    straddles: bool = False  # the first token also holds the context's last characters
    truncated: bool = False  # the context was too long and lost its beginning


@dataclass(frozen=True)
class TextScored(Scored):
    """A whole text, with what each of its tokens covers and costs."""

    token_spans: list[tuple[int, int]] = field(default_factory=list)  # character offsets (start, end)
    token_logprobs: list[float] = field(default_factory=list)
    token_greedy: list[bool] = field(default_factory=list)
    token_positions: list[int] = field(default_factory=list)  # tokens it was conditioned on: the very first has 1


@dataclass(frozen=True)
class Generation:
    text: str  # up to the first stop string, which is not part of it
    raw: str  # everything that was generated, special tokens left out
    truncated: bool = False  # the prompt was too long and lost its beginning
    n_tokens: int = 0  # all that were generated: with end-of-text, and with what the stop string cut off


class LanguageModel(Protocol):
    """What the harness asks of a model; anything with these methods can be evaluated."""

    context_length: int  # a text fits whole when count_tokens(text), plus tokens to be generated, is at most this
    prefix: int | None  # the id put before every text, if any

    def loglikelihood(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Scored]]:
        """Score the continuations of each (context, continuations); the context's own tokens are not counted."""
        ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScored]:
        """Score whole texts of any length."""
        ...

    def generate(
        self, requests: Sequence[str], *, stop: Sequence[Sequence[str]], max_tokens: Sequence[int]
    ) -> list[Generation]:
        """Continue each prompt greedily up to the first of its stop strings, or its number of tokens."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, begin-of-text not counted."""
        ...

    def encode(self, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Token ids (n,) and character spans (n, 2) of every distinct text."""
        ...


class TransformerLM:
    """A transformers causal language model and its tokenizer as a `LanguageModel`.

    `bos` says whether begin-of-text (or end-of-text, where there is none) stands once before every context; None asks
    the tokenizer: yes where it adds that token itself or is our own, else no (Pythia, GPT-2), as in lm-eval. An empty
    context and a whole text are always read after it. `batch_tokens` bounds the padded tokens of one forward pass and
    changes nothing but speed. `sharing` is "tree" where continuations share their context, "rows" where the model was
    not seen to obey the masks and positions this takes, and every row is run whole."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_tokens: int | None = None,
        context_length: int | None = None,
        bos: bool | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.context_length = context_of(model, context_length)
        self._encoding = Encoding(tokenizer, bos=bos)
        self.prefix = self._encoding.prefix
        self._network = Network(model)
        self.sharing = self._network.sharing
        # What stays in a CPU's cache runs up to a third faster; a GPU wants to be filled.
        self._budget = Budget(batch_tokens or (4096 if model.device.type == "cpu" else 16384))

    @classmethod
    def load(
        cls,
        folder: str | FilePath,
        device: str = "cpu",
        *,
        batch_tokens: int | None = None,
        bos: bool | None = None,
    ) -> "TransformerLM":
        """A checkpoint folder (ours or any transformers one), in float32."""
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model.to(device), load_tokenizer(FilePath(folder)), batch_tokens=batch_tokens, bos=bos)

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of one forward pass; lower than what was asked for once memory ran out."""
        return self._budget.tokens

    def encode(self, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Token ids (n,) and character spans (n, 2) of every distinct text, `prefix` not included."""
        return self._encoding.encode(texts)

    def count_tokens(self, text: str) -> int:
        return len(self.encode([text])[text][0])

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Scored]]:
        """Context and continuation are tokenized together; a token that crosses their border counts as continuation.
        A continuation that begins with begin-of-text itself, after an empty context, is read after it (as in lm-eval).

        Raises SpecError for a continuation that has no token or is longer than the context length."""
        sizes = (sum(len(context) + len(text) for text in texts) for context, texts in requests)
        return [items for part in blocks(sizes, _SLICE) for items in self._scored(requests[part])]

    def _scored(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Scored]]:
        pairs = self._encoding.pairs(requests, self.context_length)
        paths = [path for items in pairs for path in items]
        groups = [
            (context, len(path.targets) if path.truncated else 0)  # what a context loses, its continuation takes
            for (context, _), items in zip(requests, pairs, strict=True)
            for path in items
        ]
        answers = iter(zip(paths, score(self._network, paths, groups, self._budget), strict=True))
        return [[_scored(*next(answers)) for _ in items] for items in pairs]

    @torch.inference_mode()
    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScored]:
        """Every token of a text once, in windows of one context length: the first window follows begin-of-text, each
        later one the token before it, and the last reaches back over a full context (the convention of lm-eval).

        Raises SpecError for an empty text."""
        return [text for part in blocks(map(len, texts), _SLICE) for text in self._texts_scored(texts[part])]

    def _texts_scored(self, texts: Sequence[str]) -> list[TextScored]:
        self.encode(texts)
        windows = [self._encoding.windows(text, self.context_length) for text in texts]
        paths = [path for items in windows for path in items]
        answers = iter(score(self._network, paths, range(len(paths)), self._budget))
        return [
            _text_scored(items, [next(answers) for _ in items], self.encode([text])[text][1])
            for text, items in zip(texts, windows, strict=True)
        ]

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[str], *, stop: Sequence[Sequence[str]], max_tokens: Sequence[int]
    ) -> list[Generation]:
        """A row ends at the first of its stop strings, its number of tokens, or an end-of-text token. Stop strings are
        looked for in the text; one that is a special token is looked for among the tokens.

        A long prompt keeps its last tokens, as many as leave room for `max_tokens`. Raises SpecError when that is
        none."""
        prompts = self._encoding.prompts(requests, stop, max_tokens, self.context_length)
        ids = [prompt for prompt, _ in prompts]
        ends = self._encoding.ends(self.model)
        rows = [Watch(self._encoding, ends, prompt, marks) for prompt, marks in zip(ids, stop, strict=True)]
        generated = decode(self._network, ids, max_tokens, lambda i, tokens: rows[i].is_done(tokens), self._budget)
        results = []
        for row, tokens, (_, truncated) in zip(rows, generated, prompts, strict=True):
            raw = row.text(tokens)
            results.append(Generation(row.before_stop(raw), raw, truncated, len(tokens)))
        return results


def _scored(path: Path, answer: tuple[np.ndarray, np.ndarray]) -> Scored:
    logprobs, greedy = answer
    return Scored(float(logprobs.sum()), len(logprobs), int(greedy.sum()), path.straddles, path.truncated)


def _text_scored(
    windows: Sequence[Path], answers: Sequence[tuple[np.ndarray, np.ndarray]], spans: np.ndarray
) -> TextScored:
    logprobs, greedy = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return TextScored(
        logprob=float(logprobs.sum()),
        n_tokens=len(logprobs),
        n_greedy=int(greedy.sum()),
        token_spans=[(start, end) for start, end in spans[-len(logprobs) :].tolist()],
        token_logprobs=logprobs.tolist(),
        token_greedy=greedy.tolist(),
        token_positions=[
            n for path in windows for n in range(len(path.inputs) - len(path.targets) + 1, len(path.inputs) + 1)
        ],
    )
