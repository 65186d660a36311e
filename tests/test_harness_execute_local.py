"""Kept-alive workers: what is lost, too slow or too large ends alone, and nothing outlives its driver."""

import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jobs_to_run import work

from harness.errors import InputError
from harness.execute import run_jobs
from harness.executors.local import LocalExecutor, resident_bytes
from harness.executors.logs import log_path, log_tail
from harness.executors.slots import Slots, gpu_share, machine_memory_bytes, visible_gpus
from harness.jobs import Event, Job
from harness.stopping import Stop, stopping_on_signals

ROOT = Path(__file__).parent.parent


def run(jobs: list[Job], *, workers: int = 2, place: dict[str, Any] | None = None, **options: Any) -> list[Event]:
    events: list[Event] = []
    with closing(LocalExecutor(work, workers=workers, **(place or {}))) as executor:
        run_jobs(jobs, events.append, executor=executor, **({"backoff_seconds": 0} | options))
        pids = [worker.process.pid for worker in executor.pool]
    assert not [pid for pid in pids if alive(pid)]
    return events


def ends(events: list[Event]) -> dict[str, str]:
    return {e.job.key: e.state for e in events if e.state in ("done", "failed", "stopped", "skipped")}


def end(events: list[Event], key: str) -> Event:
    return [e for e in events if e.job.key == key][-1]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_two_hundred_small_jobs_are_done_by_two_workers() -> None:
    events = run([Job(key=str(i), payload="") for i in range(200)])
    assert set(ends(events).values()) == {"done"} and len(ends(events)) == 200
    assert len({e.info["pid"] for e in events if e.state == "done"} - {os.getpid()}) == 2


def test_a_killed_worker_is_replaced_and_its_job_done_at_the_next_attempt(tmp_path: Path) -> None:
    victim = Job(key="victim", payload=("lost until", str(tmp_path / "n"), 1), cost=9)
    events = run([victim, *(Job(key=str(i), payload="") for i in range(4))])
    assert ends(events) == {"victim": "done", **{str(i): "done" for i in range(4)}}
    (lost,) = [e for e in events if e.state == "retrying"]
    assert "ended by SIGKILL (probably out of memory, if nobody ended it)" in lost.info["reason"]
    assert end(events, "victim").info["attempt"] == 2


def test_a_job_that_always_kills_its_worker_fails_alone() -> None:
    events = run([Job(key="victim", payload="die", cost=9), *(Job(key=str(i), payload="") for i in range(4))])
    assert ends(events) == {"victim": "failed", **{str(i): "done" for i in range(4)}}
    assert [e.state for e in events if e.job.key == "victim"] == ["started", "retrying", "started", "failed"]


def test_an_exit_code_is_said_without_a_guess_at_its_cause() -> None:
    reason = end(run([Job(key="a", payload="hard exit")], retries=0), "a").info["reason"]
    assert reason == "the worker process ended with exit code 3"


def test_an_idle_worker_that_was_killed_costs_the_next_job_nothing() -> None:
    with closing(LocalExecutor(work, workers=1)) as executor:
        events: list[Event] = []
        run_jobs([Job(key="a", payload="")], events.append, executor=executor)
        first = executor.pool[0].process.pid
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # the last of its threads, too
        run_jobs([Job(key="b", payload="")], events.append, executor=executor, retries=0)
    assert ends(events) == {"a": "done", "b": "done"} and end(events, "b").info["pid"] != first


def test_a_job_over_its_time_is_ended_with_what_it_started_and_the_limit_is_named() -> None:
    jobs = [Job(key="slow", payload=("sleep beside a child", 60), cost=1), Job(key="quick", payload="")]
    began = time.monotonic()
    events = run(jobs, timeout_seconds=2, retries=0)
    assert time.monotonic() - began < 20 and ends(events) == {"slow": "failed", "quick": "done"}
    assert end(events, "slow").info["reason"] == "took longer than the limit of 2 s"
    pids = [e.info[name] for e in events if e.state == "progress" for name in ("pid", "child")]
    assert len(pids) == 2 and gone(pids)


def test_a_dead_worker_is_found_though_what_it_forked_keeps_its_pipe_open() -> None:
    began = time.monotonic()
    events = run([Job(key="a", payload=("fork and die", 60))], workers=1, retries=0)
    assert time.monotonic() - began < 30
    assert gone([event.info["child"] for event in events if event.state == "progress"])
    assert "SIGKILL" in end(events, "a").info["reason"]


