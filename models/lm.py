"""A model as something that scores and continues text. Log-probabilities are in nats.

Every result depends on its own request alone: rows are padded and batched for speed, and padding is never attended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from models.checkpoint import quiet
from models.spec import SpecError
from models.tokenizer import load_tokenizer, tokenizer_digest

_LARGEST_LOGITS = 1 << 26  # entries of one (positions, vocabulary) block: 256 MiB in float32
_MOST_ENCODINGS = 100_000  # texts, some 100 MB

# Texts already tokenized, by tokenizer: a sweep asks every checkpoint the same documents, and for a small model
# tokenizing them takes longer than running it.
_ENCODINGS: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}


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


@dataclass(frozen=True)
class Generation:
    text: str  # up to the stop string, which is not part of it
    raw: str  # everything that was generated
    truncated: bool = False  # the prompt was too long and lost its beginning


class LanguageModel(Protocol):
    """What the harness asks of a model; anything with these methods can be evaluated."""

    context_length: int  # a text fits whole when count_tokens(text), plus tokens to be generated, is at most this

    def loglikelihood(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Scored]]:
        """Score the continuations of each (context, continuations); the context's own tokens are not counted."""
        ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScored]:
        """Score whole texts of any length."""
        ...

    def generate(
        self, requests: Sequence[str], *, stop: Sequence[str | None], max_tokens: Sequence[int]
    ) -> list[Generation]:
        """Continue each prompt greedily up to its stop string or number of tokens."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, begin-of-text not counted."""
        ...


