"""Behind the scores: where documents were not asked as planned, where each ability steps up, and what answers tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness import figures
from harness.paired import ENDS, MCNEMAR, steps_up
from harness.report.drawing import Drawn, save_figure
from harness.report.tables import KEYS, Tables
from harness.wording import DASH, count, interval, known, listing, natural, number

MIN_SHARE = 0.01  # of the documents of a size: fewer are not told
ALPHA = 0.05
FLAGS = {
    "n_truncated": "did not fit the context even without worked examples and were cut",
    "n_shots_dropped": "did not fit with all worked examples and were asked with fewer",
    "n_straddles": "have a token that spans prompt and answer, so that the answer's score holds a piece of the prompt",
    "n_near_ties": "nearly tie: they are decided by less than 10⁻⁴ nats, and another machine may decide otherwise",
}


def behind(page: Tables, folder: Path) -> dict[str, Any]:
    """Return what the section says; empty where no answers were kept."""
    if page.pairs.empty and page.positions.empty and page.reliability.empty:
        return {}
    return {
        "flags": flags(page),
        "steps": steps(page),
        "reliability": reliability_figures(page, folder),
        "positions": position_figures(page, folder),
        "left_out": left_out(page),
    }


def flags(page: Tables) -> list[str]:
    """Say of every task which sizes had more than 1 % of their documents asked or decided otherwise than planned."""
    rows = page.scores[page.scores["is_last"].eq(True) & (page.scores["n"] > 0)]
    rows = rows[rows["headline"].eq(True) | rows["n_near_ties"].notna()]
    rows = rows.sort_values(["headline", "metric"], ascending=[False, True], kind="stable")
    said = []
    for flag, meaning in FLAGS.items():
        found = rows[rows[flag].notna()].drop_duplicates(["run_id", "task", "level"])
        sums = found.astype({flag: float, "n": float}).groupby(["task", "size"], sort=False)[[flag, "n"]].sum()
        shares = (sums[flag] / sums["n"]).rename("share").reset_index()
        for task, part in shares.groupby("task", sort=False):
            part = part.set_index("size")["share"]
            part = part.reindex([size for size in figures.by_size(rows) if size in part.index])
            if part.max() <= MIN_SHARE:
                continue
            least, most = 100 * part.min(), 100 * part.max()
            if most - least < 0.5:
                said.append(f"{task}: {most:.2g} % of the documents {meaning}, of every size alike.")
                continue
            each = listing(f"{size} {100 * share:.2g} %" for size, share in part.items() if share > MIN_SHARE)
            rest = "" if (part > MIN_SHARE).all() else ", others at most 1 %"
            said.append(f"{task}: documents that {meaning}: {each}{rest}. Part of what its curve shows is this.")
    return said


def steps(page: Tables) -> list[dict[str, Any]]:
    """Return for each task and level the first size whose run is significantly better than that of the size before it.

    On the headline metric and on its continuous partner; the size of the step is that of the seeds which had no part
    in the choice, beside how many of them move the same way."""
    if page.pairs.empty:
        return []
    first = steps_up(page.pairs, page.scores, alpha=ALPHA).set_index(KEYS)
    ends = page.pairs[page.pairs["pair"].eq(ENDS)].drop_duplicates(KEYS).set_index(KEYS)
    heads = page.pairs[page.pairs["headline"].eq(True)].drop_duplicates(KEYS)
    partners = page.pairs[page.pairs["headline"].ne(True)].drop_duplicates(["task", "level"])
    partner_of = partners.set_index(["task", "level"])["metric"]
    rows = []
    for row in heads.to_dict("records"):
        key = (row["task"], row["level"], row["metric"])
        step = first.loc[key] if key in first.index else None
        end = ends.loc[key] if key in ends.index else None
        partner = partner_of.get(key[:2])
        other = (*key[:2], partner)
        rows.append({
            "task": row["task"], "level": row["level"], "metric": row["metric"], "partner": partner,
            "control": row["task"] in page.controls,
            "step": DASH if step is None else _step(step),
            "q": DASH if step is None else _small(step["q"]),
            "others": DASH if step is None or not step["n_others"] else f"{number(step['others']):+.3f}",
            "seeds": DASH if step is None else _seeds(step),
            "partner_step": _step(first.loc[other]) if other in first.index else DASH,
            "whole": DASH if end is None else _difference(end) + ("" if end["q"] <= ALPHA else ", not significant"),
            "note": row["note"] if isinstance(row["note"], str) and step is None and not known(row["p"]) else "",
        })  # fmt: skip
    place = page.task_order
    return sorted(rows, key=lambda r: (place.get(r["task"], len(place)), str(r["task"]), natural(r["level"])))


def _difference(row: pd.Series) -> str:
    digits = "{:+.2f}" if row["method"] == MCNEMAR else "{:+.3f}"
    return interval(row["difference"], row["lo"], row["hi"], digits)


def _small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _step(step: pd.Series) -> str:
    """Name the sizes of a step, and say where the other seeds do not bear it out on average."""
    repeated = not step["n_others"] or step["others"] * step["difference"] > 0
    return f"{step['size_a']} → {step['size_b']}" + ("" if repeated else ", not repeated")


def _seeds(step: pd.Series) -> str:
    n = int(step["n_others"])
    return f"{int(step['n_agree'])} of the {n} {'other' if n == 1 else 'others'}" if n else "no other"


def reliability_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Accuracy by confidence, and the calibration error against scale, of the tasks where it says most."""
    axis = page.axis if page.axis in page.reliability and page.reliability[page.axis].notna().any() else "flops"
    if page.reliability.empty or page.reliability[axis].isna().all():
        return []
    data = figures.reliability_data(page.reliability, axis)
    tasks = data["task"].nunique()
    of = page.reliability["task"].nunique()
    what = (
        "Above: how often the chosen answer is right, by the probability the model gives it among the choices; on the "
        "dotted diagonal a model is as often right as it claims, below it claims too much. Seeds are added up, bars "
        "are 95 % intervals for the documents of one seed, with documents of one source as one; bins of fewer than "
        f"{figures.MIN_ANSWERS} answers are not drawn. Below: the expected calibration error of every run (points) and "
        "its mean over seeds (line); dotted: what a model whose confidence is right would show with so few documents. "
        f"{tasks} of {count(of, 'task')} with choices, where the error exceeds that most"
    )
    return [save_figure(figures.reliability_figure(data, axis), folder, "reliability", data, what)]


def position_figures(page: Tables, folder: Path) -> list[Drawn]:
    """Loss against position in the context."""
    data = figures.position_data(page.positions)
    if data.empty:
        return []
    what = (
        "Loss by how much of the text a token was predicted from, one line per size, darker is larger; means over "
        "seeds, bars are 95 % intervals over documents. Every range is read off the same documents. That a line falls "
        "does not show that a model uses what it read: what stands later in a text may be easier by itself. Where "
        "larger models fall further than smaller ones, the texts alone do not explain it"
    )
    return [save_figure(figures.position_figure(data), folder, "positions", data, what)]


def left_out(page: Tables) -> list[str]:
    """Say which parts of the section are not there, and why."""
    said = []
    if page.pairs.empty:
        said.append("No sizes are compared: fewer than two answered the same documents.")
    if page.reliability.empty:
        said.append("No calibration is shown: no task asks for one of several choices.")
    if page.positions.empty and page.scores["kind"].eq("language modeling").any():
        said.append("No loss by position is shown: the answers were kept without positions; evaluate again to have it.")
    return said
