"""One checkpoint on disk: a native transformers folder, its record `meta.json`, and on the newest the training state.

A folder appears under its name only when everything in it is on disk, so present means complete."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

META = "meta.json"
STATE = "state.pt"


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


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters, sorted by name."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
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
    optimizer_state: dict[str, Any] | None,
    meta: dict[str, Any],
) -> None:
    """Write `folder` (replacing one of that name) and drop the training state of its older siblings.

    Everything goes to a hidden sibling first, is flushed to disk, and is renamed into place."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet():
        model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if optimizer_state is not None:
        torch.save(optimizer_state, temporary / STATE)
    (temporary / META).write_text(json.dumps(meta, indent=1, sort_keys=True), encoding="utf-8")
    for path in temporary.iterdir():
        _sync(path)
    _sync(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    _sync(folder.parent)
    if optimizer_state is not None:
        for sibling in checkpoints(folder.parent):
            if sibling != folder:
                (sibling / STATE).unlink(missing_ok=True)


def checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; hidden or half-written folders do not count."""
    run_folder = Path(run_folder)
    if not run_folder.is_dir():
        return []
    found = [path for path in run_folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted((path for path in found if (path / META).is_file()), key=lambda path: int(path.name[5:]))


def latest(run_folder: Path, *, with_state: bool = False) -> Path | None:
    """The newest complete checkpoint, or the newest one training can go on from; None when there is none."""
    found = [path for path in checkpoints(run_folder) if not with_state or (path / STATE).is_file()]
    return found[-1] if found else None


def load_meta(folder: Path) -> dict[str, Any]:
    """The record written with the checkpoint."""
    return json.loads((Path(folder) / META).read_text(encoding="utf-8"))


def load_state(folder: Path) -> dict[str, Any]:
    """The training state kept with the newest checkpoint, on the CPU."""
    return torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)


def load_weights(folder: Path, model: PreTrainedModel) -> None:
    """Copy the weights of a checkpoint into a model of the same spec, bit by bit."""
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
