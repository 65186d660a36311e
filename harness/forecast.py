"""Forecasts of larger sizes, and how such forecasts did on the sizes there are.

Every predictor (harness.predictors) is fitted on the rungs up to some compute and asked for the rungs beyond, from
every origin; from these errors, pooled over the tasks of a sweep, harness.stacking learns how far to believe each. A
rung is never predicted with anything that was learned from it or from a larger one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from harness.foreign import judged
from harness.predictors import LOSS, MIN_FITTED, REAL, SHARE, Curves, Values, predict
from harness.stacking import DF, STACK, crps, forecast_from
from harness.store import StoreError
from tasks.metrics import METRICS

KEYS = ["task", "level", "metric"]
PASSED = ["kind", "role", "headline", "continuous"]
RUNG = ["flops", "n_params_non_embedding", "tokens"]
LEVELS = (50, 80, 95)
ENDS = [f"{end}{level}" for level in LEVELS for end in ("lo", "hi")]
_SIZE = ["size", "n_params", *RUNG[1:], RUNG[0]]
_JUDGED = ["error", "crps", *(f"covered{level}" for level in LEVELS), "surprise_p", "weight", "n_sizes", "note"]
BACKTEST_COLUMNS = [*KEYS, *PASSED, "held_out", *_SIZE, "predictor", "predicted", "observed", *ENDS, *_JUDGED]
_TARGET = [f"target_{name}" for name in (*RUNG[1:], RUNG[0])]
FORECAST_COLUMNS = [*KEYS, *PASSED, "predictor", *_TARGET, "predicted", *ENDS, "weight", "extrapolation", "note"]
HELD_OUT = ("largest", "largest two")
UNCALIBRATED = "no earlier prediction to learn weights and widths from"
SOLVED = 0.01  # a loss below this part of the smallest size's is as good as none
WORST_LOSS = 3.0  # times the smallest size's: no loss is expected above
N_DRAWS = 64  # of each fit's bootstrap; only the variance is taken
_GRID = (np.arange(99) + 0.5) / 99  # probabilities at which a predictive distribution is scored


@dataclass(frozen=True)
class Subject:
    """One curve of the scores table, transformed for extrapolation; arrays (K,) over its rungs, compute ascending."""

    key: tuple[str, str, str]
    passed: dict[str, Any]
    kind: str
    better: int  # 1 where a higher metric is better
    bounds: tuple[float, float]
    rungs: pd.DataFrame  # size, n_params, RUNG
    values: Values
    chance: float  # 0 where there is none
    offset: float  # of a loss: what is added before the logarithm is taken
    note: str  # values that are missing

    def natural(self, value: np.ndarray) -> np.ndarray:
        """Return transformed values as the metric itself, inside its bounds."""
        if self.kind == LOSS:
            value = (np.exp(np.minimum(value, 700)) - self.offset) * -self.better
        elif self.better < 0:
            value = 1 - value if self.kind == SHARE else -value
        return np.clip(value, *self.bounds)


def _transformed(value: np.ndarray, kind: str, better: int, offset: float) -> np.ndarray:
    if kind == LOSS:
        return np.log(np.maximum(-better * value, 0.0) + offset)
    return value if better > 0 else (1 - value if kind == SHARE else -value)


def _bounds(rows: pd.DataFrame) -> tuple[float, float]:
    given = [rows[name].iloc[0] if name in rows else math.nan for name in ("lower_bound", "upper_bound")]
    if all(pd.notna(v) for v in given):
        return float(given[0]), float(given[1])
    metric = METRICS.get(str(rows["metric"].iloc[0]))
    if metric is not None:
        return metric.bounds
    return (-math.inf, math.inf) if bool(rows["continuous"].iloc[0]) else (0.0, 1.0)


def _subjects(scores: pd.DataFrame) -> list[Subject]:
    """Return every curve of last checkpoints that tells of an ability, by its keys.

    Raises StoreError where the table lacks a column."""
    scores = judged(scores)
    needed = [*KEYS, *PASSED, *_SIZE, "partner", "is_last", "higher_is_better", "value", "item_se", "chance"]
    if missing := [name for name in needed if name not in scores]:
        raise StoreError(f"the scores table lacks the column(s) {', '.join(missing)}; make it with scores_table")
    # Order within a rung must not matter to the last digit of a mean.
    last = scores[scores["is_last"].astype(bool)].sort_values([*KEYS, *RUNG, "value"], kind="stable")
    return [_subject(key, rows) for key, rows in last.groupby(KEYS, sort=True)]


def _subject(key: tuple[str, str, str], rows: pd.DataFrame) -> Subject:
    first = rows.iloc[0]
    better, bounds = 1 if bool(first["higher_is_better"]) else -1, _bounds(rows)
    if bounds == (0.0, 1.0):
        kind = SHARE
    else:
        kind = LOSS if (bounds[0] == 0 and better < 0) or (bounds[1] == 0 and better > 0) else REAL
    placed = (rows[RUNG].astype(float) > 0) & np.isfinite(rows[RUNG].astype(float))
    usable = np.isfinite(rows["value"].astype(float)) & placed.all(axis=1)
    known, lost = rows[usable], int((~usable).sum())
    value, item = (known[name].to_numpy(dtype=float) for name in ("value", "item_se"))
    offset = 0.0
    if kind == LOSS:
        # A hundredth of what the smallest size loses: of a solved task only noise is left, and its logarithm is wild.
        smallest = known[known["flops"] == known["flops"].min()]
        offset = max(SOLVED * float(np.abs(smallest["value"].astype(float)).mean()), 1e-9) if len(known) else 1.0
        item = item / (np.abs(value) + offset)
    value = _transformed(value, kind, better, offset)
    runs = known.assign(value=value, item=np.nan_to_num(item) ** 2).groupby(RUNG, sort=True)
    found = runs.agg(
        size=("size", "first"), n_params=("n_params", "first"), mean=("value", "mean"), within=("value", "var"),
        n_runs=("value", "size"), item=("item", "mean"),
    ).reset_index()  # fmt: skip
    chance = float(known["chance"].mean()) if kind == SHARE and len(known) else math.nan
    chance = 0.0 if math.isnan(chance) else chance if better > 0 else 1 - chance
    return Subject(
        key=key,
        passed=first[PASSED].to_dict(),
        kind=kind,
        better=better,
        bounds=bounds,
        rungs=found[_SIZE],
        values=Values(*(found[name].to_numpy(dtype=float) for name in ("mean", "within", "n_runs", "item"))),
        chance=min(max(chance, 0.0), 0.99),
        offset=offset,
        note=f"{lost} of {len(rows)} values are missing, or their compute, parameters or tokens" if lost else "",
    )


def _through(scores: pd.DataFrame, subjects: Sequence[Subject]) -> list[dict[str, Values]]:
    """Return the losses that each share may be predicted through: its partner's, and the language-modelling loss."""
    by_key = {s.key: s for s in subjects}
    models = [s for s in subjects if s.passed["kind"] == "language modeling" and s.passed["role"] != "control"]
    models = [s for s in models if s.kind == LOSS and bool(s.passed["continuous"])]
    model = min(models, key=lambda s: (not s.passed["headline"], s.key), default=None)
    partners = scores.drop_duplicates(KEYS).set_index(KEYS)["partner"]
    found = []
    for s in subjects:
        partner = by_key.get((*s.key[:2], str(partners[s.key])))
        chosen = {"partner": partner, "loss": model if model is not partner else None}
        found.append({
            name: other.values for name, other in chosen.items()
            if s.kind == SHARE and other is not None and other.kind == LOSS and other.rungs[RUNG].equals(s.rungs[RUNG])
        })  # fmt: skip
    return found


