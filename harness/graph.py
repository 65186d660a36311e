"""A plan as a graph of jobs: tokenizer -> rows of each data seed -> trunks -> branches -> answers -> judgements.

Every job has an address, a digest of all that its result is a function of: what failed at one address is left alone
until it is asked for again, and is tried by itself once its address has changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.jobs import Job
from harness.judge import judged_tasks, unjudged
from harness.plan import SECONDS_PER_CELL, SECONDS_PER_TUNING, Cell, Plan, RunPlan
from harness.spec import RunSpec, Sweep, digest
from harness.store import AS_TRAINED, SCHEMA, TUNING_ERROR, read_json, samples_folder
from models.schedule import branch_step

Kind = Literal["tokenizer", "data", "train", "evaluate", "finetune", "judge"]
State = Literal["done", "missing", "stale", "failed", "blocked"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is told: how to load the sweep again by itself, and which piece of it to do.

    Tasks are functions of the user's own files; they do not travel, their names do."""

    kind: Kind
    spec_json: str
    spec_folder: Path  # relative task files are looked up here
    extra_tasks: tuple[str, ...]
    results: Path  # of this sweep
    data_seed: int | None = None  # of "data"
    run: RunPlan | None = None  # to train, to be asked, or whose generations are read
    trunk: Path | None = None  # the folder of the run that a branch starts from
    states_at: tuple[int, ...] = ()  # steps of a trunk at which branches start
    step: int | None = None  # the checkpoint that is asked
    weights: str = AS_TRAINED  # what its weights are rounded to before
    judge: RunPlan | None = None  # reads


@dataclass(frozen=True, kw_only=True)
class Node:
    """One job of the graph and how it stands."""

    key: str
    kind: Kind
    address: str
    state: State
    reason: str  # why it is not done, where more is known than that it was not tried
    after: tuple[str, ...]
    cost: float  # CPU seconds, estimated
    error: Path  # where its failure is recorded
    order: Order


def make_graph(plan: Plan) -> list[Node]:
    """Return every job of a sweep, those that are done included, in an order that respects their dependencies."""
    return _Graph(plan).nodes


def jobs_of(nodes: list[Node], *, retry_failed: bool = False) -> list[Job]:
    """Return what is to be run: all that is missing or stale, and with `retry_failed` what failed before."""
    tried = {node.key: node for node in nodes if node.state != "done" and (retry_failed or node.state != "failed")}
    blocked = {node.key for node in nodes if node.state == "failed"} - tried.keys()
    jobs = []
    for node in nodes:
        if node.key in tried and blocked.intersection(node.after):
            blocked.add(node.key)
        elif node.key in tried:
            jobs.append(
                Job(
                    key=node.key,
                    payload=node.order,
                    after=tuple(key for key in node.after if key in tried),
                    # Rows before runs, whatever a run costs: no run can start without them.
                    cost=float("inf") if node.kind in ("tokenizer", "data") else node.cost,
                )
            )
    return jobs


