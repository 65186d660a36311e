"""Where a checkpoint's files stand: in a folder, or in the hub's cache, and what they are. Reads no weights.

Only safetensors count as weights: the older pickled files can run code when they are read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from models.spec import SpecError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL = ["*.json", "*.txt", "*.model", "*.tiktoken"]  # what a repository holds besides weights and code


def is_hub_name(source: str) -> bool:
    """Whether this could be org/name on the hub; a path with more or with dots in front could not."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source))


def locate(source: str | Path, revision: str | None = None, *, weights: bool = False, code: bool = False) -> Path:
    """Return the folder of a checkpoint: itself, or a hub model's in the cache, downloaded where that is allowed.

    What the cache holds is taken as it is. Raises SpecError when a model is neither here nor to be had."""
    if Path(source).is_dir():
        return Path(source)
    name = str(source)
    if not is_hub_name(name):
        raise SpecError(f"{name}: no such folder; give a checkpoint's folder, or a hub model as org/name@revision")
    from huggingface_hub import constants, errors, snapshot_download

    patterns = SMALL + ["model*.safetensors"] * weights + ["*.py"] * code
    asked: dict[str, Any] = {"revision": revision, "allow_patterns": patterns}
    by_hand = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    at = f"{name}@{revision}" if revision else name
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **asked))
        if (folder / "config.json").is_file() and (not weights or not absent_weights(folder)):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE:
        raise SpecError(
            f"{at}: not in the local cache, and HF_HUB_OFFLINE is set; download it beforehand with: {by_hand}"
        )
    try:
        return Path(snapshot_download(name, **asked))
    except errors.GatedRepoError:
        why = "its owners want their terms accepted first: do so on its page, then run: hf auth login"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision!r}; see its page for those it has"
    except errors.RepositoryNotFoundError:
        why = "the hub has no such model, or not for you; correct the name, or run: hf auth login"
    except Exception as error:  # whatever the network comes up with
        why = f"it is not in the local cache and could not be fetched ({first_line(error)}); try: {by_hand}"
    raise SpecError(f"{at}: {why}")


def weights_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint. Raises SpecError where there are none, or a shard is missing."""
    if absent := absent_weights(folder):
        raise SpecError(f"{folder}: {absent}")
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else [folder / name for name in _shards(folder)]


def weights_file_digest(folder: Path) -> str:
    """SHA-256 of the bytes of the safetensors file, or of the lines "name digest" of several.

    The hub's cache names a file by its digest, which is then not computed again."""
    files = weights_files(folder)
    digests = [_file_digest(file) for file in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _file_digest(file: Path) -> str:
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _shards(folder: Path) -> list[str]:
    try:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise SpecError(f"{folder / INDEX}: cannot be read ({first_line(error)}); copy or download it again") from None


def absent_weights(folder: Path) -> str:
    """Say which weights a folder lacks, and what to do; nothing where all files are there."""
    if (folder / WEIGHTS).is_file():
        return ""
    if (folder / INDEX).is_file():
        lost = [name for name in _shards(folder) if not (folder / name).is_file()]
        return f"{lost[0]}, which {INDEX} names, is missing; copy or download it again" if lost else ""
    pickled = sorted(path.name for path in folder.glob("*.bin") if path.is_file())
    if pickled:
        return (
            f"has its weights in {pickled[0]} only, and such files can run code when they are read; where you trust "
            "it, load it once with transformers and write it again with save_pretrained, which makes model.safetensors"
        )
    return f"has no {WEIGHTS}; give the folder that save_pretrained wrote"


def read_record(file: Path) -> dict[str, Any]:
    """Return what a JSON file holds, nothing where there is none. Raises SpecError for one that cannot be read."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise SpecError(f"{file}: cannot be read ({first_line(error)}); copy or download it again") from None


def first_line(error: object) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