def _pairs(scores: pd.DataFrame, subjects: Sequence[Subject], targets: Sequence[Any], rng_seed: int) -> pd.DataFrame:
    """Predict every later rung from every origin, and the target of each subject (flops, N, D; or None).

    Columns as harness.stacking says; j is n_rungs for the target, whose noise is that of one run."""
    rng = np.random.default_rng(rng_seed)
    shapes: dict[tuple[Any, ...], list[int]] = {}
    through = _through(scores, subjects)
    for i, s in enumerate(subjects):
        if len(s.rungs) >= MIN_FITTED:
            shapes.setdefault((s.kind, len(s.rungs), targets[i] is not None, *sorted(through[i])), []).append(i)
    parts = []
    for (kind, k, aimed, *names), members in sorted(shapes.items()):
        rows = [subjects[i] for i in members]
        points = np.stack([s.rungs[RUNG].to_numpy(dtype=float) for s in rows])  # (n, K, 3)
        if aimed:
            points = np.concatenate([points, np.array([targets[i] for i in members])[:, None]], axis=1)
        log_c, log_ratio = np.log(points[..., 0]), np.log(points[..., 2] / points[..., 1])
        own = _stacked([s.values for s in rows])
        others = {name: _stacked([through[i][name] for i in members]) for name in names}
        curves = Curves(kind, log_c, log_ratio, own, np.array([s.chance for s in rows]), others)
        observed = np.concatenate([own.mean, np.full((len(rows), 1), math.nan)], axis=1)
        n_runs = np.concatenate([own.n_runs, np.ones((len(rows), 1))], axis=1)
        for m in range(MIN_FITTED, points.shape[1]):
            ahead = predict(curves, m, rng, N_DRAWS)
            for j in range(m, points.shape[1]):
                part = {
                    "subject": members, "kind": kind, "m": m, "j": j, "n_rungs": k,
                    "distance": np.maximum(log_c[:, j] - log_c[:, m - 1], 0) / math.log(10),
                    "observed": observed[:, j] / ahead.unit, "unit": ahead.unit,
                    "log_c": log_c[:, j], "log_c_unseen": log_c[:, m], "noise": ahead.var_run / n_runs[:, j],
                }  # fmt: skip
                for name, p in ahead.by.items():
                    part |= {f"{name}.mean": p.mean[:, j - m], f"{name}.var": p.var[:, j - m]}
                parts.append(pd.DataFrame(part))
    if not parts:
        return pd.DataFrame(columns=["subject", "kind", "m", "j", "n_rungs"])
    pairs = pd.concat(parts, ignore_index=True)
    pairs["group"] = [":".join(subjects[i].key[:2]) for i in pairs["subject"]]
    return pairs


