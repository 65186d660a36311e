"""A run is the same run, up to rounding, whatever number of processes and pieces its batches are shared out over."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
from processes import ROOT, run_together
from safetensors.torch import load_file
from tiny_runs import CONTEXT, RUN, spec, tiny_stream, tiny_tokenizer

from models import checkpoint, distributed
from models.data import write_stream
from models.distributed import Team, process_device
from models.spec import SpecError
from models.train import Interrupted, train
from models.training_job import main, train_in_processes

# Sums in another order round otherwise, and AdamW carries that on: measured 0.2e-6 to 0.7e-6 a step.
A_STEP = 1e-6

# What each of two processes does, one run after the other.
TOGETHER = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from tiny_runs import RUN, spec, tiny_tokenizer
from models import checkpoint
from models.data import open_stream
from models.distributed import Team
from models.train import train

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
stream, tokenizer = open_stream(folder / "s.bin"), tiny_tokenizer()
found, steps = {}, 0

def run(name, train_spec=RUN, **options):
    try:
        records = train(spec(), train_spec, stream, tokenizer, folder / name, **options)
        found[name] = [[record["step"], record["train_loss"]] for record in records]
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"

def stop_at_7():
    global steps
    steps += 1
    return steps > 7

run("uneven", accumulation=4)
run("wild", replace(RUN, peak_lr=1e30))
run("pieces", accumulation=2)
run("stopped", stopping=stop_at_7)
found["left"] = [found["stopped"], [path.name for path in checkpoint.states(folder / "stopped")]]
run("stopped")
(folder / f"found-{rank}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def difference(a, b):
    """The largest difference of a tensor of two checkpoints, relative to its size."""
    a, b = load_file(a / checkpoint.WEIGHTS), load_file(b / checkpoint.WEIGHTS)
    assert a.keys() == b.keys()
    return max(((a[name] - b[name]).norm() / a[name].norm()).item() for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    records = train(spec(), RUN, tiny_stream(folder), tokenizer, folder / "run")
    return folder, records


@pytest.fixture(scope="module")
def together(alone):
    folder = alone[0]
    (folder / "together.py").write_text(TOGETHER)
    run_together(2, folder / "together.py", folder)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["pieces", "stopped"])
def test_two_processes_train_the_model_of_one(alone, together, name):
    folder, records = alone
    for step in (5, 10, 20):
        at = checkpoint.folder_name(step)
        assert difference(folder / "run" / at, folder / name / at) < A_STEP * step
    first, second = (found[name] for found in together)
    assert first == second and [step for step, _ in first] == [0, 5, 10, 20]
    # The mean over both: half of a batch has another loss, by far more than that.
    assert [loss for _, loss in first][1:] == pytest.approx([r["train_loss"] for r in records[1:]], rel=1e-5)
    record = checkpoint.load_meta(folder / name / "step-000020")
    assert (record["processes"], record["layers"], record["device"]) == (2, "own", "cpu")
    assert records[-1]["processes"] == 1
    assert record["run_digest"] == records[-1]["run_digest"]


def test_both_stop_where_the_main_one_is_asked_to(together):
    for found in together:
        said, states = found["left"]
        assert said.startswith("Interrupted: stopped at step 7 of 20") and "resume-000007" in states


def test_a_lost_run_ends_alike_in_both(together):
    first, second = together
    assert first["wild"] == second["wild"]
    assert first["wild"].startswith("TrainingDiverged: loss nan") and "step 2 of 20" in first["wild"]


def test_rows_that_cannot_be_shared_out_evenly_are_refused(together):
    for found in together:
        assert found["uneven"].startswith("SpecError: the 4 rows of a batch cannot be shared out evenly over 2 proc")


def test_shares_of_a_batch_are_equal_or_refused():
    team = Team.__new__(Team)
    for size, accumulation, share in ((1, 1, 12), (2, 1, 6), (3, 2, 4), (1, 12, 12)):
        team.size = size
        assert team.share(12, accumulation) == share
    team.size = 4
    with pytest.raises(SpecError, match=r"12 rows .* 4 processes x accumulation=2; .* divides 12"):
        team.share(12, 2)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_model_in_shards_is_refused_by_name(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(SpecError, match=rf"a run keeps a whole copy on each: .*unset {variable}"):
        process_device()
    monkeypatch.setenv(variable, "false")
    assert process_device() == torch.device("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "PartialState", lambda **_: pytest.fail("joined the others"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="2 processes on this machine for 1 CUDA devices"):
        process_device()


def order(folder: Path, **changes):
    places = {name: str(folder / place) for name, place in (("stream", "s.bin"), ("tokenizer", "tokenizer"))}
    whole = {"model": asdict(spec()), "train": asdict(RUN), **places, "folder": str(folder / "run")} | changes
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"accumulation": 3}}, "accumulation=3 must be a whole number that divides"),
        ({"stream": "nowhere.bin"}, "nowhere.bin: no finished token stream there"),
        ({"train": None}, "is no order for training (KeyError: 'train')"),
        ({"options": {"speed": 3}}, "'speed'"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why_in_one_line(alone, tmp_path, capsys, changes, said):
    path = tmp_path / "order.json"
    path.write_text(json.dumps(order(alone[0], **changes)))
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["error"] == "SpecError" and said in outcome["message"]


def test_a_command_reports_the_records_of_its_run(alone, tmp_path):
    folder, records = alone
    path = tmp_path / "order.json"
    path.write_text(json.dumps(order(folder)))
    assert main([str(path)]) == 0  # the run is there and is read
    assert json.loads((tmp_path / "outcome.json").read_text()) == {"records": records}


def test_processes_are_started_watched_and_their_records_returned(alone, tmp_path):
    folder, _ = alone
    seen = []
    records = train_in_processes(
        2, spec(), RUN, folder / "s.bin", folder / "tokenizer", tmp_path / "run", progress=seen.append
    )
    assert [record["step"] for record in records] == [0, 5, 10, 20] and records[-1]["processes"] == 2
    assert records == [checkpoint.load_meta(path) for path in checkpoint.checkpoints(tmp_path / "run")]
    assert seen and seen[0]["steps"] == 20
    assert difference(folder / "run/step-000020", tmp_path / "run/step-000020") < A_STEP * 20


ORDERING = """
import sys
from pathlib import Path
from tiny_runs import RUN, spec
from dataclasses import replace
from models.training_job import train_in_processes

