"""A sweep's file is checked as a whole: every error at once, each with its place and a way out."""

import dataclasses
import json
from pathlib import Path

import pytest

from harness.plan import check_settings
from harness.spec import InputError, RunSpec, load_sweep
from harness.store import write_json
from tasks import TASKS, available

GOOD = """
name = "tiny"
seeds = [0, 1]
[family]
sizes = ["1x16", "2x16"]
vocab_size = 320
context_length = 32
[train]
tokens = 2048
batch_tokens = 256
peak_lr = 0.01
[corpus.mixture]
copy = 0.5
coin = 0.5
[evaluate]
documents = 4
"""


@pytest.fixture
def spec(tmp_path: Path):
    def write(text: str = GOOD, name: str = "tiny.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_the_built_in_sweeps_load() -> None:
    demo = load_sweep("demo")
    assert len(demo.runs) == len(demo.spec.family.sizes) * len(demo.spec.seeds)
    assert sum(share for _, share in demo.mixture) == pytest.approx(1)
    assert load_sweep("smoke").spec.name == "smoke"


def test_the_suite_stands_for_every_built_in_task(spec) -> None:
    sweep = load_sweep(
        spec(
            GOOD.replace("copy = 0.5\ncoin = 0.5", "copy = 0.5\nsuite = 0.5\n").replace(
                "documents = 4", 'documents = 4\ntasks = ["suite"]'
            )
        )
    )
    shares = {source.name: share for source, share in sweep.mixture}
    trained = [task for task in TASKS if task.trains and not available(task)]
    assert [task.name for task in sweep.tasks] == [task.name for task in TASKS if not available(task)]
    assert set(shares) == {task.name for task in trained} and "fact_new" not in shares
    assert shares["recall"] == pytest.approx(shares["coin"]) and shares["copy"] == pytest.approx(0.5, abs=0.05)


def test_every_error_is_named_at_once_with_its_place(spec) -> None:
    bad = GOOD.replace("vocab_size", "vocab_sise").replace("[0, 1]", '["x"]').replace("peak_lr = 0.01", "")
    with pytest.raises(InputError) as caught:
        load_sweep(spec(bad))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(line.startswith("tiny.toml: ") for line in lines)
    assert any("family.vocab_sise: unknown key, did you mean 'vocab_size'?" in line for line in lines)
    assert any("seeds.0: input should be a valid integer" in line and "'x'" in line for line in lines)
    assert any("train.peak_lr: this key is required" in line for line in lines)


def test_wrong_tasks_sizes_and_recipes_are_named_together(spec) -> None:
    bad = GOOD.replace("copy =", "copi =").replace('"2x16"', '"big", "2x15"').replace("= 256", "= 250")
    with pytest.raises(InputError) as caught:
        load_sweep(spec(bad))
    text = str(caught.value)
    assert "corpus.mixture.copi: unknown task 'copi', did you mean 'copy'?" in text
    assert "family.sizes.1: size must be written LAYERSxWIDTH" in text
    assert "family.sizes.2: 2x15: d_model=15 must be a multiple of 4" in text
    assert "train.batch_tokens: 250 is not a whole number of rows of 32 tokens" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[family]", "[family"), "not valid TOML"),
        (('name = "tiny"', 'name = "../x"'), "name: string should match pattern"),
        (("seeds = [0, 1]", "seeds = [1, 1]"), "seeds must be distinct"),
        (("copy = 0.5", "copy = -1"), "share above 0"),
        (("documents = 4", "documents = 0"), "evaluate.documents: input should be greater than 0"),
        (("documents = 4", "documents = 4\n[verdict]\nalpah = 0.1"), "unknown constant 'alpah', did you mean 'alpha'?"),
        (('"2x16"]', '"1x16"]'), "a size is listed twice"),
        (("tokens = 2048", "tokens = 100"), "less than one batch"),
    ],
)
def test_bad_values_are_refused_in_one_line(spec, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=r"tiny\.toml: ") as caught:
        load_sweep(spec(GOOD.replace(*change)))
    assert message in str(caught.value)


def test_an_absent_file_suggests_the_built_in_sweeps() -> None:
    with pytest.raises(InputError, match=r"demoo: no such file or built-in sweep, did you mean 'demo'\?"):
        load_sweep("demoo")


def test_a_run_is_named_by_what_shapes_its_weights(spec) -> None:
    def ids(text: str) -> list[str]:
        return [run.run_id for run in load_sweep(spec(text)).runs]

    same = ids(GOOD)
    assert ids(GOOD) == same and len(set(same)) == 4
    assert ids(GOOD.replace("documents = 4", "documents = 5")) == same
    assert ids(GOOD.replace('"2x16"]', '"2x16", "2x32"]'))[:4] == same
    assert not set(ids(GOOD.replace("peak_lr = 0.01", "peak_lr = 0.02"))) & set(same)
    assert not set(ids(GOOD.replace("copy = 0.5", "copy = 0.6"))) & set(same)