def _stacked(values: Sequence[Values]) -> Values:
    return Values(*(np.stack([getattr(v, name) for v in values]) for name in ("mean", "within", "n_runs", "item")))


def _distribution(subject: Subject, mean: float, sd: float, p: Any) -> np.ndarray:
    """Return quantiles of a predictive distribution as the metric itself, inside its bounds; p (n,) ascending."""
    p = np.asarray(p, dtype=float)
    rising = subject.better > 0 if subject.kind != LOSS else subject.better < 0
    values = mean + sd * student_t.ppf(p if rising else 1 - p, DF)
    if subject.kind == LOSS:  # the logarithm's upper tail knows no reason
        values = np.minimum(values, max(mean, math.log(WORST_LOSS * subject.offset / SOLVED)))
    return subject.natural(values)


def _ends(subject: Subject, mean: float, sd: float) -> dict[str, float]:
    p = [0.5 + sign * level / 200 for level in LEVELS for sign in (-1, 1)]
    predicted, *ends = _distribution(subject, mean, sd, [0.5, *p])
    return {"predicted": float(predicted)} | {name: float(v) for name, v in zip(ENDS, ends, strict=True)}


def _named(s: Subject) -> dict[str, Any]:
    return dict(zip(KEYS, s.key, strict=True)) | s.passed


