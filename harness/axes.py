"""From the score rows to one curve per metric: which rows, along which scale, and what is wrong with them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.budgets import has_budgets, one_budget
from harness.curves import Cell, Constants
from harness.store import StoreError
from harness.width import build_curve
from tasks.metrics import METRICS

LOG_AXES = ("flops", "n_params_non_embedding", "n_params", "tokens")
AXES = (*LOG_AXES, "checkpoints", "loss")
LOSSES = {"nats_per_token": "nats", "bits_per_byte": "bits"}  # the first that the sweep has is the scale of "loss"
KEYS = ["task", "level", "metric"]
PASSED = ["kind", "ability", "role", "headline", "continuous", "partner"]
_READ = ["seed", "step", "is_last", "higher_is_better", "value", "item_se", "n", "chance"]
_DIGESTED = ["run_id", "step", "seed", "n_params_non_embedding", "tokens", "flops", *_READ[3:]]


SAME_POINT = math.log10(1.01)  # seeds of one size closer than this on a scale stand at one point
LARGEST = 1e100  # of a value: its square is still a number


@dataclass(frozen=True)
class Axis:
    """A scale s, ascending with the models, on which widths and onsets are measured."""

    name: str
    unit: str = "decades"  # of s
    per_decade: float = 1.0  # units of s that a decade of training compute is worth
    about: str = ""  # what a reader must know to read s
    points: str = "sizes"  # what stands along it

    def constants(self, k: Constants) -> Constants:
        """Return the constants with what is said in decades in units of s."""
        if self.per_decade == 1:
            return k
        return replace(k, sharp_width=k.sharp_width * self.per_decade, min_decades=k.min_decades * self.per_decade)


@dataclass(frozen=True)
class Rows:
    """The rows of one (task, level, metric), by ascending s; arrays are (n,)."""

    key: tuple[str, str, str]
    passed: dict[str, Any]  # the columns PASSED of the first row
    higher_is_better: bool
    s: np.ndarray
    place: np.ndarray  # names of the sizes (or checkpoints), as a reader knows them
    value: np.ndarray  # NaN where missing
    item_se: np.ndarray
    n: np.ndarray  # documents of each value; NaN where not known
    chance: float  # NaN where there is none
    share: bool  # a metric between 0 and 1
    untrained: np.ndarray  # values at step 0
    wrong: str  # why these rows make no curve; empty if nothing is wrong
    missing: str  # what is said of values that are not there
    digest: str

    @property
    def places(self) -> set[tuple[float, str]]:
        """The sizes, each with its place on the scale."""
        return set(zip(self.s.tolist(), self.place, strict=True))

    def without(self, place: str) -> Rows:
        """Return the rows of all other sizes."""
        keep = self.place != place
        columns = {name: getattr(self, name)[keep] for name in ("s", "place", "value", "item_se", "n")}
        return replace(self, **columns)


def curve_rows(scores: pd.DataFrame, axis: str) -> tuple[Axis, list[Rows]]:
    """Return a scale and the rows of every (task, level, metric) along it, sorted by key.

    "flops", "n_params_non_embedding", "n_params" and "tokens" take the last checkpoint of every run, s = log10 of the
    column; "checkpoints" takes all checkpoints of the largest size, s = log10 of the tokens seen; "loss" takes the last
    checkpoints, s = minus the mean language-modelling loss of the size. Of a sweep with several token budgets, "tokens"
    takes the largest size at each of them, "loss" every size at each, and the others the largest budget (budgets).
    Columns that are not needed are ignored.
    Raises StoreError, naming the row, for missing columns, shares outside 0 to 1, duplicate rows and bad scales."""
    _check_columns(scores, axis)
    last = scores["is_last"].astype(bool)
    if not len(scores):
        return Axis(axis), []
    found, rows = _along(scores, last, axis)
    sizes = _size_names(rows)
    places = sizes if found.points == "sizes" else rows["tokens"].map(lambda v: f"{v:.3g} tokens")
    rows = rows.assign(_place=np.asarray(places, dtype=object))
    _check_rows(rows, by_step=axis == "checkpoints")
    rows = rows.sort_values([*KEYS, "_s", "seed", "value"], ignore_index=True)
    start = scores[~last & (scores["step"] == 0)]
    untrained = {key: values.dropna().to_numpy(dtype=float) for key, values in start.groupby(KEYS)["value"]}
    column = {name: rows[name].to_numpy() for name in rows}
    for name in ("_s", "value", "item_se", "n", "chance"):
        column[name] = rows[name].to_numpy(dtype=float, na_value=math.nan)
    changes = np.zeros(len(rows), dtype=bool)
    for name in KEYS:
        changes[1:] |= column[name][1:] != column[name][:-1]
    edges = [0, *np.flatnonzero(changes), len(rows)] if len(rows) else []
    low, high = _bounds(rows)
    share = (low == 0) & (high == 1)
    groups = []
    for a, b in pairwise(edges):
        part = {name: values[a:b] for name, values in column.items()}
        key = (str(part["task"][0]), str(part["level"][0]), str(part["metric"][0]))
        chance = part["chance"][np.isfinite(part["chance"])]
        groups.append(
            Rows(
                key=key,
                passed={name: part[name][0] for name in PASSED},
                higher_is_better=bool(part["higher_is_better"][0]),
                s=part["_s"],
                place=part["_place"],
                value=np.where(np.isfinite(part["value"]), part["value"], math.nan),
                item_se=part["item_se"],
                n=np.where(part["n"] > 0, part["n"], math.nan),
                chance=float(chance.mean()) if len(chance) else math.nan,
                share=bool(share[a]),
                untrained=untrained.get(key, np.empty(0)),
                wrong=_mixed(part),
                missing=_missing(part),
                digest=_digest(key, part),
            )
        )
    return found, groups


def make_cell(rows: Rows, axis: Axis, k: Constants) -> Cell | str:
    """Return the curve of some rows with what is asked of it, or why there is none. `k` in units of the axis."""
    if rows.wrong:
        return f"Not judged: {rows.wrong}."
    known = np.isfinite(rows.value)
    s, value, se = rows.s[known], rows.value[known], rows.item_se[known]
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else np.empty(0, dtype=int)
    said = "".join(f" {remark}." for remark in (rows.missing, axis.about) if remark)
    if len(starts) < 3:
        return f"Too little to decide: {len(starts)} {axis.points}, needs {k.min_sizes:g}.{said}"
    counts = np.diff(np.r_[starts, len(s)])
    threshold = not bool(rows.passed["continuous"])
    sign = 1 if rows.higher_is_better else -1
    zero = 1.0 if rows.share and sign < 0 else 0.0  # a share that is better when lower is read as 1 - share
    n = rows.n[known]
    if threshold and rows.share and np.isnan(n).any():
        with np.errstate(divide="ignore", invalid="ignore"):  # a share's error tells how many documents it is of
            n = np.where(np.isnan(n), value * (1 - value) / se**2, n)
        n = np.where(np.isfinite(n) & (n >= 1), n, math.nan)
        if np.isnan(n).all():
            return f"Not judged: neither the number of documents nor an error over documents is known.{said}"
    if threshold and (withheld := int((np.isnan(se) & (n >= 2)).sum())):
        return f"Not judged: the error over documents is withheld in {withheld} of {len(n)} runs (notes of the scores)."
    if shared := _shared_point(s, rows.place[known], starts):
        return f"Not judged: {shared}."
    docs = np.minimum.reduceat(np.where(np.isfinite(n), n, np.nanmin(n) if np.isfinite(n).any() else 0), starts)
    docs = np.maximum(docs, 1) if docs.any() else docs
    item = np.add.reduceat(np.nan_to_num(se) ** 2, starts) / counts
    if threshold and rows.share:
        # Where no document is right the standard error seen is 0; a share near 0 still has one (Laplace's estimate).
        asked = docs * counts
        mean = (np.add.reduceat(value, starts) / counts * asked + 1) / (asked + 2)
        item = np.maximum(item, mean * (1 - mean) / docs)
    curve = build_curve(
        s[starts],
        np.split(zero + sign * value, starts[1:]),
        item,
        n_docs=docs,
        seed_sd=k.seed_sd_default,
        declared_seed_sd=k.declared_seed_sd,
        paired=not threshold,
    )
    remarks = [rows.missing] if rows.missing else []
    if len(rows.untrained) and (sign * rows.untrained).mean() - sign * rows.chance > k.equivalence:
        start = f"Untrained models score {rows.untrained.mean():.2f}"
        remarks.append(f"{start}: chance ({rows.chance:.2f}) may be set too low")
    if curve.declared:
        remarks.append(f"One seed a size: the SD between seeds is taken to be {k.declared_seed_sd:g}, as declared")
    if axis.about:
        remarks.append(axis.about)
    return Cell(
        curve,
        k,
        zero + sign * rows.chance,
        sign,
        zero,
        unit_interval=rows.share,
        threshold=threshold,
        unit=axis.unit,
        remark=" ".join(f"{remark}." for remark in remarks),
    )


# ---- the scales ----


def _along(scores: pd.DataFrame, last: pd.Series, axis: str) -> tuple[Axis, pd.DataFrame]:
    """Return the scale and the rows that lie along it, with the column _s."""
    if axis == "checkpoints":
        rows, largest = _largest(one_budget(scores))
        rows = rows[rows["tokens"] > 0]
        about = f"Along the checkpoints of the largest size ({largest}), which share their runs' seeds"
        about += " and, but for the last, are not annealed"
        return Axis(axis, about=about, points="checkpoints"), rows.assign(_s=np.log10(_positive(rows, "tokens")))
    rows = scores[last]
    if axis == "tokens" and has_budgets(scores):
        rows, largest = _largest(rows)
        about = f"Along the token budgets of the largest size ({largest}), each annealed; those of a seed share a trunk"
        return Axis(axis, about=about, points="budgets"), rows.assign(_s=np.log10(_positive(rows, axis)))
    if axis != "loss":  # which puts a branch where its loss is, whatever its budget
        rows = one_budget(rows)
    if axis != "loss":
        s = np.log10(_positive(rows, axis))
        by_size = s.groupby([_size_names(rows), rows["tokens"]] if "tokens" in rows else _size_names(rows))
        # Seeds of one size whose scale differs in the last digits are one point.
        apart = by_size.transform("max") - by_size.transform("min")
        near = (apart > 0) & (apart < SAME_POINT)
        return _log_axis(rows, axis), rows.assign(_s=s.where(~near, by_size.transform("mean").round(12)))
    name, loss = _losses(rows)
    names = _size_names(rows)
    compute = np.log10(_positive(rows, "flops")).groupby(names).mean()
    both = pd.DataFrame({"loss": loss, "c": compute}).dropna()
    centred = both["c"] - both["c"].mean()
    drop = -float((centred * both["loss"]).sum() / max((centred**2).sum(), 1e-300))
    if not drop > 0:
        raise StoreError(f"axis 'loss': {name} does not fall with compute over the {len(both)} sizes; use another axis")
    if lost := sorted(set(names) - set(loss.index)):
        raise StoreError(f"axis 'loss': size {lost[0]!r} has no {name}; evaluate language modelling on it too")
    unit = LOSSES[name]
    about = f"Along minus the {name}; a decade of compute lowers it by {drop:.3g} {unit} here. "
    about += "Where the loss saturates, what is gradual in compute is narrow in the loss"
    if has_budgets(rows):
        about += ". Sizes stand on it at every token budget"
    return Axis(axis, unit, drop, about), rows.assign(_s=-names.map(loss).astype(float))


def _largest(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of the largest size, and its name."""
    names = _size_names(rows, by_budget=False)
    largest = names[rows.sort_values(["n_params_non_embedding", "flops"]).index].iloc[-1]
    return rows[names == largest], str(largest)