def test_the_end_of_the_log_of_a_killed_job_stands_in_its_failure(tmp_path: Path) -> None:
    jobs = [Job(key="a / b", payload="print and die"), Job(key="quiet", payload="", after=())]
    events = run(jobs, workers=1, retries=0, place={"logs": tmp_path})
    lines = end(events, "a / b").info["log"].splitlines()
    assert len(lines) == 20 and lines[-2:] == ["said by compiled code", "said by a child"]
    assert lines[:18] == [f"line {i}" for i in range(12, 30)]
    assert [path.name for path in tmp_path.iterdir()] == [log_path(tmp_path, "a / b").name]  # nothing printed, no file


def test_a_crash_of_compiled_code_names_its_signal_and_its_place(tmp_path: Path) -> None:
    info = end(run([Job(key="a", payload="crash")], retries=0, place={"logs": tmp_path}), "a").info
    assert info["reason"] == "the worker process was ended by SIGSEGV"
    assert "Segmentation fault" in info["log"] and "jobs_to_run.py" in info["log"]


def test_a_job_may_start_processes_of_its_own() -> None:
    assert end(run([Job(key="a", payload="own process")]), "a").info["exit code"] == 0


def test_each_job_has_a_log_of_its_own_and_a_new_command_begins_it_anew(tmp_path: Path) -> None:
    for text in ("first", "second"):
        jobs = [Job(key=key, payload=("print", f"{text} {key}")) for key in ("a b", "a_b")]
        events = run(jobs, workers=1, place={"logs": tmp_path})
        assert [end(events, key).info["log"] for key in ("a b", "a_b")] == [f"{text} a b", f"{text} a_b"]
    # Attempts of one command stand below each other.
    events = run([Job(key="x", payload=("print", "again"))], retry_failures=True, place={"logs": tmp_path})
    assert end(events, "x").info["log"].splitlines() == ["again", "again"]


def test_log_names_are_safe_and_differ_where_keys_differ(tmp_path: Path) -> None:
    keys = ["a", "a b", "a/b", "../a", ".a", "é", "x" * 300, "x" * 301]
    paths = [log_path(tmp_path, key) for key in keys]
    assert len(set(paths)) == len(keys) and {path.parent for path in paths} == {tmp_path}
    assert all(len(path.name) < 130 and not path.name.startswith(".") for path in paths)
    assert log_tail(tmp_path / "none.log") == ""


def test_a_worker_over_its_memory_is_ended_and_not_tried_again() -> None:
    limit = 300 * 2**20
    jobs = [Job(key="big", payload=("hold", 2 * limit), cost=1), Job(key="small", payload=("sleep", 0.3))]
    events = run(jobs, retries=3, place={"memory_limit_bytes": limit})
    assert ends(events) == {"big": "failed", "small": "done"}
    info = end(events, "big").info
    assert "more than the limit of 300 MiB for a worker" in info["reason"] and info["attempt"] == 1


def test_resident_memory_is_that_of_the_process() -> None:
    before = resident_bytes(os.getpid())
    with mmap.mmap(-1, 64 * 2**20) as held:  # not from the heap, where freed pages may serve again
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        after = resident_bytes(os.getpid())
    assert before and after and 60 * 2**20 < after - before < 80 * 2**20


def test_jobs_wait_until_there_is_memory_for_them() -> None:
    jobs = [Job(key=str(i), payload=("sleep", 0.3), memory_bytes=60, cost=-i) for i in range(2)]
    events = run([*jobs, Job(key="unknown", payload="", cost=-9)], workers=3, place={"memory_bytes": 100})
    order = [(e.job.key, e.state) for e in events if e.state in ("started", "done")]
    assert order.index(("0", "done")) < order.index(("1", "started"))
    assert order.index(("unknown", "started")) < order.index(("0", "done"))  # what fits goes ahead
    events = run([Job(key="huge", payload="", memory_bytes=2**31), *jobs], place={"memory_bytes": 2**30})
    assert ends(events) == {"huge": "failed", "0": "done", "1": "done"}
    assert end(events, "huge").info["reason"] == "huge needs 2 GiB, this machine gives its jobs 1 GiB"


