"""Checkpoints made anywhere: found, checked and loaded, or refused in one line that says what is wrong with them.

Only safetensors are read, a repository's own code runs only when asked for, and no tensor
is ever filled in at random."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from models.checkpoint import META, quiet, weights_digest
from models.encoding import Encoding
from models.hub import SMALL, absent_weights, first_line, locate, read_record, weights_files
from models.lm import LanguageModel, TransformerLM
from models.spec import SpecError
from models.tokenizer import tokenizer_digest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CONTEXTS = ("max_position_embeddings", "max_seq_len", "seq_length")
_SHAPE = {
    "n_layer": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_head": "num_attention_heads",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
}
# Share of the largest logit. On a CPU causal models were measured to differ by 0 in every dtype, a random masked model
# of one layer by 3e-4; the room is for kernels whose rounding depends on the whole batch.
_SEES_AHEAD = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.02}


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What config and tokenizer say of a checkpoint; its weights need not be there."""

    name: str  # as a person would write it: a folder, or org/name@revision
    folder: Path
    config: Any
    tokenizer: PreTrainedTokenizerBase
    tokenizer_digest: str
    context_length: int
    n_params: int
    n_params_non_embedding: int  # neither token nor position embeddings, nor the head
    shape: dict[str, int | None]  # the columns of a run
    ends: Any  # the end tokens of generation_config.json, as they stand there

    @property
    def special_tokens(self) -> dict[str, Any]:
        """What a text is read after, and the tokens that end one."""
        encoding = Encoding(self.tokenizer)
        return {"start": encoding.start, "prefix": encoding.prefix, "ends": self.ends} | {
            name: getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos")
        }

    @property
    def reader(self) -> "Reader":
        return Reader(self.tokenizer, self.context_length)


class Reader:
    """The half of a `LanguageModel` that needs no weights: what fits, and what can be asked at all."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
        self.context_length = context_length
        self._encoding = Encoding(tokenizer)
        self.prefix = self._encoding.prefix

    def encode(self, texts: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Token ids (n,) and character spans (n, 2) of every distinct text."""
        return self._encoding.encode(texts)

    def count_tokens(self, text: str) -> int:
        return len(self.encode([text])[text][0])

    def check(self, context: str, continuations: tuple[str, ...]) -> None:
        """Raise SpecError for a continuation that has no token of its own, or more than the context length."""
        self._encoding.pairs([(context, continuations)], self.context_length)


