"""A transformers model taken apart: hidden states, the head, and a cache that grows in place.

Two shortcuts are proved on the model itself when it is wrapped, against the plain way: that the head is a plain product
(so that it may run where it is asked alone), and that masks and positions given by the caller are obeyed (so that
continuations may share their context)."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from models.spec import SpecError

_PROBED = 10  # tokens of the longest row that a probe reads
Past = list[tuple[Tensor, Tensor]]  # keys and values (1, H, P, D) of every layer


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer of `capacity` columns; transformers' own copies all of it every step."""

    def __init__(self, rows: int, capacity: int, past: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self._rows, self._capacity = rows, capacity
        self._buffers: list[Tensor] = []  # of keys and of values, (B, H, capacity, D)
        self._length = 0
        if past is not None:
            self.update(*past)

    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, D) so far."""
        self.keys, self.values = (x[:, :, : self._length] for x in self._buffers)
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if not self._buffers:
            self._buffers = [x.new_empty(self._rows, x.shape[1], self._capacity, x.shape[3]) for x in new]
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self._length + key_states.shape[2]
        for x, states in zip(self._buffers, new, strict=True):
            x[:, :, self._length : end] = states
        self._length = end
        return self.held()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Row j becomes row indices[j], in place: a row that moves must come from behind all of them."""
        n = len(indices)
        moved = (indices != torch.arange(n, device=indices.device)).nonzero().squeeze(1)
        for x in self._buffers:
            x[moved, :, : self._length] = x[indices[moved], :, : self._length]
        self._buffers = [x[:n] for x in self._buffers]
        self.held()


def context_of(model: PreTrainedModel, asked: int | None) -> int:
    """Tokens the model reads at once, or fewer if `asked`. Raises SpecError for more than it was made for."""
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if asked is None and most is None:
        raise SpecError(f"{type(model).__name__} names no longest context; give context_length")
    if asked is not None and not 1 <= asked <= (most or asked):
        raise SpecError(f"context_length must be 1 to {most} for this model, got {asked}")
    return int(asked or most)  # type: ignore[arg-type]


