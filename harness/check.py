"""What in a task would fake a curve, found before any model is run.

    from harness.check import check
    found = check(load_task("my_task.py"), model="results/demo/runs/2x128-s0-.../step-002000", corpus="demo")
    [warning.text for warning in found.warnings]

No torch is needed without `model`, and no weights are read with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.check_answers import Finding, LevelCheck, check_level
from harness.check_overlap import N_GRAM, Corpus, Overlap, check_overlap
from harness.check_tokens import Reader, Sample, TokenCheck, check_tokens, load_reader, render
from harness.check_warnings import level_warnings, model_warnings, overlap_warnings, reader_warnings
from tasks import Document, Task, TaskError
from tasks.base import level_name
from tasks.errors import suggest

N_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One task, with everything that was found out about it."""

    task: str
    kind: str
    output: str  # "Choice", "Answer" or "Text"
    role: str
    description: str
    digest: str
    metric: str  # the headline
    metrics: tuple[str, ...]
    levels: tuple[LevelCheck, ...]
    models: tuple[TokenCheck, ...]  # of every model and level
    overlaps: tuple[Overlap, ...]  # with every corpus, all levels together
    samples: tuple[Sample, ...]
    warnings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def check(
    task: Task,
    *,
    model: str | Path | Reader | Sequence[str | Path | Reader] | None = None,
    corpus: str | Path | Corpus | Sequence[str | Path | Corpus] | None = None,
    limit: int | None = None,
    level: str | None = None,
    n_gram: int = N_GRAM,
) -> Check:
    """Draw the evaluation documents of a task and look for what would fake a curve.

    `model`: folders of local checkpoints, or hub names in the local cache; only tokenizer and configuration are read.
    `corpus`: text files, .jsonl files with a field "text", or sweeps, whose training mixture is drawn from.
    `limit`: documents of each level; `level`: the one that samples are shown of, by default the first.
    Raises TaskError where the task cannot be asked at all, StoreError for a model or corpus that cannot be read."""
    readers = [found if isinstance(found, Reader) else load_reader(str(found)) for found in _listed(model)]
    corpora = [found if isinstance(found, Corpus) else Corpus(str(found)) for found in _listed(corpus)]
    levels = [level_name(values) for values in task.levels]
    if level is not None and level not in levels:
        raise TaskError(
            f"task {task.name!r}: unknown level {level!r}{suggest(level, levels)} Levels: {'; '.join(levels)}"
        )
    documents = drawn_twice(task, limit)
    by_level = {name: list(group) for name, group in groupby(documents, key=lambda document: document.level)}
    wanted = task.size if limit is None else limit
    answers = {name: check_level(task, name, group, wanted) for name, group in by_level.items()}
    tokens = [check_tokens(name, group, reader) for reader in readers for name, group in by_level.items()]
    overlaps = [check_overlap(documents, found, n=n_gram) for found in corpora]
    warnings = [
        *(warning for found in answers.values() for warning in level_warnings(task, found)),
        *reader_warnings(task, readers, tokens),
        *(warning for found in tokens for warning in model_warnings(task, found, answers[found.level])),
        *(warning for found in overlaps for warning in overlap_warnings(task, found)),
    ]
    shown = by_level[levels[0] if level is None else level][:N_SAMPLES]
    return Check(
        task=task.name,
        kind=task.kind,
        output=task.output,
        role=task.role,
        description=task.description,
        digest=task.digest,
        metric=task.metric,
        metrics=task.metrics,
        levels=tuple(answers.values()),
        models=tuple(tokens),
        overlaps=tuple(overlaps),
        samples=tuple(render(document, readers[0] if readers else None) for document in shown),
        warnings=tuple(warnings),
    )


def drawn_twice(task: Task, limit: int | None) -> list[Document]:
    """The evaluation documents; raises TaskError where a second drawing gives others."""
    documents, again = task.documents(limit=limit), task.documents(limit=limit)
    for one, other in zip(documents, again, strict=False):
        if one != other:
            level = f" of {one.level}" if one.level else ""
            raise TaskError(
                f"task {task.name!r} ({task.source}): document {one.doc_id}{level} differs when drawn twice; draw all "
                "randomness from the rng that is passed in, and keep nothing between calls"
            )
    if len(documents) != len(again):
        raise TaskError(
            f"task {task.name!r} ({task.source}): drawn twice it has {len(documents)} and {len(again)} documents; "
            "draw all randomness from the rng that is passed in, and keep nothing between calls"
        )
    return documents


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return [given] if isinstance(given, str | Path | Reader | Corpus) else list(given)