class _Graph:
    """The nodes so far, each with its state, which those that come after depend on."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sweep = plan, plan.sweep
        self.nodes: list[Node] = []
        self.by_key: dict[str, Node] = {}
        self.digests = {task.name: plan.sweep.digest_of(task) for task in plan.sweep.tasks}
        self.spec_json = plan.sweep.spec.model_dump_json()
        self.spec_folder, self.results = plan.sweep.folder.resolve(), plan.folder.resolve()  # once: it asks the disk
        self._add_data()
        # Branches after all trunks: each starts from a checkpoint of its own.
        for p in sorted(plan.runs, key=lambda p: p.run.trunk is not None):
            self._add_training(p)
            self._add_questions(p)
            self._add_tuning(p)
        self._add_judgements()

    def _add(
        self, kind: Kind, name: str, inputs: Any, *, done: bool, error: Path, stale: str = "", **given: Any
    ) -> None:
        """Add a job, a function of its name and `inputs`; `given` are after, cost and what its order says."""
        after = tuple(key for key in given.pop("after", ()) if self.by_key[key].state != "done")
        cost = given.pop("cost", 0.0)
        address = digest([SCHEMA, kind, name, inputs])
        record = read_json(error) if error.exists() and not done else {}
        state: State = "done" if done else "stale" if stale else "missing"
        reason = "" if done else stale
        if record.get("state") == "failed" and record.get("address") == address:
            state, reason = "failed", record["reason"]
        elif not done and (stuck := next((k for k in after if self.by_key[k].state in ("failed", "blocked")), None)):
            state, reason = "blocked", f"needs {stuck}, which failed"
        order = Order(
            kind=kind,
            spec_json=self.spec_json,
            spec_folder=self.spec_folder,
            extra_tasks=self.sweep.extra_tasks,
            results=self.results,
            **given,
        )
        node = Node(
            key=f"{kind} {name}".strip(),
            kind=kind,
            address=address,
            state=state,
            reason=reason,
            after=after,
            cost=cost,
            error=error,
            order=order,
        )
        self.nodes.append(node)
        self.by_key[node.key] = node

    def _add_data(self) -> None:
        """What training needs and is not there; once all runs are trained the rows may go."""
        data, untrained = self.plan.folder / "data", [p for p in self.plan.runs if not p.trained]
        seeds = {p.run.train.data_seed for p in untrained}
        missing = {seed for seed in seeds if not stream_path(self.sweep, self.plan.folder, seed).exists()}
        self._add("tokenizer", "", self.sweep.corpus_digest, done=not missing, error=data / "error-tokenizer.json")
        for seed in sorted({p.run.train.data_seed for p in self.plan.runs}):
            self._add(
                "data",
                f"seed {seed}",
                [self.sweep.corpus_digest, seed, stream_shape(self.sweep)],
                done=seed not in missing,
                error=data / f"error-seed-{seed}.json",
                after=("tokenizer",),
                data_seed=seed,
            )

    def _add_training(self, p: RunPlan) -> None:
        branches = [other.run.train for other in self.plan.runs if other.run.trunk == p.run.run_id]
        trunk = p.run.trunk
        self._add(
            "train",
            p.run.run_id,
            asdict(p.run),
            done=p.trained,
            error=p.folder / "error.json",
            after=(f"data seed {p.run.train.data_seed}", *([f"train {trunk}"] if trunk else [])),
            cost=p.training_seconds,
            run=p,
            trunk=self.plan.folder / "runs" / trunk if trunk else None,
            states_at=tuple(sorted({branch_step(train) for train in branches})),
        )

    def _add_questions(self, p: RunPlan) -> None:
        for step, weights in p.places:
            missing = _tasks_at(step, weights, p.missing, but=p.tuned)
            stale = sorted(set(_tasks_at(step, weights, p.stale, but=p.tuned)))
            self._add(
                "evaluate",
                # The id of a run is a digest of its recipe.
                f"{p.run.run_id} step {step}{'' if weights == AS_TRAINED else f' {weights}'}",
                {name: found for name, found in self.digests.items() if name not in p.tuned},
                done=p.trained and not missing,
                error=samples_folder(self.plan.folder, p.run.run_id, step, weights) / "error.json",
                stale=f"changed since they were asked: {', '.join(stale)}" if stale else "",
                after=(f"train {p.run.run_id}",),
                cost=SECONDS_PER_CELL * len(missing),
                run=p,
                step=step,
                weights=weights,
            )

    def _add_tuning(self, p: RunPlan) -> None:
        """What a run is tuned for, from its last checkpoint."""
        if not p.tuned:
            return
        missing, stale = (
            sorted({cell.task for cell in cells if cell.task in p.tuned}) for cells in (p.missing, p.stale)
        )
        self._add(
            "finetune",
            p.run.run_id,
            {name: self.digests[name] for name in sorted(p.tuned)},
            done=p.trained and not missing,
            error=samples_folder(self.plan.folder, p.run.run_id, p.steps[-1]) / TUNING_ERROR,
            stale=f"changed since they were asked: {', '.join(stale)}" if stale else "",
            after=(f"train {p.run.run_id}",),
            cost=SECONDS_PER_CELL * len(missing) + SECONDS_PER_TUNING * p.tunings,
            run=p,
            step=p.steps[-1],
        )

    def _add_judgements(self) -> None:
        """What the largest run that can be had has not read of the others' generations, where a task asks for it."""
        tasks = [task.summary() | {"digest": self.sweep.digest_of(task)} for task in self.sweep.tasks]
        lost = ("failed", "blocked")
        readers = [p for p in self.plan.runs if self.by_key[f"train {p.run.run_id}"].state not in lost]
        if not judged_tasks(tasks) or not readers:
            return
        judge = min(readers, key=lambda p: judge_order(p.run))
        by = (judge.run.run_id, judge.run.train.steps)
        for p in self.plan.runs:
            cells = [(p.run.run_id, step) for step in p.steps]
            asked = [f"evaluate {run_id} step {step}" for run_id, step in cells]
            if p is judge:
                continue
            # What could not be asked is not there to be read; the rest is.
            asked = [key for key in asked if self.by_key[key].state not in lost]
            waiting = any(self.by_key[key].state != "done" for key in asked)
            self._add(
                "judge",
                p.run.run_id,
                [by, {task["name"]: task["digest"] for task in judged_tasks(tasks)}],
                done=not waiting and not unjudged(self.plan.folder, by, cells, tasks),
                error=self.plan.folder / "judged" / f"error-{p.run.run_id}.json",
                after=(*asked, f"train {by[0]}"),
                cost=SECONDS_PER_CELL * len(cells),
                run=p,
                judge=judge,
            )


def _tasks_at(step: int, weights: str, cells: Iterable[Cell], *, but: Collection[str]) -> list[str]:
    return [cell.task for cell in cells if (cell.step, cell.weights) == (step, weights) and cell.task not in but]


def judge_order(run: RunSpec) -> tuple[Any, ...]:
    """Sort key: the largest model first, of several the one that read most, then the lowest seed (judge.judge_of)."""
    return (-run.model.n_params_non_embedding, -run.train.tokens, run.train.seed, run.run_id)


def tokenizer_path(sweep: Sweep, results: Path) -> Path:
    return results / "data" / sweep.corpus_digest[:8] / "tokenizer"


def stream_shape(sweep: Sweep) -> tuple[int, int]:
    """Return rows and tokens per row of a trunk's training text: inputs and targets overlap by all but one token."""
    train, context_length = sweep.trunks[0].train, sweep.spec.family.context_length
    return train.steps * train.batch_tokens // context_length, context_length + 1


def stream_path(sweep: Sweep, results: Path, data_seed: int) -> Path:
    """Return where the token rows of a data seed stand; the name says all that shapes them, so none is ever stale."""
    n_rows, row_tokens = stream_shape(sweep)
    return results / "data" / sweep.corpus_digest[:8] / f"seed-{data_seed}-{n_rows}x{row_tokens}.bin"