class _Row:
    """One sequence to run, and what to read from it: at `positions[i]`, the log-probability of `tokens[i]`."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.tokens: list[int] = []
        self.logprobs = np.empty(0)
        self.greedy = np.empty(0, dtype=bool)

    def ask(self, positions: Iterable[int], tokens: Iterable[int]) -> slice:
        """Add questions; the slice says where their answers will be."""
        start = len(self.tokens)
        self.positions.extend(positions)
        self.tokens.extend(tokens)
        return slice(start, len(self.tokens))


class TransformerLM:
    """A transformers causal language model and its tokenizer as a `LanguageModel`.

    A begin-of-text token (or end-of-text, where there is none) stands once before every context. `batch_tokens` bounds
    the padded tokens of one forward pass and changes nothing but speed."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_tokens: int | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        # What stays in a CPU's cache runs up to a third faster; a GPU wants to be filled.
        self.batch_tokens = batch_tokens or (4096 if model.device.type == "cpu" else 16384)
        self.context_length: int = model.config.max_position_embeddings
        self._scale = float(getattr(model.config, "logits_scaling", 1.0))
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if bos is None:
            raise SpecError("the tokenizer has neither a begin-of-text nor an end-of-text token; set bos_token")
        if not tokenizer.is_fast:
            raise SpecError("the tokenizer gives no character offsets; use its fast (tokenizers-library) version")
        self._bos: int = bos
        self._encodings = _ENCODINGS.setdefault(tokenizer_digest(tokenizer), {})
        self._end: set[int] = {bos} | ({tokenizer.eos_token_id} - {None})
        self._head_is_plain = True
        self._head_is_plain = self._plain_head_agrees()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", *, batch_tokens: int | None = None) -> "TransformerLM":
        """A checkpoint folder (ours or any transformers one), in float32."""
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model.to(device), load_tokenizer(Path(folder)), batch_tokens=batch_tokens)

    def count_tokens(self, text: str) -> int:
        return len(self._encode([text])[text][0])

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[Scored]]:
        """Context and continuation are tokenized together; a token that crosses their border counts as continuation.

        Continuations that need the same inputs share a row, so single-token choices cost one row together. Raises
        SpecError for a continuation that is empty or longer than the context length."""
        encoded = self._encode([context + text for context, texts in requests for text in texts])
        rows: dict[tuple[int, ...], _Row] = {}
        asked: list[list[tuple[_Row, slice, bool, bool]]] = []
        for context, texts in requests:
            asked.append([])
            for text in texts:
                ids, spans = encoded[context + text]
                first = int(np.searchsorted(spans[:, 1], len(context), side="right"))
                cut = max(0, len(ids) - self.context_length)
                if first == len(ids) or first < cut:
                    raise SpecError(
                        f"a continuation must have 1 to {self.context_length} tokens, {text[:40]!r} has "
                        f"{len(ids) - first}"
                    )
                row = rows.setdefault((self._bos, *ids[cut:-1].tolist()), _Row())
                answer = row.ask(range(first - cut, len(ids) - cut), ids[first:].tolist())
                asked[-1].append((row, answer, bool(spans[first, 0] < len(context)), cut > 0))
        self._run(rows)
        return [[self._scored(*item) for item in items] for items in asked]

    @torch.inference_mode()
    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[TextScored]:
        """Windows of one context length that do not overlap; the first is read after begin-of-text, each later one
        after the last token of the one before (the convention of lm-eval). Raises SpecError for an empty text."""
        encoded = self._encode(texts)
        rows: dict[tuple[int, ...], _Row] = {}
        asked: list[list[tuple[_Row, slice]]] = []
        for text in texts:
            ids = encoded[text][0].tolist()
            if not ids:
                raise SpecError("a text to be scored must not be empty")
            before = [self._bos, *ids[:-1]]
            asked.append([])
            for start in range(0, len(ids), self.context_length):
                end = min(start + self.context_length, len(ids))
                row = rows.setdefault(tuple(before[start:end]), _Row())
                asked[-1].append((row, row.ask(range(end - start), ids[start:end])))
        self._run(rows)
        results = []
        for text, items in zip(texts, asked, strict=True):
            logprobs = np.concatenate([row.logprobs[answer] for row, answer in items])
            greedy = np.concatenate([row.greedy[answer] for row, answer in items])
            results.append(
                TextScored(
                    logprob=float(logprobs.sum()),
                    n_tokens=len(logprobs),
                    n_greedy=int(greedy.sum()),
                    token_spans=[(start, end) for start, end in encoded[text][1].tolist()],
                    token_logprobs=logprobs.tolist(),
                    token_greedy=greedy.tolist(),
                )
            )
        return results

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[str], *, stop: Sequence[str | None], max_tokens: Sequence[int]
    ) -> list[Generation]:
        """A row ends at its stop string, its number of tokens, or the end-of-text token. Raises SpecError when
        `max_tokens` leaves no room for a prompt."""
        if not len(requests) == len(stop) == len(max_tokens):
            raise SpecError(
                f"generate needs one stop and one max_tokens per prompt, got {len(requests)} prompts, {len(stop)} "
                f"stops and {len(max_tokens)} max_tokens"
            )
        encoded = self._encode(requests)
        prompts, results = [], [Generation("", "")] * len(requests)
        for text, room in zip(requests, max_tokens, strict=True):
            if not 1 <= room < self.context_length:
                raise SpecError(f"max_tokens must be 1 to {self.context_length - 1} for this model, got {room}")
            # The last generated token is never read back, so prompt and answer may overlap the limit by one.
            ids = encoded[text][0]
            kept = ids[max(0, len(ids) - (self.context_length - room)) :]
            prompts.append((self._bos, *kept.tolist()))
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        for batch in self._batches(order, [len(prompts[i]) + max_tokens[i] for i in range(len(prompts))]):
            texts = self._continue(
                [prompts[i] for i in batch], [stop[i] for i in batch], [max_tokens[i] for i in batch]
            )
            for i, raw in zip(batch, texts, strict=True):
                mark = stop[i]
                text = raw.split(mark, 1)[0] if mark else raw
                results[i] = Generation(text, raw, truncated=len(prompts[i]) <= len(encoded[requests[i]][0]))
        return results

    def _encode(self, texts: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Token ids (n,) and character spans (n, 2) of every distinct text, without special tokens."""
        distinct = list(dict.fromkeys(texts))
        known = self._encodings
        if len(known) + len(distinct) > _MOST_ENCODINGS:
            known.clear()
        new = [text for text in distinct if text not in known]
        if new:
            encoded = self.tokenizer(
                new, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
            )
            for text, ids, spans in zip(new, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                known[text] = np.array(ids, dtype=np.int32), np.array(spans, dtype=np.int32).reshape(-1, 2)
        return {text: known[text] for text in distinct}

    def _batches(self, order: Sequence[int], costs: Sequence[int]) -> Iterable[list[int]]:
        """Cut `order` (longest first) into runs whose padded size stays within `batch_tokens`; one item always fits."""
        batch: list[int] = []
        longest = 0
        for i in order:
            longest = max(longest, costs[i])
            if batch and longest * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch, longest = [], costs[i]
            batch.append(i)
        if batch:
            yield batch

    def _run(self, rows: dict[tuple[int, ...], _Row]) -> None:
        """Answer what was asked of every row."""
        inputs, asked = list(rows), list(rows.values())
        order = sorted(range(len(inputs)), key=lambda i: (-len(inputs[i]), inputs[i]))
        for batch in self._batches(order, [len(ids) for ids in inputs]):
            padded = np.full((len(batch), len(inputs[batch[0]])), self._bos)
            for line, i in zip(padded, batch, strict=True):
                line[: len(inputs[i])] = inputs[i]
            # Questions at one place (line, position) share one row of logits: distinct places, and who reads which.
            width = padded.shape[1]
            places = [line * width + position for line, i in enumerate(batch) for position in asked[i].positions]
            distinct, where = np.unique(np.array(places), return_inverse=True)
            tokens = np.array([token for i in batch for token in asked[i].tokens])
            logprobs, greedy = self._answer(padded, distinct, where, tokens)
            start = 0
            for i in batch:
                end = start + len(asked[i].tokens)
                asked[i].logprobs, asked[i].greedy = logprobs[start:end], greedy[start:end]
                start = end

    def _answer(
        self, padded: np.ndarray, distinct: np.ndarray, where: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and greedy flags, both (Q,), of the tokens `wanted` (Q,); question q reads the flat place
        `distinct[where[q]]` of `padded` (B, T).

        Right padding needs no mask: nothing looks ahead. The head runs at the places asked about, in bounded blocks."""
        device = self.model.device
        ids, places, index, tokens = (torch.from_numpy(a).to(device) for a in (padded, distinct, where, wanted))
        features = self._features(ids).flatten(0, 1)[places]  # (P, d) or (P, V)
        logprobs = torch.empty(len(tokens), device=device)
        greedy = torch.empty(len(tokens), dtype=torch.bool, device=device)
        block = max(1, _LARGEST_LOGITS // self.model.config.vocab_size)
        for start in range(0, len(features), block):
            logits = self._logits(features[start : start + block])  # (p, V)
            mine = ((index >= start) & (index < start + block)).nonzero().squeeze(1)
            here, token = index[mine] - start, tokens[mine]
            logprobs[mine] = logits[here, token] - logits.logsumexp(dim=1)[here]
            greedy[mine] = logits.argmax(dim=1)[here] == token
        return logprobs.double().cpu().numpy(), greedy.cpu().numpy()

    def _features(self, ids: Tensor, **inputs: Any) -> Tensor:
        """What `_logits` reads: hidden states (B, T, d), or logits (B, T, V) where the head is not a plain product."""
        if self._head_is_plain:
            return self.model.base_model(input_ids=ids, **({"use_cache": False} | inputs)).last_hidden_state
        return self.model(input_ids=ids, **({"use_cache": False} | inputs)).logits

    def _logits(self, features: Tensor) -> Tensor:
        """float32 logits (..., V)."""
        if not self._head_is_plain:
            return features.float()
        return self.model.get_output_embeddings()(features).float() / self._scale

    @torch.inference_mode()
    def _plain_head_agrees(self) -> bool:
        """Some architectures cap or scale their logits in their own way; then the whole model must be run."""
        ids = torch.tensor([[self._bos, 1, 2, 3]], device=self.model.device)
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        return torch.allclose(self._logits(self._features(ids)), expected, rtol=1e-4, atol=1e-4)

    @staticmethod
    def _scored(row: _Row, answer: slice, straddles: bool, truncated: bool) -> Scored:
        logprobs, greedy = row.logprobs[answer], row.greedy[answer]
        return Scored(float(logprobs.sum()), len(logprobs), int(greedy.sum()), straddles, truncated)

    def _continue(self, prompts: list[tuple[int, ...]], stop: list[str | None], max_tokens: list[int]) -> list[str]:
        """Greedy text after each prompt. Prompts are padded on the left so that all grow at the same column; rows that
        are done leave the batch and its cache."""
        device, width = self.model.device, max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._bos)  # (B, P)
        mask = torch.zeros_like(ids)
        for line, prompt in enumerate(prompts):
            ids[line, width - len(prompt) :] = torch.tensor(prompt)
            mask[line, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=self.model.config)
        generated: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        active = list(range(len(prompts)))
        while True:
            features = self._features(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            chosen = self._logits(features[:, -1]).argmax(dim=1)  # (B,)
            tokens = chosen.tolist()
            for i, token in zip(active, tokens, strict=True):
                if token not in self._end:
                    generated[i].append(token)
            decoded = self.tokenizer.batch_decode([generated[i] for i in active], clean_up_tokenization_spaces=False)
            going = []
            for line, (i, token, text) in enumerate(zip(active, tokens, decoded, strict=True)):
                texts[i] = text
                mark = stop[i]
                if token not in self._end and len(generated[i]) < max_tokens[i] and not (mark and mark in text):
                    going.append(line)
            if not going:
                return texts
            if len(going) < len(active):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
                active = [active[line] for line in going]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            positions = positions[:, -1:] + 1
