"""Score what every model wrote under one judge, the largest model of the family: a proxy of fluency.

A judge of the same family knows no more of the language than the corpus taught it, and it likes bland and repetitive
text: the number compares sizes with each other, not a text with good writing. Its own text, which it wrote because it
likes it best, is not read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.store import JUDGED, is_part, judged_path, read_table, samples_path, write_table
from tasks.metrics import METRICS

if TYPE_CHECKING:
    from models.lm import LanguageModel

Cell = tuple[str, int]  # run and step


def judged_tasks(tasks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tasks (as tasks.json has them) that a metric wants judged."""
    return [task for task in tasks if any(METRICS[name].needs == "judge" for name in task["metrics"])]


def unjudged(folder: Path, judge: Cell, cells: Iterable[Cell], tasks: Sequence[dict[str, Any]]) -> list[Cell]:
    """Return the runs and steps with answers that this judge has not read yet."""
    return [
        cell
        for cell in cells
        if cell[0] != judge[0]
        and any(
            is_part(samples_path(folder, *cell, task["name"], task["digest"]))
            and not is_part(judged_path(folder, *judge, *cell, task["name"], task["digest"]))
            for task in judged_tasks(tasks)
        )
    ]


def judge_cells(
    model: LanguageModel, folder: Path, judge: Cell, cells: Iterable[Cell], tasks: Sequence[dict[str, Any]]
) -> None:
    """Write a part of judgements for every part of answers of these runs and steps that has none.

    A generation is read from its own beginning, without the prompt: whether it answers is not the question here."""
    for run_id, step in unjudged(folder, judge, cells, tasks):
        for task in judged_tasks(tasks):
            answers = samples_path(folder, run_id, step, task["name"], task["digest"])
            path = judged_path(folder, *judge, run_id, step, task["name"], task["digest"])
            if not is_part(answers) or is_part(path):
                continue
            frame = read_table(answers)
            texts = [text for text in frame["generation"] if text]
            nats = iter([-scored.logprob for scored in model.loglikelihood_rolling(texts)])
            frame["judge_nats"] = [next(nats) if text else 0.0 for text in frame["generation"]]
            frame["judge_bytes"] = [len(text.encode("utf-8")) for text in frame["generation"]]
            write_table(path, frame[JUDGED.names], JUDGED)


def with_judgements(
    samples: pd.DataFrame, folder: Path, runs: pd.DataFrame, tasks: Sequence[dict[str, Any]]
) -> pd.DataFrame:
    """Return the samples with what the judge made of them; unchanged where no judge read them."""
    if not (wanted := judged_tasks(tasks)):
        return samples
    judge = judge_of(runs)
    paths = [
        judged_path(folder, *judge, run_id, step, task["name"], task["digest"])
        for run_id, step in zip(runs["run_id"], runs["step"], strict=True)
        for task in wanted
    ]
    if not (frames := [read_table(path) for path in paths if is_part(path)]):
        return samples
    return samples.merge(pd.concat(frames), on=JUDGED.names[:5], how="left", validate="one_to_one")


def judge_of(runs: pd.DataFrame) -> Cell:
    """Return the last checkpoint of the largest run, of several seeds the lowest."""
    last = runs[runs["is_last"].astype(bool)]
    best = last.sort_values(["n_params_non_embedding", "seed", "run_id"], ascending=[False, True, True]).iloc[0]
    return str(best["run_id"]), int(best["step"])