def test_shares_of_a_gpu_fill_it_and_leave_the_other_whole() -> None:
    slots = Slots(gpus=("3", "5"))
    job = {name: Job(key=name, payload="", gpus=0.25) for name in "abcde"}
    placed = {}
    for name, quarter in job.items():
        placed[name] = slots.place(quarter)
        assert placed[name] is not None
        slots.taken[name] = (placed[name], quarter)
    assert placed == dict.fromkeys("abcd", ("3",)) | {"e": ("5",)}
    assert slots.place(Job(key="whole", payload="", gpus=1)) is None
    assert slots.place(Job(key="most", payload="", gpus=0.75)) == ("5",)
    del slots.taken["e"]
    assert slots.place(Job(key="whole", payload="", gpus=1)) == ("5",)
    assert slots.place(Job(key="both", payload="", gpus=2)) is None
    slots.taken.clear()
    assert slots.place(Job(key="both", payload="", gpus=2)) == ("3", "5")


def test_three_thirds_of_a_gpu_are_a_gpu_and_four_are_not() -> None:
    slots = Slots(gpus=("0",))
    for name in "abc":
        third = Job(key=name, payload="", gpus=1 / 3)
        assert slots.place(third) == ("0",)
        slots.taken[name] = (("0",), third)
    assert slots.place(Job(key="d", payload="", gpus=1 / 3)) is None


@pytest.mark.parametrize(("workers", "gpus", "share"), [(2, 4, 1), (4, 4, 1), (5, 4, 0.5), (3, 1, 1 / 3), (3, 0, 0)])
def test_workers_that_outnumber_the_gpus_share_them_and_all_find_room(workers: int, gpus: int, share: float) -> None:
    assert gpu_share(workers, gpus) == share
    slots = Slots(gpus=tuple(map(str, range(gpus))))
    for name in map(str, range(workers)):
        job = Job(key=name, payload="", gpus=gpu_share(workers, gpus))
        placed = slots.place(job)
        assert placed is not None and bool(placed) == bool(gpus)
        slots.taken[name] = (placed, job)


