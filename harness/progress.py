"""What a person sees while a sweep runs: live tables on a terminal, plain lines elsewhere. Writes to stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from harness.graph import Order
from harness.jobs import Event
from harness.plan import Plan, RunPlan
from harness.store import AS_TRAINED

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Turns events into two pictures: size x seed (tokens, loss, tokens per second, time left), and task x score."""

    def __init__(self, plan: Plan, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.started = time.monotonic()
        self.seeds = list(dict.fromkeys(str(p.run.train.seed) for p in plan.runs))
        self.places = list(dict.fromkeys(_place(p) for p in plan.runs))
        self.cells = {(_place(p), str(p.run.train.seed)): p.state for p in plan.runs}
        self.open = {p.run.run_id: _jobs_that_ask(p) for p in plan.runs}
        self.cost = {p.run.run_id: (p.training_seconds if not p.trained else 0.0, p.seconds) for p in plan.todo}
        self.share = dict.fromkeys(self.cost, (0.0, 0.0))  # of each run's training, and of its questions
        self.rate = _Rate()
        self.tasks = {task.name: _Asked() for task in plan.sweep.tasks}
        for p in plan.runs:
            for cell in p.missing:
                self.tasks[cell.task].cells += 1
        self.note = ""
        self.last_line = 0.0
        self.live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.quiet:
            self.live = Live(get_renderable=self.picture, console=self.console, refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        order: Order = event.job.payload
        if order.kind not in ("train", "evaluate", "finetune") or order.run is None:
            self.note = f"{event.job.key}: {event.state}"
            self._line(self.note + _reason(event), always=event.state != "progress", bad=event.state == "failed")
            return
        text = self._of_training(order.run, event) if order.kind == "train" else self._of_questions(order, event)
        self.cells[_place(order.run), str(order.run.run.train.seed)] = text
        where = f"{_place(order.run)} seed {order.run.run.train.seed}"
        always = event.state != "progress"
        self._line(f"{where}: {text}{self.summary()}", always=always, bad=event.state == "failed")

    def _of_training(self, p: RunPlan, event: Event) -> str:
        run_id, info = p.run.run_id, event.info
        questions = self.share.get(run_id, (0.0, 0.0))[1]
        if event.state == "progress":
            self.share[run_id] = (info["step"] / info["steps"], questions)
            rate = self.rate.see(run_id, info["tokens"])
            left = f", {minutes((p.run.train.tokens - info['tokens']) / rate)} left" if rate else ""
            speed = f", {rate:,.0f} tokens/s" if rate else ""
            return f"{info['tokens'] / 1e6:.2f}M tokens, loss {info['loss']:.3f}{speed}{left}"
        if event.state in ("done", "failed", "skipped"):
            self.share[run_id] = (1.0, questions if event.state == "done" else 1.0)
        if event.state == "done":
            return "trained" if self.open.get(run_id) else "done"
        return ("training" if event.state == "started" else event.state) + _reason(event)

    def _of_questions(self, order: Order, event: Event) -> str:
        assert order.run
        run_id, info = order.run.run.run_id, event.info
        weights = "" if order.weights == AS_TRAINED else f" with {order.weights} weights"
        if event.state == "progress":
            training, asked = self.share.get(run_id, (1.0, 0.0))
            if "documents" in info:
                n_cells = max(1, len(order.run.missing))
                self.share[run_id] = (training, min(1.0, asked + 1 / n_cells))
                score = None if weights else info.get("score")
                self.tasks[info["task"]].see(_place(order.run), info["documents"], score)
            verb = "tuning for" if order.kind == "finetune" else "asking"
            return f"{verb} {info['task']} ({info['cell']} of {info['cells']}){weights}"
        if event.state in ("done", "failed", "skipped"):
            self.open[run_id] -= 1
        if event.state == "done":
            return "done" if not self.open[run_id] else f"asked at step {order.step}{weights}"
        begun = "tuning" if order.kind == "finetune" else "asking"
        return (begun if event.state == "started" else event.state) + _reason(event)

    def _line(self, text: str, *, always: bool, bad: bool) -> None:
        now = time.monotonic()
        if self.live or (self.quiet and not bad):
            return
        if always or now - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def summary(self) -> str:
        """Return the time left, from the share of the estimated cost that is done, and tokens per second over all."""
        seconds, cost = time.monotonic() - self.started, sum(whole for _, whole in self.cost.values())
        parts = ((self.cost[run], self.share[run]) for run in self.cost)
        done = sum(train * shares[0] + (whole - train) * shares[1] for (train, whole), shares in parts)
        if not cost or done / cost < 0.01:
            return ""
        left = seconds * (cost - done) / done
        rate = self.rate.over_all(seconds)
        speed = f", {rate:,.0f} tokens/s" if rate else ""  # where only questions are left, nothing is trained
        return f" | {done / cost:.0%} done{speed}, about {minutes(left)} left"

    def picture(self) -> Group:
        runs = Table(title=f"{minutes(time.monotonic() - self.started)} so far{self.summary()}", title_justify="left")
        runs.add_column("size", justify="right")
        for seed in self.seeds:
            runs.add_column(f"seed {seed}", min_width=24)
        for place in self.places:
            runs.add_row(place, *(self.cells.get((place, seed), "") for seed in self.seeds))
        runs.caption = self.note
        begun = {name: asked for name, asked in self.tasks.items() if asked.done}
        if not begun:
            return Group(runs)
        sizes = [place for place in self.places if any(place in asked.scores for asked in begun.values())][-8:]
        tasks = Table()
        for name in ("task", "cells", "documents", *sizes):
            tasks.add_column(name, justify="left" if name == "task" else "right")
        for name, asked in begun.items():
            scores = (asked.mean(place) for place in sizes)
            tasks.add_row(name, f"{asked.done} of {asked.cells}", f"{asked.documents:,}", *scores)
        return Group(runs, tasks)


class _Asked:
    """What has come in of one task."""

    def __init__(self) -> None:
        self.cells = self.done = self.documents = 0
        self.scores: dict[str, list[float]] = {}  # of the headline metric, by size

    def see(self, place: str, documents: int, score: float | None) -> None:
        self.done += 1
        self.documents += documents
        if score is not None:
            self.scores.setdefault(place, []).append(score)

    def mean(self, place: str) -> str:
        values = self.scores.get(place)
        return f"{sum(values) / len(values):.2f}" if values else ""


class _Rate:
    """Tokens per second of every run that trains, from when this command saw it first."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[float, int]] = {}
        self.last: dict[str, int] = {}

    def see(self, run_id: str, tokens: int) -> float | None:
        now = time.monotonic()
        since, before = self.first.setdefault(run_id, (now, tokens))
        self.last[run_id] = tokens
        return (tokens - before) / (now - since) if now > since and tokens > before else None

    def over_all(self, seconds: float) -> float:
        return sum(self.last[run] - before for run, (_, before) in self.first.items()) / seconds


def _jobs_that_ask(p: RunPlan) -> int:
    return len({(cell.step, cell.weights, cell.task in p.tuned) for cell in p.missing})


def _place(p: RunPlan) -> str:
    """What names a row of the picture: the size, and of a branch its budget."""
    return p.run.model.name + (f" at {p.run.train.tokens / 1e6:.2f}M" if p.run.trunk else "")


def _reason(event: Event) -> str:
    if event.state == "retrying":
        return f" (attempt {event.info.get('attempt')} failed: {event.info['reason']})"
    return f": {event.info['reason']}" if event.state in ("failed", "skipped", "stopped") else ""


def minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
