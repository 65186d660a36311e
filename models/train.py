"""Train one model on one token stream, with checkpoints, resuming by itself where it stopped.

The batch of step s is rows s B .. (s + 1) B of the stream and nothing draws from a random generator, so a run is a
function of its specs and its stream. A resumed run therefore equals an uninterrupted one bit by bit (one process), and
so does a branch that starts from a checkpoint of its trunk: a kept state saves time and never changes a result.

Of several processes that train one run (models.distributed) the main one alone decides and writes."""

import ctypes
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from models import checkpoint
from models.data import TokenStream
from models.distributed import of_main
from models.loop import Loop
from models.recipe import AS_IT_IS, Recipe
from models.schedule import branch_step, checkpoint_steps
from models.spec import ModelSpec, SpecError, TrainSpec

Progress = Callable[[dict[str, Any]], None]

_SECONDS_BETWEEN_REPORTS = 0.5
_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Training stopped because it was asked to; the message says at which step, and that its state is put away."""


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of returning them to the kernel; does nothing under another libc.

    Activations are above glibc's mmap threshold, so each step would map and fault in the same pages again: measured
    up to 30 % of a small model's step."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    for option in (m_trim_threshold, m_mmap_threshold):
        # Some versions refuse an mmap threshold above 32 MiB, and report it by returning 0.
        if not libc.mallopt(option, 1 << 30):
            libc.mallopt(option, 32 << 20)


def _check(
    model: ModelSpec, train: TrainSpec, stream: TokenStream, tokenizer: PreTrainedTokenizerBase, accumulation: int
) -> int:
    """Rows per batch, after refusing what does not fit together."""
    if train.batch_tokens % model.context_length:
        raise SpecError(
            f"batch_tokens={train.batch_tokens} must be a multiple of context_length={model.context_length}; "
            f"try {model.context_length * max(1, round(train.batch_tokens / model.context_length))}"
        )
    if stream.row_tokens != model.context_length + 1:
        raise SpecError(
            f"{stream.path.name} has rows of {stream.row_tokens} tokens, but context_length={model.context_length} "
            f"needs {model.context_length + 1} (inputs and the token after); write the stream again"
        )
    n_entries = max(len(tokenizer), stream.largest_id + 1)
    if n_entries > model.vocab_size:
        raise SpecError(
            f"tokenizer and stream use {n_entries} token ids, more than vocab_size={model.vocab_size}; raise vocab_size"
        )
    n_rows = train.batch_tokens // model.context_length
    if train.steps * n_rows > stream.n_rows:
        raise SpecError(
            f"{train.steps} steps of {n_rows} rows need {train.steps * n_rows} rows, but {stream.path.name} holds "
            f"{stream.n_rows}; write a longer stream or train on at most "
            f"{stream.n_rows // n_rows * train.batch_tokens} tokens"
        )
    if isinstance(accumulation, bool) or not isinstance(accumulation, int) or accumulation < 1 or n_rows % accumulation:
        raise SpecError(
            f"accumulation={accumulation!r} must be a whole number that divides the {n_rows} rows of a batch; "
            f"accepted: {', '.join(str(n) for n in range(1, n_rows + 1) if n_rows % n == 0)}"
        )
    return n_rows


def _identity(model: ModelSpec, train: TrainSpec, stream: TokenStream) -> dict[str, Any]:
    """What a checkpoint belongs to: its run, so that a folder is never continued with another recipe, and its stem,
    all that shapes the weights up to the decay, which a trunk shares with its branches."""
    recipe = {"model": asdict(model), "train": asdict(train), "data": stream.digest}
    only_later = {"tokens", "decay", "final_lr", "n_checkpoints"}
    shared = {name: value for name, value in asdict(train).items() if name not in only_later}
    stem = recipe | {"train": shared | {"warmup": train.warmup_tokens}}
    return {
        name: hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        for name, what in (("run_digest", recipe), ("stem_digest", stem))
    }


def _there(folder: Path, identity: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The records of the checkpoints in a run's folder by step; SpecError if one belongs to another recipe."""
    found = {}
    for path in sorted({*checkpoint.checkpoints(folder), *checkpoint.states(folder)}):
        try:
            record = checkpoint.load_meta(path)
        except checkpoint.Torn as error:
            _log.warning("%s; it is written again", error)
            continue
        if record["run_digest"] != identity["run_digest"]:
            raise SpecError(
                f"{folder} holds checkpoints of another model, schedule or token stream; train into another folder or "
                f"delete it"
            )
        if path.name == checkpoint.folder_name(record["step"]):
            found[record["step"]] = record
    return found


