"""The same answers the plain way: the oracle that the fast engine of `models.lm` is tested against.

One row at a time, nothing shared, nothing padded, no cache: the whole model, a float32 log-softmax over the whole
vocabulary, and for every generated token all tokens again. Only the way from text to tokens is the engine's own."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.encoding import Encoding, Path
from models.lm import Generation, Scored, TextScored
from models.network import context_of


class ReferenceLM:
    """A `LanguageModel` to be trusted rather than used: hundreds of times slower than `TransformerLM`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_length: int | None = None,
        bos: bool | None = None,
    ) -> None:
        self.model = model.eval()
        self.context_length = context_of(model, context_length)
        self._encoding = Encoding(tokenizer, bos=bos)
        self.prefix = self._encoding.prefix

    def encode(self, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self._encoding.encode(texts)

    def count_tokens(self, text: str) -> int:
        return len(self.encode([text])[text][0])

    def loglikelihood(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Scored]]:
        results: list[list[Scored]] = []
        for paths in self._encoding.pairs(requests, self.context_length):
            results.append([])
            for path in paths:
                logprobs, greedy = self._score(path)
                results[-1].append(Scored(sum(logprobs), len(logprobs), sum(greedy), path.straddles, path.truncated))
        return results

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScored]:
        results = []
        for text in texts:
            logprobs: list[float] = []
            greedy: list[bool] = []
            positions: list[int] = []
            for path in self._encoding.windows(text, self.context_length):
                more, first = self._score(path)
                logprobs += more
                greedy += first
                positions += [len(path.inputs) - i for i in reversed(range(len(path.targets)))]
            spans = [tuple(span) for span in self.encode([text])[text][1].tolist()][-len(logprobs) :]
            results.append(
                TextScored(sum(logprobs), len(logprobs), sum(greedy), False, False, spans, logprobs, greedy, positions)
            )
        return results

    def generate(
        self, requests: Sequence[str], *, stop: Sequence[Sequence[str]], max_tokens: Sequence[int]
    ) -> list[Generation]:
        prompts = self._encoding.prompts(requests, stop, max_tokens, self.context_length)
        results = []
        for (prompt, truncated), marks, most in zip(prompts, stop, max_tokens, strict=True):
            ends = self._encoding.ends(self.model) | {self._encoding.special.get(mark, -1) for mark in marks}
            tokens: list[int] = []
            text, ended = "", False
            while len(tokens) < most and not ended and not any(mark in text for mark in marks):
                tokens.append(int(self._logits([*prompt.tolist(), *tokens])[-1].argmax()))
                ended = tokens[-1] in ends
                text = self._encoding.after(prompt, tokens[:-1] if ended else tokens)
            cut = min((text.index(mark) for mark in marks if mark in text), default=len(text))
            results.append(Generation(text[:cut], text, truncated, len(tokens)))
        return results

    def _score(self, path: Path) -> tuple[list[float], list[bool]]:
        logits = self._logits(path.inputs.tolist())[-len(path.targets) :]
        wanted = torch.tensor(path.targets.tolist(), device=logits.device)
        logprobs = F.log_softmax(logits, dim=-1).gather(1, wanted[:, None]).squeeze(1)
        return logprobs.tolist(), (logits.argmax(dim=-1) == wanted).tolist()

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> torch.Tensor:
        """float32 logits (T, V)."""
        return self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=False).logits[0].float()
