"""The report of a sweep: one page that is whole by itself, and its figures with the numbers behind them.

The page needs no network and no script. It is a function of the tables: the same tables give the same bytes. Every
string in it is escaped and its control characters are made visible, because part of them was written by a model.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness import figures
from harness.wording import (
    AXES,
    DASH,
    LABELS,
    choice_name,
    count,
    extent,
    interval,
    known,
    label_name,
    listing,
    loads,
    metric_name,
    natural,
    number,
    scale,
    si,
    span,
    visible,
)

# The columns the page reads: a table that is missing or empty becomes an empty one with these.
COLUMNS = {
    "runs": "run_id size n_layer d_model n_params n_params_non_embedding flops_per_token seed data_seed step tokens "
    "flops is_last train_loss peak_lr parametrization precision attention device weights_digest data_digest "
    "tokenizer_digest",
    "scores": "run_id size n_params_non_embedding n_params seed step tokens flops is_last task kind role level metric "
    "headline continuous higher_is_better partner value item_lo item_hi n chance seed_mean seed_sd seed_lo seed_hi "
    "n_seeds note",
    "fits": "subject form x params ci objective n_points n_sizes n_starts n_starts_agreeing converged aicc note band",
    "verdicts": "task level metric role headline continuous partner axis label width width_lo width_hi onset onset_lo "
    "onset_hi effect effect_lo effect_hi q_chance q_trend n_sizes n_seeds n_docs chance reasons sensitivity constants",
    "examples": "task level doc_id prompt target size n_params_non_embedding seed response correct logprob",
    "missing": "run_id size seed step task reason",
}
OPEN_SAMPLES = 6  # documents shown unfolded


def build_report(results: Any, out: Path) -> Path:
    """Write `out`/index.html and `out`/figures/ from the tables of `results`; return the path of the page.

    `results` has .runs .scores .fits .verdicts .examples .missing (frames), .tasks, .spec, .ledger, .path; any table
    may be empty or None: the page then says what is missing."""
    page = Page(results)
    out.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {"metric_name": metric_name, "label_name": label_name, "si": si, "answer": _answer}
    text = environment.get_template("report.html.j2").render(
        name=page.name,
        note=" ".join(str(page.about.get("note") or "").split()),
        headline=page.headline(),
        ladder=page.ladder(),
        verdicts=[row for row in page.verdict_rows() if row["headline"]],
        other_verdicts=[row for row in page.verdict_rows() if not row["headline"]],
        meanings={key: meaning for key, (_, _, meaning) in LABELS.items()},
        constants=page.constants,
        axis=AXES.get(page.axis, page.axis),
        scaling=page.scaling_figures(out / "figures"),
        fits=page.fit_rows(),
        curves=page.curve_figures(out / "figures"),
        maps=page.map_figures(out / "figures"),
        missing=page.missing_rows(),
        samples=page.samples(),
        open_samples=OPEN_SAMPLES,
        provenance=page.provenance(),
    )
    target, temporary = out / "index.html", out / f".index.html.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target


class Page:
    """The tables of one sweep, and what the page says of them."""

    def __init__(self, results: Any) -> None:
        def table(name: str) -> pd.DataFrame:
            found = getattr(results, name, None)
            return (pd.DataFrame() if found is None else found).reindex(columns=COLUMNS[name].split())

        self.runs, self.scores, self.fits, self.verdicts, self.examples, self.missing = map(table, COLUMNS)
        self.spec: dict[str, Any] = dict(results.spec or {})
        self.about: Mapping[str, Any] = self.spec.get("spec", self.spec)  # the stored sweep wraps its spec
        self.name = str(self.about.get("name") or Path(results.path).name)
        self.folder = f"results/{Path(results.path).name}"
        self.tasks: list[dict[str, Any]] = list(results.tasks or [])
        self.ledger: list[dict[str, Any]] = list(results.ledger or [])
        self.last = self.runs[self.runs["is_last"].eq(True)]
        self.controls = {t["name"] for t in self.tasks if t.get("role") == "control"}
        axes = [a for a in self.verdicts["axis"].dropna() if a in self.scores]
        self.axis = str(axes[0]) if axes else "flops"
        self.constants = loads(next(iter(self.verdicts["constants"].dropna()), None))

    # ---- 1: headline and ladder ----

    def headline(self) -> list[str]:
        """Say in a few sentences what was run and what came of it."""
        if self.last.empty:
            return ["No run of this sweep is finished, so there is nothing to report yet."]
        runs, sizes = self.last, figures.by_size(self.last)
        n, c, d = runs["n_params_non_embedding"], runs["flops"], runs["tokens"]
        seeds = runs.groupby("size")["seed"].nunique()
        design = (
            f"{span(seeds.min(), seeds.max())} {'seed' if seeds.max() == 1 else 'seeds'}, {count(len(runs), 'run')}"
        )
        said = [
            f"{count(len(sizes), 'size')} ({' to '.join(dict.fromkeys((sizes[0], sizes[-1])))}; N = {extent(n)} "
            f"parameters without embeddings), {design}. "
            f"Each saw D = {extent(d)} tokens, which is C = {extent(c, 'flops')} FLOPs."
        ]
        asked = self.scores[self.scores["is_last"].eq(True) & self.scores["headline"].eq(True)]
        cells = asked.groupby(["task", "level"])["n"].max()
        if len(cells):
            tasks = asked["task"].nunique()
            said[0] += (
                f" Each was asked {count(tasks, 'task')} ({len(cells)} counting levels of difficulty), "
                f"{int(cells.fillna(0).sum()):,} documents."
            )
        rows = [row for row in self.verdict_rows() if row["headline"]]
        if not rows:
            return [*said, "There is no verdict on any task."]
        probes = [row for row in rows if not row["control"]]
        labels = [row["label"] for row in probes]
        found = [f"{labels.count(label)} {label_name(label)}" for label in LABELS if label in labels]
        said.append(f"Of {count(len(probes), 'ability', 'abilities')} (a task at one level): {listing(found)}.")
        sharp = [row for row in probes if row["label"] == "emergent_sharp"]
        held = sum(row["partner_label"] == "emergent_sharp" for row in sharp)
        if sharp:
            said.append(
                f"Of the {len(sharp)} that jump on their headline metric, {held} also jump on the continuous metric of "
                "the same answers."
            )
        if controls := [row["label"] for row in rows if row["control"]]:
            found = [f"{controls.count(label)} {label_name(label)}" for label in LABELS if label in controls]
            said[-1] += f" Of {count(len(controls), 'control')}: {listing(found)}."
        return said

    def ladder(self) -> dict[str, Any]:
        """One row per size: shape, N, FLOPs, the loss on held-out text (else the training loss) and its cost."""
        text = self.scores[self.scores["kind"].eq("language modeling") & self.scores["is_last"].eq(True)]
        found = [m for m in ("nats_per_token", "bits_per_byte") if text["metric"].eq(m).any()]
        text = text[text["metric"] == found[0]] if found else text
        task = next(iter(text["task"]), None)
        losses = text[text["task"] == task] if found else self.last.rename(columns={"train_loss": "value"})
        spent = {e["run_id"]: e.get("cpu_seconds", 0) + e.get("evaluate_cpu_seconds", 0) for e in self.ledger}
        rows = []
        for size in figures.by_size(self.last):
            runs = self.last[self.last["size"] == size]
            loss, one = losses.loc[losses["size"] == size, "value"].astype(float).dropna(), runs.iloc[0]
            cpu = [spent[run] for run in runs["run_id"] if run in spent]
            spread = f" ± {loss.std():.3f}" if len(loss) > 1 else ""
            rows.append({
                "size": size,
                "shape": f"{one['n_layer']} × {one['d_model']}",
                "numbers": [si(one["n_params_non_embedding"]), si(one["n_params"]), si(one["flops_per_token"])],
                "compute": scale(one["flops"], "flops"),
                "seeds": runs["seed"].nunique(),
                "loss": f"{loss.mean():.3f}{spread}" if len(loss) else DASH,
                "cpu": f"{sum(cpu) / len(cpu):.0f}" if cpu else DASH,
            })  # fmt: skip
        name = f"{task}: {metric_name(found[0])}" if found else "training loss (nats per token)"
        return {"rows": rows, "loss": name, "cpu": bool(spent), "total": sum(spent.values())}

    # ---- 2: verdicts ----

    def verdict_rows(self) -> list[dict[str, Any]]:
        """Return every verdict as the table writes it, with the label of its continuous partner."""
        labels = self.labels
        rows = []
        for v in self.verdicts.to_dict("records"):
            variants = {k: label for k, label in loads(v["sensitivity"]).items() if isinstance(label, str)}
            onset = [scale(10 ** number(v[k]), self.axis) if known(v[k]) else DASH for k in ("onset_lo", "onset_hi")]
            rows.append({
                "task": v["task"], "level": v["level"], "metric": v["metric"], "label": v["label"],
                "headline": number(v["headline"]) == 1,
                "control": v["role"] == "control", "partner": v["partner"] if isinstance(v["partner"], str) else None,
                "partner_label": labels.get((v["task"], v["level"], v["partner"])),
                "width": interval(v["width"], v["width_lo"], v["width_hi"], "{:.2g}"),
                "onset": scale(10 ** number(v["onset"]), self.axis) if known(v["onset"]) else DASH,
                "onset_range": " to ".join(onset) if known(v["onset"]) and onset != [DASH, DASH] else "",
                "onset_n": self._as_n(v["onset"]),
                "effect": interval(v["effect"], v["effect_lo"], v["effect_hi"], "{:+.2f}"),
                "chance": f"{number(v['chance']):.3g}" if known(v["chance"]) else DASH,
                "design": [v["n_sizes"], v["n_seeds"], v["n_docs"]],
                "reasons": v["reasons"] if isinstance(v["reasons"], str) else "",
                "changed": [f"{label_name(x)} {choice_name(k)}" for k, x in variants.items() if x != v["label"]],
            })  # fmt: skip
        order = {t["name"]: i for i, t in enumerate(self.tasks)}
        return sorted(rows, key=lambda r: (order.get(r["task"], len(order)), str(r["task"]), natural(r["level"])))

    @property
    def labels(self) -> dict[tuple[str, str, str], str]:
        keys = ("task", "level", "metric", "label")
        return {(t, lv, m): label for t, lv, m, label in zip(*(self.verdicts[k] for k in keys), strict=True)}

    def _as_n(self, onset: Any) -> str:
        """Return the N of the ladder that spends the onset's compute, read off between the sizes."""
        runs = self.last.sort_values("flops")[["flops", "n_params_non_embedding"]].astype(float)
        if self.axis != "flops" or not known(onset) or runs.empty:
            return ""
        c = 10 ** number(onset)
        if not runs["flops"].min() <= c <= runs["flops"].max():
            return "outside the ladder"
        n = np.exp(np.interp(math.log(c), np.log(runs["flops"]), np.log(runs["n_params_non_embedding"])))
        return f"N ≈ {si(float(f'{n:.2g}'))}"

    # ---- 3 and 4: figures ----

    def scaling_figures(self, folder: Path) -> list[dict[str, Any]]:
        """One figure per language-modelling task: nats per token when it was fitted, else its first fitted metric."""
        fits = self.fits[self.fits["x"].isin(self.scores.columns)]
        subjects = sorted(fits["subject"].unique(), key=lambda s: (not str(s).endswith(":nats_per_token"), str(s)))
        first = {str(s).split(":")[0]: s for s in reversed(subjects)}
        drawn = []
        for subject in sorted(first.values()):
            rows = fits[fits["subject"] == subject].drop_duplicates("x")
            data = figures.scaling_data(self.scores, rows)
            if len(data):
                figure = figures.scaling_figure(data, rows)
                drawn.append(_save(figure, folder, f"scaling-{subject}", data, f"{subject} against scale"))
        return drawn

    def fit_rows(self) -> list[dict[str, Any]]:
        """Parameters of every fit with their intervals, and what the fit does not say."""
        rows = []
        for fit in self.fits.to_dict("records"):
            limits = loads(fit["ci"])
            parameters = []
            for key, value in loads(fit["params"]).items():
                low, high = limits.get(key) or (None, None)
                parameters.append(f"{key} = {interval(value, low, high, '{:.4g}')}")
            rows.append(fit | {"parameters": parameters, "x": AXES.get(fit["x"], fit["x"]), "note": fit["note"] or ""})
        return rows

    def curve_figures(self, folder: Path) -> list[dict[str, Any]]:
        """One figure per task, in the order of the sweep's tasks."""
        labels, drawn = self.labels, []
        listed = [t["name"] for t in self.tasks]
        for task in [*listed, *sorted(set(self.scores["task"].dropna()) - set(listed))]:
            data = figures.curve_data(self.scores, task, self.axis)
            if data["value"].notna().any():
                figure = figures.curve_figure(data, lambda level, m, t=task: labels.get((t, level, m)), self.axis)  # type: ignore[misc]
                about = next((t.get("description", "") for t in self.tasks if t["name"] == task), "")
                saved = _save(figure, folder, f"curve-{task}", data, f"{task}: score against scale")
                drawn.append(saved | {"task": task, "about": about, "control": task in self.controls})
        return drawn

    def map_figures(self, folder: Path) -> list[dict[str, Any]]:
        """Size x difficulty, and score against training tokens, where there is something to see."""
        drawn = []
        if len(data := figures.heatmap_data(self.scores)):
            what = "Size by difficulty: the headline score in each cell, averaged over seeds; × was not measured"
            drawn.append(_save(figures.heatmap_figure(data), folder, "difficulty", data, what))
        if len(data := figures.training_data(self.scores)):
            what = "During training: headline score, mean over seeds, of each task the level on which sizes differ most"
            drawn.append(_save(figures.training_figure(data), folder, "training", data, what))
        return drawn

    # ---- 5: what is missing ----

    def missing_rows(self) -> list[dict[str, str]]:
        """Everything the page cannot show, and why: cells not run, scores without a value, tables without rows."""
        rows = [
            {"what": f"no {name}", "where": "the whole sweep", "reason": reason}
            for name, reason in (
                ("runs", "no run is finished"),
                ("scores", "no answers were scored"),
                ("fits", "no loss on held-out text could be fitted against scale"),
                ("verdicts", "the analysis gave none"),
                ("examples", "no answers were kept as samples"),
            )
            if getattr(self, name).empty
        ]
        for (task, reason), cells in self.missing.fillna({"reason": "no reason given"}).groupby(["task", "reason"]):
            runs, steps = cells["run_id"].nunique(), cells["step"].dropna().unique()
            sizes = sorted(set(map(str, cells["size"])), key=natural)
            where = f"{listing(sizes)}: {count(runs, 'run')}" if sizes != ["(all)"] else "every run"
            where += f", step {listing(sorted(steps))}" if len(steps) else ""
            rows.append({"what": f"task {task}" if task != "(all)" else "whole runs", "where": where, "reason": reason})
        empty = self.scores[self.scores["value"].isna() & self.scores["is_last"].eq(True)]
        groups = empty.fillna({"note": "no reason given"}).groupby(["task", "level", "note"])
        for (task, level, note), cells in groups:
            metrics, sizes = listing(sorted(set(cells["metric"]))), sorted(set(cells["size"]), key=natural)
            what = f"{task}{f', {level}' if level else ''}: {metrics}"
            rows.append({"what": what, "where": f"{listing(sizes)}: {count(len(cells), 'score')}", "reason": note})
        return rows

    # ---- 6: sample answers ----

    def samples(self) -> list[dict[str, Any]]:
        """Documents with every size's answer, smallest size first; those that show an ability appear come first."""
        documents = []
        for (task, level, doc_id), rows in self.examples.groupby(["task", "level", "doc_id"], sort=False):
            rows = rows.sort_values(["n_params_non_embedding", "seed"])
            right = rows["correct"].astype(float)
            gain = right.iloc[-1] - right.iloc[0]
            answers = [
                {
                    "size": r["size"],
                    "response": r["response"],
                    "correct": number(r["correct"]),
                    "logprob": number(r["logprob"]),
                }
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

    # ---- 7: provenance ----

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from: settings, versions, digests, and the commands that make them again."""
        facts = []
        for column in (
            "parametrization",
            "peak_lr",
            "precision",
            "attention",
            "device",
            "tokenizer_digest",
            "data_digest",
        ):
            values = [str(v) for v in self.runs[column].dropna().unique()]
            facts.append((column.replace("_", " "), ", ".join(values) or DASH))
        versions: dict[str, list[str]] = {}
        for entry in self.ledger:
            for key, value in (entry.get("environment") or {}).items():
                if str(value) not in versions.setdefault(key, []):
                    versions[key].append(str(value))
        built_in = (Path(__file__).parent / "sweeps" / f"{self.name}.toml").is_file()
        source = self.name if built_in else f"{self.name}.toml"
        drawn_with = {p: metadata.version(p) for p in ("numpy", "pandas", "matplotlib", "seaborn", "jinja2")}
        return {
            "facts": facts,
            "versions": [(key, ", ".join(values)) for key, values in sorted(versions.items())],
            "drawn_with": ", ".join(f"{key} {value}" for key, value in drawn_with.items()),
            "weights": self.runs[["run_id", "step", "weights_digest"]].to_dict("records"),
            "tasks": self.tasks,
            "commands": [
                f"harness {do}" for do in (f"sweep {source}", f"analyze {self.folder}", f"report {self.folder}")
            ],
            "spec": json.dumps(self.spec, indent=2, ensure_ascii=False, default=str),
        }


def _save(figure: Any, folder: Path, name: str, data: pd.DataFrame, caption: str) -> dict[str, Any]:
    """Save a figure under a safe file name and return what the page needs of it."""
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", name)
    path = figures.save(figure, folder, safe, data)
    title = html.escape(visible(caption), quote=True)
    return {"name": safe, "svg": Markup(figures.inline_svg(path, title)), "caption": caption}


def _answer(text: Any, limit: int = 600) -> str:
    """Write a text so that nothing of it is lost to the eye: line ends marked, emptiness said, length bounded."""
    if not isinstance(text, str):
        return "(nothing was kept)"
    if not text:
        return "(empty)"
    cut = f" … ({len(text) - limit} more characters)" if len(text) > limit else ""
    return text[:limit].replace("\n", "↵\n") + cut