folder = Path(sys.argv[1])
train_in_processes(
    2, spec(), replace(RUN, tokens=2000 * RUN.batch_tokens), folder / "s.bin", folder / "tokenizer", folder / "run",
    progress=lambda report: (folder / "begun").touch(),
)
"""


def test_processes_end_with_the_one_that_ordered_them(tmp_path):
    """Killed as a scheduler does it, who orders the next attempt: two at once would write to one folder."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_stream(tmp_path / "s.bin", ([7] * (CONTEXT + 1) for _ in range(8000)), CONTEXT + 1, {})
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(tmp_path)}  # where the order is written
    orderer = subprocess.Popen([sys.executable, "-c", ORDERING, tmp_path], env=environment)
    wait_for((tmp_path / "begun").exists)

    def left() -> list[int]:
        return [p.pid for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]

    assert len(left()) == 4  # a launcher and two processes besides
    orderer.kill()
    orderer.wait()
    wait_for(lambda: not left())
    assert not (tmp_path / "run" / "step-002000").exists()


def wait_for(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


@pytest.mark.long
def test_four_processes_train_the_model_of_one_and_pass_their_errors_on(alone, tmp_path):
    folder, _ = alone
    where = (folder / "s.bin", folder / "tokenizer")
    train_in_processes(4, spec(), RUN, *where, tmp_path / "four")
    assert difference(folder / "run/step-000020", tmp_path / "four/step-000020") < A_STEP * 20
    with pytest.raises(SpecError, match="over 4 processes x accumulation=2"):
        train_in_processes(4, spec(), RUN, *where, tmp_path / "uneven", accumulation=2)
    with pytest.raises(Interrupted, match="of 20; the same call goes on"):
        train_in_processes(2, spec(), RUN, *where, tmp_path / "stopped", stopping=lambda: True)