class Network:
    """`sharing` says what was proved: "tree" (continuations share their context), or "rows" (each is run alone)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        embeddings: Any = model.get_input_embeddings()
        self.vocab_size, self.d_model = (int(n) for n in embeddings.weight.shape)
        self._scale = float(getattr(model.config, "logits_scaling", 1.0))
        # Renamed in transformers 5.24, which warns of the old name.
        self._cache_word = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._room = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or _PROBED
        self.head_is_plain = True
        self.head_is_plain = self._head_agrees()
        # Rotations that are chosen by the longest row of a batch would make each row's score depend on the others.
        self.most_rows = 1 if self._rotates_by_length() else None  # of a batch
        probed = self._room >= _PROBED and self.most_rows is None
        plain = probed and self._layers_are_plain() and self._tree_agrees()
        self.sharing: Literal["tree", "rows"] = "tree" if plain else "rows"
        self.caches = plain or (probed and self._cache_agrees())  # else generation reads all tokens at every step

    def features(self, ids: Tensor, *, cache: DynamicCache | None = None, **inputs: Any) -> Tensor:
        """What `logits` reads: hidden states (B, T, d), or logits (B, T, V) where the head is not a plain product."""
        inputs |= {"use_cache": False} if cache is None else {"use_cache": True, self._cache_word: cache}
        if self.head_is_plain:
            return self.model.base_model(input_ids=ids, **inputs).last_hidden_state
        return self.model(input_ids=ids, **inputs).logits

    def logits(self, features: Tensor) -> Tensor:
        """float32 logits (..., V)."""
        if not self.head_is_plain:
            return features.float()
        logits = self.model.get_output_embeddings()(features).float()
        return logits if self._scale == 1 else logits.div_(self._scale)

    def new_cache(self, rows: int, capacity: int, past: Past | None = None) -> DynamicCache:
        """An empty cache, or one in which every row has read what `past` has."""
        cache = DynamicCache(config=self.model.config)
        if self.sharing == "tree":
            layers: Sequence[tuple[Tensor, Tensor] | None] = past or [None] * len(cache.layers)
            cache.layers = [GrowingLayer(rows, capacity, layer) for layer in layers]
        return cache

    def read(self, ids: Sequence[int]) -> Past:
        """Run a beginning once, for rows to go on from. Needs sharing "tree"."""
        cache = self.new_cache(1, len(ids))
        self.features(torch.tensor([list(ids)], device=self.device), cache=cache)
        return [layer.held() for layer in cache.layers if isinstance(layer, GrowingLayer)]

    def contexts(self, ids: Tensor, *, cache: DynamicCache | None, n_past: int) -> Tensor:
        """Features (B, T, d) of rows padded on the right, which no mask is needed for: nothing looks ahead."""
        if not n_past:
            return self.features(ids, cache=cache)
        positions = (n_past + torch.arange(ids.shape[1], device=ids.device)).expand(len(ids), -1)
        return self.features(ids, cache=cache, position_ids=positions)

    def masked(self, ids: Tensor, *, positions: Tensor, seen: Tensor, cache: DynamicCache) -> Tensor:
        """Features (B, T, d) of tokens that see what `seen` (B, T, columns of the cache and T more) says."""
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        return self.features(ids, cache=cache, attention_mask=mask[:, None], position_ids=positions)

    @torch.inference_mode()
    def _head_agrees(self) -> bool:
        """Some architectures cap or scale their logits in their own way; then the whole model must be run. A cap is
        nearly straight where logits are small, so its name is asked for too."""
        if getattr(self.model.config, "final_logit_softcapping", None) is not None:
            return False
        ids = self._some_ids(1, min(4, self._room))
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        try:
            found = self.logits(self.features(ids))
        except (AttributeError, TypeError, RuntimeError):  # no base model or head of the usual names
            return False
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)

    def _rotates_by_length(self) -> bool:
        rope = getattr(self.model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
        kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # some have one for each layer type
        return any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds)

    def _layers_are_plain(self) -> bool:
        """Whether every layer attends to all that came before, over keys and values: what a window or a recurrent
        layer leaves out, a short probe would not show."""
        config = self.model.config.get_text_config(decoder=True)
        try:
            return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
        except (AttributeError, TypeError, ValueError):
            return False

    @torch.inference_mode()
    def _cache_agrees(self) -> bool:
        """One more token after a cache whose first row has left, against a plain row."""
        ids = self._some_ids(2, 5)
        try:
            cache = self.new_cache(2, 5)
            self.contexts(ids[:, :4], cache=cache, n_past=0)
            cache.batch_select_indices(torch.tensor([1], device=self.device))
            found = self.features(ids[1:, 4:], cache=cache, position_ids=ids.new_full((1, 1), 4))
            return self._close(found, self.features(ids[1:])[:, -1:])
        except Exception:  # an architecture may lack such a cache in any way it likes
            return False

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        bound = max(1e-4, 16 * torch.finfo(self.model.dtype).eps) * expected.abs().max().item()
        return torch.allclose(found.float(), expected.float(), rtol=0, atol=bound)

    @torch.inference_mode()
    def _tree_agrees(self) -> bool:
        """A beginning, contexts of unequal length and branches with masks of their own, against plain rows."""
        self.sharing = "tree"  # what `new_cache` makes
        begin, ids, leaf = self._some_ids(1, 3), self._some_ids(2, 4, 3), self._some_ids(2, 3, 11)
        lengths = [4, 2]
        try:
            cache = self.new_cache(2, 10, self.read(begin[0].tolist()))
            self.contexts(ids, cache=cache, n_past=3)
            seen = torch.zeros(2, 3, 10, dtype=torch.bool, device=self.device)
            positions = torch.zeros(2, 3, dtype=torch.long, device=self.device)
            for row, n in enumerate(lengths):
                seen[row, :, : 3 + n] = True
                seen[row, :, 7:] = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]])  # 0 - 1 and, beside them, 2
                positions[row] = torch.tensor([3 + n, 4 + n, 3 + n])
            found = self.masked(leaf, positions=positions, seen=seen, cache=cache)
            for row, n in enumerate(lengths):
                for path in ([0, 1], [2]):
                    plain = torch.cat([begin[0], ids[row, :n], leaf[row, path]])[None]
                    if not self._close(found[row, path], self.features(plain)[0, -len(path) :]):
                        return False
        except Exception:  # an architecture may refuse a mask, a cache or positions in any way it likes
            return False
        return True

    def _some_ids(self, rows: int, length: int, start: int = 0) -> Tensor:
        """Token ids (rows, length) that do not repeat where the vocabulary allows it."""
        ids = (start + torch.arange(rows * length, device=self.device)) * 7 + 1
        return (ids % self.vocab_size).view(rows, length)
