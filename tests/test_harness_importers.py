"""Results made elsewhere: numbers arrive as they were, gaps are computed or named, and what is wrong is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.analyze import analyze
from harness.foreign import KNOWN, chance_of, describe
from harness.importers import import_lm_eval, import_notes, import_table
from harness.report import build_report
from harness.scale_maps import SHAPE, families, load_scale_map, read_models
from harness.store import StoreError, read_json, read_table

REFERENCE = Path(__file__).parent.parent.parent / "shared" / "reference"
SIZES = [1e6, 4e6, 1.6e7, 6.4e7, 2.56e8]


def reference(name: str) -> Path:
    if not (REFERENCE / name).exists():
        pytest.skip(f"the reference data are not at {REFERENCE / name}")
    return REFERENCE / name


def rows(**columns: Any) -> pd.DataFrame:
    """A table of one task on five sizes and two seeds, all columns canonical; None drops a column."""
    frame = pd.DataFrame([(n, seed) for n in SIZES for seed in (0, 1)], columns=["n_params", "seed"])
    frame = frame.assign(task="piqa", metric="acc", tokens=20 * frame["n_params"], n_examples=400)
    frame["value"] = 0.5 + 0.05 * np.log10(frame["n_params"] / 1e6) + 0.01 * frame["seed"]
    frame = frame.assign(**{key: value for key, value in columns.items() if value is not None})
    return frame.drop(columns=[key for key, value in columns.items() if value is None])


def table(tmp_path: Path, frame: pd.DataFrame, name: str = "curves.csv") -> Path:
    path = tmp_path / name
    frame.to_parquet(path) if name.endswith(".parquet") else frame.to_csv(path, index=False)
    return path


def scores(folder: Path) -> pd.DataFrame:
    read = (read_table(folder / "imported" / f"{part}.parquet") for part in ("scores", "runs"))
    return next(read).merge(next(read), on=["run_id", "step"])


def imported(tmp_path: Path, frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
    return scores(import_table(table(tmp_path, frame), out=tmp_path / "out", **options))


# ---- tables ----


def test_imported_metrics_that_only_describe_answers_are_kept_and_not_judged(tmp_path: Path) -> None:
    described = [rows(metric=name, value=value) for name, value in (("length", 4.9), ("distinct1", 0.8), ("ece", 0.1))]
    ours = [frame.assign(continuous=False, higher_is_better=True) for frame in described]  # as a sweep's own table says
    for i, frames in enumerate((described, ours)):
        found = analyze(import_table(table(tmp_path, pd.concat([rows(), *frames])), out=tmp_path / f"out{i}"))
        kept = found.scores.drop_duplicates("metric").set_index("metric")
        assert set(kept.index) == {"acc", "distinct1", "ece", "length"}
        assert not kept["continuous"].any() and kept["partner"].isna().all()
        assert kept.loc["length", "value"] == 4.9 and kept["headline"].idxmax() == "acc"
        for judged in (found.verdicts, found.links, found.backtests, found.forecasts):
            assert set(judged["metric"]) <= {"acc"}
        assert set(found.verdicts["metric"]) == {"acc"}


def test_the_reference_battery_imports_without_a_map_and_is_judged_as_it_was_made(tmp_path: Path) -> None:
    battery = reference("synthetic_battery")
    found = analyze(import_table(battery / "curves.csv.gz", out=tmp_path / "battery"))
    truth = pd.read_csv(battery / "labels.csv")
    verdicts = found.verdicts.merge(truth, on=["task", "metric"])
    assert len(verdicts) == len(truth) == len(found.verdicts)
    same = {"flat_at_chance": "flat", "flat_above_chance": "flat", "smooth_late_onset": "smooth"}
    said = verdicts["label"].replace(same | {"emergent_metric_dependent": "metric_artefact"})
    accepted = verdicts["acceptable_labels"].str.split("|")
    assert [label for label, right in zip(said, accepted, strict=True) if label not in right] == []
    assert not ((verdicts["label"] == "emergent_sharp") & (verdicts["truth"] != "emergent_sharp")).any()
    kinds = found.scores.drop_duplicates("metric").set_index("metric")
    assert kinds.loc["exact_match", ["partner", "continuous", "headline"]].tolist() == ["token_logprob", False, True]
    assert kinds.loc["token_logprob", ["continuous", "higher_is_better", "headline"]].tolist() == [True, True, False]
    assert kinds.loc["token_logprob", ["lower_bound", "upper_bound"]].tolist() == [-math.inf, math.inf]
    assert not kinds.loc["accuracy", "continuous"]


def test_an_imported_folder_is_analysed_and_reported_like_a_sweep(tmp_path: Path) -> None:
    first = analyze(import_table(table(tmp_path, rows()), out=tmp_path / "out", name="mine"))
    before = (tmp_path / "out" / "verdicts.parquet").read_bytes()
    assert first.spec["spec"]["name"] == "mine"
    assert first.spec["imported"]
    assert first.runs["n_layer"].isna().all()
    page = build_report(first, tmp_path / "report")
    assert "piqa" in page.read_text(encoding="utf-8")
    analyze(tmp_path / "out")
    assert (tmp_path / "out" / "verdicts.parquet").read_bytes() == before


def test_a_share_gets_its_binomial_error_and_a_continuous_metric_without_one_says_so(tmp_path: Path) -> None:
    found = imported(tmp_path, pd.concat([rows(), rows(metric="logprob", value=-1.0)]))
    acc = found[found["metric"] == "acc"]
    assert acc["item_se"].to_numpy() == pytest.approx(np.sqrt(acc["value"] * (1 - acc["value"]) / 400).to_numpy())
    assert (acc["item_lo"] < acc["value"]).all() and (acc["value"] < acc["item_hi"]).all()
    assert acc["note"].isna().all()
    other = found[found["metric"] == "logprob"]
    assert other["item_se"].isna().all()
    assert set(other["note"]) == {"error over documents not known"}
    assert set(acc["partner"]) == {"logprob"}
    given = imported(tmp_path, rows(item_se=0.03, value=0.6))
    assert set(given["item_se"]) == {0.03}


@pytest.mark.parametrize("gone", ["n_params", "tokens", "flops"])
def test_two_of_n_d_and_c_give_the_third(tmp_path: Path, gone: str) -> None:
    full = rows().assign(flops=lambda t: 6 * t["n_params"] * t["tokens"])
    found = imported(tmp_path, full.drop(columns=gone))
    assert np.unique(found[gone]) == pytest.approx(np.unique(full[gone]))
    assert any(note.startswith(f"{gone} computed by C = 6 N D in 10 rows") for note in import_notes(tmp_path / "out"))


def test_a_given_compute_is_kept_even_where_it_is_not_6nd(tmp_path: Path) -> None:
    found = imported(tmp_path, rows().assign(flops=lambda t: 8 * t["n_params"] * t["tokens"]))
    assert (found["flops"] / found["n_params"] / found["tokens"]).to_numpy() == pytest.approx(8)
    assert "flops are as given, 8 to 8 N D" in import_notes(tmp_path / "out")


def test_one_of_n_d_and_c_is_refused_with_what_to_provide(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"row 1: needs two of n_params, tokens and flops, has n_params;.*--scales FILE"
    ):
        imported(tmp_path, rows(tokens=None))


def test_foreign_names_are_mapped_and_mistyped_ones_get_a_suggestion(tmp_path: Path) -> None:
    foreign = rows().rename(columns={"value": "score", "n_params": "N"}).assign(remark="x", role="fit")
    columns = {"score": "value", "N": "n_params", "role": "-"}
    assert (
        imported(tmp_path, foreign, columns=columns)["value"].tolist() == imported(tmp_path, rows())["value"].tolist()
    )
    imported(tmp_path, foreign, columns=columns)
    assert "curves.csv: columns not used: remark" in import_notes(tmp_path / "out")
    wrong = [
        (foreign, {"scor": "value"}, "no column 'scor', did you mean 'score'"),
        (foreign, {"score": "valu"}, "unknown name, did you mean 'value'"),
        (foreign, {"value": "score"}, "the other way round: --columns score=value"),
        (foreign, {"score": "value", "N": "value"}, "another column stands for 'value' already"),
        (foreign, {}, "no column value; not understood: N, score, remark. Map them with --columns MINE=value"),
        (rows().rename(columns={"seed": "seeds"}), {}, "unknown column 'seeds', did you mean 'seed'"),
        (rows(role="fit"), {}, "role must be probe or control, got 'fit'"),
    ]
    for frame, said, message in wrong:
        with pytest.raises(StoreError, match=message):
            imported(tmp_path, frame, columns=said)


def test_every_file_format_gives_the_same_tables(tmp_path: Path) -> None:
    found = []
    for name in ("a.csv", "a.csv.gz", "a.parquet", "a.tsv"):
        path = tmp_path / name
        if name == "a.tsv":
            rows().to_csv(path, sep="\t", index=False)
        else:
            table(tmp_path, rows(), name)
        found.append(scores(import_table(path, out=tmp_path / name.replace(".", "_"))))
    assert all(found[0].equals(other) for other in found[1:])


def test_a_metric_nobody_knows_is_listed_with_the_reason_and_imported_once_declared(tmp_path: Path) -> None:
    frame = pd.concat([rows(), rows(metric="vibes", value=55.0)])
    assert set(imported(tmp_path, frame)["metric"]) == {"acc"}
    missing = read_table(tmp_path / "out" / "imported" / "missing.parquet")
    assert missing["task"].tolist() == ["piqa"]
    assert "metric 'vibes' is not known here; declare it: --metric vibes=threshold|share" in missing["reason"][0]
    found = imported(tmp_path, frame, metrics={"vibes": "share,lower,percent"}).set_index("metric").loc["vibes"]
    assert set(found["value"]) == {0.55}
    assert not found["higher_is_better"].any() and found["continuous"].all()
    assert read_table(tmp_path / "out" / "imported" / "missing.parquet").empty
    with pytest.raises(StoreError, match="nothing can be imported: metric 'vibes' is not known"):
        imported(tmp_path, rows(metric="vibes"))
    with pytest.raises(StoreError, match="'vibes': 'good' is not a declaration; accepted: threshold"):
        imported(tmp_path, frame, metrics={"vibes": "good"})


def test_the_rows_own_columns_say_what_an_unknown_metric_is(tmp_path: Path) -> None:
    found = imported(
        tmp_path, rows(metric="energy", value=-3.0, continuous=True, higher_is_better=False, n_examples=None)
    )
    assert found["continuous"].all() and not found["higher_is_better"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"value": 61.2},
            r"curves.csv, row 1: acc of piqa is 61.2, but it lies between 0 and 1; if it is a percentage",
        ),
        ({"value": "good"}, "row 1: value is no number: 'good'"),
        ({"tokens": -1.0}, "row 1: tokens must be positive, got -1"),
        ({"flops": 0.0}, "row 1: flops must be positive, got 0"),
        ({"n_params": math.inf}, "row 1: n_params must be positive, got inf"),
        ({"n_examples": 0}, "n 0"),
        ({"item_se": -0.1}, "an error cannot be negative"),
        ({"n_correct": 300, "value": 0.5}, r"value 0.5 is not n_correct / n_examples = 0.75"),
        ({"chance": 1.5}, "chance 1.5 of acc lies outside the metric's bounds"),
        ({"seed": 0.5}, "row 1: seed must be a whole number"),
        ({"partner": "logprob"}, "partner 'logprob' of acc is not a continuous metric of piqa; there are: none"),
        ({"headline": "maybe"}, "row 1: headline must be true or false, got 'maybe'"),
        ({"task": ""}, "row 1: has no task"),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        imported(tmp_path, rows(**change))


def test_missing_and_infinite_values_keep_their_rows_with_the_reason(tmp_path: Path) -> None:
    frame = rows(item_se=0.02)
    frame["value"] = frame["value"].astype(object)
    frame.loc[[0, 3], "value"] = ["", "inf"]
    found = imported(tmp_path, frame)
    assert len(found) == 10
    assert found.loc[found["value"].isna(), "note"].tolist() == [
        "No value in curves.csv, row 1",
        "Infinite in curves.csv, row 4",
    ]
    judged = analyze(tmp_path / "out").scores
    assert judged["value"].isna().sum() == 2


def test_repeated_rows_are_dropped_and_contradictions_name_both(tmp_path: Path) -> None:
    assert len(imported(tmp_path, pd.concat([rows(), rows()]))) == 10
    assert "10 rows that repeat another one are dropped" in import_notes(tmp_path / "out")
    one = table(tmp_path, rows(), "one.csv")
    two = table(tmp_path, rows(value=0.9), "two.csv")
    with pytest.raises(StoreError, match=r"is given twice: 0.5 in one.csv, row 1, 0.9 in two.csv, row 1; keep one"):
        import_table([one, two], out=tmp_path / "both")


def test_two_models_of_one_scale_are_no_two_seeds(tmp_path: Path) -> None:
    twins = pd.concat([rows(model="a", seed=0).iloc[::2], rows(model="b", seed=0).iloc[::2]])
    with pytest.raises(StoreError, match=r"run_id a-seed0 has two values of n_params: 1e.06 in"):
        imported(tmp_path, twins)
    one = rows().iloc[[0]].drop(columns="seed")
    with pytest.raises(StoreError, match="would count as two seeds of one model; number them in a column seed"):
        imported(tmp_path, pd.concat([one.assign(model="a"), one.assign(model="b")]))
    numbered = imported(tmp_path, pd.concat([one.assign(model="a", seed=0), one.assign(model="a", seed=1)]))
    assert numbered["run_id"].tolist() == ["a-seed0", "a-seed1"]


def test_checkpoints_are_told_from_runs_and_the_last_is_marked(tmp_path: Path) -> None:
    both = pd.concat([rows(), rows().assign(tokens=lambda t: t["tokens"] / 2)])
    found = imported(tmp_path, both)
    assert found.groupby("run_id")["step"].apply(list).map(sorted).tolist() == [[1, 2]] * 10
    assert (found.loc[found["is_last"], "tokens"] == 20 * found.loc[found["is_last"], "n_params"]).all()
    assert not analyze(tmp_path / "out").verdicts.empty
    untrained = pd.concat([rows(step=7), rows(step=0, tokens=0, flops=0, value=0.5).assign(flops=0.0)])
    untrained["flops"] = untrained["flops"].fillna(6 * untrained["n_params"] * untrained["tokens"])
    assert set(imported(tmp_path, untrained)["step"]) == {0, 7}
    started = pd.concat([rows(step=0).assign(tokens=lambda t: t["tokens"] / 2), rows(step=1)])
    assert set(imported(tmp_path, started)["step"]) == {1, 2}  # a model that has seen tokens is no untrained one


def test_a_wide_table_is_melted_and_chance_stays_with_the_shares(tmp_path: Path) -> None:
    wide = rows(metric=None, value=None, accuracy=0.6, task_bpb=1.2, chance=0.5)
    found = (
        imported(tmp_path, wide, value_columns=["accuracy", "task_bpb"]).drop_duplicates("metric").set_index("metric")
    )
    assert found["value"].to_dict() == {"accuracy": 0.6, "task_bpb": 1.2}
    assert found.at["accuracy", "chance"] == 0.5
    assert math.isnan(found.at["task_bpb", "chance"])
    assert found.at["accuracy", "partner"] == "task_bpb"
    with pytest.raises(StoreError, match="leave column 'value' out with --columns value=-"):
        imported(tmp_path, wide.assign(value=0.1), value_columns=["accuracy"])


def test_the_olmo_ladder_imports_with_a_map(tmp_path: Path) -> None:
    path = reference("olmo_ladder") / "ladder_checkpoints.csv.gz"
    columns = {"run": "run_id", "ckpt": "step", "role": "-", "n_params": "n_params_non_embedding"}
    wide = ["accuracy", "task_bpb"]
    found = scores(import_table(path, out=tmp_path / "ladder", columns=columns, value_columns=wide))
    raw = pd.read_csv(path)
    assert len(found) == 2 * len(raw)
    last = found[found["is_last"] & (found["task"] == "hellaswag") & (found["metric"] == "accuracy")]
    assert last["run_id"].nunique() == len(last) == raw["run"].nunique()
    assert last.set_index("run_id").at["7B-target", "value"] == pytest.approx(0.81348, abs=1e-5)
    assert last["size"].is_unique  # runs of one model that were trained for longer are no seeds of it
    with pytest.raises(StoreError, match=r"is_last marks 4 checkpoints.*--columns MINE=run_id"):
        import_table(path, out=tmp_path / "x", columns={"role": "-"}, value_columns=wide)


def test_the_same_import_gives_the_same_bytes_and_another_replaces_it(tmp_path: Path) -> None:
    path, out = table(tmp_path, rows()), tmp_path / "out"
    import_table(path, out=out)
    analyze(out)
    first = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    import_table(path, out=out)
    assert first == {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    import_table(path, out=tmp_path / "again" / "out")
    for part in ("runs", "scores", "missing"):
        file = Path("imported") / f"{part}.parquet"
        assert (out / file).read_bytes() == (tmp_path / "again" / "out" / file).read_bytes()
    import_table(table(tmp_path, rows(value=0.7)), out=out)
    assert not (out / "verdicts.parquet").exists()  # those of the former import
    assert set(scores(out)["value"]) == {0.7}
    source = read_json(out / "imported" / "source.json")
    assert [len(file["sha256"]) for file in source["files"]] == [64]
    (out / "imported" / "source.json").unlink()
    with pytest.raises(StoreError, match="its import was not finished; run the same harness import again"):
        analyze(out)


def test_an_import_never_overwrites_a_sweep_nor_other_files(tmp_path: Path) -> None:
    path = table(tmp_path, rows())
    for name, content, message in (("spec.json", '{"grid": []}', "holds a sweep"), ("notes.txt", "x", "is not empty")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(StoreError, match=message):
            import_table(path, out=folder)
        assert (folder / name).read_text() == content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "not a readable table"),
        ("a.csv", b"task,metric,value\n", "holds no rows"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00broken", "not a readable table"),
        ("a.parquet", b"PAR1", "not a readable table"),
        ("a.xls", b"x", "unknown kind of file; accepted: .csv"),
        ("a.csv", b"task,value\n\xff\xfe,1\n", "not a readable table"),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=message) as error:
        import_table(tmp_path / name, out=tmp_path / "out")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_declared_seed_sd_reaches_the_verdicts(tmp_path: Path) -> None:
    single = rows().iloc[::2]
    folder = import_table(table(tmp_path, single), out=tmp_path / "out", seed_sd=0.02)
    assert read_json(folder / "spec.json")["spec"]["verdict"]["declared_seed_sd"] == 0.02
    assert "as declared" in analyze(folder).verdicts["reasons"][0]
    assert (
        "declared_seed_sd" in analyze(import_table(table(tmp_path, single), out=tmp_path / "o")).verdicts["reasons"][0]
    )
    with pytest.raises(StoreError, match=r"seed_sd: .*positive"):
        import_table(table(tmp_path, single), out=tmp_path / "out", seed_sd=-1.0)


# ---- scale maps ----


def counted(shape: dict[str, Any], *, series: str) -> tuple[int, int]:
    """Parameters without and with embeddings, from the shape of the architecture."""
    n, d, f, v = (shape[key] for key in ("n_layer", "d_model", "d_ff", "vocab_size"))
    if series.startswith("pythia"):  # weights and biases of qkv, projection, both feed-forwards; two layer norms
        inner = n * ((3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d) + 4 * d) + 2 * d
        return inner, inner + 2 * v * d
    kv = d // shape["n_head"] * shape["n_kv_head"]
    norms, last = {"olmo-1": (0, 0), "olmo-2": (d + kv + 2 * d, d)}.get(series, (2 * d, d))
    inner = n * (2 * d * d + 2 * d * kv + 3 * d * f + norms) + last
    return inner, inner + (1 if shape["tied_embeddings"] else 2) * v * d


PUBLISHED = {  # the model cards
    "pythia-14m": 14_067_712, "pythia-31m": 30_494_720, "pythia-70m": 70_426_624, "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632, "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320,
    "OLMo-7B": 6_888_095_744, "llama-7b": 6_738_415_616, "llama-65b": 65_285_660_672,
    "Llama-2-70b": 68_976_648_192, "Meta-Llama-3-8B": 8_030_261_248, "Meta-Llama-3-70B": 70_553_706_496,
}  # fmt: skip


@pytest.mark.parametrize("family", families())
def test_bundled_counts_follow_from_the_shapes_and_equal_the_published_ones(family: str) -> None:
    known = {model.name: model for model in load_scale_map(family).models.values()}
    assert known
    for model in known.values():
        inner, total = counted(dict(model.shape), series=model.series)
        assert (model.n_params_non_embedding, model.n_params) == (inner, total), model.name
        assert model.n_params == PUBLISHED.get(model.name, model.n_params)
        assert model.tokens > model.n_params


def test_pythia_has_ten_sizes_twice_and_143000_steps_of_two_million_tokens() -> None:
    known = load_scale_map("pythia")
    assert len({model.name for model in known.models.values()}) == 20
    assert {model.tokens for model in known.models.values()} == {143_000 * 2_097_152}
    model, seed = known.get("EleutherAI/pythia-v1.1-410m", "here")
    assert (model.n_params_non_embedding, seed) == (302_311_424, 0)
    assert model.tokens_at("step3000") == (3000, 3000 * 2_097_152)
    assert model.tokens_at("main") == (None, 299_892_736_000)
    assert known.get("pythia-70m-seed3", "here")[1] == 3
    assert known.get("410m", "here")[0] is model
    with pytest.raises(StoreError, match="no scale known for model 'pythia-411m', did you mean 'pythia-41"):
        known.get("pythia-411m", "here")
    with pytest.raises(StoreError, match="step 900000 would be"):
        model.tokens_at("step900000")
    with pytest.raises(StoreError, match="revision 'v2' names no training step"):
        model.tokens_at("v2")


def test_olmo_revisions_agree_with_the_tokens_they_name() -> None:
    known = load_scale_map("olmo")
    for name, revision in (
        ("OLMo-1B", "step738020-tokens3095B"),
        ("OLMo-7B", "step556000-tokens2460B"),
        ("OLMo-2-0425-1B", "stage1-step1907359-tokens4001B"),
        ("OLMo-2-1124-7B", "stage1-step928646-tokens3896B"),
        ("OLMo-2-1124-13B", "stage1-step596057-tokens5001B"),
        ("OLMo-2-0325-32B", "stage1-step721901-tokens6056B"),
    ):
        named = float(revision.rpartition("tokens")[2][:-1]) * 1e9
        assert known.get(name, "")[0].tokens_at(revision)[1] == pytest.approx(named, abs=1e9), name


def test_a_users_map_gives_the_scale_of_models_that_are_only_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[[model]]\nname = "mine-a"\naliases = ["a"]\nn_params = 2_000_000\ntokens = 4e7\ntokens_per_step = 1e4\n'
    )
    (tmp_path / "mine.csv").write_text("name,aliases,n_params,tokens,tokens_per_step\nmine-a,a,2000000,4e7,1e4\n")
    assert read_models(tmp_path / "mine.toml") == read_models(tmp_path / "mine.csv")
    frame = pd.DataFrame(
        {"model": ["a", "pythia-70m"], "task": "piqa", "metric": "acc", "value": 0.6, "n_examples": 100}
    )
    found = imported(tmp_path, frame, scales=tmp_path / "mine.toml").set_index("size")
    assert found.loc["a", ["n_params", "tokens", "flops"]].tolist() == [2e6, 4e7, 6 * 2e6 * 4e7]
    assert found.at["pythia-70m", "flops"] == 6 * 18_915_328 * 299_892_736_000
    assert any("N without embeddings" in n or "N as given" in n for n in import_notes(tmp_path / "out"))
    assert [m["file"] for m in read_json(tmp_path / "out" / "imported" / "source.json")["scale_maps"]][
        -1
    ] == "mine.toml"
    with pytest.raises(StoreError, match="no scale known for model 'b'"):
        imported(tmp_path, frame.assign(model=["b", "pythia-70m"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[model]]\nname = "x"\nn_parms = 3\n', "unknown field 'n_parms', did you mean 'n_params'"),
        ('[[model]]\nname = "x"\n', "needs n_params or n_params_non_embedding"),
        ('[[model]]\nname = "x"\nn_params = -3\n', "n_params must be a positive number, got -3"),
        ('[[model]]\nname = "x"\nn_params = 3\n[[model]]\nname = "X"\nn_params = 4\n', "'x' names two models"),
        ("[[model]\n", "cannot be read"),
        ("", "holds no models"),
    ],
)
def test_a_wrong_scale_map_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(StoreError, match=message):
        load_scale_map(scales=tmp_path / "m.toml")


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(StoreError, match=r"unknown family 'pythi', did you mean 'pythia'\? Known: llama, olmo, pythia"):
        load_scale_map("pythi")


# ---- what metrics mean ----


@pytest.mark.parametrize(
    ("metric", "form", "higher", "bounds"),
    [
        ("acc_norm", "threshold", True, (0, 1)),
        ("exact_match[strict-match]", "threshold", True, (0, 1)),
        ("pass@10", "threshold", True, (0, 1)),
        ("mcc", "continuous", True, (-1, 1)),
        ("ppl", "continuous", False, (1, math.inf)),
        ("log_ppl", "continuous", False, (0, math.inf)),
        ("bits_per_byte", "continuous", False, (0, math.inf)),
        ("brier_score", "continuous", False, (0, 2)),
        ("token_logprob", "continuous", True, (-math.inf, math.inf)),
        ("rougeL", "share", True, (0, 1)),
        ("ter", "continuous", False, (0, math.inf)),
    ],
)
def test_known_metrics_have_form_direction_and_bounds(
    metric: str, form: str, higher: bool, bounds: tuple[float, float]
) -> None:
    found = describe(metric, {})
    assert found is not None
    assert (found.form, found.higher_is_better, found.bounds) == (form, higher, bounds)


def test_an_unknown_metric_is_not_guessed() -> None:
    assert describe("acc_vibes", {}) is None
    assert KNOWN["bleu"].percent and not KNOWN["rouge1"].percent


@pytest.mark.parametrize(
    ("task", "metric", "chance"),
    [
        ("piqa", "acc", 0.5),
        ("hellaswag", "acc_norm", 0.25),
        ("hendrycksTest-virology", "acc", 0.25),
        ("commonsense_qa", "acc", 0.2),
        ("boolq", "acc", 2033 / 3270),
        ("lambada_openai", "acc", 0.0),
        ("gsm8k", "exact_match[strict-match]", 0.0),
        ("nobody_knows", "acc", math.nan),
        ("piqa", "brier_score", math.nan),
    ],
)
def test_chance_is_that_of_the_best_constant_guess_or_unknown(task: str, metric: str, chance: float) -> None:
    assert chance_of(task, metric)[0] == pytest.approx(chance, nan_ok=True)


# ---- the LM Evaluation Harness ----


def test_the_pythia_files_give_their_published_numbers(tmp_path: Path) -> None:
    files = sorted(reference("pythia_lm_eval").glob("*.json"))
    found = scores(import_lm_eval(files, out=tmp_path / "pythia", family="pythia"))
    assert found["task"].str.startswith("hendrycksTest-").groupby(found["task"]).any().sum() == 57
    final = found[(found["size"] == "410m") & (found["step"] == 143_000)].set_index(["task", "metric"])
    for task, metric, value in (
        ("lambada_openai", "acc", 0.516204),
        ("lambada_openai", "ppl", 10.8282),
        ("piqa", "acc", 0.667573),
        ("piqa", "acc_norm", 0.671382),
        ("arc_easy", "acc", 0.521044),
    ):
        assert final.at[(task, metric), "value"] == pytest.approx(value, rel=3e-6)
    assert final.at[("lambada_openai", "acc"), "item_se"] == pytest.approx(0.006962, abs=1e-6)
    assert final.at[("lambada_openai", "acc"), "partner"] == "log_ppl"
    assert final.at[("lambada_openai", "log_ppl"), "value"] == pytest.approx(math.log(10.8282026), rel=1e-8)
    # The evaluation splits' own sizes, which the files do not hold.
    counts = {"piqa": 1838, "lambada_openai": 5153, "arc_easy": 2376, "winogrande": 1267, "crows_pairs_english": 1677}
    assert {task: final.loc[task, "n"].unique().tolist() for task in counts} == {t: [n] for t, n in counts.items()}
    assert (
        found.groupby("size")["is_last"].apply(lambda last: set(found.loc[last.index[last], "step"])).tolist()
        == [{143_000}] * 3
    )
    assert final["tokens"].unique().tolist() == [143_000 * 2_097_152]
    assert final["n_params_non_embedding"].unique().tolist() == [302_311_424]
    assert (final["flops"] == 6 * 302_311_424 * 143_000 * 2_097_152).all()
    assert final.loc["piqa", "chance"].unique().tolist() == [0.5]
    assert not final.at[("crows_pairs_english", "pct_stereotype"), "higher_is_better"]
    notes = " ".join(import_notes(tmp_path / "pythia"))
    assert "follow from n = p (1 - p) / stderr^2 + 1" in notes
    assert "C = 6 N D" in notes and "N without embeddings" in notes
    assert analyze(tmp_path / "pythia").runs["n_layer"].tolist() == [6, 6, 24, 24, 24, 24]


def old(value: float = 0.6, **changes: Any) -> dict[str, Any]:
    error = math.sqrt(value * (1 - value) / 499)
    base = {
        "results": {"piqa": {"acc": value, "acc_stderr": error}},
        "versions": {"piqa": 0},
        "config": {"model_args": "pretrained=EleutherAI/pythia-70m,revision=step3000", "num_fewshot": 0},
    }
    return base | changes


def new(tmp_path: Path, model: str = "pythia-70m", step: int = 3000, **changes: Any) -> Path:
    """A result file as lm-eval 0.4 writes it, in the folder of its model."""
    data = {
        "results": {
            "mc": {"alias": "mc", "name": "mc", "sample_len": 40, "acc,none": 0.5, "acc_stderr,none": 0.08},
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": "N/A",
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,flexible-extract": 0.05,
            },
            "wikitext": {"bits_per_byte,none": 1.1, "bits_per_byte_stderr,none": "N/A", "word_perplexity,none": 40.0},
            "grp": {"alias": "grp", "acc,none": 0.5, "acc_stderr,none": 0.08},
            "bare": {"alias": "bare", " ,none": " "},
        },
        "groups": {"grp": {"alias": "grp", "acc,none": 0.5, "acc_stderr,none": 0.08}},
        "group_subtasks": {"grp": ["mc"], "gsm8k": []},
        "configs": {"mc": {"output_type": "multiple_choice"}, "gsm8k": {"output_type": "generate_until"}},
        "versions": {"mc": 1.0, "gsm8k": 3.0, "wikitext": 2.0},
        "n-shot": {"mc": 0, "gsm8k": 5},
        "higher_is_better": {"mc": {"acc": True}, "gsm8k": {"exact_match": True}},
        "n-samples": {"mc": {"original": 40, "effective": 40}, "gsm8k": {"original": 100, "effective": 100}},
        "config": {"model": "hf", "model_args": {"pretrained": f"EleutherAI/{model}", "revision": f"step{step}"}},
        "task_hashes": {"mc": "abc"},
    }
    folder = tmp_path / f"EleutherAI__{model}"
    folder.mkdir(exist_ok=True)
    path = folder / f"results_2024-05-0{1 + step // 2000}T10-00-00.123.json"
    path.write_text(json.dumps(data | changes))
    return path


def test_the_new_schema_is_read_with_filters_groups_counts_and_directions(tmp_path: Path) -> None:
    found = scores(import_lm_eval(new(tmp_path), out=tmp_path / "out"))
    values = found.set_index(["task", "metric"])
    assert values.at[("gsm8k", "exact_match[strict-match]"), "value"] == 0.25
    assert values.at[("gsm8k", "exact_match[flexible-extract]"), "item_se"] == 0.05
    assert values.at[("gsm8k", "exact_match[strict-match]"), "item_se"] == pytest.approx(math.sqrt(0.25 * 0.75 / 100))
    assert values.loc["gsm8k", "kind"].unique().tolist() == ["generation"]
    assert values.at[("mc", "acc"), "ability"] == "grp"
    assert values.at[("grp", "acc"), "n"] == 40
    assert values.at[("wikitext", "bits_per_byte"), "kind"] == "language modeling"
    assert values.at[("wikitext", "bits_per_byte"), "headline"]
    assert values.at[("wikitext", "log_word_perplexity"), "value"] == pytest.approx(math.log(40))
    assert "bare" not in found["task"].tolist()
    assert set(found["step"]) == {3000}


def test_names_come_from_the_file_where_the_arguments_have_none(tmp_path: Path) -> None:
    (tmp_path / "pythia-410m_step1000.json").write_text(json.dumps(old(config={"model_args": None})))
    found = scores(import_lm_eval(tmp_path / "pythia-410m_step1000.json", out=tmp_path / "out"))
    assert found[["size", "step"]].drop_duplicates().to_numpy().tolist() == [["410m", 1000]]
    (tmp_path / "x.json").write_text(json.dumps(old(config={"model_args": "pretrained=/ckpt/pythia-160m/step2000"})))
    found = scores(import_lm_eval(tmp_path / "x.json", out=tmp_path / "x"))
    assert found[["size", "step"]].drop_duplicates().to_numpy().tolist() == [["160m", 2000]]
    (tmp_path / "y.json").write_text(json.dumps(old(config={})))
    with pytest.raises(
        StoreError, match=r"y.json: names no model, neither in config.model_args nor in the file's name"
    ):
        import_lm_eval(tmp_path / "y.json", out=tmp_path / "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"versions": {"piqa": 1}},
            "task 'piqa' has version 0 in .*a.json, but 1 in .*b.json: these are different tests",
        ),
        ({"config": old()["config"] | {"num_fewshot": 5}}, "has n-shot 0 in .*a.json, but 5 in .*b.json"),
        ({"results": {"piqa": {"acc": 0.7}}}, "given twice: 0.6 in .*a.json, 0.7 in .*b.json"),
        ({"results": {"piqa": {"acc": 61.0}}}, "b.json: acc of piqa is 61, but it lies between 0 and 1"),
        ({"results": {}}, "b.json: is no lm-eval result file"),
        ({"config": {"model_args": "pretrained=me/nobody-1b"}}, "b.json: no scale known for model 'me/nobody-1b'"),
        ({"config": {"model_args": "pretrained=pythia-70m,revision=v9"}}, "b.json: .*revision 'v9' names no training"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(old()))
    (tmp_path / "b.json").write_text(json.dumps(old(**change)))
    with pytest.raises(StoreError, match=message):
        import_lm_eval([tmp_path / "a.json", tmp_path / "b.json"], out=tmp_path / "out")


def test_a_file_cut_short_is_named_and_a_repeated_one_dropped(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(old()))
    assert len(scores(import_lm_eval([tmp_path / "a.json", tmp_path / "b.json"], out=tmp_path / "out"))) == 1
    assert "1 rows that repeat another one are dropped" in import_notes(tmp_path / "out")
    (tmp_path / "b.json").write_text(json.dumps(old())[:-20])
    with pytest.raises(StoreError, match=r"b.json: is no JSON \(.*is the file cut short"):
        import_lm_eval([tmp_path / "a.json", tmp_path / "b.json"], out=tmp_path / "out")


def test_a_value_that_is_not_a_number_keeps_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(old(results={"piqa": {"acc": math.nan, "acc_norm": "N/A"}})))
    found = scores(import_lm_eval(tmp_path / "a.json", out=tmp_path / "out"))
    assert found["value"].isna().tolist() == [True, True]
    assert all(note.startswith("No value in ") and note.endswith("a.json") for note in found["note"])


def test_deduped_and_plain_models_are_not_taken_for_seeds(tmp_path: Path) -> None:
    files = [new(tmp_path, "pythia-70m"), new(tmp_path, "pythia-70m-deduped")]
    with pytest.raises(StoreError, match="runs 'pythia-70m' and 'pythia-70m-deduped' have one size"):
        import_lm_eval(files, out=tmp_path / "out")
    files = [new(tmp_path, "pythia-70m"), new(tmp_path, "pythia-70m-seed1")]
    found = scores(import_lm_eval(files, out=tmp_path / "out"))
    assert found.groupby("seed")["size"].unique().map(list).to_dict() == {0: ["70m"], 1: ["70m"]}


# ---- samples ----


def sample(
    i: int, logprobs: list[float], gold: int, *, target: str | None = None, contexts: Any = None, fixed: bool = False
) -> dict[str, Any]:
    """A line of --log_samples: choices of different lengths."""
    texts = [f" choice {'x' * (1 + 2 * j)}{'' if fixed else f' of {i:02d}'}" for j in range(len(logprobs))]
    asked = contexts or [f"Question {i}:"] * len(texts)
    return {
        "doc_id": i,
        "target": str(gold) if target is None else target,
        "arguments": {f"gen_args_{j}": {"arg_0": asked[j], "arg_1": t} for j, t in enumerate(texts)},
        "filtered_resps": [[str(v), "False"] for v in logprobs],
        "filter": "none",
        "acc": float(int(np.argmax(logprobs)) == gold),
    }


def drawn(k: int = 3, n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(-10, 2, (n, k)), rng.integers(0, k, n)


def write_samples(results: Path, lines: list[dict[str, Any]], task: str = "mc") -> Path:
    path = results.with_name(f"samples_{task}_{results.stem.removeprefix('results_')}.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def with_acc(lines: list[dict[str, Any]], metric: str = "acc", task: str = "mc") -> dict[str, Any]:
    mean = float(np.mean([line[metric] for line in lines]))
    return {
        "results": {task: {f"{metric},none": mean, f"{metric}_stderr,none": 0.08}},
        "groups": {},
        "group_subtasks": {},
    }


def test_samples_become_answers_that_our_own_scoring_reads(tmp_path: Path) -> None:
    logprobs, gold = drawn()
    lines = [sample(i, list(map(float, row)), int(g)) for i, (row, g) in enumerate(zip(logprobs, gold, strict=True))]
    write_samples(new(tmp_path, **with_acc(lines)), lines)
    found = analyze(import_lm_eval(tmp_path / "EleutherAI__pythia-70m", out=tmp_path / "out"))
    value = found.scores.set_index("metric")["value"]
    pick = np.arange(len(gold))
    p = np.exp(logprobs) / np.exp(logprobs).sum(axis=1, keepdims=True)
    lengths = np.array([len(f"choice {'x' * k} of 00") for k in (1, 3, 5)])
    rest = logprobs.copy()
    rest[pick, gold] = -np.inf
    expected = {
        "acc": (logprobs.argmax(axis=1) == gold).mean(),
        "acc_char": ((logprobs / lengths).argmax(axis=1) == gold).mean(),
        "brier": ((p - np.eye(3)[gold]) ** 2).sum(axis=1).mean(),
        "logloss": -np.log(p[pick, gold]).mean(),
        "margin": (logprobs[pick, gold] - rest.max(axis=1)).mean(),
    }
    assert {name: value[name] for name in expected} == pytest.approx(expected)
    row = found.scores.set_index("metric").loc["acc"]
    assert (row["partner"], row["chance"], row["chance_source"], row["n"]) == ("logloss", 1 / 3, "uniform", 40)
    assert "acc_token" not in value and "nats_per_token" not in value  # the files hold no token counts
    assert len(found.examples) == 2
    assert found.missing.empty


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda line: line | {"acc": 1 - line["acc"]}, "document 0 is scored"),
        (lambda line: line | {"target": "none of these"} if line["acc"] == 0 else line, "is none of its choices"),
        (lambda line: line | {"filter": "strict-match"}, "filter 'strict-match'"),
        (lambda line: line | {"filtered_resps": [["-inf", "False"], ["-1", "False"], ["-2", "False"]]}, "not finite"),
        (lambda line: line | {"filtered_resps": [["-1.5", "True"]]}, "without token counts"),
        (lambda line: line | {"arguments": {}}, "does not say what was asked"),
        (lambda line: line | {"doc_id": 0}, "a document stands in it twice"),
    ],
)
def test_samples_we_cannot_reproduce_are_left_out_with_the_reason(
    tmp_path: Path, broken: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    logprobs, gold = drawn()
    lines = [sample(i, list(map(float, row)), int(g)) for i, (row, g) in enumerate(zip(logprobs, gold, strict=True))]
    results = new(tmp_path, **with_acc(lines))
    write_samples(results, [broken(line) for line in lines])
    found = analyze(import_lm_eval(results.parent, out=tmp_path / "out"))
    assert found.scores["metric"].tolist() == ["acc"]
    assert found.missing[["run_id", "size", "seed", "step", "task"]].iloc[0].tolist() == [
        "pythia-70m",
        "70m",
        0,
        3000,
        "mc",
    ]
    assert reason in found.missing["reason"][0]


def test_choices_in_the_context_are_scored_without_their_lengths(tmp_path: Path) -> None:
    logprobs, gold = drawn(k=2)
    lines = []
    for i, (row, g) in enumerate(zip(logprobs, gold, strict=True)):
        line = sample(
            i, list(map(float, row)), int(g), target="was there.", contexts=[f"{i}: for Anna", f"{i}: for Bert"]
        )
        for request in line["arguments"].values():
            request["arg_1"] = " was there."
        lines.append(line)
    results = new(tmp_path, **with_acc(lines))
    write_samples(results, lines)
    found = analyze(import_lm_eval(results.parent, out=tmp_path / "out"))
    assert set(found.scores["metric"]) == {"acc", "brier", "logloss", "margin"}
    assert found.scores.set_index("metric").at["acc", "value"] == pytest.approx(
        (logprobs.argmax(axis=1) == gold).mean()
    )
    assert found.examples["prompt"][0] == "0: for "


def test_a_constant_answer_is_the_chance_level_where_all_documents_offer_the_same(tmp_path: Path) -> None:
    logprobs, _ = drawn(k=2)
    lines = [sample(i, list(map(float, row)), int(i % 4 == 0), fixed=True) for i, row in enumerate(logprobs)]
    results = new(tmp_path, **with_acc(lines))
    write_samples(results, lines)
    found = analyze(import_lm_eval(results.parent, out=tmp_path / "out")).scores.set_index("metric")
    assert found.loc[["acc", "acc_char"], "chance"].tolist() == [0.75, 0.75]
    assert found.at["acc", "chance_source"] == "majority"


def test_generations_are_scored_where_equality_is_what_the_file_scored(tmp_path: Path) -> None:
    def line(i: int, target: str) -> dict[str, Any]:
        said = str(i)
        asked = {"gen_args_0": {"arg_0": f"say {i}", "arg_1": {"until": ["\n"]}}}
        scored = {"filter": "none", "exact_match": float(said == target)}
        return {"doc_id": i, "target": target, "arguments": asked, "filtered_resps": [said]} | scored

    lines = [line(i, str(i) if i % 2 else "no") for i in range(20)]
    results = new(tmp_path, **with_acc(lines, "exact_match", "say"))
    write_samples(results, lines, "say")
    found = analyze(import_lm_eval(results.parent, out=tmp_path / "out"))
    assert set(found.scores["metric"]) == {"exact_match", "f1", "edit_similarity"}
    assert found.scores.set_index("metric").loc["exact_match", ["value", "partner"]].tolist() == [
        0.5,
        "edit_similarity",
    ]
    lenient = [row | {"exact_match": 1.0} for row in lines]
    results = new(tmp_path, **with_acc(lenient, "exact_match", "say"))
    write_samples(results, lenient, "say")
    found = analyze(import_lm_eval(results.parent, out=tmp_path / "lenient"))
    assert found.scores["metric"].tolist() == ["exact_match"]
    assert "not whether the generation equals the target" in found.missing["reason"][0]


def test_samples_of_other_documents_or_other_results_are_refused(tmp_path: Path) -> None:
    logprobs, gold = drawn()
    lines = [sample(i, list(map(float, row)), int(g)) for i, (row, g) in enumerate(zip(logprobs, gold, strict=True))]
    for model in ("pythia-70m", "pythia-160m"):
        results = new(tmp_path, model, **with_acc(lines))
        path = write_samples(results, lines)
    folders = [tmp_path / f"EleutherAI__{model}" for model in ("pythia-70m", "pythia-160m")]
    import_lm_eval(folders, out=tmp_path / "out")
    for request in lines[0]["arguments"].values():
        request["arg_0"] = "Another question:"
    write_samples(results, lines)
    with pytest.raises(
        StoreError, match=r"task 'mc': document 0 has another prompt in .*70m.*jsonl than in .*160m.*jsonl"
    ):
        import_lm_eval(folders, out=tmp_path / "out")
    write_samples(results, lines[:5] if lines[0]["acc"] else lines[1:6])
    with pytest.raises(StoreError, match="these two do not belong together"):
        import_lm_eval(folders[1], out=tmp_path / "out")
    path.write_text(path.read_text()[:-30])
    with pytest.raises(StoreError, match=r"jsonl: line 5 is no JSON; is the file cut short"):
        import_lm_eval(folders[1], out=tmp_path / "out")
    stray = path.with_name("samples_mc_2001-01-01.jsonl").absolute()
    path.rename(stray)
    new(tmp_path, "pythia-160m", step=5000)
    with pytest.raises(StoreError, match="belongs to no result file here"):
        import_lm_eval(folders[1], out=tmp_path / "out")


def test_shapes_are_known_fields_only() -> None:
    assert {key for name in families() for m in load_scale_map(name).models.values() for key in m.shape} == set(SHAPE)