def _check_alike(run: Loop, folders: Iterable[Path]) -> None:
    """Raises SpecError where one of these runs has another precision or kernel: it would look like an effect of scale,
    and a run that changes them half-way is no function of its spec."""
    here = {"precision": run.precision, "attention": run.attention.implementation}
    for folder in folders:
        for path in (*checkpoint.checkpoints(folder)[:1], *checkpoint.states(folder)[:1]):
            try:
                record = checkpoint.load_meta(path)
            except checkpoint.Torn:
                continue
            for name, value in here.items():
                if record[name] != value:
                    raise SpecError(
                        f"{name}={value!r} is what this device has, and {folder.name} was trained with "
                        f"{record[name]!r}; train a family on one kind of device, or name {name} instead of 'auto'"
                    )


def _start(run: Loop, folder: Path, trunk: Path | None, stem: str, missing: int) -> None:
    """Bring a fresh loop to the newest sound state it may go on from, its own or its trunk's; it stays at step 0 if
    there is none. `missing` is the first checkpoint still to be written: what lies after it is of no use."""

    def of_stem(record: dict[str, Any]) -> bool:
        same = record.get("stem_digest") == stem and record["phase"] in ("init", "warmup", "stable")
        # A precision or kernel that was left to the device must have been chosen alike.
        alike = (record["precision"], record["attention"]) == (run.precision, run.attention.implementation)
        return same and alike and record["step"] <= branch_step(run.spec)

    sources = [(path, False) for path in checkpoint.states(folder)]
    sources += [(path, True) for path in (checkpoint.states(trunk) if trunk is not None else [])]
    sources.sort(key=lambda source: checkpoint.step_of(source[0]), reverse=True)
    for path, is_trunk in sources:
        try:
            record = checkpoint.load_meta(path)
            if record["step"] <= missing and (not is_trunk or of_stem(record)):
                run.resume(path, as_branch=is_trunk)
                return
        except checkpoint.Torn as error:
            _log.warning("%s; training goes on from an older state, or from its start", error)


@dataclass(frozen=True, kw_only=True)
class _Keeper:
    """Takes a run to its end, and is the only hand that writes to its folder."""

    run: Loop
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    states_at: Collection[int]
    n_states: int
    state_seconds: float

    def train(self, due: Collection[int], progress: Progress | None, stopping: Callable[[], bool] | None) -> None:
        """Take the steps that are left; of those `due`, a checkpoint is written."""
        run = self.run
        checkpoint.remove_leftovers(self.folder, after=run.step)
        last_report, last_state = 0.0, time.monotonic()
        while True:
            if run.step in due:
                self._checkpoint()
                last_state = time.monotonic()
            if run.step == run.spec.steps:
                return
            if stopping is not None and stopping():
                self._put_away()
                raise Interrupted(f"stopped at step {run.step} of {run.spec.steps}; the same call goes on from there")
            if time.monotonic() - last_state >= self.state_seconds:
                try:
                    self._put_away()
                except checkpoint.OutOfSpace as error:  # a precaution: what it guards against need not come
                    _log.warning("%s", error)
                last_state = time.monotonic()
            run.advance()
            if progress is not None and time.monotonic() - last_report >= _SECONDS_BETWEEN_REPORTS:
                last_report = time.monotonic()
                progress(run.report())

    def _checkpoint(self) -> None:
        """Write the present step, with its training state unless nothing can need it any more."""
        ended = self.run.step == self.run.spec.steps
        path = self.folder / checkpoint.folder_name(self.run.step)
        with_state = not ended or self.run.step in self.states_at
        self.run.save(path, self.tokenizer, self.identity, with_state=with_state)
        self._prune(0 if ended else self.n_states)

    def _put_away(self) -> None:
        """Write the present step for training alone, unless it can already go on from there."""
        if any(checkpoint.step_of(path) == self.run.step for path in checkpoint.states(self.folder)):
            return
        self.run.save(self.folder / checkpoint.resume_name(self.run.step), self.tokenizer, self.identity)
        self._prune(self.n_states)

    def _prune(self, n_states: int) -> None:
        checkpoint.prune(self.folder, n_states=n_states, states_at=self.states_at)


