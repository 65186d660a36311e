"""One checkpoint on disk: a native transformers folder, its record `meta.json`, and on some the training state.

A folder appears under its name only when everything in it is on disk, so present means complete. Beside the
checkpoints of the schedule, `step-000100`, a run keeps at most one other between them, `resume-000137`: only training
goes on from it, nothing evaluates it."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from models.spec import SpecError

META = "meta.json"
STATE = "state.pt"
WEIGHTS = "model.safetensors"
_MARGIN_BYTES = 16 << 20  # tokenizer, configuration, records


class OutOfSpace(SpecError):
    """A checkpoint could not be written: no space, no quota, or no right to. Those written before are untouched."""


class Torn(ValueError):
    """A checkpoint does not hold what was written; the message names the folder and what is wrong with it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars, which say nothing for a file or two."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def resume_name(step: int) -> str:
    return f"resume-{step:06d}"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters, sorted by name."""
    return _digest(model.named_parameters())


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any] | None,
    meta: dict[str, Any],
) -> None:
    """Write `folder`, replacing one of that name; without a `state`, training cannot go on from it.

    Everything goes to a hidden sibling first, is flushed to disk, and is renamed into place. Raises OutOfSpace, and
    leaves nothing half-written, where the disk does not take it."""
    folder = Path(folder)
    temporary = _hidden(folder)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _require_space(folder, model, with_state=state is not None)
        with quiet():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if state is not None:
            with open(temporary / STATE, "wb") as file:
                torch.save(state, file)
        (temporary / META).write_text(json.dumps(meta, indent=1, sort_keys=True), encoding="utf-8")
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    except OutOfSpace:
        raise
    except Exception as error:  # safetensors, tokenizers and torch each have a type of their own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutOfSpace(f"{folder}: this checkpoint could not be written ({_first_line(error)}); {_REMEDY}") from error


_REMEDY = (
    "make room there, or see to the quota and the rights, and start again: the checkpoints before it are whole, and "
    "training goes on from them"
)


def _require_space(folder: Path, model: PreTrainedModel, *, with_state: bool) -> None:
    weights = sum(parameter.nbytes for parameter in model.parameters())
    needed = weights * (3 if with_state else 1) + _MARGIN_BYTES  # AdamW keeps two moments of each weight
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OutOfSpace(f"{folder}: this checkpoint needs {needed} bytes and {free} are free; {_REMEDY}")


def _first_line(error: BaseException) -> str:
    if isinstance(error.__context__, OSError):  # torch says where its writer stood when that happened, not what
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def remove_leftovers(run_folder: Path, *, after: int) -> None:
    """Remove what a killed process had begun to write, and states after the step that training goes on from: they
    are torn, or follow a gap. Only for the one process that trains this run."""
    for path in Path(run_folder).glob(".*.tmp"):
        if re.fullmatch(r"\.(step|resume)-\d{6,}\.tmp", path.name):
            shutil.rmtree(path)
    for path in states(run_folder):
        if step_of(path) > after:
            _drop_state(path)


def prune(run_folder: Path, *, n_states: int, states_at: Collection[int]) -> None:
    """Keep the training state of the newest `n_states` checkpoints that have one and of the steps `states_at`, and
    the newest resume folder while it is ahead of them. `n_states` is 0 once training is over: none is kept then."""
    held = [path for path in checkpoints(run_folder) if (path / STATE).is_file()]
    for path in held[: max(0, len(held) - n_states)]:
        if step_of(path) not in states_at:
            _drop_state(path)
    at = max((step_of(path) for path in held), default=-1)
    between = _folders(run_folder, "resume")
    for path in between:
        if n_states == 0 or step_of(path) <= at or path != between[-1]:
            _drop_state(path)


def _drop_state(folder: Path) -> None:
    if folder.name.startswith("resume"):  # it is nothing else; no half of it is ever seen under its name
        os.replace(folder, _hidden(folder))
        shutil.rmtree(_hidden(folder))
    else:
        (folder / STATE).unlink()


def checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; hidden or half-written folders do not count."""
    return _folders(run_folder, "step")


def states(run_folder: Path) -> list[Path]:
    """The folders training can go on from, newest first, resume folders included."""
    found = [*_folders(run_folder, "resume"), *_folders(run_folder, "step")]
    return sorted((path for path in found if (path / STATE).is_file()), key=step_of, reverse=True)


def _folders(run_folder: Path, kind: str) -> list[Path]:
    run_folder = Path(run_folder)
    if not run_folder.is_dir():
        return []
    found = [path for path in run_folder.iterdir() if re.fullmatch(rf"{kind}-\d{{6,}}", path.name)]
    return sorted((path for path in found if (path / META).is_file()), key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint or resume folder."""
    return int(folder.name.rpartition("-")[2])


def latest(run_folder: Path) -> Path | None:
    """The newest complete checkpoint; None when there is none."""
    found = checkpoints(run_folder)
    return found[-1] if found else None


def load_meta(folder: Path) -> dict[str, Any]:
    """The record written with the checkpoint. Raises Torn when it cannot be read."""
    try:
        return json.loads((Path(folder) / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Torn(f"{folder}: {META} cannot be read ({_first_line(error)})") from error


def load_whole(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """Record, weights and training state, on the CPU. Raises Torn unless all three are what was written together."""
    folder = Path(folder)
    try:
        record, weights = load_meta(folder), load_file(folder / WEIGHTS)
        with zipfile.ZipFile(folder / STATE) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums that torch.save leaves
        if damaged is not None:
            raise Torn(f"{folder}: {STATE} is damaged in its part {damaged}")
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        digest = record["weights_digest"]
    except Torn:
        raise
    except Exception as error:  # what a file cut short looks like differs by file, library and place
        raise Torn(f"{folder}: cannot be read ({_first_line(error)})") from error
    if _digest(weights.items()) != digest or state.get("weights_digest", digest) != digest:
        raise Torn(f"{folder}: its weights, training state and {META} do not belong together")
    return record, weights, state


def load_weights(folder: Path, model: PreTrainedModel) -> None:
    """Copy the weights of a checkpoint into a model of the same spec, bit by bit."""
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
