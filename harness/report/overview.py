"""What was run, what is missing, and what the models answered."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness import figures
from harness.report.tables import Tables
from harness.wording import (
    DASH,
    LABELS,
    count,
    extent,
    known,
    label_name,
    listing,
    metric_name,
    natural,
    number,
    si,
    span,
)

WHY_EMPTY = {
    "runs": "no run is finished",
    "scores": "no answers were scored",
    "fits": "no loss on held-out text could be fitted against scale",
    "verdicts": "the analysis gave none",
    "links": "no threshold metric could be derived from a continuous one on the same documents",
    "backtests": "too few sizes to leave the largest out and forecast it",
    "forecasts": "too few sizes to forecast the next one",
    "examples": "no answers were kept as samples",
}


def headline(page: Tables, rows: list[dict[str, Any]]) -> list[str]:
    """Say in a few sentences what was run and what came of it; `rows`: the verdicts."""
    if page.last.empty:
        return ["No run of this sweep is finished, so there is nothing to report yet."]
    said = [_design(page)]
    rows = [row for row in rows if row["headline"]]
    if not rows:
        return [*said, "There is no verdict on any task."]
    probes = [row for row in rows if not row["control"]]
    said.append(f"Of {count(len(probes), 'ability', 'abilities')} (a task at one level): {_found(probes)}.")
    sharp = [row for row in probes if row["label"] == "emergent_sharp"]
    held = sum(row["partner_label"] == "emergent_sharp" for row in sharp)
    if sharp:
        said.append(
            f"Of the {len(sharp)} that jump on their headline metric, {held} also jump on the continuous metric of "
            "the same answers."
        )
    if controls := [row for row in rows if row["control"]]:
        said[-1] += f" Of {count(len(controls), 'control')}: {_found(controls)}."
    if asked := [row for row in probes if row["surprise"] != DASH]:
        said.append(
            f"Where the largest size could be forecast from the smaller ones ({len(asked)} of {len(probes)}), it came "
            f"out better than the 95 % interval of the forecast {sum(row['surprise'] == 'yes' for row in asked)} times."
        )
    return said


def _found(rows: list[dict[str, Any]]) -> str:
    labels = [row["label"] for row in rows]
    others = sorted({str(label) for label in labels} - set(LABELS))
    return listing(f"{labels.count(label)} {label_name(label)}" for label in (*LABELS, *others) if label in labels)


def _design(page: Tables) -> str:
    runs, sizes = page.last, figures.by_size(page.last)
    n, c, d = (runs[k].dropna() for k in ("n_params_non_embedding", "flops", "tokens"))
    seeds = runs.groupby("size")["seed"].nunique().clip(lower=1)
    most = f"{span(seeds.min(), seeds.max())} {'seed' if seeds.max() == 1 else 'seeds'}, {count(len(runs), 'run')}"
    which = " to ".join(dict.fromkeys((sizes[0], sizes[-1])))
    which += f"; N = {extent(n)} parameters without embeddings" if len(n) else ""
    said = f"{count(len(sizes), 'size')} ({which}), {most}."
    if len(d) and len(c):
        said += f" Each saw D = {extent(d)} tokens, which is C = {extent(c, 'flops')} FLOPs."
    if len(page.branches):
        said += f" {count(len(page.branches), 'branch', 'branches')} of these runs ended earlier, at D = "
        said += f"{_tokens(page.branches['tokens'])} tokens."
    asked = page.scores[page.scores["is_last"].eq(True) & page.scores["headline"].eq(True)]
    cells = asked.groupby(["task", "level"])["n"].max()
    if len(cells):
        tasks, documents = asked["task"].nunique(), int(cells.fillna(0).sum())
        said += f" Each was asked {count(tasks, 'task')} ({len(cells)} counting levels of difficulty)"
        said += f", {documents:,} documents." if documents else "."
    return said


def ladder(page: Tables) -> dict[str, Any]:
    """One row per size: shape, N, FLOPs, the loss on held-out text (else the training loss) and its cost."""
    text = page.scores[page.scores["kind"].eq("language modeling") & page.scores["is_last"].eq(True)]
    found = [m for m in ("nats_per_token", "bits_per_byte") if text["metric"].eq(m).any()]
    text = text[text["metric"] == found[0]] if found else text
    task = next(iter(text["task"]), None)
    losses = text[text["task"] == task] if found else page.last.rename(columns={"train_loss": "value"})
    spent = {e["run_id"]: e.get("cpu_seconds", 0) + e.get("evaluate_cpu_seconds", 0) for e in page.ledger}
    rows = []
    for size in figures.by_size(page.last):
        runs = page.last[page.last["size"] == size]
        loss, one = losses.loc[losses["size"] == size, "value"].astype(float).dropna(), runs.iloc[0]
        cpu = [spent[run] for run in runs["run_id"] if run in spent]
        spread = f" ± {loss.std():.3f}" if len(loss) > 1 else ""
        flops = runs["flops"].dropna()
        rows.append({
            "size": size,
            "shape": f"{one['n_layer']} × {one['d_model']}" if known(one["n_layer"]) else DASH,
            "numbers": [si(number(one[k])) for k in ("n_params_non_embedding", "n_params", "flops_per_token")],
            "compute": extent(flops, "flops") if len(flops) else DASH,
            "budgets": _tokens(page.ends.loc[page.ends["size"] == size, "tokens"]),
            "seeds": max(runs["seed"].nunique(), 1),
            "loss": f"{loss.mean():.3f}{spread}" if len(loss) else DASH,
            "cpu": f"{sum(cpu) / len(cpu):.0f}" if cpu else DASH,
        })  # fmt: skip
    name = f"{task}: {metric_name(found[0])}" if found else "training loss (nats per token)"
    return {
        "rows": rows,
        "loss": name if any(row["loss"] != DASH for row in rows) else "",
        "budgets": len(page.branches) > 0,
        "cpu": bool(spent),
        "total": sum(spent.values()),
    }


def _tokens(column: pd.Series) -> str:
    """Write the token budgets of some runs: 262k and 524k."""
    return listing(si(float(tokens)) for tokens in sorted(column.dropna().unique()))


def missing_rows(page: Tables) -> list[dict[str, str]]:
    """Everything the page cannot show, and why: cells not run, scores without a value, tables without rows."""
    rows = [
        {"what": f"no {name}", "where": "the whole sweep", "reason": reason}
        for name, reason in WHY_EMPTY.items()
        if getattr(page, name).empty and name not in page.absent
    ]
    if page.imported:
        rows = [
            row | {"reason": "the imported files hold none"} if row["what"] == "no examples" else row for row in rows
        ]
    for (task, reason), cells in page.missing.fillna({"reason": "no reason given"}).groupby(["task", "reason"]):
        runs, steps = cells["run_id"].nunique(), cells["step"].dropna().unique()
        sizes = sorted(set(map(str, cells["size"])), key=natural)
        where = f"{listing(sizes)}: {count(runs, 'run')}" if sizes != ["(all)"] else "every run"
        where += f", D = {budgets}" if (budgets := _tokens(cells["tokens"])) else ""
        where += f", step {listing(sorted(steps))}" if len(steps) else ""
        rows.append({"what": f"task {task}" if task != "(all)" else "whole runs", "where": where, "reason": reason})
    empty = page.all_scores[page.all_scores["value"].isna() & page.all_scores["is_last"].eq(True)]
    groups = empty.fillna({"note": "no reason given"}).groupby(["task", "level", "note"])
    for (task, level, note), cells in groups:
        metrics, sizes = listing(sorted(set(cells["metric"]))), sorted(set(cells["size"]), key=natural)
        what = f"{task}{f', {level}' if level else ''}: {metrics}"
        rows.append({"what": what, "where": f"{listing(sizes)}: {count(len(cells), 'score')}", "reason": note})
    return rows


def samples(page: Tables) -> list[dict[str, Any]]:
    """Documents with every size's answer, smallest size first; those that show an ability appear come first."""
    documents = []
    for (task, level, doc_id), rows in page.examples.groupby(["task", "level", "doc_id"], sort=False):
        rows = rows.sort_values(["n_params_non_embedding", "seed"])
        right = rows["correct"].astype(float)
        gain = right.iloc[-1] - right.iloc[0]
        answers = [
            {"size": r["size"], "response": r["response"]} | {k: number(r[k]) for k in ("correct", "logprob")}
            for r in rows.to_dict("records")
        ]
        first = rows.iloc[0]
        documents.append({
            "task": task, "level": level, "doc_id": doc_id, "seed": first["seed"], "prompt": first["prompt"],
            "target": first["target"], "answers": answers, "gain": gain if gain == gain else 0.0,
        })  # fmt: skip
    documents.sort(key=lambda d: -d["gain"])  # stable: ties keep the order of the table
    best: dict[str, dict[str, Any]] = {}
    for found in documents:
        best.setdefault(found["task"], found)  # one per task before a second one
    return [*best.values(), *(d for d in documents if d is not best[d["task"]])]


def answer(text: Any, limit: int = 600) -> str:
    """Write a text so that nothing of it is lost to the eye: line ends marked, emptiness said, length bounded."""
    if not isinstance(text, str):
        return "(nothing was kept)"
    if not text:
        return "(empty)"
    cut = f" … ({len(text) - limit} more characters)" if len(text) > limit else ""
    return text[:limit].replace("\n", "↵\n") + cut
