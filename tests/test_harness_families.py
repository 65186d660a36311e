"""What a person names becomes checkpoints, each with its place on the scale axes; what cannot be placed is refused."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import tiny_checkpoints as tiny
from safetensors import safe_open

from harness.families import PUBLISHED, choose_steps, find_checkpoints, labels
from harness.store import StoreError
from models.hub import is_hub_name, locate
from models.spec import SpecError, size_to_spec

MINE = """
[[model]]
name = "mine-a"
n_params = 5000
tokens = 1e6
tokens_per_step = 1000
[[model]]
name = "mine-b"
n_params = 9000
tokens = 1e6
"""


@pytest.fixture
def scales(tmp_path: Path) -> Path:
    file = tmp_path / "scales.toml"
    file.write_text(MINE)
    return file


def folder(path: Path) -> Path:
    """A checkpoint folder as far as finding it goes."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_a_published_family_is_its_finished_models_smallest_first() -> None:
    found = find_checkpoints(family="pythia")
    assert [c.size for c in found] == ["14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]
    assert {(c.step, c.revision, c.seed) for c in found} == {(143_000, None, 0)}
    assert found[2].source == "EleutherAI/pythia-70m"
    assert (found[2].n_params, found[2].n_params_non_embedding) == (70_426_624, 18_915_328)
    assert found[2].tokens == 143_000 * 2_097_152  # 299.9 B, as published


def test_the_154_published_steps_of_pythia_come_with_their_revisions_and_tokens() -> None:
    found = find_checkpoints(family="pythia", sizes=["70M"], steps="all")
    assert len(found) == 154
    assert [c.revision for c in found[:4]] == ["step0", "step1", "step2", "step4"]
    assert [c.revision for c in found[10:13]] == ["step512", "step1000", "step2000"]
    assert found[0].tokens == 0 and found[11].tokens == 1000 * 2_097_152
    assert {c.run_id for c in found} == {"pythia-70m"}


@pytest.mark.parametrize(("step", "nearest"), [("1500", "1000, 2000"), ("3", "2, 4"), ("150000", "143000")])
def test_an_unpublished_step_is_refused_with_the_nearest(step: str, nearest: str) -> None:
    with pytest.raises(StoreError, match=f"no checkpoint at step {step}; the nearest: {nearest}$"):
        find_checkpoints(family="pythia", sizes=["14m"], steps=f"0,{step}")
    with pytest.raises(StoreError, match="expected all, last, or whole numbers"):
        choose_steps("0,last", [0, 1], "here")


def test_sizes_and_families_are_spelled_as_listed() -> None:
    assert [c.source for c in find_checkpoints(family="pythia-deduped", sizes=["1b"])] == [
        "EleutherAI/pythia-1b-deduped"
    ]
    for wrong, message in (
        ({"family": "pythai"}, "did you mean 'pythia'"),
        ({"family": "pythia", "sizes": ["15m"]}, "no such size"),
        ({"sizes": ["70m"]}, "needs --family"),
        ({}, "no model given"),
    ):
        with pytest.raises(StoreError, match=message):
            find_checkpoints(**wrong)
    assert set(PUBLISHED) == {"pythia", "pythia-deduped", "olmo-2"}


def test_a_hub_model_stands_for_its_end_or_for_one_revision() -> None:
    end, early = find_checkpoints(["EleutherAI/pythia-70m-seed3", "EleutherAI/pythia-70m-seed3@step64"])
    assert (end.seed, end.run_id, end.model, end.step) == (3, "pythia-70m-seed3", "pythia-70m", 143_000)
    assert (early.revision, early.step, early.tokens, early.run_id) == ("step64", 64, 64 * 2_097_152, end.run_id)
    assert len(find_checkpoints(["EleutherAI/pythia-14m"], steps="0,1,143000")) == 3
    (olmo,) = find_checkpoints(["allenai/OLMo-2-0425-1B"], steps="last")
    assert olmo.revision is None
    with pytest.raises(StoreError, match="name them one by one"):
        find_checkpoints(["allenai/OLMo-2-0425-1B"], steps="0")


def test_a_run_of_ours_says_where_it_stands(tmp_path: Path) -> None:
    run = tiny.our_run(tmp_path, steps=(0, 10, 20))
    spec = size_to_spec("1x16", vocab_size=tiny.VOCAB, context_length=tiny.CONTEXT)
    found = find_checkpoints([str(run)])
    assert [(c.step, c.tokens) for c in found] == [(0, 0), (10, 5120), (20, 10240)]
    assert {(c.run_id, c.size, c.seed) for c in found} == {(run.name, "1x16", 0)}
    assert found[0].n_params == spec.n_params and found[0].flops_per_token == spec.flops_per_token
    assert found[2].about["train_loss"] == 5.5 and found[2].about["peak_lr"] == 0.01
    assert [c.step for c in find_checkpoints([str(run)], steps="last")] == [20]
    (one,) = find_checkpoints([str(run / "step-000010")])
    assert one == found[1] and one.name == str(run / "step-000010")


def test_a_checkpoint_of_ours_without_its_run_still_has_its_tokens_and_seed(tmp_path: Path) -> None:
    run = tiny.our_run(tmp_path, seed=2)
    (run / "run.json").unlink()
    (last,) = find_checkpoints([str(run)], steps="last")
    assert (last.tokens, last.seed, last.size, last.run_id) == (5120, 2, "1x16", run.name)
    assert math.isnan(last.n_params) and last.flops_per_token is None  # to be counted, not guessed


def test_a_folder_is_placed_by_its_name_in_the_users_map(tmp_path: Path, scales: Path) -> None:
    folder(tmp_path / "mine-b")
    for step in (200, 1000):
        folder(tmp_path / "mine-a" / f"checkpoint-{step}")
    a200, a1000, b = find_checkpoints([str(tmp_path / "mine-a"), str(tmp_path / "mine-b")], scales=scales)
    assert (a200.run_id, a200.step, a200.tokens) == ("mine-a", 200, 200_000)
    assert (a1000.step, a1000.tokens, a1000.numbered) == (1000, 1e6, True)
    assert (b.step, b.tokens, b.numbered, b.n_params) == (1, 1e6, False, 9000)


def test_a_folder_of_the_hubs_cache_goes_by_the_name_of_its_model(tmp_path: Path) -> None:
    at = folder(tmp_path / "models--EleutherAI--pythia-31m" / "snapshots" / ("a" * 40))
    (found,) = find_checkpoints([str(at)])
    assert (found.run_id, found.size) == ("pythia-31m", "31m")


def test_a_model_that_nobody_placed_comes_with_a_file_to_complete(tmp_path: Path) -> None:
    at = tiny.neox(tmp_path / "Mystery")
    with pytest.raises(StoreError) as refused:
        find_checkpoints([str(at)])
    message = str(refused.value)
    assert "\n" not in message and "how many tokens 'mystery' was trained on" in message
    file = tmp_path / "scales.toml"
    file.write_text(message[message.index("model = [") :])
    (found,) = find_checkpoints([str(at)], scales=file)
    with safe_open(at / "model.safetensors", framework="numpy") as weights:
        assert found.n_params == sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert found.tokens == 300e9


def test_two_folders_for_one_checkpoint_are_refused_and_one_folder_twice_is_one(tmp_path: Path, scales: Path) -> None:
    one, other = folder(tmp_path / "x" / "mine-a"), folder(tmp_path / "y" / "mine-a")
    with pytest.raises(StoreError, match="are both mine-a at step 1000"):
        find_checkpoints([str(one), str(other)], scales=scales)
    assert len(find_checkpoints([str(one), str(one)], scales=scales)) == 1


def test_a_finished_model_beside_numbered_checkpoints_needs_a_number(tmp_path: Path) -> None:
    file = tmp_path / "scales.toml"
    file.write_text('model = [{name = "mine", n_params = 5000, tokens = 4e9}]')
    with pytest.raises(StoreError, match="nobody says at which step"):
        find_checkpoints(["org/mine", "org/mine@step1000-tokens4B"], scales=file)
    assert [c.step for c in find_checkpoints(["org/mine@step1000-tokens4B"], scales=file)] == [1000]


def test_what_is_neither_folder_nor_hub_name_says_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="nor a checkpoint folder"):
        find_checkpoints([str(tmp_path / "empty")])
    with pytest.raises(StoreError, match=re.escape("./gone: no such folder")):
        find_checkpoints(["./gone"])
    run = tiny.our_run(tmp_path)
    (run / "run.json").write_text(json.dumps({"run_id": "x", "spec": {"model": {"name": "x"}, "train": {"seed": 0}}}))
    with pytest.raises(StoreError, match="names a model that cannot be built"):
        find_checkpoints([str(run)])


