"""A checkpoint is there whole or not at all, and is gone on from only if it is what was written."""

import errno
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from tiny_checkpoints import change_json, change_weights
from tiny_runs import spec, tiny_tokenizer

from models import checkpoint
from models.checkpoint import OutOfSpace, Torn
from models.decoder import build
from models.spec import SpecError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def model_and_state(seed=0):
    model = build(spec("1x16"), seed=seed)
    moments = {i: {"exp_avg": torch.ones_like(p), "exp_avg_sq": p.detach()} for i, p in enumerate(model.parameters())}
    return model, {"optimizer": moments, "weights_digest": checkpoint.weights_digest(model)}


def write(folder, tokenizer, *, seed=0, with_state=True):
    model, state = model_and_state(seed)
    meta = {"weights_digest": state["weights_digest"], "step": checkpoint.step_of(folder)}
    checkpoint.save(folder, model, tokenizer, state if with_state else None, meta)
    return model


def held(run):
    return [path.name for path in checkpoint.states(run)]


def test_what_was_written_comes_back_bit_by_bit(tokenizer, tmp_path):
    model = write(tmp_path / "step-000007", tokenizer)
    record, weights, state = checkpoint.load_whole(tmp_path / "step-000007")
    assert record["step"] == 7
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
    assert torch.equal(state["optimizer"][0]["exp_avg"], torch.ones_like(next(model.parameters())))


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [halve, flip, lambda file: file.write_bytes(b""), lambda file: file.unlink()])
@pytest.mark.parametrize("name", ["state.pt", "model.safetensors"])
def test_a_file_cut_short_changed_emptied_or_gone_is_noticed(tokenizer, tmp_path, name, damage):
    folder = tmp_path / "step-000007"
    write(folder, tokenizer)
    damage(folder / name)
    with pytest.raises(Torn, match="step-000007: ") as error:
        checkpoint.load_whole(folder)
    assert "\n" not in str(error.value)


def test_one_flipped_bit_of_the_state_would_go_unseen_by_torch(tokenizer, tmp_path):
    write(tmp_path / "step-000007", tokenizer)
    flip(tmp_path / "step-000007" / "state.pt")
    torch.load(tmp_path / "step-000007" / "state.pt", weights_only=True)  # says nothing: hence the check
    with pytest.raises(Torn, match=r"state\.pt is damaged in its part"):
        checkpoint.load_whole(tmp_path / "step-000007")


def test_whole_files_of_different_checkpoints_are_not_taken_together(tokenizer, tmp_path):
    for step in (1, 2):
        write(tmp_path / f"step-00000{step}", tokenizer, seed=step)
    one, two = tmp_path / "step-000001", tmp_path / "step-000002"
    shutil.copy(two / "state.pt", one / "state.pt")
    with pytest.raises(Torn, match="do not belong together"):
        checkpoint.load_whole(one)
    change_weights(two, lambda tensors: tensors["lm_head.weight"].mul_(1.001))
    with pytest.raises(Torn, match="do not belong together"):
        checkpoint.load_whole(two)


def test_states_of_earlier_versions_are_still_gone_on_from(tokenizer, tmp_path):
    model, state = model_and_state()
    del state["weights_digest"]
    meta = {"weights_digest": checkpoint.weights_digest(model), "step": 3}
    checkpoint.save(tmp_path / "step-000003", model, tokenizer, state, meta)
    assert checkpoint.load_whole(tmp_path / "step-000003")[0] == meta
    change_json(tmp_path / "step-000003" / "meta.json", weights_digest="0" * 64)
    with pytest.raises(Torn):
        checkpoint.load_whole(tmp_path / "step-000003")