def backtests_table(scores: pd.DataFrame, *, every_origin: bool = False, rng_seed: int = 0) -> pd.DataFrame:
    """Predict the largest size of every curve from the others, and from all but the two largest; a row per predictor.

    A size is a rung of the ladder: parameters and tokens, in the order of compute. `observed` is the mean of its seeds.
    `every_origin` predicts every rung from the rungs below any smaller one instead. `surprise_p`: predictive
    probability of a value at least as good as the observed one. `weight`: of a predictor in the stack. A curve with too
    few rungs (4, and 5 to leave two out) has a row with a note instead. The same table gives the same rows. Raises
    StoreError for a table that lacks columns."""
    subjects = _subjects(scores)
    pairs = _pairs(scores, subjects, [None] * len(subjects), rng_seed)
    table: list[dict[str, Any]] = []
    if len(pairs):
        held_out, back = pairs["n_rungs"] - pairs["m"], pairs["n_rungs"] - pairs["j"]
        asked = pairs if every_origin else pairs[(held_out <= len(HELD_OUT)) & (back == 1)]
        begins = asked["log_c_unseen"].round(6)  # curves of one ladder together
        for (_, n, _, _), wanted in asked.groupby([asked["kind"], held_out, back, begins], sort=True):
            table += [
                _backtest(subjects[r["subject"]], r, n) for r in forecast_from(pairs, wanted, n).to_dict("records")
            ]
    for n, held in enumerate(HELD_OUT, start=1):
        table += [_no_backtest(s, held, MIN_FITTED + n) for s in subjects if len(s.rungs) < MIN_FITTED + n]
    frame = pd.DataFrame(table, columns=BACKTEST_COLUMNS)
    for level in LEVELS:
        frame[f"covered{level}"] = frame[f"covered{level}"].astype("boolean")
    frame["left"], frame["part"] = frame["held_out"].map(_n_held_out), frame["predictor"].ne(STACK)
    frame = frame.sort_values([*KEYS, "left", "flops", "part", "predictor"], kind="stable", ignore_index=True)
    return frame[BACKTEST_COLUMNS]


def _n_held_out(name: str) -> int:
    return HELD_OUT.index(name) + 1 if name in HELD_OUT else int(name.split()[-1])


def _backtest(s: Subject, row: dict[str, Any], held_out: int) -> dict[str, Any]:
    observed = float(s.natural(np.array(row["observed"])))
    ends = _ends(s, row["mean"], row["sd"])
    z = (row["observed"] - row["mean"]) / row["sd"]
    at_least = float(student_t.cdf(z, DF) if s.kind == LOSS else student_t.sf(z, DF))
    worst = s.bounds[0] if s.better > 0 else s.bounds[1]
    covered = {f"covered{q}": ends[f"lo{q}"] <= observed <= ends[f"hi{q}"] for q in LEVELS}
    return _named(s) | s.rungs.iloc[row["j"]].to_dict() | ends | covered | {
        "held_out": HELD_OUT[held_out - 1] if held_out <= len(HELD_OUT) else f"largest {held_out}",
        "predictor": row["predictor"],
        "observed": observed,
        "error": observed - ends["predicted"],
        "crps": crps(_distribution(s, row["mean"], row["sd"], _GRID), observed),
        "surprise_p": 1.0 if observed == worst else at_least,
        "weight": row["weight"],
        "n_sizes": row["m"],
        "note": _note(s, UNCALIBRATED if row["uncalibrated"] else ""),
    }  # fmt: skip


def _note(s: Subject, *others: str) -> str | None:
    return "; ".join(part for part in (s.note, *others) if part) or None


def _no_backtest(s: Subject, held_out: str, needs: int) -> dict[str, Any]:
    why = f"{len(s.rungs)} sizes: leaving out the {held_out} needs {needs}"
    rung = s.rungs.iloc[-1].to_dict() if len(s.rungs) else {}
    row = {"held_out": held_out, "predictor": STACK, "n_sizes": len(s.rungs), "note": _note(s, why)}
    return _named(s) | rung | row


