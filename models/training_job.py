"""One run as a command, for launchers: `accelerate launch --num_processes 4 -m models.training_job ORDER.json`.

The order is a JSON object: `model` and `train` (the fields of ModelSpec and TrainSpec), `stream` (a token file),
`tokenizer` and `folder` (folders), `options` for `models.train.train`, and whether it is `attended`: then the command
ends with its standard input. Beside the order the command writes
`progress.json` while it trains and `outcome.json` at its end, and it stops where a file `stop` appears.
Exit code 0, or 2 with one line for a request that cannot be carried out or a run that was lost.

On a CPU accelerate's launcher starts several processes only through MPI: use `python -m torch.distributed.run` there,
as `train_in_processes` does everywhere."""

import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import OutOfSpace
from models.data import open_stream
from models.divergence import TrainingDiverged
from models.recipe import Recipe
from models.spec import ModelSpec, SpecError, TrainSpec
from models.tokenizer import load_tokenizer
from models.train import Interrupted, Progress, train

_EXPECTED = {error.__name__: error for error in (SpecError, OutOfSpace, TrainingDiverged, Interrupted)}
_SECONDS_BETWEEN_LOOKS = 0.1
_LAST_WORDS = 300  # characters


def _write(path: Path, what: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(what), encoding="utf-8")
    os.replace(temporary, path)


def _read_order(path: Path) -> dict[str, Any]:
    """The arguments of `train`, and whether the order is `attended`. Raises SpecError for an order that is none."""
    try:
        order = json.loads(path.read_text(encoding="utf-8"))
        options = dict(order.get("options", {}))
        for name in ("trunk", "family"):
            if options.get(name) is not None:
                options[name] = Path(options[name])
        if "recipe" in options:
            options["recipe"] = Recipe(**options["recipe"])
        given = {
            "model_spec": ModelSpec(**order["model"]),
            "train_spec": TrainSpec(**order["train"]),
            "stream": open_stream(Path(order["stream"])),
            "tokenizer": load_tokenizer(Path(order["tokenizer"])),
            "folder": Path(order["folder"]),
            **options,
        }
        inspect.signature(train).bind(**given)
        return given | {"attended": order.get("attended", False)}
    except SpecError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path} is no order for training ({type(error).__name__}: {error})") from error


def _end_with_the_one_who_ordered() -> None:
    """End this process at once when standard input does: its writer is gone, and may be ordering the same run again.

    A launcher that is killed leaves its processes behind, and these would wait for one another, or train on."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Carry out one order as one of its processes; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m models.training_job ORDER.json", file=sys.stderr)
        return 2
    order = Path(arguments[0])
    is_main, code = os.environ.get("RANK", "0") == "0", 0
    try:
        given = _read_order(order)
        if given.pop("attended"):
            _end_with_the_one_who_ordered()
        progress, stop = order.with_name("progress.json"), order.with_name("stop")
        records = train(**given, progress=lambda report: _write(progress, report), stopping=stop.exists)
        outcome: dict[str, Any] = {"records": records}
    except tuple(_EXPECTED.values()) as error:
        outcome, code = {"error": type(error).__name__, "message": str(error)}, 2
        if is_main:
            print(f"training_job: {error}", file=sys.stderr)
    except Exception as error:
        traceback.print_exc()
        outcome, code = {"error": type(error).__name__, "message": f"{type(error).__name__}: {error}"}, 1
    if is_main and order.parent.is_dir():
        _write(order.with_name("outcome.json"), outcome)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


def train_in_processes(
    n_processes: int,
    model_spec: ModelSpec,
    train_spec: TrainSpec,
    stream: Path,
    tokenizer: Path,
    folder: Path,
    *,
    progress: Progress | None = None,
    stopping: Callable[[], bool] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What `models.train.train` returns or raises, of a run that `n_processes` processes of this machine train.

    `stream` and `tokenizer` are paths, `options` those of `train`. What it does not raise itself comes as RuntimeError
    with the processes' last words."""
    if isinstance(n_processes, bool) or not isinstance(n_processes, int) or n_processes < 1:
        raise SpecError(f"n_processes must be a whole number of at least 1, got {n_processes!r}")
    if "recipe" in options:
        options["recipe"] = asdict(options["recipe"])
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    wanted = {"model": asdict(model_spec), "train": asdict(train_spec), "options": options, "attended": True}
    places = {"stream": stream, "tokenizer": tokenizer, "folder": folder}
    with tempfile.TemporaryDirectory() as name:
        exchange = Path(name)
        order = exchange / "order.json"
        _write(order, wanted | {what: str(Path(path).resolve()) for what, path in places.items()})
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
        command = [sys.executable, *launcher, "-m", "models.training_job", str(order)]
        paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with open(exchange / "log", "wb") as log:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
            assert process.stdin
            try:
                _attend(process, exchange, progress, stopping)
            finally:
                process.stdin.close()  # where they still train, this ends them
                process.terminate()
                process.wait()
        return _outcome(exchange, process.returncode)


def _attend(
    process: subprocess.Popen[bytes],
    exchange: Path,
    progress: Progress | None,
    stopping: Callable[[], bool] | None,
) -> None:
    """Pass progress and the wish to stop on until the processes have ended."""
    seen = None
    while process.poll() is None:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if stopping is not None and stopping():
            (exchange / "stop").touch()
        found = exchange / "progress.json"
        if progress is not None and found.exists() and (text := found.read_text(encoding="utf-8")) != seen:
            seen = text
            progress(json.loads(text))


def _outcome(exchange: Path, code: int) -> list[dict[str, Any]]:
    found = exchange / "outcome.json"
    if not found.exists():
        words = (exchange / "log").read_text(encoding="utf-8", errors="replace").strip()[-_LAST_WORDS:]
        raise RuntimeError(f"training ended without a result (exit code {code}); its last words: {words}")
    outcome = json.loads(found.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise _EXPECTED.get(outcome["error"], RuntimeError)(outcome["message"])
    return outcome["records"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