@pytest.mark.parametrize(
    ("gpus", "says"),
    [(3, "needs 3 GPUs, this machine gives its jobs 2"), (1.5, "1.5 GPUs: give a share of one, or whole ones")],
)
def test_gpus_that_are_not_there_are_refused(gpus: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Slots(gpus=("0", "1")).place(Job(key="a", payload="", gpus=gpus))


def test_gpus_are_those_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, seen in (("", ()), ("-1", ()), ("2,GPU-ab", ("2", "GPU-ab"))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert visible_gpus() == seen
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g Device 0:'\necho 'GPU 1: A (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ("0", "1")
    tool.unlink()
    assert visible_gpus() == ()


def test_memory_is_no_more_than_the_machine_has() -> None:
    (total,) = [line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line]
    found = machine_memory_bytes()
    assert found is not None and 2**28 < found <= int(total) * 1024


def test_each_job_sees_the_gpus_it_asked_for_and_workers_are_bound_to_theirs() -> None:
    jobs = [Job(key=f"half {i}", payload="seen gpus", gpus=0.5, cost=9 - i) for i in range(4)]
    jobs += [Job(key="both", payload="seen gpus", gpus=2, cost=1), Job(key="none", payload="seen gpus")]
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    events = run(jobs, workers=3, place={"gpus": ("4", "GPU-x")})
    seen = {e.job.key: (e.info["gpus"], e.info["pid"]) for e in events if e.state == "done"}
    assert {seen[f"half {i}"][0] for i in range(4)} <= {"4", "GPU-x"}
    assert seen["both"][0] == "4,GPU-x" and seen["none"][0] == ""
    bound = {pid: gpus for gpus, pid in seen.values()}
    assert all(bound[pid] == gpus for gpus, pid in seen.values())
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_what_cannot_travel_fails_its_own_job() -> None:
    jobs = [Job(key="to", payload=lambda: None), Job(key="back", payload="lambda"), Job(key="b", payload="")]
    events = run(jobs, workers=1)
    assert ends(events) == {"to": "failed", "back": "failed", "b": "done"}
    assert "pickle" in end(events, "to").info["reason"] and "pickle" in end(events, "back").info["reason"]


def test_a_stop_reaches_workers_and_those_that_do_not_ask_finish() -> None:
    stop, events = Stop(), []

    def watch(event: Event) -> None:
        events.append(event)
        if sum(e.state == "progress" for e in events) == 2:
            stop.ask()

    jobs = [Job(key="asks", payload=("until stopped", 60), cost=2), Job(key="deaf", payload=("sleep", 1), cost=1)]
    with closing(LocalExecutor(work, workers=2)) as executor:
        run_jobs([*jobs, Job(key="next", payload="")], watch, executor=executor, stop=stop)
    assert ends(events) == {"asks": "stopped", "deaf": "done"}
    assert end(events, "asks").info["reason"] == "put away at half"


def test_a_signal_is_heard_once_as_a_stop_and_twice_as_an_interrupt() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping_on_signals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a third does not disturb who clears away
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


DRIVER = """
import signal, sys
from contextlib import closing
sys.path[:0] = [{tests!r}]
from jobs_to_run import work
from harness.execute import run_jobs
from harness.executors import make_executor
from harness.jobs import Job
from harness.stopping import stopping_on_signals

def tell(event):
    print(event.state, *event.info.values(), flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's background left it ignored
    jobs = [Job(key=str(i), payload={payload!r}) for i in range(3)]
    with stopping_on_signals("stopping") as stop, closing(make_executor("local", work, workers=2)) as place:
        run_jobs(jobs, tell, executor=place, stop=stop)
    sys.exit(stop.exit_code if stop.asked else 0)
"""


class Driver:
    """A command of its own with two workers, and the processes that it started."""

    def __init__(self, folder: Path, payload: Any) -> None:
        script = folder / "driver.py"
        script.write_text(DRIVER.format(tests=str(ROOT / "tests"), payload=payload))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.pids: list[int] = []
        self.said: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("progress"):
                self.pids += map(int, line.split()[1:])
            if sum(line.startswith("progress") for line in self.said) == 2:
                break
        assert all(map(alive, self.pids))

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_ends_a_command_after_its_jobs_put_away_what_they_have(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    driver = Driver(tmp_path, ("until stopped", 60))
    driver.process.send_signal(number)
    ended, out, err = driver.finish()
    assert (ended, err.strip()) == (code, "stopping")
    assert out.count("stopped put away at half") == 2 and "done" not in out and "failed" not in out
    assert gone(driver.pids)


def test_a_second_signal_ends_jobs_that_do_not_listen_and_leaves_nothing(tmp_path: Path) -> None:
    driver = Driver(tmp_path, ("sleep beside a child", 60))
    assert len(driver.pids) == 4
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.stderr is not None and driver.process.stderr.readline().strip() == "stopping"
    time.sleep(0.3)
    assert all(map(alive, driver.pids))  # one signal leaves them to finish
    driver.process.send_signal(signal.SIGINT)
    _, _, err = driver.finish()
    assert "KeyboardInterrupt" in err and gone(driver.pids, 5)


def test_a_killed_driver_takes_its_workers_and_what_they_started_along(tmp_path: Path) -> None:
    driver = Driver(tmp_path, ("sleep beside a child", 60))
    driver.process.kill()
    assert driver.finish()[0] == -signal.SIGKILL and gone(driver.pids, 5)


def test_a_signal_while_workers_start_is_a_stop_for_them_too(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    text = DRIVER.format(tests=str(ROOT / "tests"), payload=("until stopped", 60))
    # Ctrl-C reaches the whole group of processes, the workers before they are ready.
    interrupt = "threading.Timer(0.02, os.killpg, (0, signal.SIGINT)).start()"
    soon = f"def tell(event):\n    if (event.state, event.job.key) == ('started', '1'):\n        {interrupt}"
    text = text.replace("def tell(event):", soon)
    script.write_text(f"import os, threading\n{text}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (130, "stopping")
    assert done.stdout.count("stopped put away at half") == 2 and "failed" not in done.stdout


def test_a_driver_that_forgets_its_executor_still_ends(tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    text = DRIVER.format(tests=str(ROOT / "tests"), payload="")
    script.write_text(text.replace('closing(make_executor("local", work, workers=2)) as place', "nullcontext() as no")
        .replace("run_jobs(jobs", 'place = make_executor("local", work, workers=2); run_jobs(jobs')
        .replace("import closing", "import nullcontext").replace("    sys.exit", "    1 / 0 #"))  # fmt: skip
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert "ZeroDivisionError" in done.stderr and done.returncode == 1
    pids = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("done")]
    assert len(pids) == 3 and gone(pids, 5)


def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path: Path) -> None:
    script = tmp_path / "bare.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(ROOT / "tests")!r}]
        from jobs_to_run import work
        from harness.execute import run_jobs
        from harness.executors import make_executor
        from harness.jobs import Job
        place = make_executor("local", work, workers=1)
        run_jobs([Job(key="a", payload="")], lambda e: print(e.state, e.info.get("reason")), executor=place)
        place.close()
        """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.splitlines()[-1].startswith("failed the worker process ended with exit code 1 before")
    assert 'if __name__ == "__main__":' in done.stdout and "retrying" not in done.stdout