def forecasts_table(
    scores: pd.DataFrame,
    *,
    flops: float | None = None,
    n_params: float | None = None,
    tokens: float | None = None,
    backtests: pd.DataFrame | None = None,
    rng_seed: int = 0,
) -> pd.DataFrame:
    """Predict every curve for one run of a larger model; a row per predictor, the stack's first.

    The target: training compute C (`flops`), parameters without embeddings N (`n_params`), tokens D. What is not given
    follows from the ladder: D from N as its largest sizes have it, C from both as its two largest sizes do; tokens
    alone are a longer run of the largest size. Nothing given: one step, the mean ratio of neighbouring sizes. Curves
    whose largest size lay outside the 95 % interval predicted for it (`backtests`) say so in `note`. Raises StoreError
    for a target that is not positive, or as backtests_table does."""
    given = {"flops": flops, "n_params": n_params, "tokens": tokens}
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise StoreError(f"forecast: {name} must be a positive number, got {value!r}; leave it out for the default")
    subjects = _subjects(scores)
    targets = [target_of(s.rungs, **given) if len(s.rungs) >= MIN_FITTED else None for s in subjects]
    for s, target in zip(subjects, targets, strict=True):
        if target is not None:
            _check_target(s, target)
    pairs = _pairs(scores, subjects, targets, rng_seed)
    missed = _missed(backtests)
    table: list[dict[str, Any]] = []
    if len(pairs):
        asked = pairs[pairs["m"] == pairs["n_rungs"]]
        for _, wanted in asked.groupby("kind", sort=True):
            for row in forecast_from(pairs, wanted, 0).to_dict("records"):
                s, target = subjects[row["subject"]], targets[row["subject"]]
                assert target is not None
                ahead = math.log10(target[0] / s.rungs["flops"].max())
                notes = (UNCALIBRATED if row["uncalibrated"] else "", missed.get(s.key, ""))
                found = {"predictor": row["predictor"], "weight": row["weight"], "extrapolation": ahead}
                found |= {"note": _note(s, *notes)} | _aim(target)
                table.append(_named(s) | found | _ends(s, row["mean"], row["sd"]))
    for s in subjects:
        if len(s.rungs) < MIN_FITTED:
            why = f"{len(s.rungs)} sizes: a forecast needs {MIN_FITTED}"
            table.append(_named(s) | {"predictor": STACK, "note": _note(s, why)})
    frame = pd.DataFrame(table, columns=FORECAST_COLUMNS)
    frame["part"] = frame["predictor"].ne(STACK)
    return frame.sort_values([*KEYS, "part", "predictor"], kind="stable", ignore_index=True)[FORECAST_COLUMNS]


def _check_target(s: Subject, target: tuple[float, float, float]) -> None:
    """Refuse a target whose C, N and D do not belong together as they do on the ladder."""
    c, n, d = target
    cost = (s.rungs["flops"] / (s.rungs["n_params_non_embedding"] * s.rungs["tokens"])).to_numpy(dtype=float)
    known = cost[np.isfinite(cost)]
    if d < 1 or n < 1 or (len(known) and not known.min() / 10 <= c / (n * d) <= known.max() * 10):
        raise StoreError(
            f"forecast: C = {c:.3g}, N = {n:.3g} and D = {d:.3g} do not belong together: C / (N D) is "
            f"{c / (n * d):.2g}, on the ladder {known.min():.2g} to {known.max():.2g}; leave one of them out"
        )


def _aim(target: tuple[float, float, float]) -> dict[str, float]:
    return {f"target_{name}": value for name, value in zip(RUNG, target, strict=True)}


def _missed(backtests: pd.DataFrame | None) -> dict[tuple[str, str, str], str]:
    """Return a warning for every curve whose largest size lay outside the stack's 95 % interval."""
    if backtests is None:
        return {}
    rows = backtests[backtests["predictor"].eq(STACK) & backtests["held_out"].eq(HELD_OUT[0])]
    rows = rows[(rows["observed"] < rows["lo95"]) | (rows["observed"] > rows["hi95"])]
    said = "the largest size lay outside the 95 % interval predicted for it ({:.2f} to {:.2f}, observed {:.2f})"
    return {
        tuple(r[k] for k in KEYS): said.format(r["lo95"], r["hi95"], r["observed"]) for r in rows.to_dict("records")
    }


