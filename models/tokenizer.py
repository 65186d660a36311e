"""A byte-level BPE trained on a corpus, as a transformers tokenizer."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.spec import SpecError

BOS_TOKEN = "<|bos|>"
BOS_TOKEN_ID = 0
_N_BYTES = 256

# Words, single digits and runs of other symbols, each with the one space before it; newlines and further spaces alone.
# A digit alone keeps place value visible to the model; a newline alone keeps it usable as a stop.
_PIECES = r"\n| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` entries: one special token (begin, end and padding), 256 bytes, merges.

    The tokenizer adds no special token by itself. Any string round-trips. Raises SpecError below 257 entries."""
    if vocab_size <= _N_BYTES:
        raise SpecError(f"vocab_size must be at least {_N_BYTES + 1} (all bytes, one special token), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Offsets must cover the leading space, or a continuation's first token could not be told from its context's last.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=BOS_TOKEN,
        pad_token=BOS_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `folder` (by its own `save_pretrained`, or with a checkpoint)."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides the token ids: vocabulary, merges and rules, in a canonical order."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left behind by whichever call padded or truncated last; no part of the tokenizer's identity.
    rules.pop("padding", None)
    rules.pop("truncation", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