def describe(source: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> Description:
    """Read config and tokenizer. Raises SpecError for a checkpoint that cannot be asked, before any weight is read."""
    name = f"{source}@{revision}" if revision else str(source)
    folder = locate(source, revision, code=trust_remote_code)
    if Path(source).is_dir() and (absent := absent_weights(folder)):
        raise SpecError(f"{name}: {absent}")
    config = _config(folder, name, trust_remote_code)
    tokenizer, tokens = _tokenizer(str(folder), _stamp(folder), name, trust_remote_code)
    _check_tokenizer(folder, name, tokens["digest"])
    text = config.get_text_config(decoder=True)
    if tokens["largest"] >= text.vocab_size:
        raise SpecError(
            f"{name}: its tokenizer gives ids up to {tokens['largest']}, but the model has {text.vocab_size} "
            "embeddings; put the tokenizer beside the weights that it was trained with"
        )
    context = next((value for key in _CONTEXTS if (value := getattr(text, key, None))), None)
    if context is None:
        raise SpecError(f"{name}: config.json names no longest context; add max_position_embeddings to it")
    ends = read_record(folder / "generation_config.json").get("eos_token_id")
    n_params, n_params_non_embedding = _count(config, name, trust_remote_code)
    return Description(
        name=name,
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        tokenizer_digest=tokens["digest"],
        context_length=context,
        n_params=n_params,
        n_params_non_embedding=n_params_non_embedding,
        shape={ours: getattr(text, theirs, None) for ours, theirs in _SHAPE.items()} | {"context_length": context},
        ends=ends,
    )


def load_tokenizer_of(
    source: str | Path, revision: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint; its weights need not be there. Raises SpecError."""
    folder = locate(source, revision, code=trust_remote_code)
    return _tokenizer(str(folder), _stamp(folder), str(source), trust_remote_code)[0]


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    reference: bool = False,
) -> LanguageModel:
    """Return a folder's or a hub model's checkpoint as a `TransformerLM`, or, with `reference`, as a `ReferenceLM`.

    `dtype` is that of the weights; log-probabilities are float32 in any case. Raises SpecError naming the file or
    tensor where anything is missing, damaged or not a number, and where the model is not a causal one."""
    if dtype not in DTYPES:
        raise SpecError(f"unknown dtype {dtype!r}; accepted: {', '.join(DTYPES)}")
    device = find_device(device)
    found = describe(source, revision, trust_remote_code=trust_remote_code)
    folder = locate(source, revision, weights=True, code=trust_remote_code)
    for file in weights_files(folder):
        try:
            with safe_open(file, framework="pt"):  # reads the header, which says how long the file is
                pass
        except (SafetensorError, OSError) as error:
            raise SpecError(f"{file}: damaged or cut off ({first_line(error)}); copy or download it again") from None
    model, info = _load(folder, found, dtype, trust_remote_code)
    _check_complete(found.name, info)
    _check_numbers(found.name, model, dtype)
    if recorded := read_record(folder / META).get("weights_digest"):  # one of ours; taken of weights in fp32
        saved = model if dtype == "fp32" else _load(folder, found, "fp32", trust_remote_code)[0]
        if weights_digest(saved) != recorded:
            raise SpecError(
                f"{found.name}: its weights are not those that {META} was written for; copy the folder again, or "
                f"remove {META} where they were changed on purpose"
            )
    model = model.to(device).eval()
    _check_causal(found.name, model)
    options: dict[str, Any] = {"context_length": found.context_length}
    if reference:
        from models.reference import ReferenceLM

        return ReferenceLM(model, found.tokenizer, **options)
    return TransformerLM(model, found.tokenizer, batch_tokens=batch_tokens, **options)


def find_device(device: str) -> str:
    """Turn auto, cpu or cuda into cpu or cuda. Raises SpecError for a GPU that is not there."""
    if device not in ("auto", "cpu", "cuda"):
        raise SpecError(f"unknown device {device!r}; accepted: auto, cpu, cuda")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise SpecError("device cuda: torch finds no GPU here; use --device cpu, or a torch built for your GPU")
    return "cuda" if device != "cpu" and there else "cpu"


def _load(folder: Path, found: Description, dtype: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Return the model and what transformers says of the tensors it found."""
    with _silent(), _refusing(found.name):
        # Sizes that differ are let through, to be named later: transformers raises without a name.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=found.config,
            dtype=DTYPES[dtype],
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    return loaded


def _check_tokenizer(folder: Path, name: str, digest: str) -> None:
    """Raise SpecError where a checkpoint of ours stands with another tokenizer than its run was trained with."""
    run = folder.resolve().parent / "run.json"
    if (folder / META).is_file() and read_record(run).get("tokenizer_digest", digest) != digest:
        raise SpecError(f"{name}: its tokenizer is not the one that {run} names; copy the folder again")


def _config(folder: Path, name: str, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise SpecError(f"{name}: has no config.json; give the folder that save_pretrained wrote")
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, own_code = stored.get("model_type"), stored.get("auto_map")
    except (ValueError, AttributeError) as error:
        raise SpecError(f"{folder / 'config.json'}: cannot be read ({first_line(error)}); copy it again") from None
    if kind not in CONFIG_MAPPING and not (own_code and trust_remote_code):
        remedy = (
            "it brings code of its own: read it, and allow it with --trust-remote-code"
            if own_code
            else "correct model_type in its config.json, or use a newer transformers"
        )
        raise SpecError(f"{name}: transformers knows no model of the type {kind!r}; {remedy}")
    with _silent(), _refusing(name):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if own_code and trust_remote_code:
        return config
    built: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    saved = [str(architecture) for architecture in config.architectures or []]
    if built is None or (saved and built.__name__.lower() not in map(str.lower, saved)):
        raise SpecError(
            f"{name}: holds {' '.join(saved) or 'a ' + str(kind)}, which is no causal language model; give one that "
            "AutoModelForCausalLM loads"
        )
    return config


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name the state of the files that a tokenizer is made of."""
    files = sorted({path for pattern in SMALL for path in folder.glob(pattern)})
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file())


@lru_cache(maxsize=64)
def _tokenizer(
    folder: str, stamp: tuple[tuple[str, int, int], ...], name: str, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """Return the tokenizer, its digest and its largest id."""
    try:
        with _silent(), _refusing(name, "its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except SpecError as error:
        file = Path(folder) / "tokenizer.json"
        remedy = "copy or download {} again" if file.is_file() else "{} is missing: put it beside the weights"
        raise SpecError(f"{error}; {remedy.format(file)}") from None
    files = {file for file in tokenizer.vocab_files_names.values() if isinstance(file, str)} | {"tokenizer.json"}
    if not any(entry[0] in files for entry in stamp):  # transformers makes up an empty one
        raise SpecError(f"{name}: has no tokenizer ({' or '.join(sorted(files))}); put it beside the weights")
    Encoding(tokenizer)  # raises for one that cannot serve
    return tokenizer, {"digest": tokenizer_digest(tokenizer), "largest": max(tokenizer.get_vocab().values())}


def _count(config: Any, name: str, trust_remote_code: bool) -> tuple[int, int]:
    """Count the parameters of the model that a config builds: all, and without embeddings and head."""
    with torch.device("meta"), _silent(), _refusing(name):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    every = {id(p): p.numel() for p in model.parameters()}
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    if (head := model.get_output_embeddings()) is not None:
        tables.extend(head.parameters())
    return sum(every.values()), sum(every.values()) - sum({id(p): p.numel() for p in tables}.values())


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Raise SpecError where files and model do not hold the same tensors in the same shapes."""

    def first(key: str) -> tuple[Any, str]:
        lost = sorted(info.get(key) or [])
        return (lost[0] if lost else None), f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""

    missing, more = first("missing_keys")
    if missing is not None:
        raise SpecError(f"{name}: its weights lack the tensor {missing!r}{more}; copy or download them again")
    changed, more = first("mismatched_keys")
    if changed is not None:
        tensor, stored, asked = changed
        raise SpecError(
            f"{name}: the tensor {tensor!r} has the shape {tuple(stored)}, config.json asks for {tuple(asked)}{more}"
            "; bring back the config that belongs to these weights"
        )
    foreign, more = first("unexpected_keys")
    if foreign is not None:
        raise SpecError(
            f"{name}: its weights hold the tensor {foreign!r}{more}, which the model of its config.json has no place "
            "for; bring back the config that belongs to these weights"
        )
    if info.get("error_msgs"):
        raise SpecError(f"{name}: cannot be loaded ({first_line(info['error_msgs'][0])})")


def _check_numbers(name: str, model: PreTrainedModel, dtype: str) -> None:
    for tensor, values in model.named_parameters():
        if not torch.isfinite(values).all():
            what = "NaN" if torch.isnan(values).any() else "an infinite number"
            hint = (
                "; try --dtype bf16 or fp32" if dtype == "fp16" else "; the run that made it diverged, or it is damaged"
            )
            raise SpecError(f"{name}: the tensor {tensor!r} holds {what}{hint}")


@torch.inference_mode()
def _check_causal(name: str, model: Any) -> None:
    """Raise SpecError where the last token of a text changes what the model says of the tokens before it."""
    vocab = model.get_input_embeddings().weight.shape[0]
    rows = torch.arange(8, device=model.device).repeat(2, 1) % vocab  # (2, 8)
    rows[1, -1] = (rows[1, -1] + 1) % vocab
    one, other = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
    if (one - other).abs().max() > _SEES_AHEAD[model.dtype] * one.abs().max():
        raise SpecError(f"{name}: a token changes what the model says before it, so it is no causal language model")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from reporting what is checked here."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _refusing(name: str, what: str = "it") -> Iterator[None]:
    """Turn whatever transformers raises over a checkpoint into one line."""
    try:
        yield
    except SpecError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise SpecError(f"{name}: {what} cannot be loaded ({first_line(error)})") from error
