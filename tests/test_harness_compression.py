"""Rounded weights: asked beside the others and never mixed with them, compared document by document."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_checkpoints as tiny
import torch
from report_tables import synthetic_results
from transformers import MixtralConfig, MixtralForCausalLM

import harness
from harness import cli
from harness.analyze import analyze
from harness.ask import answer, questions
from harness.compact import compact
from harness.compression import COMPRESSION_COLUMNS, as_trained, compression_table, survives
from harness.errors import InputError
from harness.evaluate import evaluate
from harness.fresh import analysis_state
from harness.packed import FILE
from harness.plan import make_plan
from harness.report import build_report
from harness.report.compression import compression_facts
from harness.report.tables import Tables
from harness.scores import scores_table
from harness.space import garbage
from harness.spec import SweepSpec, load_sweep
from harness.status import read_status
from harness.store import (
    AS_TRAINED,
    TABLES,
    load_results,
    read_json,
    read_table,
    samples_folder,
    write_json,
    write_table,
)
from harness.verify import verify
from models.lm import TransformerLM
from models.quantize import quantize
from tasks import load_task

SPEC = """
name = "small"
seeds = [0, 1]
[family]
sizes = ["1x8", "2x16"]
vocab_size = 320
context_length = 48
[train]
tokens = 46080
batch_tokens = 384
peak_lr = 0.01
n_checkpoints = 3
[corpus.mixture]
copy = 0.7
coin = 0.3
[evaluate]
tasks = ["copy", "coin"]
documents = 12
checkpoints = "ends"
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "small.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def plain(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was asked nothing with rounded weights."""
    results = tmp_path_factory.mktemp("plain")
    harness.run_sweep(spec, results=results, workers=0)
    return results