def _log_axis(rows: pd.DataFrame, axis: str) -> Axis:
    """Return a logarithmic scale with what a decade of compute is worth on it, from the sizes' own N, D and C."""
    flops = rows["flops"].astype(float)
    if axis == "flops" or not (np.isfinite(flops) & (flops > 0)).all():
        return Axis(axis)
    both = pd.DataFrame({"s": np.log10(rows[axis].astype(float)), "c": np.log10(flops)})
    both = both.groupby(_size_names(rows)).mean()
    both = both - both.mean()
    worth = float((both["s"] * both["c"]).sum() / max(float((both["c"] ** 2).sum()), 1e-300))
    if not worth > 0 or abs(worth - 1) < 0.01:  # not a scale of compute here (all sizes read the same tokens), or one
        return Axis(axis)
    return Axis(axis, per_decade=worth, about=f"A decade of compute is {worth:.2g} decades of this axis here")


def _losses(last: pd.DataFrame) -> tuple[str, pd.Series]:
    """Return the name of the language-modelling loss and its mean over the seeds (and texts) of every size."""
    text = last[(last["kind"] == "language modeling") & (last["role"] != "control")]
    for name in LOSSES:
        rows = text[(text["metric"] == name) & np.isfinite(text["value"].astype(float))]
        if len(rows):
            return name, rows["value"].astype(float).groupby(_size_names(rows)).mean()
    raise StoreError(
        f"axis 'loss': the scores hold no language-modelling loss ({' or '.join(LOSSES)}); add a text task, or use "
        f"another axis: {', '.join(name for name in AXES if name != 'loss')}"
    )