def test_states_are_pruned_to_the_newest_and_those_asked_for(tokenizer, tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path / f"step-00000{step}", tokenizer)
    write(tmp_path / "resume-000003", tokenizer)
    write(tmp_path / "resume-000007", tokenizer)
    write(tmp_path / "resume-000010", tokenizer)
    assert held(tmp_path)[:3] == ["resume-000010", "resume-000007", "step-000004"]  # newest first
    checkpoint.prune(tmp_path, n_states=2, states_at=[1])
    assert held(tmp_path) == ["resume-000010", "step-000004", "step-000003", "step-000001"]
    write(tmp_path / "step-000011", tokenizer)
    checkpoint.prune(tmp_path, n_states=1, states_at=[1])
    assert held(tmp_path) == ["step-000011", "step-000001"]
    write(tmp_path / "resume-000012", tokenizer)
    checkpoint.prune(tmp_path, n_states=0, states_at=[1])
    assert held(tmp_path) == ["step-000001"]
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [1, 2, 3, 4, 11]


def test_a_resume_folder_is_no_checkpoint(tokenizer, tmp_path):
    write(tmp_path / "resume-000007", tokenizer)
    assert checkpoint.checkpoints(tmp_path) == [] and checkpoint.latest(tmp_path) is None
    write(tmp_path / "step-000005", tokenizer, with_state=False)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000005" and held(tmp_path) == ["resume-000007"]


def test_leftovers_go_and_what_others_have_there_stays(tokenizer, tmp_path):
    for step in (3, 6):
        write(tmp_path / f"step-00000{step}", tokenizer)
    for name in (".step-000009.tmp", ".resume-000008.tmp", ".mine.tmp", "notes"):
        (tmp_path / name).mkdir()
    checkpoint.remove_leftovers(tmp_path, after=5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".mine.tmp", "notes", "step-000003", "step-000006"] and held(tmp_path) == ["step-000003"]


def test_too_little_space_is_said_before_anything_is_written(tokenizer, tmp_path, monkeypatch):
    write(tmp_path / "step-000001", tokenizer)
    weights = sum(4 * p.numel() for p in build(spec("1x16"), seed=0).parameters())
    usage = shutil.disk_usage(tmp_path)
    for with_state, needed in ((True, 3 * weights + 2**24), (False, weights + 2**24)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=needed: usage._replace(free=n - 1))
        with pytest.raises(
            OutOfSpace, match=f"step-000002: .* needs {needed} bytes and {needed - 1} are free"
        ) as error:
            write(tmp_path / "step-000002", tokenizer, with_state=with_state)
        assert "\n" not in str(error.value) and "make room" in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=needed: usage._replace(free=n))
        write(tmp_path / "step-000002", tokenizer, with_state=with_state)
        shutil.rmtree(tmp_path / "step-000002")
    assert issubclass(OutOfSpace, SpecError)  # one line and no traceback, as for any other input


@contextmanager
def files_of_at_most(n_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.5, 1.5])  # of the weights' file: it fails, or only the state, twice as large
def test_a_write_that_fails_midway_leaves_no_half_and_the_old_one_whole(tokenizer, tmp_path, share):
    write(tmp_path / "step-000001", tokenizer)
    limit = int(share * (tmp_path / "step-000001" / "model.safetensors").stat().st_size)
    for name in ("step-000002", "step-000001"):  # a new one, and one that is there already
        with files_of_at_most(limit), pytest.raises(OutOfSpace, match=r"could not be written .*too large") as error:
            write(tmp_path / name, tokenizer, seed=1)
        assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    checkpoint.load_whole(tmp_path / "step-000001")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("at", ["makedirs", "fsync", "replace"])
def test_what_the_system_refuses_is_named(tokenizer, tmp_path, monkeypatch, number, at):
    write(tmp_path / "step-000001", tokenizer)

    def refuse(*_, **__):
        raise OSError(number, errno.errorcode[number])

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, at, refuse)
        with pytest.raises(OutOfSpace, match=f"step-000002: .*{errno.errorcode[number]}.*quota and the rights"):
            write(tmp_path / "step-000002", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    checkpoint.load_whole(tmp_path / "step-000001")


def test_a_folder_under_a_file_is_one_line(tokenizer, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OutOfSpace, match=r"step-000002: .* could not be written \("):
        write(tmp_path / "run" / "step-000002", tokenizer)
