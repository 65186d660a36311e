"""Tables of the harness's own shape, made up, and what a browser would find in a page made from them."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>\x00\x1b[31m\u202e\n</pre>"
SIZES = {"2x8": 1_600, "2x16": 6_700, "2x24": 14_000, "2x32": 24_000, "2x48": 56_000, "2x64": 101_000, "2x96": 222_000}
SIZES["2x128"] = 390_000
TOKENS = 3_072_000

# name, kind, role, headline, partner, levels, chance, (midpoint, width in decades of C) or None, label, partner's label
PROBES = [
    ("copy", "generation", "probe", "exact_match", "nats_per_token", ["k=2", "k=4", "k=6", "k=10"], 0.0, (12.1, 0.3),
     "emergent_sharp", "smooth"),
    ("reverse", "generation", "probe", "exact_match", "nats_per_token", ["k=2", "k=4", "k=6"], 0.0, (12.3, 0.5),
     "bimodal_seeds", "inconclusive"),
    ("sort", "generation", "probe", "exact_match", "nats_per_token", ["k=3", "k=5", "k=7"], 0.0, (12.4, 1.8),
     "smooth_late_onset", "smooth"),
    ("addition", "generation", "probe", "exact_match", "nats_per_token", ["digits=1", "digits=2"], 0.0, None,
     "flat_at_chance", "smooth"),
    ("recall", "qa", "probe", "acc", "logloss", ["pairs=2", "pairs=4", "pairs=8"], 0.125, (12.0, 0.3),
     "emergent_sharp", "emergent_sharp"),
    ("fact", "qa", "probe", "acc", "logloss", [""], 1 / 16, (11.8, 2.0), "smooth", "smooth"),
    ("fact_new", "qa", "control", "acc", "logloss", [""], 1 / 16, None, "flat_at_chance", "inverse"),
    ("hop", "qa", "probe", "acc", "logloss", ["links=2", "links=3"], 0.25, None, "flat_above_chance", "inconclusive"),
    ("icl", "classification", "probe", "acc", "logloss", [""], 0.5, (12.4, 0.3), "bimodal_seeds", "emergent_sharp"),
    ("sentiment", "classification", "probe", "acc", "logloss", [""], 0.5, (11.2, 1.5), "smooth", "smooth"),
    ("coin", "classification", "control", "acc", "logloss", [""], 0.5, None, "flat_at_chance", "flat_at_chance"),
    ("parity", "classification", "probe", "acc", "logloss", [""], 0.5, None, "inconclusive", "inconclusive"),
]  # fmt: skip


def synthetic_results(path: Path, *, checkpoints: int = 3) -> SimpleNamespace:
    """Tables of the harness's own shape: 8 sizes, 3 seeds, 13 tasks, every label, holes and hostile text."""
    rng = np.random.default_rng(0)
    runs, scores, verdicts, examples = [], [], [], []
    for size, n in SIZES.items():
        layers, width = map(int, size.split("x"))
        for seed in range(3):
            for step, share in zip((200, 700, 2000)[-checkpoints:], (0.1, 0.35, 1.0)[-checkpoints:], strict=True):
                tokens = int(TOKENS * share)
                runs.append({
                    "run_id": f"{size}-{seed}", "sweep": "demo", "size": size, "n_layer": layers, "d_model": width,
                    "n_params": n + 2 * 768 * width, "n_params_non_embedding": n,
                    "flops_per_token": 6.0 * (n + 768 * width),
                    "seed": seed, "step": step, "tokens": tokens, "flops": 6.0 * (n + 768 * width) * tokens,
                    "is_last": share == 1, "train_loss": 3.0, "parametrization": "mup", "precision": "fp32",
                    "attention": "sdpa", "device": "cpu", "weights_digest": f"{n:08x}{seed}", "data_digest": f"d{seed}",
                    "tokenizer_digest": "t0", "context_length": 96, "vocab_size": 768, "peak_lr": 2**-8,
                })  # fmt: skip

    def add(task, kind, role, level, metric, headline, continuous, partner, chance, curve, label):
        for run in runs:
            where = math.log10(run["flops"])
            value = curve(where) + rng.normal(0, 0.02)
            if "bimodal" in label and 11.9 < where < 12.6:
                value = 0.95 if (run["seed"] + len(run["size"])) % 2 else (chance or 0.02)
            value = value if continuous else min(max(value, 0.0), 1.0)
            lost = task == "sort" and level == "k=7" and run["size"] == "2x24"
            scores.append({
                **{k: run[k] for k in ("run_id", "size", "n_params", "n_params_non_embedding", "seed", "step", "tokens",
                                       "flops", "is_last")},
                "task": task, "kind": kind, "ability": "", "role": role, "level": level, "metric": metric,
                "headline": headline, "continuous": continuous, "higher_is_better": not continuous, "partner": partner,
                "value": math.nan if lost else value, "item_se": 0.02, "item_lo": value - 0.04, "item_hi": value + 0.04,
                "n": 0 if lost else 500, "chance": chance, "chance_source": None if chance is None else "uniform",
                "n_seeds": 3, "task_digest": "x", "note": "no document fits the context" if lost else None,
            })  # fmt: skip
        settled = not label.startswith(("flat", "inconclusive"))
        verdicts.append({
            "task": task, "level": level, "metric": metric, "kind": kind, "ability": "", "role": role,
            "headline": headline, "continuous": continuous, "partner": partner, "axis": "flops", "label": label,
            "width": 0.42 if settled else math.nan, "width_lo": 0.3 if settled else math.nan,
            "width_hi": (math.inf if label == "smooth" else 0.71) if settled else math.nan,
            "onset": 12.0 if settled else math.nan, "onset_lo": 11.8 if settled else math.nan,
            "onset_hi": 12.2 if settled else math.nan, "effect": 0.6, "effect_lo": 0.5, "effect_hi": 0.7,
            "p_chance": 0.001, "q_chance": 0.01, "p_trend": 0.001, "q_trend": 0.01, "n_sizes": 8, "n_seeds": 3,
            "n_docs": 500, "chance": chance,
            "reasons": f"The 10-90 % rise of {metric} takes 0.42 decades of C (95 % interval 0.30 to 0.71), below 1.",
            "sensitivity": json.dumps({"W0=0.5": label, "W0=1.5": label, "n_params_non_embedding": "inconclusive"}),
            "constants": json.dumps({"alpha": 0.05, "min_effect": 0.10, "sharp_width": 1.0, "min_sizes": 5}),
        })  # fmt: skip

    tasks = []
    for name, kind, role, metric, partner, levels, chance, rise, label, partner_label in PROBES:
        metrics = [metric, partner] + (["acc_all8"] if name == "fact" else []) + (["acc_char"] if kind == "qa" else [])
        tasks.append({"name": name, "kind": kind, "ability": "", "role": role, "levels": levels, "metrics": metrics,
                      "metric": metric, "digest": "ab" * 16, "description": f"The {name} task."})  # fmt: skip
        for i, level in enumerate(levels):
            centre, width = rise or (99.0, 1.0)
            sigmoid = lambda x, c=centre + 0.25 * i, w=width: 1 / (1 + math.exp(-math.log(81) * (x - c) / w))  # noqa: E731
            floor = 1 / int(level.split("=")[1]) if name == "recall" else chance
            accuracy = lambda x, f=floor, s=sigmoid: f + (0.96 - f) * s(x)  # noqa: E731
            add(name, kind, role, level, metric, True, False, partner, floor, accuracy, label)
            top = math.log(1 / floor) if floor else 3.2
            add(name, kind, role, level, partner, False, True, metric, top if floor else None,
                lambda x, t=top, s=sigmoid: t * (1 - 0.95 * s(x)), partner_label)  # fmt: skip
            if name == "fact":
                add(name, kind, role, level, "acc_all8", False, False, partner, chance**8,
                    lambda x, a=accuracy: a(x) ** 8, "emergent_metric_dependent")  # fmt: skip
            if kind == "qa":
                add(name, kind, role, level, "acc_char", False, False, partner, floor, accuracy, label)
            for doc_id in range(2):
                for size, n in SIZES.items():
                    right = float(sigmoid(math.log10(6 * (n + 6144) * TOKENS)) > 0.5)
                    examples.append({
                        "task": name, "level": level, "doc_id": doc_id, "prompt": f"{name} s r e l ->",
                        "target": " s r e l", "size": size, "n_params_non_embedding": n, "seed": 0,
                        "correct": right, "logprob": -2.0,
                        "response": " s r e l" if right else (HOSTILE if size == "2x8" else " s r r r"),
                    })  # fmt: skip
    tasks.append({"name": "text", "kind": "language modeling", "ability": "", "role": "probe", "levels": [""],
                  "metrics": ["nats_per_token"], "metric": "nats_per_token", "digest": "cd",
                  "description": "Plays."})  # fmt: skip
    law = lambda where: 3.9 - 0.45 * (where - 11.2)  # noqa: E731
    add("text", "language modeling", "probe", "", "nats_per_token", True, True, None, None, law, "smooth")
    table = pd.DataFrame(scores)
    cells = table.groupby(["size", "step", "task", "level", "metric"], sort=False)["value"]
    table["seed_mean"], table["seed_sd"] = cells.transform("mean"), cells.transform("std")
    half = 4.303 * table["seed_sd"] / math.sqrt(3)
    table["seed_lo"], table["seed_hi"] = table["seed_mean"] - half, table["seed_mean"] + half
    text = table[table["task"].eq("text") & table["is_last"]]
    slope, height = np.polyfit(np.log(text["n_params_non_embedding"]), np.log(text["value"]), 1)
    grid = np.geomspace(1_600, 390_000, 30)
    curve = np.exp(height) * grid**slope
    fits = [{
        "subject": "text:nats_per_token", "form": "power_law", "x": "n_params_non_embedding",
        "params": json.dumps({"A": float(np.exp(height)), "alpha": -slope}),
        "ci": json.dumps({"alpha": [0.035, 0.044]}),
        "objective": 1e-3, "n_points": 24, "n_sizes": 8, "n_starts": 40, "n_starts_agreeing": 40, "converged": True,
        "aicc": -80.0, "note": "The floor is not identified by 8 sizes: its bootstrap interval reaches 0.",
        "band": json.dumps({"x": list(grid), "y": list(curve), "lo": list(curve * 0.99), "hi": list(curve * 1.01)}),
    }]  # fmt: skip
    missing = [{"run_id": f"2x24-{s}", "size": "2x24", "seed": s, "step": 2000, "task": "sort",
                "reason": "no document fits the context"} for s in range(3)]  # fmt: skip
    return SimpleNamespace(
        runs=pd.DataFrame(runs), scores=table, fits=pd.DataFrame(fits), verdicts=pd.DataFrame(verdicts),
        examples=pd.DataFrame(examples), missing=pd.DataFrame(missing), tasks=tasks, path=path,
        spec={"spec": {"name": "demo", "seeds": [0, 1, 2], "note": "The mixture was\nchosen so that thresholds show."}},
        ledger=[{"run_id": f"{s}-{i}", "cpu_seconds": 40.0 + n / 4000, "wall_seconds": 50.0}
                for s, n in SIZES.items() for i in range(3)],
    )  # fmt: skip


