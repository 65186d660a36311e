"""Several token budgets: curves over sizes take one, annealed ends alone are read, and D is an axis of its own."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from answer_tables import a_task, some_documents, some_samples
from verdict_curves import frame, jump, one

from harness.analyze import analyze
from harness.budgets import has_budgets, one_budget
from harness.emergence import verdicts_table
from harness.links import curve_links_table
from harness.scores import add_seed_intervals
from harness.store import DOCUMENTS, SAMPLES, Results, documents_path, samples_path, write_json, write_table

LARGEST = 1e8  # tokens of a trunk
AXES = ("flops", "n_params_non_embedding", "n_params")


def trunks(scores: pd.DataFrame) -> pd.DataFrame:
    """The sizes of a curve at the largest budget, with the columns of a sweep that has several."""
    size = "n" + scores["n_params_non_embedding"].round().astype(int).astype(str)
    scores = scores.assign(size=size, run_id=size + "-s" + scores["seed"].astype(str), tokens=LARGEST, trunk=None)
    return scores.assign(n_params=2 * scores["n_params_non_embedding"], annealed=True)


def branches(scores: pd.DataFrame, share: float, value: Any) -> pd.DataFrame:
    """The same sizes on a smaller budget; `value`: what their scores are."""
    changed = {"tokens": share * LARGEST, "flops": share * scores["flops"], "trunk": scores["run_id"], "value": value}
    return scores.assign(**changed, run_id=scores["run_id"] + f"-{share:g}", step=round(1000 * share))


def test_branches_leave_the_curves_over_sizes_as_they_are_and_would_bend_them_if_mixed_in() -> None:
    alone = trunks(frame([jump(0.9, 0.3)]))
    # On a tenth of the tokens only seed 0 of the four largest sizes has the ability, on a hundredth none.
    some = np.where((alone["seed"] == 0) & (alone["n_params_non_embedding"] > 2e4), 0.9, 0.25)
    both = pd.concat([alone, branches(alone, 0.1, some), branches(alone, 0.01, 0.25)])
    mixed = both.drop(columns="trunk")
    for axis in AXES:
        told = verdicts_table(alone, axis=axis)
        assert told["label"][0] == "emergent_sharp"
        pd.testing.assert_frame_equal(verdicts_table(both, axis=axis), told)
        assert verdicts_table(mixed, axis=axis)["label"][0] != "emergent_sharp", axis
    assert "without n1000 at 1e+07 tokens" not in json.loads(verdicts_table(both)["sensitivity"][0])


def test_branches_leave_the_links_as_they_are_and_would_change_them_if_mixed_in() -> None:
    acc = frame([jump(0.9, 0.3)], partner="logloss")
    alone = trunks(pd.concat([acc, frame([lambda s: 1.4 - 0.5 * s], metric="logloss")]))
    both = pd.concat([alone, branches(alone, 0.1, np.where(alone["metric"] == "acc", 0.9, 1.4))])
    told = curve_links_table(alone)
    pd.testing.assert_frame_equal(curve_links_table(both), told)
    assert not curve_links_table(both.drop(columns="trunk")).equals(told)


def over_budgets(learns: bool, *, budgets: int = 8) -> pd.DataFrame:
    """Two sizes at budgets over 1.76 decades to 10^8 tokens; the larger one learns at 10^7.2, or neither does."""
    parts = []
    for n, shape in ((1000.0, lambda s: 0.25), (5000.0, jump(0.96, 0.3) if learns else (lambda s: 0.25))):
        scores = frame([shape], draw=int(n), sizes=budgets, n=1000)
        share = scores["flops"] / scores["flops"].max()
        run = f"n{n:.0f}-s" + scores["seed"].astype(str)
        branch = share < 1
        names = run.where(~branch, run + "-" + share.map("{:.4f}".format))
        parts.append(
            scores.assign(
                n_params_non_embedding=n, size=f"n{n:.0f}", tokens=share * LARGEST, flops=6 * n * share * LARGEST,
                step=(1000 * share).round().astype(int), run_id=names,
                trunk=run.where(branch, None), annealed=True,
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_the_onset_over_tokens_is_found_where_it_was_planted_and_nowhere_else() -> None:
    scores = over_budgets(True)
    verdict = one(scores, axis="tokens")
    assert verdict["label"] == "emergent_sharp"
    assert verdict["onset"] == pytest.approx(8 - 1.76 + 0.96, abs=0.2)
    assert "Along the token budgets of the largest size (n5000), each annealed" in verdict["reasons"]
    assert (verdict["n_sizes"], verdict["n_seeds"], verdict["axis_unit"]) == (8, 3, "decades")
    assert (verdict["surprise"], verdict["link"]) == (None, "unknown")
    others = {name for name in json.loads(verdict["sensitivity"]) if not name.startswith("W0")}
    assert others == {f"without {tokens:.3g} tokens" for tokens in scores["tokens"].unique()}
    assert one(over_budgets(False), axis="tokens")["label"] not in ("emergent_sharp", "smooth", "bimodal_seeds")
    assert "2 budgets, needs 5" in one(over_budgets(True, budgets=2), axis="tokens")["reasons"]


def test_checkpoints_on_the_way_are_no_points_of_the_tokens_axis_nor_branches_of_the_checkpoints_axis() -> None:
    scores = over_budgets(True)
    last = scores[scores["trunk"].isna()]
    passed = [
        last.assign(is_last=False, annealed=False, step=step, tokens=step * 1e5, value=0.25) for step in (30, 400)
    ]
    both = pd.concat([scores, *passed])
    pd.testing.assert_series_equal(one(both, axis="tokens"), one(scores, axis="tokens"))
    along = one(both, axis="checkpoints")
    assert along["n_sizes"] == 3 and "but for the last, are not annealed" in along["reasons"]


def test_the_loss_axis_takes_every_size_at_every_budget() -> None:
    """Ability is a function of the loss alone here, whichever of N and D it was bought with."""
    parts, rng = [], np.random.default_rng(0)
    alone = trunks(frame([lambda s: 0.5], n=320))
    for share in (1.0, 0.1, 0.01):
        rows = alone if share == 1 else branches(alone, share, 0.5)
        loss = 6.2 - 0.25 * np.log10(rows["n_params_non_embedding"]) - 0.35 * np.log10(rows["tokens"] / 1e6)
        right = rng.binomial(320, [jump(-4.9, 0.15)(-x) for x in loss]) / 320
        text = rows.assign(task="text", kind="language modeling", metric="nats_per_token", continuous=True, value=loss)
        parts += [rows.assign(value=right), text.assign(item_se=0.005, higher_is_better=False, chance=math.nan)]
    scores = pd.concat(parts, ignore_index=True)
    along = verdicts_table(scores, axis="loss").set_index("metric").loc["acc"]
    assert along["n_sizes"] == 24 and along["onset"] == pytest.approx(-4.93, abs=0.06)
    assert "Sizes stand on it at every token budget" in along["reasons"]
    assert "without n1000 at 1e+06 tokens" in json.loads(along["sensitivity"])
    fewer = verdicts_table(scores[scores["trunk"].isna()], axis="loss").set_index("metric").loc["acc"]
    assert fewer["n_sizes"] == 8 and "every token budget" not in fewer["reasons"]


def test_seeds_are_those_of_one_budget_also_where_a_trunk_passes_the_step_of_a_branch() -> None:
    keys = {"size": "a", "task": "t", "level": "", "metric": "acc", "step": 5}
    rows = pd.DataFrame({"value": [0.1, 0.2, 0.8, 0.9], "annealed": [False, False, True, True]}).assign(**keys)
    assert add_seed_intervals(rows)["seed_mean"].tolist() == pytest.approx([0.15, 0.15, 0.85, 0.85])
    assert add_seed_intervals(rows.drop(columns="annealed"))["seed_mean"].tolist() == pytest.approx([0.5] * 4)


def test_a_table_without_branches_is_one_budget() -> None:
    scores = trunks(frame([jump(0.9, 0.3)]))
    assert not has_budgets(scores) and one_budget(scores) is scores
    assert not has_budgets(scores.drop(columns="trunk"))


# ---- a results folder ----

WIDTHS = (8, 16, 32, 64, 128)
BUDGETS = {100: 1e4, 400: 4e4, 1600: 1.6e5}  # step: tokens; the last is the trunks'
QUIZ = a_task("quiz", "Choice", metrics=["acc", "logloss"], partner="logloss")
TEXT = a_task("text", "Text", kind="language modeling", metrics=["nats_per_token"], metric="nats_per_token")
TEXTS = ["a b", "c d e", "f", "g h"]


def write_folder(folder: Path, *, with_branches: bool) -> Path:
    """A sweep of five sizes and two seeds with all checkpoints evaluated; or the same without its branches."""
    grid = []
    words = some_documents("quiz", "Choice", [[" yes", " no"]] * 64, [0] * 64)
    texts = some_documents("text", "Text", [[text] for text in TEXTS], [None] * len(TEXTS))
    for task, documents in ((QUIZ, words), (TEXT, texts)):
        documents = documents.assign(n_chars=[[1]] * len(documents), n_bytes=[[1]] * len(documents), stop=None)
        documents = documents.assign(max_tokens=None, cluster=None)
        write_table(documents_path(folder, task["name"], task["digest"]), documents[DOCUMENTS.names], DOCUMENTS)
    for width in WIDTHS:
        for seed in range(2):
            trunk = f"2x{width}-s{seed}-aa"
            for end in BUDGETS:
                is_trunk = end == max(BUDGETS)
                run = trunk if is_trunk else f"2x{width}-s{seed}-{end}-bb"
                steps = list(BUDGETS) if is_trunk else [end]
                cell = {"run_id": run, "size": f"2x{width}", "seed": seed, "steps": steps, "n_params": 900 * width}
                cell |= {"n_params_non_embedding": 24 * width**2, "flops_per_token": 144.0 * width**2}
                if with_branches:
                    cell |= {"tokens": int(BUDGETS[end]), "trunk": None if is_trunk else trunk}
                if not with_branches and not is_trunk:
                    continue
                grid.append(cell)
                if (width, seed, end) == (128, 1, 400):
                    continue  # not trained
                for step in steps:
                    _answer(folder, run, step, width, seed, annealed=step == end)
                about = {
                    "phase": "final",
                    "train_loss": 3.0,
                    "weights_digest": run,
                    "data_digest": "d",
                    "device": "cpu",
                }
                metas = [about | {"step": s, "tokens": int(BUDGETS[s]), "is_last": s == end} for s in steps]
                spec = {"model": {"n_layer": 2, "d_model": width}, "train": {"data_seed": seed, "peak_lr": 0.01}}
                ledger = {
                    "run_id": run,
                    "spec": spec,
                    "tokenizer_digest": "t",
                    "checkpoints": metas,
                    "cpu_seconds": 1.0,
                }
                write_json(folder / "runs" / run / "run.json", ledger)
    write_json(folder / "tasks.json", [QUIZ, TEXT])
    about = {"name": "made", "verdict": {}}
    write_json(folder / "spec.json", {"spec": about, "grid": grid, "left_out": {}})
    return folder


def _answer(folder: Path, run: str, step: int, width: int, seed: int, *, annealed: bool) -> None:
    """What annealing earlier costs differs by size here, so that no branch is the trunk in disguise."""
    rng = np.random.default_rng([width, seed, step, annealed])
    margin = np.log2(width) - 4 + 0.5 * math.log(BUDGETS[step] / 1.6e5) - (not annealed) + rng.normal(0, 2, 64)
    loss = 1 + 40 * (24 * width**2) ** -0.4 + 60 * BUDGETS[step] ** -0.4 + 0.5 * (not annealed) + 0.002 * seed
    samples = some_samples("quiz", [[0.0 - np.logaddexp(0, -m), -m - np.logaddexp(0, -m)] for m in margin], run)
    units = {f"{unit}{greedy}": 1 for unit in ("words", "chars", "sentences") for greedy in ("", "_greedy")}
    texts = some_samples("text", [[-2 * loss]] * len(TEXTS), run, **units)
    texts["nats_by_position"], texts["tokens_by_position"] = [[loss, loss]] * len(TEXTS), [[1, 1]] * len(TEXTS)
    for task, rows in ((QUIZ, samples), (TEXT, texts)):
        rows = rows.assign(step=step, task_digest="d", prompt_digest="x", n_prompt_tokens=3, truncated=False)
        rows = rows.assign(straddles=False, n_shots_dropped=0).reindex(columns=SAMPLES.names)
        write_table(samples_path(folder, run, step, task["name"], task["digest"]), rows, SAMPLES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """The tables of a sweep with branches, and of the same sweep without them."""
    root = tmp_path_factory.mktemp("budgets")
    made = (write_folder(root / name, with_branches=name == "with") for name in ("with", "without"))
    several, one_only = (analyze(folder) for folder in made)
    return several, one_only


def test_every_table_over_sizes_is_that_of_the_trunks_alone(folders: tuple[Results, Results]) -> None:
    several, alone = folders
    for name in ("verdicts", "links", "backtests", "forecasts", "examples", "pairs", "positions", "reliability"):
        found, told = getattr(several, name), getattr(alone, name)
        assert len(told), name
        pd.testing.assert_frame_equal(found, told, check_exact=True)
    pd.testing.assert_frame_equal(several.fits[:2], alone.fits, check_exact=True)


def test_the_branches_stand_in_the_scores_and_a_single_budget_has_no_column_of_theirs(
    folders: tuple[Results, Results],
) -> None:
    several, alone = folders
    for found, told in ((several.runs, alone.runs), (several.scores, alone.scores)):
        assert set(found) - set(told) == {"trunk", "annealed"}
        trunk = found[found["trunk"].isna()].reset_index(drop=True)
        pd.testing.assert_frame_equal(trunk[list(told)], told, check_exact=True)
    ends = several.scores[several.scores["annealed"] & (several.scores["metric"] == "acc")]
    assert ends.groupby("size").size().to_dict() == {f"2x{width}": 5 if width == 128 else 6 for width in WIDTHS}
    assert set(ends["tokens"]) == set(BUDGETS.values()) and ends["is_last"].all()
    trunk_of = several.runs.dropna(subset=["trunk"]).set_index("run_id")["trunk"]
    assert trunk_of["2x16-s1-400-bb"] == "2x16-s1-aa"


def test_the_law_of_size_and_tokens_is_fitted_to_all_annealed_ends_and_to_them_alone(
    folders: tuple[Results, Results],
) -> None:
    several, alone = folders
    assert [x for x in several.fits["x"] if "," in x] == ["n_params_non_embedding,tokens"]
    assert not alone.fits["x"].str.contains(",").any()
    both = several.fits.iloc[2]
    assert both["n_points"] == 29  # 5 sizes x 3 budgets x 2 seeds, less the one that is missing
    params = json.loads(both["params"])
    # Checkpoints on the way, half a nat worse, would move all three.
    assert params["alpha"] == pytest.approx(0.4, abs=0.02) and params["beta"] == pytest.approx(0.4, abs=0.02)
    assert params["E"] == pytest.approx(1.0, abs=0.03)


def test_what_is_missing_says_of_which_budget(folders: tuple[Results, Results]) -> None:
    several, alone = folders
    assert several.missing[["run_id", "tokens", "reason"]].values.tolist() == [
        ["2x128-s1-400-bb", 40_000, "not trained yet"]
    ]
    assert alone.missing.empty and "tokens" not in alone.missing