def target_of(
    rungs: pd.DataFrame, *, flops: float | None = None, n_params: float | None = None, tokens: float | None = None
) -> tuple[float, float, float]:
    """Return (flops, parameters without embeddings, tokens) of a target; what is not given follows the ladder `rungs`.

    Of each size the rung of most compute counts. Along the ladder ln D is a line in ln N, and ln(C / D) that through
    the two largest sizes: small models spend a larger part of their compute on embeddings and attention."""
    top = rungs.sort_values("flops").drop_duplicates("n_params_non_embedding", keep="last")
    top = top.sort_values("n_params_non_embedding")
    ln_c, ln_n, ln_d = (np.log(top[name].to_numpy(dtype=float)) for name in RUNG)
    per_token = ln_c - ln_d
    several = len(top) > 1
    cost = float((per_token[-1] - per_token[-2]) / (ln_n[-1] - ln_n[-2])) if several else 1.0
    cost = cost if cost > 0 else 1.0  # an odd ladder: let compute per token be in proportion to N
    data = float(np.polyfit(ln_n, ln_d, 1)[0]) if several else 0.0
    c, n, d = float(ln_c[-1]), float(ln_n[-1]), float(ln_d[-1])
    if n_params is not None:
        n_target = math.log(n_params)
    elif tokens is not None and flops is not None:
        n_target = n + (math.log(flops / tokens) - per_token[-1]) / cost
    elif tokens is not None or not several:
        n_target = n
    else:
        step = (ln_n[-1] - ln_n[0]) / (len(top) - 1)
        n_target = n + (step if flops is None else (math.log(flops) - c) / (cost + data))
    at_cost = per_token[-1] + cost * (n_target - n)  # ln of compute per token
    if tokens is not None:
        d_target = math.log(tokens)
    elif flops is not None:
        d_target = math.log(flops) - at_cost
    elif several:
        d_target = d + data * (n_target - n)
    else:  # one size trained longer and longer
        steps = np.sort(np.log(rungs["tokens"].to_numpy(dtype=float)))
        d_target = d + (steps[-1] - steps[0]) / max(len(np.unique(steps)) - 1, 1)
    c_target = math.log(flops) if flops is not None else at_cost + d_target
    return math.exp(c_target), math.exp(n_target), math.exp(d_target)


def coverage_table(backtests: pd.DataFrame) -> pd.DataFrame:
    """Return how each predictor did: a row per held-out set, kind of metric and predictor, the stack's first.

    n forecasts, their mean absolute error, CRPS and width of the 80 % interval, and the share of observed values inside
    the 50, 80 and 95 % intervals. Errors of continuous metrics share no unit: theirs are missing."""
    rows = backtests[backtests["predicted"].notna() & backtests["observed"].notna()]
    table = []
    keys = ["held_out", "continuous", "predictor"]
    for (held_out, continuous, predictor), part in rows.groupby(keys, sort=True):
        found = {"held_out": held_out, "continuous": bool(continuous), "predictor": predictor, "n": len(part)}
        same = math.nan if continuous else 1.0
        found |= {"error": same * part["error"].abs().mean(), "crps": same * part["crps"].mean()}
        found |= {f"covered{q}": float(part[f"covered{q}"].astype(float).mean()) for q in LEVELS}
        table.append(found | {"width80": same * (part["hi80"] - part["lo80"]).mean()})
    columns = [*keys, "n", "error", "crps", *(f"covered{q}" for q in LEVELS), "width80"]
    frame = pd.DataFrame(table, columns=columns)
    frame["left"], frame["part"] = frame["held_out"].map(_n_held_out), frame["predictor"].ne(STACK)
    order = ["left", "continuous", "part", "predictor"]
    return frame.sort_values(order, kind="stable", ignore_index=True)[columns]