def train(
    model_spec: ModelSpec,
    train_spec: TrainSpec,
    stream: TokenStream,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    progress: Progress | None = None,
    accumulation: int = 1,
    recipe: Recipe = AS_IT_IS,
    log_with: str | None = None,
    family: Path | None = None,
    head_dims: Collection[int] = (),
    trunk: Path | None = None,
    states_at: Collection[int] = (),
    n_states: int = 1,
    state_seconds: float = 600.0,
    stopping: Callable[[], bool] | None = None,
) -> list[dict[str, Any]]:
    """Train until the last checkpoint is in `folder`, and return every scheduled checkpoint's record, oldest first.

    A record holds step, tokens, phase, is_last, annealed, train_loss (nats, mean of the last 50 steps; None before the
    first), weights_digest, data_digest, run_digest, stem_digest, attention, attention_rejected, layers, recipe,
    processes, precision, device, tokens_reused, cpu_seconds and wall_seconds spent on the run up to there, and
    peak_memory_bytes.

    `trunk` is the folder of a run that this one is a branch of (`models.spec.branch`): what the two share is taken from
    there as far as a state of it was kept, which `tokens_reused` says and the seconds leave out, and this folder holds
    only what the trunk has not. A run keeps the training state of its newest `n_states` checkpoints until it ends, and
    for good that of the steps `states_at`, where its branches begin; every `state_seconds` between checkpoints, and
    when `stopping`, asked at every step, says so, it puts one away besides. Of several, the newest undamaged one is
    gone on from, with a warning in the log about the others.

    `accumulation` pieces of a batch go through the model one after the other: less memory, the same gradients up to
    rounding. `recipe` says how a step is computed (models.recipe). Neither is part of the run's identity, nor is
    the number of processes. The folders in `family` hold runs that this one is compared with, `head_dims` are the head
    sizes of their models: all must have one precision and one attention kernel, whatever each would have by itself,
    and so must a run that is gone on with. `log_with` names a tracker (models.trackers), which writes to the folder
    `tracking` of the run; `progress` is called at most twice a second.

    Raises SpecError for specs, stream and tokenizer that do not fit together, TrainingDiverged (models.divergence)
    when a run is lost, checkpoint.OutOfSpace when the disk takes no more, Interrupted when `stopping`. In all of these
    the checkpoints before stay, and all of them are finite."""
    folder, trunk = Path(folder), Path(trunk) if trunk is not None else None
    family = Path(family) if family is not None and Path(family).is_dir() else None
    n_rows = _check(model_spec, train_spec, stream, tokenizer, accumulation)
    if n_states < 1:
        raise SpecError(f"n_states={n_states} must be at least 1: without training state a run cannot be resumed")
    identity = _identity(model_spec, train_spec, stream)
    scheduled = checkpoint_steps(train_spec, of_branch=trunk is not None)

    def look() -> dict[int, dict[str, Any]]:
        return _there(folder, identity)

    there = of_main(look)
    missing = [step for step in scheduled if step not in there]
    if missing:
        keep_freed_memory()
        options: dict[str, Any] = {"recipe": recipe, "log_with": log_with, "log_folder": folder / "tracking"}
        with Loop(model_spec, train_spec, stream, n_rows, accumulation, **options, head_dims=head_dims) as run:
            if run.is_main:
                _check_alike(run, [folder, *(sorted(family.iterdir()) if family is not None else ())])
                _start(run, folder, trunk, identity["stem_digest"], missing[0])
                keeper = _Keeper(
                    run=run,
                    folder=folder,
                    tokenizer=tokenizer,
                    identity=identity,
                    states_at=states_at,
                    n_states=n_states,
                    state_seconds=state_seconds,
                )
                sound = {step for step in there if step <= run.step}
                keeper.train({*scheduled, *states_at} - sound, progress, stopping)
            else:
                run.follow()
        there = of_main(look)
    return [there[step] for step in scheduled]