class Parsed(HTMLParser):
    """What a browser would find in a page: element names, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


def few(results: SimpleNamespace, keep) -> SimpleNamespace:
    """Return results with every frame filtered by `keep` (frame -> mask)."""
    frames = {k: v[keep(v)].copy() if isinstance(v, pd.DataFrame) else v for k, v in vars(results).items()}
    return SimpleNamespace(**frames)


def forecast_rows(results: SimpleNamespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Backtests and forecasts of every curve, two predictors and their stack, normal with known errors.

    The stack is off by -1.5, 0 and 1 of its standard deviations in turn, so that its 50, 80 and 95 % intervals hold
    one, two and three of every three observed values."""
    quantile = {50: 0.6745, 80: 1.2816, 95: 1.96}
    last = results.scores[results.scores["is_last"] & (results.scores["size"] == "2x128")]
    backtests, forecasts = [], []
    passed = ["task", "level", "metric", "kind", "role", "headline", "continuous"]
    keys = ["task", "level", "metric"]
    for i, (_, rows) in enumerate(last.groupby(keys, sort=False)):
        first, observed, sd = rows.iloc[0], float(rows["value"].mean()), 0.05
        for held_out in ("largest", "largest two"):
            for predictor, weight in (("stack", math.nan), ("logistic", 0.7), ("power_law", 0.3)):
                off = (-1.5, 0.0, 1.0)[i % 3] if predictor == "stack" else 0.5
                middle = observed - off * sd
                inside = {f"covered{q}": abs(off) <= z for q, z in quantile.items()}
                ends = {f"{e}{q}": middle + s * z * sd for q, z in quantile.items() for e, s in (("lo", -1), ("hi", 1))}
                row = first[passed].to_dict() | {"predictor": predictor, "predicted": middle, "weight": weight} | ends
                backtests.append(row | inside | {
                    "held_out": held_out, "size": "2x128", "tokens": TOKENS, "flops": first["flops"],
                    "n_params": 0, "n_params_non_embedding": 390_000, "observed": observed, "error": observed - middle,
                    "crps": 0.03, "surprise_p": 0.5 * math.erfc(off / math.sqrt(2)), "n_sizes": 7, "note": None,
                })  # fmt: skip
                if held_out == "largest":
                    forecasts.append(row | {
                        "target_n_params_non_embedding": 1_000_000, "target_tokens": TOKENS,
                        "target_flops": 4 * first["flops"], "extrapolation": math.log10(4), "note": None,
                    })  # fmt: skip
    return pd.DataFrame(backtests), pd.DataFrame(forecasts)


