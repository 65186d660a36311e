"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere. Writes to stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from harness.execute import Event
from harness.plan import Plan

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Turns events into a picture of the grid: size x seed, with tokens, loss, tokens per second and time left."""

    def __init__(self, plan: Plan, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.started = time.monotonic()
        self.seeds = [str(seed) for seed in plan.sweep.spec.seeds]
        self.sizes = plan.sweep.spec.family.sizes
        self.tokens = plan.sweep.spec.train.tokens
        self.cells = {(p.run.model.name, str(p.run.train.seed)): p.state for p in plan.runs}
        self.place = {p.run.run_id: (p.run.model.name, str(p.run.train.seed)) for p in plan.runs}
        self.cost = {p.run.run_id: p.seconds for p in plan.todo}
        self.share = dict.fromkeys(self.cost, 0.0)  # of each run's training
        self.trained: dict[str, int] = {}  # tokens trained by this command, by run
        self.first: dict[str, int] = {}
        self.note = ""
        self.last_line = 0.0
        self.live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal and not self.quiet:
            self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        key, info = event.job.key, event.info
        if key not in self.place:
            self.note = f"{key}: {event.state}" if event.state != "progress" else self.note
            self._line(f"{key}: {event.state}{self._reason(event)}", always=True)
            return
        if event.state == "progress" and "tokens" in info:
            self.share[key] = info["step"] / info["steps"]
            self.trained[key] = info["tokens"] - self.first.setdefault(key, info["tokens"])
            text = f"{info['tokens'] / 1e6:.2f}M tokens, loss {info['loss']:.3f}"
        elif event.state == "progress":
            self.share[key] = 1.0
            text = f"asking {info['evaluating']} ({info['cells'] + 1} of {info['all_cells']})"
        else:
            text = event.state + self._reason(event)
            if event.state in ("done", "failed", "skipped"):
                self.share[key] = 1.0
        self.cells[self.place[key]] = text
        size, seed = self.place[key]
        self._line(f"{size} seed {seed}: {text}{self.summary()}", always=event.state != "progress")

    @staticmethod
    def _reason(event: Event) -> str:
        return f": {event.info['reason']}" if event.state in ("failed", "skipped") else ""

    def _line(self, text: str, *, always: bool) -> None:
        now = time.monotonic()
        if self.live or (self.quiet and ": failed" not in text):
            return
        if always or now - self.last_line > _SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def summary(self) -> str:
        """Return tokens per second and the time left, from the share of the estimated cost that is done."""
        seconds, cost = time.monotonic() - self.started, sum(self.cost.values())
        done = sum(self.cost[run] * share for run, share in self.share.items())
        if not cost or done / cost < 0.01:
            return ""
        left = seconds * (cost - done) / done
        rate = sum(self.trained.values()) / seconds
        return f" | {done / cost:.0%} done, {rate:,.0f} tokens/s, about {minutes(left)} left"

    def table(self) -> Table:
        table = Table(title=f"{minutes(time.monotonic() - self.started)} so far{self.summary()}", title_justify="left")
        table.add_column("size", justify="right")
        for seed in self.seeds:
            table.add_column(f"seed {seed}", min_width=24)
        for size in self.sizes:
            table.add_row(size, *(self.cells.get((size, seed), "") for seed in self.seeds))
        table.caption = self.note
        return table


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