def _size_names(rows: pd.DataFrame, *, by_budget: bool = True) -> pd.Series:
    """Return what the size of each row is called: its name, or its parameters and compute where it has none.

    `by_budget`: a size on a smaller budget is a point of its own."""
    made = rows["n_params_non_embedding"].map("{:.4g}".format) + "/" + rows["flops"].map("{:.4g}".format)
    names = rows["size"].astype(object).where(rows["size"].notna(), made) if "size" in rows else made
    if not by_budget or not has_budgets(rows):
        return names
    return names.where(rows["trunk"].isna(), names + " at " + rows["tokens"].map("{:.3g} tokens".format))


def _positive(rows: pd.DataFrame, name: str) -> pd.Series:
    values = rows[name].astype(float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        where = _named(rows[bad].iloc[0])
        raise StoreError(
            f"the scores table has values of {name!r} that are not positive; a log axis needs them ({where})"
        )
    return values


# ---- what is wrong with the rows ----


def _check_columns(scores: pd.DataFrame, axis: str) -> None:
    if axis not in AXES:
        raise StoreError(f"unknown axis {axis!r}; accepted: {', '.join(AXES)}")
    needed = [*KEYS, *PASSED, *_READ, "n_params_non_embedding", "flops"]
    needed += ["tokens"] if axis == "checkpoints" else [axis] * (axis in LOG_AXES)
    if missing := [name for name in dict.fromkeys(needed) if name not in scores]:
        raise StoreError(f"the scores table lacks the column(s) {', '.join(missing)}; make it with scores_table")
    for name in KEYS:
        if scores[name].isna().any():
            raise StoreError(f"the scores table has {int(scores[name].isna().sum())} row(s) without a {name}")


def _check_rows(rows: pd.DataFrame, *, by_step: bool) -> None:
    """Refuse values outside a metric's bounds, and two rows where there can be one."""
    low, high = _bounds(rows)
    value = rows["value"].to_numpy(dtype=float, na_value=math.nan)
    bad = np.isfinite(value) & ((value < low - 1e-9) | (value > high + 1e-9))
    if bad.any():
        i = int(bad.argmax())
        limits = f"{low[i]:g} to {high[i]:g}" if np.isfinite(high[i]) else f"{low[i]:g} or more"
        raise StoreError(
            f"{_named(rows.iloc[i])}: the value {value[i]:g} is outside the metric's bounds, {limits}; "
            "shares are written as fractions, not percent"
        )
    huge = np.isfinite(value) & (np.abs(value) > LARGEST)
    if huge.any():
        i = int(huge.argmax())
        raise StoreError(f"{_named(rows.iloc[i])}: the value {value[i]:g} cannot be worked with; at most {LARGEST:g}")
    run = ["run_id"] if "run_id" in rows else ["n_params_non_embedding", "flops", "seed"]
    twice = rows.duplicated([*KEYS, *run, *(["step"] if by_step else [])], keep=False)
    if twice.any():
        raise StoreError(
            f"{_named(rows[twice].iloc[0])}: duplicate rows ({int(twice.sum())} in the table); keep one each"
        )


def _bounds(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest value each row's metric can take: the row's own, else what the metric is known for.

    A metric that is not known is a share if it is thresholded, and unbounded if it is continuous."""

    def known(metric: str, continuous: bool) -> tuple[float, float]:
        if metric in METRICS:
            # Half-open bounds serve no check: a loss below 0 in a made-up table is as good as any other.
            return METRICS[metric].bounds if METRICS[metric].bounds == (0.0, 1.0) else (-math.inf, math.inf)
        return (-math.inf, math.inf) if continuous else (0.0, 1.0)

    pairs = list(zip(rows["metric"], rows["continuous"].astype(bool), strict=True))
    table = {pair: known(*pair) for pair in set(pairs)}
    ends = np.array([table[pair] for pair in pairs], dtype=float).reshape(-1, 2)
    for i, name in enumerate(("lower_bound", "upper_bound")):
        if name in rows:
            own = rows[name].to_numpy(dtype=float, na_value=math.nan)
            ends[:, i] = np.where(np.isnan(own), ends[:, i], own)
    return ends[:, 0], ends[:, 1]


def _mixed(part: dict[str, np.ndarray]) -> str:
    """Say in what the rows of one curve differ though they must not.

    Two versions of a task make two measurements: the curve is left undecided, and the rest of the table is judged."""
    if "task_digest" in part:
        digests = {str(v) for v in part["task_digest"] if isinstance(v, str)}
        if len(digests) > 1:
            names = ", ".join(sorted(v[:8] for v in digests))
            return f"the sizes were scored with {len(digests)} versions of the task ({names}); score all with one"
    chance = part["chance"][np.isfinite(part["chance"])]
    if len(chance) and np.ptp(chance) > 0.01:
        return f"the rows disagree on chance ({chance.min():g} to {chance.max():g})"
    for name in ("higher_is_better", "continuous"):
        if len(set(map(bool, part[name]))) > 1:
            return f"the rows of this metric disagree on {name}"
    return ""


def _shared_point(s: np.ndarray, place: np.ndarray, starts: np.ndarray) -> str:
    """Say which sizes stand at one point of the scale, where they would be taken for seeds of one size."""
    for a, b in pairwise([*starts, len(s)]):
        if len(names := sorted(set(map(str, place[a:b])))) > 1:
            return f"{names[0]} and {names[1]} stand at one point of this axis but are not one size; use another axis"
    return ""


def _missing(part: dict[str, np.ndarray]) -> str:
    """Say how many values of a curve are not there, and why."""
    value = part["value"]
    said, gone = [], int(np.isnan(value).sum())
    if gone:
        notes = sorted({str(v) for v in part.get("note", ()) if isinstance(v, str)})
        said.append(f"{gone} of {len(value)} values are missing{f' ({notes[0]})' if notes else ''}")
    if infinite := int(np.isinf(value).sum()):
        said.append(f"{infinite} of {len(value)} values are infinite and left out")
    return ". ".join(said)


def _named(row: pd.Series) -> str:
    """Say which row it is: task, level, metric, run."""
    level = f", level {row['level']!r}" if row["level"] else ""
    run = f"run {row['run_id']!r}" if "run_id" in row else f"seed {row['seed']} at {row['flops']:.3g} FLOPs"
    return f"task {row['task']!r}{level}, metric {row['metric']!r}, {run}"


def _digest(key: tuple[str, str, str], part: dict[str, np.ndarray]) -> str:
    """Return what names the rows a verdict was made from: the same for the same rows in any order."""
    columns = [
        part[name].tolist() if part[name].dtype == object else part[name].astype(float).tolist()
        for name in _DIGESTED
        if name in part
    ]
    lines = sorted(map(repr, zip(*columns, strict=True)))
    return hashlib.sha256("\n".join(["\t".join(key), *lines]).encode()).hexdigest()[:12]
