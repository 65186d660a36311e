"""The tables of one results folder as a report reads them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.axes import curve_rows, make_cell
from harness.budgets import one_budget
from harness.compression import as_trained
from harness.curves import Cell, Constants
from harness.wording import loads

# The columns the page reads: a table that is missing or empty becomes an empty one with these.
COLUMNS = {
    "runs": "run_id size n_layer d_model n_params n_params_non_embedding flops_per_token seed data_seed step tokens "
    "flops is_last train_loss peak_lr parametrization precision attention device weights_digest data_digest "
    "tokenizer_digest trunk annealed",
    "scores": "run_id size n_params_non_embedding n_params seed step tokens flops is_last task kind ability role level "
    "metric headline continuous higher_is_better partner value item_se item_lo item_hi n chance seed_mean seed_sd "
    "seed_lo seed_hi n_seeds weights note lower_bound upper_bound n_truncated n_straddles n_shots_dropped n_near_ties "
    "trunk annealed",
    "fits": "subject form x params ci objective n_points n_sizes n_starts n_starts_agreeing converged aicc note band "
    "recipe",
    "verdicts": "task level metric role headline continuous partner axis axis_unit label width width_lo width_hi onset "
    "onset_lo onset_hi effect effect_lo effect_hi q_chance q_trend n_sizes n_seeds n_docs chance reasons surprise "
    "surprise_note link rows_digest sensitivity constants",
    "examples": "task level doc_id prompt target size n_params_non_embedding seed response correct logprob",
    "missing": "run_id size seed tokens step task reason",
    "links": "task level metric partner link n_items params predicted max_gap max_gap_limit p_lack_of_fit holds note",
    "backtests": "task level metric kind role headline continuous held_out size tokens flops predictor predicted "
    "observed lo50 hi50 lo80 hi80 lo95 hi95 error crps covered50 covered80 "
    "covered95 surprise_p weight n_sizes note",
    "pairs": "task level metric headline higher_is_better pair size_a size_b run_a run_b n mean_a mean_b difference se "
    "lo hi n_only_a n_only_b p q method note",
    "positions": "task level run_id size n_params_non_embedding n_params seed tokens flops position position_end value "
    "item_se n_tokens n",
    "reliability": "task level run_id size n_params_non_embedding n_params seed tokens flops lower upper n confidence "
    "accuracy accuracy_lo accuracy_hi ece ece_calibrated n_documents",
    "abilities": "ability size n_params n_params_non_embedding tokens flops value lo hi interval n_seeds n_tasks tasks "
    "values left_out note",
    "compression": "task level metric headline higher_is_better weights size n_params n_params_non_embedding tokens "
    "flops n_seeds n before after difference se lo hi p q method chance kept kept_lo kept_hi label onset label_before "
    "onset_before note",
    "elbows": "task method what examples elbow lo hi shift chance n_sizes n_seeds note",
    "forecasts": "task level metric kind role headline continuous predictor target_n_params_non_embedding "
    "target_tokens target_flops predicted lo50 hi50 lo80 hi80 lo95 hi95 weight extrapolation note",
}
LATER = (
    "links",
    "backtests",
    "forecasts",
    "pairs",
    "positions",
    "reliability",
    "abilities",
    "compression",
    "elbows",
)  # an older folder does not have them
KEYS = ["task", "level", "metric"]


class Tables:
    """The tables of one sweep, and what every part of the page asks of them.

    Of several token budgets `scores` and `last` hold the largest, as the verdicts do; `all_scores` holds every one."""

    runs: pd.DataFrame
    scores: pd.DataFrame
    fits: pd.DataFrame
    verdicts: pd.DataFrame
    examples: pd.DataFrame
    missing: pd.DataFrame
    links: pd.DataFrame
    backtests: pd.DataFrame
    forecasts: pd.DataFrame
    pairs: pd.DataFrame
    positions: pd.DataFrame
    reliability: pd.DataFrame
    abilities: pd.DataFrame
    compression: pd.DataFrame
    elbows: pd.DataFrame

    def __init__(self, results: Any) -> None:
        self.tasks: list[dict[str, Any]] = list(results.tasks or [])
        listed = [str(t["name"]) for t in self.tasks]
        scored = getattr(results, "scores", None)
        more = set() if scored is None or scored.empty else set(scored["task"].dropna())
        # The place of every task: as the sweep lists them, then those only the scores know.
        self.task_order = {name: i for i, name in enumerate(dict.fromkeys([*listed, *sorted(more)]))}
        for name, columns in COLUMNS.items():
            setattr(self, name, self._table(getattr(results, name, None), columns.split()))
        self.absent = {name for name in LATER if getattr(results, name, None) is None}
        self.path = Path(results.path)
        self.spec: dict[str, Any] = dict(results.spec or {})
        about = self.spec.get("spec", self.spec)  # the stored sweep wraps its spec
        self.about: Mapping[str, Any] = about if isinstance(about, Mapping) else {}
        self.imported = bool(self.spec.get("imported"))
        self.name = str(self.about.get("name") or self.path.name)
        self.folder = f"results/{self.path.name}"
        self.ledger: list[dict[str, Any]] = list(results.ledger or [])
        self.all_scores = as_trained(self.scores)
        self.scores = one_budget(self.all_scores)
        self.ends = self.runs[self.runs["is_last"].eq(True)]
        self.last = one_budget(self.ends)
        self.branches = self.ends[self.ends["trunk"].notna()]
        self.controls = {t["name"] for t in self.tasks if t.get("role") == "control"}
        self.controls |= set(self.scores.loc[self.scores["role"].eq("control"), "task"])
        self.verdict_axis = str(next(iter(self.verdicts["axis"].dropna()), "flops"))
        self.verdict_unit = str(next(iter(self.verdicts["axis_unit"].dropna()), "decades"))
        # Of the figures, which follow sizes: the verdicts may follow checkpoints, a loss or the budgets of one size.
        sizes = self.verdict_axis in self.scores and not (self.verdict_axis == "tokens" and len(self.branches))
        self.axis = self.verdict_axis if sizes else "flops"
        self.constants = loads(next(iter(self.verdicts["constants"].dropna()), None))

    def _table(self, found: pd.DataFrame | None, columns: list[str]) -> pd.DataFrame:
        """Return a table with these columns, tasks in the sweep's order."""
        if found is None or found.empty:  # of objects: what is empty can then be merged with anything
            return pd.DataFrame(columns=columns, dtype=object)
        found = found.reindex(columns=columns)
        if "task" not in columns:
            return found
        last = len(self.task_order)
        return found.sort_values("task", key=lambda v: v.map(self.task_order).fillna(last), kind="stable")

    @cached_property
    def cells(self) -> dict[tuple[str, str, str], Cell]:
        """Return the curves as the verdicts saw them; none where the scores are not fit for verdicts either."""
        known = {name: value for name, value in self.constants.items() if name in Constants.__dataclass_fields__}
        try:
            axis, curves = curve_rows(self.scores, self.axis)
            constants = axis.constants(Constants(**known))
        except ValueError:
            return {}
        made = {rows.key: make_cell(rows, axis, constants) for rows in curves}
        return {key: cell for key, cell in made.items() if isinstance(cell, Cell)}

    @cached_property
    def compute_to_n(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the compute and the N of the runs, by compute: how an onset is said in parameters."""
        runs = self.last[["flops", "n_params_non_embedding"]].astype(float).dropna().sort_values("flops")
        return runs["flops"].to_numpy(), runs["n_params_non_embedding"].to_numpy()
