"""Which run and checkpoint an imported row belongs to, and where that stands on the scale axes N, D and C."""

from __future__ import annotations

import numpy as np
import pandas as pd

from harness.scale_maps import EXAMPLE
from harness.store import StoreError
from harness.wording import si


def complete_scale(frame: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """Complete N, D and C. Raises StoreError where fewer than two are known or one is not positive."""
    columns = frame.columns.intersection(["n_params", "n_params_non_embedding", "tokens", "flops"])
    scale = frame[columns].astype(float)
    untrained = (scale["tokens"] == 0) & (frame["step"] == 0)  # the control before the first step
    for name in columns:
        wrong = (scale[name] <= 0) | np.isinf(scale[name])
        if name in ("tokens", "flops"):
            wrong &= ~untrained
        if wrong.any():
            row = frame[wrong].iloc[0]
            raise StoreError(f"{row['where']}: {name} must be positive, got {row[name]:g}")
    n = scale["n_params_non_embedding"].fillna(scale["n_params"])
    d, c = scale["tokens"], scale["flops"]
    poor = n.isna().astype(int) + d.isna() + c.isna() > 1
    if poor.any():
        row = frame[poor].iloc[0]
        have = [name for name in ("n_params", "tokens", "flops") if pd.notna(row[name])]
        raise StoreError(
            f"{row['where']}: needs two of n_params, tokens and flops, has {', '.join(have) or 'none'}; map columns "
            f"with --columns MINE=n_params, or give a scale map by model name with --scales FILE: {EXAMPLE}"
        )
    counted = "without embeddings" if scale["n_params_non_embedding"].notna().all() else "as given"
    for name, gap, filled in (
        ("flops", c.isna(), 6 * n * d),
        ("tokens", d.isna(), c / (6 * n)),
        ("n_params", n.isna(), c / (6 * d)),
    ):
        if gap.any():
            said.append(f"{name} computed by C = 6 N D in {int(gap.sum())} rows, N {counted}")
            scale.loc[gap, name] = filled[gap]
    if scale["n_params_non_embedding"].isna().any():
        said.append("parameters without embeddings are not known: N stands for both counts")
    total = scale["n_params"].fillna(scale["n_params_non_embedding"])
    frame["n_params_non_embedding"] = scale["n_params_non_embedding"].fillna(total)
    frame["n_params"], frame["tokens"], frame["flops"] = total, scale["tokens"], scale["flops"]
    ratio = (frame["flops"] / (frame["n_params_non_embedding"] * frame["tokens"]))[frame["tokens"] > 0]
    if (ratio - 6).abs().max() > 0.06:
        said.append(f"flops are as given, {ratio.min():.3g} to {ratio.max():.3g} N D")
    return frame


def identify(frame: pd.DataFrame, said: list[str]) -> pd.DataFrame:
    """Give every row its size, seed, step and run, and mark the last checkpoint of each run."""
    for name in ("seed", "step", "is_last"):
        if frame[name].isna().any() and frame[name].notna().any():
            raise StoreError(f"{frame.loc[frame[name].isna(), 'where'].iloc[0]}: has no {name}, while other rows do")
    for name in ("seed", "step"):
        given = frame[name].astype(float)
        wrong = given.notna() & ((given < 0) | (given != given.round()))
        if wrong.any():
            row = frame[wrong].iloc[0]
            raise StoreError(f"{row['where']}: {name} must be a whole number from 0 on, got {row[name]:g}")
    if frame["seed"].isna().any():
        said.append("seeds are not given: every run is seed 0")
    frame["seed"] = frame["seed"].fillna(0).astype(int)
    if frame["size"].isna().any():
        exact = frame["n_params"].map(si)
        if frame["n_params"].nunique() > exact.nunique():
            exact = frame["n_params"].map(lambda n: f"{n:,.0f}")
        frame["size"] = frame["size"].fillna(exact)
    frame["size"] = frame["size"].astype(str)
    own = frame["size"] + "-seed" + frame["seed"].astype(str)
    frame["run_id"] = frame["run_id"].astype(object).where(frame["run_id"].notna(), own).astype(str)
    if frame["step"].isna().any():
        if frame.groupby("run_id")["tokens"].nunique().max() > 1:
            said.append("steps are not given: the checkpoints of a run are numbered by their tokens")
        frame["step"] = frame.groupby("run_id")["tokens"].rank(method="dense")
    frame["step"] = frame["step"].astype(int)
    if ((frame["step"] == 0) & (frame["tokens"] > 0)).any():  # step 0 is the untrained model, a control
        said.append("checkpoint 0 has seen tokens: checkpoints are numbered from 1")
        frame["step"] += 1
    _check_runs(frame)
    last = frame.groupby("run_id")["step"].transform("max") == frame["step"]
    frame["is_last"] = last if frame["is_last"].isna().any() else frame["is_last"].astype(bool)
    marked = frame[frame["is_last"]].groupby("run_id")["step"].nunique().reindex(frame["run_id"].unique(), fill_value=0)
    if (marked != 1).any():
        raise StoreError(
            f"run {marked.index[marked != 1][0]!r}: is_last marks {marked[marked != 1].iloc[0]} checkpoints, needs "
            "one; where several runs share a size and a seed, say which column tells them apart: --columns MINE=run_id"
        )
    ends = frame[frame["is_last"]].drop_duplicates("run_id")
    if (ends["tokens"] <= 0).any():
        run = ends.loc[ends["tokens"] <= 0, "run_id"].iloc[0]
        raise StoreError(f"run {run!r} has only an untrained checkpoint; give a trained one, or leave it out")
    several = ends.groupby("size")["tokens"].transform("nunique") > 1
    if several.any():  # one name for runs of different length would make seeds of them
        said.append("sizes that were trained for different numbers of tokens are named with them")
        length = dict(zip(ends["run_id"], several, strict=True))
        told = ends.set_index("run_id")["tokens"].map(si)
        longer = frame["run_id"].map(length).astype(bool)
        frame.loc[longer, "size"] += ", D=" + frame["run_id"].map(told)[longer]
    _check_seeds(frame[frame["is_last"]].drop_duplicates("run_id"))
    return frame


def _check_runs(frame: pd.DataFrame) -> None:
    """Raise StoreError where a checkpoint has two scales."""
    for keys, fixed in (
        (["run_id"], ("size", "seed", "n_params", "n_params_non_embedding")),
        (["run_id", "step"], ("tokens", "flops")),
    ):
        for name in fixed:
            wrong = frame.groupby(keys)[name].transform("nunique") > 1
            if wrong.any():
                rows = frame[wrong].sort_values(keys)
                rows = rows[(rows[keys] == rows[keys].iloc[0]).all(axis=1)].drop_duplicates(name)
                a, b = rows.iloc[0], rows.iloc[1]
                at = " ".join(f"{key} {a[key]}" for key in keys)
                first, second = (f"{row[name]:g}" if name != "size" else row[name] for row in (a, b))
                raise StoreError(
                    f"{at} has two values of {name}: {first} in {a['where']}, {second} in {b['where']}; tell the "
                    "runs apart with a column run_id, seed or step"
                )


def _check_seeds(ends: pd.DataFrame) -> None:
    """Raise StoreError where two models would be taken for two seeds of one size, or for one seed twice."""
    where = ["n_params_non_embedding", "tokens", "flops"]
    for _, runs in ends.groupby([*where, "seed"]):
        if len(runs) > 1:
            a, b = sorted(runs["run_id"])[:2]
            raise StoreError(
                f"runs {a!r} and {b!r} have one size, one number of tokens and one seed, so they would count as two "
                "seeds of one model; number them in a column seed, or import them apart"
            )