def link_rows(results: SimpleNamespace) -> pd.DataFrame:
    """A link per threshold headline: it holds, fails and is not decided in turn."""
    heads = results.verdicts[results.verdicts["headline"] & ~results.verdicts["continuous"].astype(bool)]
    table = []
    for i, v in enumerate(heads.to_dict("records")):
        same = (results.scores[k] == v[k] for k in ("task", "level", "metric"))
        rows = results.scores[np.logical_and.reduce([*same, results.scores["is_last"]])]
        means = rows.groupby(["size", "flops"], sort=False)["value"].mean().dropna().reset_index()
        points = [
            {"size": s, "flops": c, "observed": y, "predicted": min(1.0, y + 0.03), "lo": y - 0.05, "hi": y + 0.05}
            for s, c, y in means.itertuples(index=False)
        ]
        table.append({
            "task": v["task"], "level": v["level"], "metric": v["metric"], "partner": v["partner"],
            "link": "p_tok^l", "n_items": 500, "params": "{}", "predicted": json.dumps(points), "max_gap": 0.03,
            "max_gap_limit": 0.05, "p_lack_of_fit": (0.4, 1e-5, math.nan)[i % 3], "holds": (True, False, None)[i % 3],
            "note": None if i % 3 < 2 else "only 2 sizes have answers",
        })  # fmt: skip
    return pd.DataFrame(table)


