"""Models from anywhere are asked once, stored as a sweep stores them, and never served another's answers."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_checkpoints as tiny

from harness import cli
from harness.ask import answer, questions
from harness.evaluate import Loading, evaluate, prepare, run
from harness.evaluated import identity
from harness.jobs import Event
from harness.spec import InputError, load_sweep
from harness.store import StoreError, load_results, read_json, read_table
from harness.work import EvaluationFailed
from models.pretrained import describe, load_model
from models.spec import size_to_spec
from tasks import load_task

TASKS = ["copy", "coin", "text"]
SCALES = """
[[model]]
name = "tiny-a"
n_params = 44864
tokens = 2e6
tokens_per_step = 1000
[[model]]
name = "tiny-b"
n_params = 7000
tokens = 1e6
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three shapes: GPT-NeoX and Llama, which the scale map places, and a run of ours, which places itself."""
    root = tmp_path_factory.mktemp("models")
    (root / "scales.toml").write_text(SCALES)
    return {
        "a": str(tiny.neox(root / "tiny-a")),
        "b": str(tiny.llama(root / "tiny-b")),
        "ours": str(tiny.our_run(root)),
        "scales": str(root / "scales.toml"),
    }


def ask(models: dict[str, str], results: Path, names: list[str], *, workers: int = 0, **options: Any) -> list[Event]:
    events: list[Event] = []
    chosen = {"tasks": TASKS, "limit": 3, "scales": models["scales"], "results": results, "name": "x"} | options
    run(prepare([models.get(name, name) for name in names], **chosen), workers=workers, report=events.append)
    return events


def answers(results: Path) -> pd.DataFrame:
    parts = sorted((results / "x" / "samples").glob("*/*/*.parquet"))
    frame = pd.concat([read_table(part) for part in parts], ignore_index=True)
    return frame.sort_values(["run_id", "step", "task", "level", "doc_id"], ignore_index=True)


def asked(events: list[Event]) -> list[tuple[str, str]]:
    return [(e.job.key, e.info["task"]) for e in events if "seconds" in e.info]


def state(results: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in results.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def alike(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert len(one) == len(other) > 0
    assert one[["task", "level", "doc_id", "prompt_digest"]].equals(other[["task", "level", "doc_id", "prompt_digest"]])
    for column in ("logprobs", "nats_by_position"):
        for left, right in zip(one[column], other[column], strict=True):
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_allclose(left, right, atol=1e-5, rtol=1e-5)
    said, also = ([text if isinstance(text, str) else None for text in f["generation"]] for f in (one, other))
    assert said == also
    for left, right in zip(one["n_greedy"], other["n_greedy"], strict=True):
        assert list(left) == list(right)


@pytest.fixture(scope="module")
def undisturbed(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    ask(models, results, ["a", "b", "ours"])
    return results


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def test_three_families_from_the_command_line_to_a_report(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [models["a"], models["b"], models["ours"], "--scales", models["scales"], "--limit", "3", "--name", "x"]
    words += ["--results", str(tmp_path), "--reports", str(tmp_path / "reports"), "--workers", "0"]
    words += [word for task in TASKS for word in ("--tasks", task)]
    monkeypatch.setattr("sys.argv", ["harness", "evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "x: 12 of 12 cells" in err and "tiny-b step 1: text: 3 documents" in err and "report: " in out
    page = (tmp_path / "reports" / "x" / "index.html").read_text(encoding="utf-8")
    assert "tiny-a" in page
    found = load_results(tmp_path / "x")
    assert found.missing.empty and set(found.scores["task"]) == set(TASKS)
    runs = found.runs.set_index(["run_id", "step"])
    assert len(runs) == 4  # the run of ours has two checkpoints
    at = runs.loc[("tiny-a", 2000)]
    assert (at["tokens"], at["n_params"], at["size"], at["is_last"]) == (2e6, 44864, "tiny-a", True)
    # One convention for all: where one model knows no better, C = 6 N D for every one.
    assert (runs["flops"] == 6 * runs["n_params_non_embedding"] * runs["tokens"]).all()
    assert runs["weights_digest"].nunique() == 4 and runs["precision"].unique() == ["fp32"]
    assert set(found.verdicts["label"]) == {"inconclusive"}


def test_a_folder_of_our_runs_alone_counts_flops_as_their_sweep_did(models: dict[str, str], tmp_path: Path) -> None:
    ask(models, tmp_path, ["ours"], tasks=["coin"])
    spec = size_to_spec("1x16", vocab_size=tiny.VOCAB, context_length=tiny.CONTEXT)
    stored = read_json(tmp_path / "x" / "spec.json")
    assert [row["flops_per_token"] for row in stored["grid"]] == [spec.flops_per_token]
    ask(models, tmp_path, ["a"], tasks=["coin"])
    stored = read_json(tmp_path / "x" / "spec.json")
    assert [row["flops_per_token"] for row in stored["grid"]] == [
        6 * r["n_params_non_embedding"] for r in stored["grid"]
    ]
    assert stored["settings"]["flops"] == "6 N D, N without embeddings"


def test_the_same_command_again_asks_nothing_and_changes_no_file(models: dict[str, str], copy: Path) -> None:
    before = state(copy)
    assert ask(models, copy, ["a", "b", "ours"]) == []
    assert state(copy) == before


def test_a_new_task_and_a_new_model_are_asked_alone(models: dict[str, str], tmp_path: Path) -> None:
    ask(models, tmp_path, ["b"], tasks=["coin"])
    before = state(tmp_path / "x" / "samples")
    assert asked(ask(models, tmp_path, ["b"], tasks=["coin", "copy"])) == [("tiny-b step 1", "copy")]
    assert asked(ask(models, tmp_path, ["b", "a"], tasks=["coin"])) == [("tiny-a step 2000", "coin")]
    after = state(tmp_path / "x" / "samples")
    assert {path: after[path] for path in before} == before
    stored = read_json(tmp_path / "x" / "spec.json")
    assert [row["run_id"] for row in stored["grid"]] == ["tiny-b", "tiny-a"]
    assert {task["name"] for task in read_json(tmp_path / "x" / "tasks.json")} == {"coin", "copy"}
    assert asked(ask(models, tmp_path, ["a"], tasks=["copy"])) == [("tiny-a step 2000", "copy")]


def test_a_new_step_is_asked_alone_and_moves_the_end_of_its_run(models: dict[str, str], tmp_path: Path) -> None:
    folder = tiny.our_run(tmp_path / "runs", size="2x16", steps=(10, 20))
    ask(models, tmp_path, [str(folder)], steps="10", tasks=["coin"])
    assert asked(ask(models, tmp_path, [str(folder)], tasks=["coin"])) == [(f"{folder.name} step 20", "coin")]
    ledger = read_json(tmp_path / "x" / "runs" / folder.name / "run.json")
    assert [(c["step"], c["is_last"]) for c in ledger["checkpoints"]] == [(10, False), (20, True)]


def test_a_larger_limit_asks_anew_and_a_smaller_one_finds_its_answers(models: dict[str, str], tmp_path: Path) -> None:
    ask(models, tmp_path, ["b"], tasks=["copy"])
    few = answers(tmp_path)
    assert len(asked(ask(models, tmp_path, ["b"], tasks=["copy"], limit=6))) == 1
    many = answers(tmp_path)
    many = many[many["task_digest"] == read_json(tmp_path / "x" / "tasks.json")[0]["digest"]]
    assert len(many) == 2 * len(few)
    alike(few, many.groupby("level").head(3).reset_index(drop=True))
    assert ask(models, tmp_path, ["b"], tasks=["copy"], limit=2) == []


@pytest.mark.parametrize("options", [{"loading": Loading(batch_tokens=64)}, {"loading": Loading(reference=True)}])
def test_batches_and_sharing_change_no_score(
    models: dict[str, str], undisturbed: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    ask(models, tmp_path, ["a", "b", "ours"], **options)
    alike(answers(undisturbed), answers(tmp_path))


def test_two_workers_give_the_same_answers(models: dict[str, str], undisturbed: Path, tmp_path: Path) -> None:
    ask(models, tmp_path, ["a", "b", "ours"], workers=2)
    alike(answers(undisturbed), answers(tmp_path))


def test_the_order_of_documents_changes_no_score(models: dict[str, str]) -> None:
    model, at = load_model(models["a"]), {"run_id": "r", "step": 1, "task_digest": "d"}
    for name in TASKS:
        wanted = questions(load_task(name).documents(limit=3), model)
        forth, back = (answer(model, order, **at) for order in (wanted, wanted[::-1]))
        alike(forth, back[::-1].reset_index(drop=True))


def test_a_damaged_model_among_good_ones_leaves_the_others_their_answers(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(shutil.copytree(models["a"], tmp_path / "tiny-a"))
    whole = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(whole[:5000])
    words = [str(bad), models["b"], "--scales", models["scales"], "--limit", "2", "--tasks", "coin", "--name", "x"]
    monkeypatch.setattr("sys.argv", ["harness", "evaluate", *words, "--results", str(tmp_path), "--no-report"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "failed: tiny-a, step 2000: SpecError" in err and "model.safetensors: damaged or cut off" in err
    assert "Traceback" not in err
    found = load_results(tmp_path / "x")
    assert set(found.scores["run_id"]) == {"tiny-b"}
    assert found.missing["run_id"].tolist() == ["tiny-a"] and "damaged" in found.missing["reason"][0]
    (bad / "model.safetensors").write_bytes(whole)
    monkeypatch.undo()
    results = evaluate(
        [str(bad), models["b"]], ["coin"], results=tmp_path, name="x", limit=2, scales=models["scales"], workers=0
    )
    assert results.missing.empty and set(results.scores["run_id"]) == {"tiny-a", "tiny-b"}


def test_when_every_model_fails_the_reasons_are_raised(models: dict[str, str], tmp_path: Path) -> None:
    bad = Path(shutil.copytree(models["b"], tmp_path / "tiny-b"))
    (bad / "model.safetensors").write_bytes(b"")
    with pytest.raises(EvaluationFailed, match=r"tiny-b, step 1: .*damaged or cut off"):
        evaluate(str(bad), ["coin"], results=tmp_path, limit=2, scales=models["scales"], workers=0)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("weights", lambda folder: tiny.change_weights(folder, lambda w: next(iter(w.values())).view(-1)[:1].add_(1))),
        ("config", lambda folder: tiny.change_json(folder / "config.json", rms_norm_eps=1e-3)),
        ("special tokens", lambda folder: tiny.change_json(folder / "generation_config.json", eos_token_id=[7, 9])),
        ("tokenizer", lambda folder: tiny.train_tokenizer(["other words"], 270).save_pretrained(folder)),
    ],
)
def test_answers_of_another_model_under_the_same_name_are_refused(
    models: dict[str, str], tmp_path: Path, what: str, change: Callable[[Path], Any]
) -> None:
    folder = Path(shutil.copytree(models["b"], tmp_path / "tiny-b"))
    ask(models, tmp_path, [str(folder)], tasks=["coin"])
    change(folder)
    with pytest.raises(StoreError, match=f"another {what} .*; choose another --name, or remove that folder"):
        ask(models, tmp_path, [str(folder)], tasks=["coin", "copy"])
    shutil.rmtree(tmp_path / "x" / "samples" / "tiny-b" / "step-000001")
    assert len(asked(ask(models, tmp_path, [str(folder)], tasks=["coin", "copy"]))) == 2


def test_stopped_in_the_middle_it_goes_on_and_ends_with_the_same_answers(
    models: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if "seconds" in event.info and event.info["task"] == "coin":
            raise KeyboardInterrupt

    chosen: dict[str, Any] = {"scales": models["scales"], "results": tmp_path, "name": "x", "limit": 3}
    with pytest.raises(KeyboardInterrupt):
        run(prepare([models[name] for name in ("a", "b", "ours")], TASKS, **chosen), workers=0, report=stop)
    assert 0 < len(answers(tmp_path)) < len(answers(undisturbed))
    ask(models, tmp_path, ["a", "b", "ours"])
    alike(answers(undisturbed), answers(tmp_path))


def test_a_document_that_cannot_be_asked_is_named_before_any_weight_is_read(
    models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from tasks import Answer, Choice, task\n"
        "@task('wide', kind='qa', shared=True, size=2, n=[1, 2])\n"
        "def wide(rng, n):\n"
        "    return Choice(f'{rng.integers(100)} :', ['one ' * 50 * n, 'two'], 1)\n"
        "@task('long', kind='generation', shared=True, size=2)\n"
        "def long(rng):\n"
        "    return Answer(f'{rng.integers(100)} :', 'one', max_tokens=200)\n"
    )
    bad = Path(shutil.copytree(models["b"], tmp_path / "tiny-b"))
    (bad / "model.safetensors").write_bytes(b"")
    events = ask(models, tmp_path, [str(bad)], tasks=[str(tmp_path / "mine.py")])
    (reason,) = [e.info["reason"] for e in events if e.state == "failed"]
    assert "wide: n=" in reason and "document " in reason and "must have 1 to 64 tokens" in reason
    assert "long: document " in reason and "lower max_tokens" in reason and "damaged" not in reason
    assert not [e for e in events if "loading" in e.info]
    # The same tasks cost a whole model nothing else.
    events = ask(models, tmp_path, ["b"], tasks=["coin", str(tmp_path / "mine.py")], name="y")
    assert asked(events) == [("tiny-b step 1", "coin")]


def test_what_is_not_known_of_a_model_is_asked_before_it_is_loaded(models: dict[str, str], tmp_path: Path) -> None:
    bad = Path(shutil.copytree(models["b"], tmp_path / "unheard-of"))
    (bad / "model.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="how many tokens 'unheard-of' was trained on"):
        ask(models, tmp_path, [str(bad)])
    assert not (tmp_path / "x").exists()


def test_every_unusable_model_is_named_at_once(models: dict[str, str], tmp_path: Path) -> None:
    paths = [Path(shutil.copytree(models[name], tmp_path / f"tiny-{name}")) for name in "ab"]
    for path in paths:
        (path / "tokenizer.json").unlink()
    with pytest.raises(InputError) as refused:
        ask(models, tmp_path, [str(path) for path in paths])
    assert len(str(refused.value).splitlines()) == 2


def test_a_map_that_speaks_of_another_model_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    wrong = tmp_path / "scales.toml"
    wrong.write_text(SCALES.replace("7000", "650000"))
    with pytest.raises(InputError, match=r"builds \d,\d+ parameters .*the scale map says 650,000"):
        ask(models | {"scales": str(wrong)}, tmp_path, ["b"])


def test_a_hub_model_in_the_cache_is_asked_under_its_revisions(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.hub_cache(tmp_path / "hub", Path(models["a"]), name="org/tiny-a", revision="step500")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    ask(models, tmp_path, ["org/tiny-a@step500"], tasks=["coin"])
    run_record = read_json(tmp_path / "x" / "runs" / "tiny-a" / "run.json")
    (checkpoint,) = run_record["checkpoints"]
    assert (checkpoint["source"], checkpoint["tokens"]) == ("org/tiny-a@step500", 500_000)
    weights = (Path(models["a"]) / "model.safetensors").read_bytes()
    assert checkpoint["weights_digest"] == hashlib.sha256(weights).hexdigest()
    with pytest.raises(InputError, match="hf download org/tiny-a --revision step600"):
        ask(models, tmp_path, ["org/tiny-a@step600"], tasks=["coin"])


def test_the_largest_model_reads_what_the_others_wrote_once(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tasks import Answer, task\n"
        "@task('story', kind='generation', shared=True, size=2, metrics=['judge_bits_per_byte'])\n"
        "def story(rng):\n"
        "    return Answer(f'{rng.integers(100)} :', 'one two', max_tokens=8)\n"
    )
    events = ask(models, tmp_path, ["a", "b"], tasks=[str(tmp_path / "mine.py")])
    assert [e.job.key for e in events if e.state == "done"][-1] == "judge tiny-a"
    judged = [path for path in (tmp_path / "x").rglob("story-*.parquet") if "judge" in str(path)]
    assert len(judged) == 1 and judged[0].parent.parent.name == "tiny-b"  # not what it wrote itself
    assert read_table(judged[0])["judge_nats"].notna().all()
    assert ask(models, tmp_path, ["a", "b"], tasks=[str(tmp_path / "mine.py")]) == []


def test_a_judge_whose_weights_changed_reads_nothing(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tasks import Answer, task\n"
        "@task('story', kind='generation', shared=True, size=2, metrics=['judge_bits_per_byte'])\n"
        "def story(rng):\n"
        "    return Answer(f'{rng.integers(100)} :', 'one two', max_tokens=8)\n"
    )
    judge = Path(shutil.copytree(models["a"], tmp_path / "tiny-a"))
    ask(models, tmp_path, [str(judge)], tasks=[str(tmp_path / "mine.py")])
    tiny.change_weights(judge, lambda w: next(iter(w.values())).view(-1)[:1].add_(1))
    events = ask(models, tmp_path, ["b"], tasks=[str(tmp_path / "mine.py")])
    (failed,) = [e for e in events if e.state == "failed"]
    assert failed.job.key == "judge tiny-a" and "another weights" in failed.info["reason"]
    assert not [
        path for path in (tmp_path / "x").rglob("story-*.parquet") if "judge" in str(path.parent.relative_to(tmp_path))
    ]


def test_a_larger_limit_for_some_models_names_those_whose_answers_no_longer_count(
    models: dict[str, str], tmp_path: Path
) -> None:
    ask(models, tmp_path, ["a", "b"], tasks=["coin"])
    chosen: dict[str, Any] = {"scales": models["scales"], "results": tmp_path, "name": "x"}
    for limit, n in ((3, 0), (6, 1)):
        said: list[str] = []
        run(prepare([models["b"]], ["coin"], limit=limit, **chosen), workers=0, say=said.append)
        warned = [line for line in said if line.startswith("warning: coin")]
        assert len(warned) == n and all(models["a"] in line and models["b"] not in line for line in warned)


def test_a_wrong_dtype_is_refused_before_anything_is_written(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dtype fp64: accepted: fp32, bf16, fp16"):
        ask(models, tmp_path, ["b"], loading=Loading(dtype="fp64"))
    assert not (tmp_path / "x").exists()


def test_the_code_that_a_model_brings_is_part_of_what_it_is(models: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["b"], tmp_path / "tiny-b"))
    (folder / "mine.py").write_text("one = 1")
    found = describe(folder)
    before, plain = identity(found, "w", code=True), identity(found, "w")
    (folder / "mine.py").write_text("one = 2")
    assert identity(found, "w", code=True) != before and identity(found, "w") == plain


def test_two_models_are_not_taken_for_two_seeds_unless_they_say_so(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('model = [{name = "m", n_params = 7000, tokens = 1e6, aliases = ["n"]}]')
    with_seeds = [str(tiny.llama(tmp_path / f"m-seed{seed}", seed=seed)) for seed in (1, 2)]
    strangers = [str(tiny.llama(tmp_path / name, seed=3)) for name in ("m", "n")]
    chosen: dict[str, Any] = {"scales": tmp_path / "s.toml", "results": tmp_path, "limit": 2}
    with pytest.raises(StoreError, match="would count as two seeds of one model; m and n are different models"):
        run(prepare(strangers, ["coin"], **chosen, name="y"), workers=0)
    run(prepare(with_seeds, ["coin"], **chosen, name="x"), workers=0)
    grid = read_json(tmp_path / "x" / "spec.json")["grid"]
    assert [(row["size"], row["seed"]) for row in grid] == [("m", 1), ("m", 2)]


def test_an_untrained_checkpoint_alone_is_no_size(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is untrained"):
        ask(models, tmp_path, ["ours"], steps="0")


def test_other_settings_and_other_folders_are_left_alone(models: dict[str, str], copy: Path) -> None:
    before = state(copy)
    with pytest.raises(StoreError, match="were asked with dtype fp32"):
        ask(models, copy, ["b"], loading=Loading(dtype="bf16"))
    spec = read_json(copy / "x" / "spec.json")
    assert state(copy) == before
    (copy / "x" / "spec.json").write_text(json.dumps({key: spec[key] for key in spec if key != "evaluated"}))
    with pytest.raises(StoreError, match="holds a sweep or an import"):
        ask(models, copy, ["b"])


def test_shots_and_limits_are_checked_and_change_what_is_asked(models: dict[str, str], tmp_path: Path) -> None:
    ask(models, tmp_path, ["b"], tasks=["copy", "text"], shots=0)
    documents = pd.concat([read_table(path) for path in (tmp_path / "x" / "documents").iterdir()])
    assert (documents["n_shot"] == 0).all() and load_task("copy").shots > 0
    for option in ({"limit": 0}, {"shots": -1}, {"name": "../x"}):
        with pytest.raises(InputError, match=r"--(limit|shots|name)"):
            ask(models, tmp_path, ["b"], **option)


def test_tasks_that_are_not_available_are_left_out_with_the_reason(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = load_task("coin")
    monkeypatch.setattr("harness.evaluate.available", lambda task: "needs a package" if task is away else None)
    evaluation = prepare([models["b"]], scales=models["scales"], results=tmp_path, limit=1)
    assert evaluation.left_out == {"coin": "needs a package"} and away not in evaluation.tasks
    assert len(evaluation.tasks) > 5 and evaluation.folder == tmp_path / "tiny-b"
    with pytest.raises(InputError, match="'coin' cannot be asked here: needs a package"):
        ask(models, tmp_path, ["b"], tasks=["coin"])
    monkeypatch.undo()
    assert load_sweep("smoke").spec.name == "smoke"