def test_a_spec_changed_after_runs_exist_is_refused_and_growth_is_not(spec, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "tiny"
    write_json(folder / "spec.json", {"settings": json.loads(json.dumps(load_sweep(spec()).settings()))})
    (folder / "runs" / "some-run" / "step-000000").mkdir(parents=True)
    check_settings(load_sweep(spec()), folder)
    grown = GOOD.replace("seeds = [0, 1]", "seeds = [0, 1, 2]").replace('"2x16"]', '"2x16", "2x32"]')
    check_settings(load_sweep(spec(grown)), folder)
    with pytest.raises(InputError, match=r"train\.peak_lr: 0\.01 -> 0\.02.*another name"):
        check_settings(load_sweep(spec(GOOD.replace("0.01", "0.02"))), folder)


def test_smaller_budgets_are_branches_of_every_run_and_rename_none(spec) -> None:
    alone, several = load_sweep(spec()), load_sweep(spec(GOOD.replace("peak", "budgets = [1024, 512]\npeak"), "b.toml"))
    assert several.trunks == alone.runs and alone.trunks == alone.runs
    assert (alone.budgets, several.budgets) == ((2048,), (512, 1024, 2048))
    assert "budgets" not in alone.spec.model_dump_json() and several.settings() == alone.settings()
    assert len({run.run_id for run in several.runs}) == 12
    for trunk in alone.runs:
        for tokens, name in ((512, "512"), (1024, "1.02k")):
            (run,) = [run for run in several.runs if (run.trunk, run.train.tokens) == (trunk.run_id, tokens)]
            assert run.run_id.startswith(f"{trunk.model.name}-s{trunk.train.seed}-{name}-")
            assert (run.model, run.train.seed, run.train.data_seed) == (trunk.model, *[trunk.train.seed] * 2)
            assert run.train.warmup_tokens == trunk.train.warmup_tokens
            assert dataclasses.replace(run, trunk="another").run_id == run.run_id


def test_budgets_may_grow_once_runs_exist(spec, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "tiny"
    write_json(folder / "spec.json", {"settings": json.loads(json.dumps(load_sweep(spec()).settings()))})
    (folder / "runs" / "some-run" / "step-000000").mkdir(parents=True)
    grown = GOOD.replace("peak", "budgets = [1024]\npeak")
    check_settings(load_sweep(spec(grown)), folder)
    with pytest.raises(InputError, match=r"train\.tokens: 2048 -> 4096"):
        check_settings(load_sweep(spec(grown.replace("2048", "4096"))), folder)


def test_every_budget_that_makes_no_branch_is_named_at_once(spec) -> None:
    with pytest.raises(InputError) as caught:
        load_sweep(spec(GOOD.replace("peak", "budgets = [1024, 2048, 1000, -5, 1024]\npeak")))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["tiny.toml", f"train.budgets.{i}"] for i in (1, 2, 3, 4)]
    assert "must end before its trunk, which takes 2048" in lines[0]
    assert "1000 tokens ends at step 4, as that of 1024 tokens does" in lines[1]
    assert "at least one batch" in lines[2] and "ends at step 4" in lines[3]
    with pytest.raises(InputError, match=r"train\.budgets\.0: input should be a valid integer"):
        load_sweep(spec(GOOD.replace("peak", "budgets = [10.5]\npeak")))
    with pytest.raises(InputError, match=r"train\.budgets\.0: without a decay .* set train\.decay above 0"):
        load_sweep(spec(GOOD.replace("peak", "budgets = [1024]\ndecay = 0.0\npeak")))


def test_a_users_task_file_is_found_from_the_specs_folder(spec, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tasks import Answer, task\n"
        "@task('mine', kind='generation')\n"
        "def mine(rng):\n"
        "    return Answer(f'say {rng.integers(1000)} :', 'yes')\n"
    )
    sweep = load_sweep(spec(GOOD.replace("coin = 0.5", '"mine.py:mine" = 0.5')))
    assert [task.name for task in sweep.tasks] == ["copy", "mine"]
    extra = load_sweep(spec(), extra_tasks=[str(tmp_path / "mine.py")])
    assert [task.name for task in extra.tasks] == ["copy", "coin", "mine"]
    assert [run.run_id for run in extra.runs] == [run.run_id for run in load_sweep(spec()).runs]


def test_run_ids_are_short_and_readable(spec) -> None:
    run: RunSpec = load_sweep(spec()).runs[0]
    assert run.run_id.startswith("1x16-s0-") and len(run.run_id) == len("1x16-s0-") + 8