def with_budgets(results: SimpleNamespace, shares: tuple[float, ...] = (0.01, 0.1)) -> SimpleNamespace:
    """Results with a branch of every run at these shares of its tokens, as good as a trunk of so much less compute."""
    frames = {}
    for name in ("runs", "scores"):
        ends = getattr(results, name).assign(trunk=None)
        last = ends[ends["is_last"]]
        parts = [ends.assign(annealed=ends["is_last"])]
        for share in shares:
            tokens = (last["tokens"] * share).round().astype(last["tokens"].dtype)  # a count, as it is without budgets
            moved = {"tokens": tokens, "flops": last["flops"] * share, "annealed": True}
            parts.append(last.assign(**moved, trunk=last["run_id"], run_id=last["run_id"] + f"-{share:g}"))
            if name == "scores":
                slope = np.where(last["continuous"], -0.45, 0.3) * math.log10(share)
                value = last["value"] + np.where(last["continuous"], slope, -np.abs(slope))
                bounded = np.where(last["continuous"], value, np.clip(value, last["chance"].fillna(0).astype(float), 1))
                parts[-1] = parts[-1].assign(value=bounded)
        frames[name] = pd.concat(parts, ignore_index=True)
    missing = results.missing.assign(tokens=int(TOKENS * shares[0]))
    return SimpleNamespace(**{**vars(results), **frames, "missing": missing})


def with_science(results: SimpleNamespace) -> SimpleNamespace:
    """Return the same results with links, backtests and forecasts, and a surprise in the verdicts."""
    backtests, forecasts = forecast_rows(results)
    verdicts = results.verdicts.assign(rows_digest="0123456789ab", surprise=False, surprise_note=None, link="unknown")
    verdicts["surprise"] = verdicts["surprise"].astype(object)
    verdicts.loc[verdicts["task"] == "copy", "surprise"] = True
    verdicts.loc[verdicts["task"] == "coin", "surprise"] = None
    verdicts.loc[verdicts["task"] == "coin", "surprise_note"] = "Too few sizes to forecast the largest."
    more = {"links": link_rows(results), "backtests": backtests, "forecasts": forecasts, "verdicts": verdicts}
    return SimpleNamespace(**(vars(results) | more))