def test_a_folder_is_recorded_by_its_absolute_path_which_is_no_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = tiny.our_run(tmp_path / "m") / "step-000010"
    monkeypatch.chdir(tmp_path)
    (found,) = find_checkpoints([str(at.relative_to(tmp_path))])
    monkeypatch.chdir("/")
    assert found.source == str(at.resolve()) and not is_hub_name(found.source)
    shutil.rmtree(at)
    with pytest.raises(SpecError, match="no such folder"):
        locate(found.source)


def test_a_single_checkpoint_that_is_not_among_the_steps_is_refused(tmp_path: Path) -> None:
    at = str(tiny.our_run(tmp_path) / "step-000010")
    assert [c.step for c in find_checkpoints([at], steps="0,10")] == [10]
    with pytest.raises(StoreError, match="its step is 10, which --steps 0,20 leaves out"):
        find_checkpoints([at], steps="0,20")


def test_sizes_of_two_families_keep_two_names() -> None:
    one = {"a": ("pythia-1b", "1b"), "b": ("pythia-1b", "1b")}
    assert labels(one) == {"a": "1b", "b": "1b"}
    assert labels(one | {"c": ("olmo-1b", "1B")}) == {"a": "pythia-1b", "b": "pythia-1b", "c": "olmo-1b"}