@pytest.fixture(scope="module")
def rounded(spec: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, asked with int8 and int4 weights afterwards."""
    results = tmp_path_factory.mktemp("rounded") / "results"
    shutil.copytree(plain, results)
    harness.run_sweep(spec, results=results, quantize=["int8", "int4"], workers=0)
    return results


@pytest.fixture
def folder(rounded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rounded / "small", tmp_path / "small"))


def test_last_checkpoints_alone_are_asked_again_and_every_row_says_its_weights(spec: Path, rounded: Path) -> None:
    sweep = load_sweep(spec).quantized(["int8", "int4"])
    steps = make_plan(sweep, rounded).runs[0].steps
    for run in sweep.runs:
        names = {path.name for path in (rounded / "small" / "samples" / run.run_id).iterdir()}
        assert names == {
            *(f"step-{step:06d}" for step in steps),
            *(f"step-{steps[-1]:06d}.{w}" for w in ("int8", "int4")),
        }
        for weights in (AS_TRAINED, "int8", "int4"):
            parts = list(samples_folder(rounded / "small", run.run_id, steps[-1], weights).glob("*.parquet"))
            assert len(parts) == 2 and all(set(read_table(part)["weights"]) == {weights} for part in parts)
    scores = load_results(rounded / "small").scores
    assert set(scores["weights"]) == {AS_TRAINED, "int8", "int4"}
    assert scores.loc[scores["weights"] != AS_TRAINED, "is_last"].all()
    assert not make_plan(sweep, rounded).todo and len(make_plan(sweep.quantized(["bf16"]), rounded).todo) == 4


def test_nothing_that_was_found_without_rounded_weights_moves(plain: Path, rounded: Path) -> None:
    before, after = load_results(plain / "small"), load_results(rounded / "small")
    assert as_trained(after.scores).reset_index(drop=True).equals(before.scores)
    for name in TABLES:
        if name not in ("scores", "compression"):
            assert (plain / "small" / f"{name}.parquet").read_bytes() == (
                rounded / "small" / f"{name}.parquet"
            ).read_bytes(), name
    assert before.compression.empty and list(before.compression) == COMPRESSION_COLUMNS


def test_answers_are_those_of_the_checkpoint_with_its_weights_rounded_here(spec: Path, rounded: Path) -> None:
    sweep = load_sweep(spec)
    run, task = sweep.runs[-1], load_task("copy")
    step = run.train.steps
    model = TransformerLM.load(rounded / "small" / "runs" / run.run_id / f"step-{step:06d}")
    assert quantize(model.model, "int4")
    asked = questions(task.documents(limit=12), model)
    expected = answer(model, asked, run_id=run.run_id, step=step, task_digest="x")
    [part] = samples_folder(rounded / "small", run.run_id, step, "int4").glob("copy-*.parquet")
    [other] = samples_folder(rounded / "small", run.run_id, step).glob("copy-*.parquet")
    found, trained = read_table(part), read_table(other)
    np.testing.assert_allclose(np.concatenate(found["logprobs"]), np.concatenate(expected["logprobs"]), atol=1e-4)
    assert np.abs(np.concatenate(found["logprobs"]) - np.concatenate(trained["logprobs"])).max() > 1e-3


def test_a_task_that_came_later_is_asked_with_the_same_weights(spec: Path, folder: Path) -> None:
    harness.run_sweep(spec, results=folder.parent, tasks=["parity"], quantize=["int4"], workers=0)
    parts = sorted(path.parent.name.partition(".")[2] for path in folder.glob("samples/*/*/parity-*.parquet"))
    assert parts == [""] * 8 + ["int4"] * 4
    found = load_results(folder)
    assert set(found.compression["weights"]) == {"int4"}  # only what is asked for now is told
    assert list(folder.glob("samples/*/*.int8/copy-*.parquet"))  # and nothing is lost


def test_what_is_missing_is_named_with_its_weights(folder: Path) -> None:
    [part, *_] = sorted(folder.glob("samples/*/*.int8/coin-*.parquet"))
    part.unlink()
    found = analyze(folder)
    assert found.missing[["task", "reason"]].values.tolist() == [["coin", "not evaluated yet with int8 weights"]]
    states = {run["run_id"]: (run["state"], run["cells"], run["all_cells"]) for run in read_status(folder)["runs"]}
    assert states.pop(part.parent.parent.name) == ("to evaluate", 7, 8) and set(states.values()) == {("done", 8, 8)}
    assert analysis_state(folder)[0] == "done"
    write_json(part.parent / "error.json", {"reason": "coin at step 8: too long"})
    assert analysis_state(folder) == ("stale", "answers came in, or went, since")
    assert analyze(folder).missing["reason"].tolist() == ["coin at step 8: too long"]


def test_the_store_keeps_rounded_answers_whole(folder: Path) -> None:
    assert verify(folder) == [] and not [item for item in garbage(folder) if "samples" in item.path.parts]
    before = {name: (folder / f"{name}.parquet").read_bytes() for name in TABLES}
    assert set(compact(folder).values()) == {8} and not list(folder.glob("samples/*/step-*/*.parquet"))
    assert verify(folder) == []
    analyze(folder)
    assert {name: (folder / f"{name}.parquet").read_bytes() for name in TABLES} == before


def test_a_folder_from_before_rows_said_their_weights_is_read_and_packed_as_trained(
    plain: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plain / "small", tmp_path / "small"))
    for path in folder.glob("samples/*/*/*.parquet"):
        write_table(path, read_table(path).drop(columns="weights"))
    expected = load_results(folder)
    for name in ("scores", "compression"):
        (folder / f"{name}.parquet").unlink()
    found = analyze(folder)
    assert found.scores.equals(expected.scores) and set(found.scores["weights"]) == {AS_TRAINED}
    assert as_trained(found.scores.drop(columns="weights")).equals(found.scores.drop(columns="weights"))
    assert set(compact(folder).values()) == {4} and {file.name for file in folder.glob(f"samples/*/{FILE}")}
    assert analyze(folder).scores.equals(expected.scores) and verify(folder) == []
    assert analysis_state(folder)[0] == "done"


def test_a_shared_folder_without_answers_keeps_its_compression(folder: Path) -> None:
    before = load_results(folder)
    shutil.rmtree(folder / "samples")
    found = analyze(folder)
    assert found.compression.equals(before.compression) and found.verdicts["label"].equals(before.verdicts["label"])


# ---- the comparison ----

TASK = {
    **{"name": "quiz", "kind": "qa", "ability": "generalisation", "role": "probe", "digest": "d", "metric": "acc"},
    **{"metrics": ["acc", "logloss"], "levels": [""], "description": ""},
}


def quiz(rights: dict[str, list[int]], weights: str = AS_TRAINED) -> pd.DataFrame:
    """Samples of two choices, of which the first is right: log-odds of 2 for or against it."""
    rows = []
    for run, right in rights.items():
        for doc, yes in enumerate(right):
            logprobs = [-1.0, -3.0] if yes else [-3.0, -1.0]
            row = {"run_id": run, "step": 9, "task": "quiz", "level": "", "doc_id": doc, "prompt_digest": str(doc)}
            rows.append(row | {"logprobs": logprobs, "n_tokens": [1, 1], "n_greedy": [0, 0], "weights": weights})
    return pd.DataFrame(rows).assign(generation=None, truncated=False, straddles=False, n_shots_dropped=0)


def table(before: dict[str, list[int]], after: dict[str, list[int]]) -> pd.DataFrame:
    n = len(next(iter(before.values())))
    document = {"task": "quiz", "level": "", "output": "Choice", "answer": 0, "continuations": [" yes", " no"]}
    documents = pd.DataFrame([document | {"doc_id": doc, "prompt": ""} for doc in range(n)])
    runs = pd.DataFrame(
        [
            {"run_id": run, "step": 9, "size": run.split("-")[0], "seed": int(run.split("-")[1]), "is_last": True}
            | {"n_params": 10, "n_params_non_embedding": 5 + i // 2, "tokens": 1000, "flops": 1e9 * (1 + i // 2)}
            for i, run in enumerate(before)
        ]
    )
    samples, rounded = quiz(before), quiz(after, "int4")
    scores = pd.concat([scores_table(frame, documents, [TASK], runs) for frame in (samples, rounded)])
    return compression_table(samples, {"int4": rounded}, documents, [TASK], runs, scores.reset_index(drop=True))


def test_one_seed_is_compared_by_its_pairs_alone() -> None:
    before, after = [1] * 16 + [0] * 4, [1] * 10 + [0] * 6 + [1] * 1 + [0] * 3
    found = table({"big-0": before}, {"big-0": after}).set_index("metric").loc["acc"]
    assert (found["before"], found["after"], found["n"], found["n_seeds"]) == (0.8, 0.55, 20, 1)
    assert found["method"] == "McNemar, exact" and found["p"] == pytest.approx(2 * (1 + 7) / 2**7)  # 6 lost, 1 won
    assert found["kept"] == pytest.approx((0.55 - 0.5) / (0.8 - 0.5)) and found["chance"] == 0.5
    assert found["kept_lo"] == pytest.approx(1 + found["lo"] / 0.3)


def test_seeds_stand_together_with_each_document_as_one_draw() -> None:
    rng = np.random.default_rng(0)
    before = {f"big-{seed}": [1] * 40 for seed in range(3)}
    lost = rng.random(40) < 0.3
    after = {run: [int(not gone) for gone in lost] for run in before}  # all seeds lose the same documents
    found = table(before, after).set_index("metric").loc["acc"]
    alone = table({"big-0": before["big-0"]}, {"big-0": after["big-0"]}).set_index("metric").loc["acc"]
    assert found["n"] == 40 and found["n_seeds"] == 3
    assert found["difference"] == pytest.approx(-lost.mean()) and alone["difference"] == pytest.approx(-lost.mean())
    # Three seeds that say the same are no more than one: the error of the mean over 40 documents.
    assert found["se"] == pytest.approx(lost.std(ddof=1) / math.sqrt(40), rel=1e-6)


def test_weights_that_change_nothing_are_said_to_change_nothing() -> None:
    right = {"big-0": [1, 0, 1, 1] * 10, "big-1": [1, 1, 1, 0] * 10}
    found = table(right, right)
    assert (found["difference"] == 0).all() and (found["p"] == 1).all() and (found["kept"].dropna() == 1).all()


@pytest.mark.parametrize(
    ("kept", "word"),
    [
        ((0.97, 0.9, 1.04), "yes"),
        ((0.7, 0.4, 1.0), "undecided"),
        ((0.2, 0.0, 0.4), "no"),
        ((1.0, math.nan, math.nan), "yes"),
        ((0.1, math.nan, math.nan), "no"),
        ((math.nan, math.nan, math.nan), ""),
    ],
)
def test_half_of_the_way_from_chance_is_the_bar(kept: tuple[float, float, float], word: str) -> None:
    assert survives(*kept) == word


# ---- commands ----


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_the_switch_adds_to_the_spec_and_refuses_other_names(spec: Path, rounded: Path, command) -> None:
    code, out, _ = command(
        "plan", spec, "--results", rounded, "--quantize", "int8,bf16", "--quantize", "int8", "--json"
    )
    assert code == 0 and [row["cells_missing"] for row in json.loads(out)] == [2] * 4
    code, _, err = command("plan", spec, "--quantize", "int3")
    assert code == 2 and err == "harness: --quantize int3: accepted: bf16, int8, int4\n"
    code, _, err = command("evaluate", rounded, "--quantize", "fp8")
    assert code == 2 and err == "harness: --quantize fp8: accepted: bf16, int8, int4\n"


def test_the_spec_names_weights_and_is_written_without_them_as_before(spec: Path, tmp_path: Path) -> None:
    assert "quantize" not in load_sweep(spec).spec.model_dump()["evaluate"]
    (tmp_path / "q.toml").write_text(SPEC + 'quantize = ["bf16", "int4"]\n')
    found = load_sweep(tmp_path / "q.toml")
    assert found.quantized(["int8", "bf16"]).spec.evaluate.quantize == ["bf16", "int4", "int8"]
    assert SweepSpec.model_validate_json(found.spec.model_dump_json()) == found.spec  # as it travels to a worker
    assert found.settings() == load_sweep(spec).settings()  # more weights are no other recipe
    for wrong, message in (('"int2"', "int2"), ('"int4", "int4"', "each precision once")):
        (tmp_path / "q.toml").write_text(SPEC + f"quantize = [{wrong}]\n")
        with pytest.raises(InputError, match=message):
            load_sweep(tmp_path / "q.toml")


def test_the_report_answers_whether_abilities_survive_and_is_silent_without(
    plain: Path, rounded: Path, tmp_path: Path
) -> None:
    page = build_report(load_results(rounded / "small"), tmp_path / "one").read_text()
    assert 'id="compression"' in page and (tmp_path / "one" / "figures" / "compression.csv").exists()
    drawn = pd.read_csv(tmp_path / "one" / "figures" / "compression.csv")
    stored = load_results(rounded / "small").compression
    assert set(drawn["weights"]) == {"int8", "int4"} and set(drawn["metric"]) <= set(stored["metric"])
    page = build_report(load_results(plain / "small"), tmp_path / "two").read_text()
    assert 'id="compression"' not in page


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[list[str]]:
    torch.manual_seed(0)
    yield [str(tiny.neox(tmp_path / "tiny-a")), str(tiny.llama(tmp_path / "tiny-b"))]


def test_models_from_elsewhere_are_asked_with_rounded_weights_too(checkpoints: list[str], tmp_path: Path) -> None:
    scales = tmp_path / "scales.toml"
    scales.write_text(
        '[[model]]\nname = "tiny-a"\nn_params = 44864\ntokens = 2e6\ntokens_per_step = 1000\n'
        '[[model]]\nname = "tiny-b"\nn_params = 7000\ntokens = 1e6\n'
    )
    options = {"scales": scales, "results": tmp_path / "results", "name": "x", "limit": 8, "workers": 0}
    first = evaluate(checkpoints, ["copy"], **options)
    assert first.compression.empty
    found = evaluate(checkpoints, ["copy"], quantize=["int4"], **options)
    assert as_trained(found.scores).reset_index(drop=True).equals(first.scores)
    assert set(found.compression["size"]) == set(first.scores["size"]) and len(found.scores) == 2 * len(first.scores)
    assert found.missing.empty
    folder = tmp_path / "results" / "x"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("samples/*/*/*")}
    evaluate(checkpoints, ["copy"], quantize=["int4"], **options)  # nothing is asked twice
    again = evaluate(checkpoints, ["copy"], **options)  # and the switch left out loses nothing
    assert {path: path.stat().st_mtime_ns for path in folder.glob("samples/*/*/*")} == before
    assert again.compression.equals(found.compression)
    assert [cell["weights"] for cell in read_json(folder / "spec.json")["grid"]] == [["int4"]] * 2


def test_a_model_that_cannot_be_rounded_keeps_its_other_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": tiny.VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": tiny.CONTEXT}
    experts = MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=2, num_experts_per_tok=1))
    folder = tiny.save(tmp_path / "mixed", experts)  # its experts are matrices of no linear layer
    scales = tmp_path / "scales.toml"
    scales.write_text(f'[[model]]\nname = "mixed"\nn_params = {experts.num_parameters()}\ntokens = 1e6\n')
    options = {"scales": scales, "results": tmp_path / "results", "name": "x", "limit": 4, "workers": 0}
    found = evaluate([str(folder)], ["coin"], quantize=["int8", "bf16"], **options)
    assert set(found.scores["weights"]) == {AS_TRAINED, "bf16"} and set(found.compression["weights"]) == {"bf16"}
    [reason] = found.missing["reason"]
    assert "all tasks with int8 weights" in reason and "matrix of no linear layer" in reason


def test_the_page_names_what_is_lost_and_where_most_is(tmp_path: Path) -> None:
    results = synthetic_results(tmp_path)
    rows = []
    for task, metric, weights, kept in (
        ("copy", "exact_match", "int8", (1.0, 0.95, 1.05)),
        ("copy", "exact_match", "int4", (0.2, 0.1, 0.3)),
        ("fact", "acc", "int8", (0.9, 0.8, 1.0)),
        ("fact", "acc", "int4", (0.7, 0.4, 1.0)),
        ("coin", "acc", "int4", (0.1, 0.0, 0.2)),  # a control: whatever it says, no ability is lost
    ):
        for size, n in (("2x96", 222_000), ("2x128", 390_000)):
            share, low, high = kept if size == "2x128" else (0.5, 0.1, 0.9)
            row = {"task": task, "level": "k=2" if task == "copy" else "", "metric": metric, "weights": weights}
            row |= {"headline": True, "higher_is_better": True, "size": size, "n_params_non_embedding": n}
            row |= {"tokens": 10, "flops": 1e6 * n, "n": 50, "before": 0.8, "after": 0.8 * share, "q": 0.2}
            row |= {"difference": 0.8 * (share - 1), "lo": 0.8 * (low - 1), "hi": 0.8 * (high - 1)}
            rows.append(row | {"kept": share, "kept_lo": low, "kept_hi": high, "label": "smooth", "note": None})
    table = pd.DataFrame(rows).assign(label_before="smooth", onset=None, onset_before=None)
    table.loc[(table["task"] == "copy") & (table["weights"] == "int4"), "q"] = 0.001
    table.loc[(table["task"] == "copy") & (table["weights"] == "int4"), "label"] = "flat_at_chance"
    results.compression = table
    facts = compression_facts(Tables(results))
    eight, four = facts["answers"]
    assert facts["weights"] == ["int8", "int4"] and facts["sizes"] == ["2x96", "2x128"]
    assert eight.startswith("int8: 2 of 2 abilities that the largest size has survive. Of the 1 that emerged")
    assert "1 does. 0 of 4 scores over all sizes fall significantly." in eight
    assert "int4: 0 of 2 abilities" in four and "; lost: copy, k=2; not decided: fact" in four and "0 do." in four
    assert "2 of 6 scores over all sizes fall significantly, most that of copy, k=2 at 2x128: -0.640" in four
    [copy] = [row for row in facts["rows"] if row["task"] == "copy"]
    assert copy["label"] == "emergent_sharp" and copy["cells"]["int4"]["verdict"] == "the curve: flat at chance"
    assert copy["cells"]["int4"]["kept"] == "keeps 20% (10% to 30%): lost" and not copy["cells"]["int8"]["verdict"]
    [stars] = [row["cells"] for row in facts["by_size"] if (row["task"], row["weights"]) == ("copy", "int4")]
    assert stars == ["-0.400*", "-0.640*"]
    page = build_report(results, tmp_path / "page").read_text()
    assert "keeps 20% (10% to 30%): lost" in page and 'href="#compression"' in page
