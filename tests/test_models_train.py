"""A run is a function of its specs and its stream: resumed or not, and whatever the size."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_checkpoints import change_json, change_weights
from tiny_runs import CONTEXT, RUN, same, spec, tiny_stream, tiny_tokenizer
from torch.nn import functional as F

from models import checkpoint, loop
from models import train as training
from models.decoder import build
from models.divergence import TrainingDiverged, Watch
from models.fold import fold
from models.loss import NextTokenLoss
from models.spec import SpecError, TrainSpec
from models.train import train


class Broken(Exception):
    pass


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return tiny_stream(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(stream, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    return folder, train(spec(), RUN, stream, tokenizer, folder)


@pytest.mark.parametrize(("size", "parametrization"), [("1x8", "mup"), ("2x16", "mup"), ("1x128", "sp")])
def test_the_fused_loss_equals_cross_entropy_in_value_and_gradients(size, parametrization):
    rows = torch.randint(300, (3, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    fused, plain = (build(spec(size, parametrization=parametrization), seed=1) for _ in range(2))
    loss = NextTokenLoss(fused, n_rows=3, n_positions=CONTEXT)
    for _ in range(2):  # the second call reuses the buffer the first has overwritten
        fused.zero_grad()
        value = loss(rows)
        (2 * value).backward()
    logits = plain(input_ids=rows[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    (2 * expected).backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(fused.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_fused_loss_stays_finite_for_large_logits():
    model = build(spec(), seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    value = NextTokenLoss(model, n_rows=1, n_positions=CONTEXT)(torch.arange(CONTEXT + 1)[None, :])
    assert torch.isfinite(value) and value > 100


def test_training_lowers_the_loss_and_records_every_checkpoint(straight, stream):
    folder, records = straight
    assert [record["step"] for record in records] == [0, 5, 10, 20]
    assert [record["phase"] for record in records] == ["init", "stable", "stable", "final"]
    assert [record["tokens"] for record in records] == [step * 64 for step in (0, 5, 10, 20)]
    assert [record["is_last"] for record in records] == [False, False, False, True]
    losses = [record["train_loss"] for record in records]
    assert losses[0] is None and losses[1] > losses[2] > losses[3]
    assert {record["data_digest"] for record in records} == {stream.digest}
    assert len({record["weights_digest"] for record in records}) == 4
    assert (records[0]["attention"], records[0]["precision"], records[0]["device"]) == ("sdpa", "fp32", "cpu")
    assert [checkpoint.load_meta(path) for path in checkpoint.checkpoints(folder)] == records
    assert records[0]["cpu_seconds"] <= records[-1]["cpu_seconds"]


@pytest.mark.parametrize(("n_states", "kept"), [(1, ["step-000005"]), (2, ["step-000005", "step-000000"])])
def test_training_state_is_kept_of_the_newest_checkpoints_and_of_none_at_the_end(
    stream, tokenizer, tmp_path, monkeypatch, n_states, kept
):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_REPORTS", 0.0)
    seen = {}

    def look(report):
        seen[report["step"]] = [path.name for path in checkpoint.states(tmp_path / "run")]

    train(spec(), RUN, stream, tokenizer, tmp_path / "run", progress=look, n_states=n_states)
    assert seen[4] == ["step-000000"] and seen[7] == kept
    assert checkpoint.states(tmp_path / "run") == [] and len(checkpoint.checkpoints(tmp_path / "run")) == 4
    with pytest.raises(SpecError, match="n_states=0 must be at least 1"):
        train(spec(), RUN, stream, tokenizer, tmp_path / "other", n_states=0)


def test_a_finished_run_is_read_and_not_trained_again(straight, stream, tokenizer):
    def refuse(_):
        raise AssertionError("trained again")

    folder, records = straight
    assert train(spec(), RUN, stream, tokenizer, folder, progress=refuse) == records


@pytest.mark.parametrize("stop_at", [1, 7, 13, 20])
def test_an_interrupted_run_ends_with_the_same_bits(straight, stream, tokenizer, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_REPORTS", 0.0)

    def interrupt(report):
        if report["step"] == stop_at:
            raise Broken

    with pytest.raises(Broken):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run", progress=interrupt)
    steps = []
    records = train(spec(), RUN, stream, tokenizer, tmp_path / "run", progress=lambda report: steps.append(report))
    started_from = max(step for step in (0, 5, 10, 20) if step < stop_at)
    assert steps[0]["step"] == started_from + 1
    assert same(records) == same(straight[1])


def test_without_training_state_a_run_starts_over_and_ends_the_same(straight, stream, tokenizer, tmp_path):
    folder = tmp_path / "run"
    train(spec(), RUN, stream, tokenizer, folder)
    (folder / "step-000020" / "meta.json").unlink()
    records = train(spec(), RUN, stream, tokenizer, folder)
    assert [r["weights_digest"] for r in records] == [r["weights_digest"] for r in straight[1]]


def test_a_half_written_checkpoint_does_not_count(straight, stream, tokenizer, tmp_path):
    folder = tmp_path / "run"
    records = train(spec(), RUN, stream, tokenizer, folder)
    (folder / ".step-000030.tmp").mkdir()
    (folder / ".step-000030.tmp" / "meta.json").write_text("{}")
    (folder / "step-000040").mkdir()
    (folder / "step-000040" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(folder) == folder / "step-000020"
    assert train(spec(), RUN, stream, tokenizer, folder) == records


def test_weights_depend_on_the_seed_and_the_data_but_sizes_read_the_same_rows(stream, tokenizer, tmp_path, monkeypatch):
    read = []
    rows = type(stream).rows
    monkeypatch.setattr(type(stream), "rows", lambda self, *where: read.append(where) or rows(self, *where))
    short = TrainSpec(tokens=3 * 64, batch_tokens=64, peak_lr=2**-7, n_checkpoints=2)
    small = train(spec("1x8"), short, stream, tokenizer, tmp_path / "a")
    n_read = len(read)
    large = train(spec("2x16"), short, stream, tokenizer, tmp_path / "b")
    assert read[:n_read] == read[n_read:] == [(0, 4), (4, 4), (8, 4)]  # of one file: the digests are equal
    assert small[-1]["data_digest"] == large[-1]["data_digest"]
    reseeded = TrainSpec(tokens=3 * 64, batch_tokens=64, peak_lr=2**-7, n_checkpoints=2, seed=1)
    other = train(spec("1x8"), reseeded, stream, tokenizer, tmp_path / "c")
    assert other[0]["weights_digest"] != small[0]["weights_digest"]


def test_progress_tells_the_step_and_is_rare(stream, tokenizer, tmp_path):
    reports = []
    train(spec(), RUN, stream, tokenizer, tmp_path / "run", progress=reports.append)
    assert 1 <= len(reports) < 20
    assert reports[0].keys() == {"step", "steps", "tokens", "loss", "lr"}
    assert (reports[0]["step"], reports[0]["steps"], reports[0]["tokens"]) == (1, 20, 64)


def test_a_diverging_run_stops_and_names_its_step(stream, tokenizer, tmp_path):
    wild = TrainSpec(tokens=20 * 64, batch_tokens=64, peak_lr=1e30, n_checkpoints=2)
    with pytest.raises(TrainingDiverged, match=r"loss nan.* step 2 of 20 \(128 tokens, .*; lower peak_lr=1e\+30"):
        train(spec(), wild, stream, tokenizer, tmp_path / "run")
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-000000"]


def test_a_nan_in_the_weights_is_seen_at_once_and_blamed_on_them(stream, tokenizer, tmp_path, monkeypatch):
    def broken(*given, **options):
        model = build(*given, **options)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 1] = torch.nan
        return model

    monkeypatch.setattr(loop, "build", broken)
    monkeypatch.setattr(training, "checkpoint_steps", lambda spec, **_: (4,))
    with pytest.raises(TrainingDiverged, match=r"step 1 of 20 .* look at the weights and the token stream"):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(loop, "build", broken)
    with pytest.raises(TrainingDiverged, match=r"step 0 of 20: 1 tensors are not finite, .*up_proj"):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run")
    assert not checkpoint.checkpoints(tmp_path / "run")


def test_an_infinite_gradient_is_stopped_before_it_reaches_the_weights(stream, tokenizer, tmp_path, monkeypatch):
    clip, weights = torch.nn.utils.clip_grad_norm_, []

    def spoilt(parameters, most):
        weights.append([p.detach().clone() for p in parameters])
        if len(weights) == 7:
            parameters[0].grad[0, 0] = torch.inf
        weights.append(parameters)
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoilt)
    with pytest.raises(TrainingDiverged, match="gradient norm inf at step 4 of 20"):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(weights[-2], weights[-1], strict=True))


def test_a_lost_run_keeps_its_checkpoints_and_stops_again_where_it_stopped(stream, tokenizer, tmp_path, monkeypatch):
    see = Watch.see
    monkeypatch.setattr(Watch, "see", lambda self, step, loss, norm: see(self, step, loss, norm if step < 8 else 1e999))
    for _ in range(2):  # the second time it resumes from step 5
        with pytest.raises(TrainingDiverged, match="gradient norm inf at step 8 of 20"):
            train(spec(), RUN, stream, tokenizer, tmp_path / "run")
        assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-000000", "step-000005"]


def test_a_poisoned_checkpoint_is_refused_and_not_continued(stream, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_REPORTS", 0.0)

    def interrupt(report):
        if report["step"] == 7:
            raise Broken

    with pytest.raises(Broken):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run", progress=interrupt)
    poisoned, model = tmp_path / "run" / "step-000005", build(spec(), seed=0)
    change_weights(poisoned, lambda tensors: tensors["lm_head.weight"].fill_(torch.nan))
    checkpoint.load_weights(poisoned, model)
    digest = checkpoint.weights_digest(model)  # as if it had been written so
    change_json(poisoned / "meta.json", weights_digest=digest)
    torch.save(torch.load(poisoned / "state.pt") | {"weights_digest": digest}, poisoned / "state.pt")
    with pytest.raises(TrainingDiverged, match=r"step-000005: 1 tensors are not finite, lm_head.*; .*delete that"):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run")


LONG = TrainSpec(tokens=500 * 64, batch_tokens=64, peak_lr=0.01, warmup=0.1)


def watched(losses, spec=LONG, through_state_at=None):
    """The step at which a run with these losses is stopped, or None."""
    watch = Watch(spec)
    for step, loss in enumerate(losses, start=1):
        if step == through_state_at:
            old, watch = watch, Watch(spec)
            watch.restore(json.loads(json.dumps(old.state())))
        try:
            watch.see(step, float(loss), 1.0)
        except TrainingDiverged as error:
            assert f"step {step} of {spec.steps}" in str(error) and "above its start" in str(error)
            return step
    return None


def test_a_loss_that_stays_above_its_start_is_stopped_and_a_noisy_start_is_not():
    steps, noise = np.arange(500), np.random.default_rng(0).normal(0, 0.3, 500)
    falling = 3 + 3 * np.exp(-steps / 100) + noise
    risen = np.where(steps < 200, falling, 9.0)
    stopped = watched(risen)
    assert 250 < stopped < 260  # a tenth of 500 steps, and the few until the average has risen
    assert watched(risen, through_state_at=230) == stopped
    spike = np.where((steps >= 60) & (steps < 95), 9.0, falling)  # the average needs some steps to come down
    rough_start = np.where(steps < 50, 20 * falling, falling)
    rough_start[0] = falling[0]
    nothing_to_learn = 6 + noise / 10
    assert [watched(x) for x in (falling, spike, rough_start, nothing_to_learn)] == [None] * 4
    risen_at_once = 6 + 0.2 * (steps > 0)
    assert watched(risen_at_once) == 50 + 51  # the warmup, and one step more than the patience
    few = TrainSpec(tokens=40 * 64, batch_tokens=64, peak_lr=0.01)
    assert watched(risen_at_once[:40], few) is None  # too short a run to say


@pytest.mark.parametrize("accumulation", [2, 4])
def test_a_batch_in_pieces_trains_the_same_model(straight, stream, tokenizer, tmp_path, accumulation):
    records = train(spec(), RUN, stream, tokenizer, tmp_path / "run", accumulation=accumulation)
    whole = [record["train_loss"] for record in straight[1]][1:]
    assert [record["train_loss"] for record in records][1:] == pytest.approx(whole, rel=1e-5)
    assert [record["run_digest"] for record in records] == [record["run_digest"] for record in straight[1]]
    pieces, once = build(spec(), seed=0), build(spec(), seed=0)
    rows = torch.from_numpy(stream.rows(0, 4))
    NextTokenLoss(once, n_rows=4, n_positions=CONTEXT)(rows).backward()
    part = NextTokenLoss(pieces, n_rows=4 // accumulation, n_positions=CONTEXT)
    for piece in rows.chunk(accumulation):
        (part(piece) / accumulation).backward()
    for a, b in zip(pieces.parameters(), once.parameters(), strict=True):
        assert (a.grad - b.grad).norm() < 1e-5 * b.grad.norm()


@pytest.mark.parametrize("accumulation", [0, 3, 8, 2.0, True])
def test_pieces_that_do_not_divide_a_batch_are_refused(stream, tokenizer, tmp_path, accumulation):
    with pytest.raises(SpecError, match=r"accumulation=.* the 4 rows of a batch; accepted: 1, 2, 4"):
        train(spec(), RUN, stream, tokenizer, tmp_path / "run", accumulation=accumulation)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "run", "remedy"),
    [
        (spec(), TrainSpec(tokens=999, batch_tokens=50, peak_lr=0.01), "try 48"),
        (spec(), TrainSpec(tokens=10**6, batch_tokens=64, peak_lr=0.01), "at most 1280 tokens"),
        (spec(context_length=8), RUN, "write the stream again"),
        (spec(vocab_size=270), RUN, "raise vocab_size"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_training(stream, tokenizer, tmp_path, model, run, remedy):
    with pytest.raises(SpecError, match=remedy):
        train(model, run, stream, tokenizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_is_never_continued_with_another_recipe(straight, stream, tokenizer):
    other = TrainSpec(tokens=RUN.tokens, batch_tokens=RUN.batch_tokens, peak_lr=2**-6, n_checkpoints=4)
    with pytest.raises(SpecError, match="another folder"):
        train(spec(), other, stream, tokenizer, straight[0])


@pytest.mark.parametrize(("name", "other"), [("precision", "bf16"), ("attention", "flash_attention_3")])
def test_a_family_keeps_one_precision_and_one_kernel(stream, tokenizer, tmp_path, name, other):
    """Of runs beside it, and of a run that is gone on with: as if the device had changed in between."""
    family = tmp_path / "runs"
    train(spec(), RUN, stream, tokenizer, family / "first", family=family)
    train(spec("1x16"), RUN, stream, tokenizer, family / "same", family=family)
    change_json(family / "first" / "step-000000" / "meta.json", **{name: other})
    line = rf"{name}=.* is what this device has, and first was trained with '{other}'; .* name {name} instead of 'auto'"
    with pytest.raises(SpecError, match=line):
        train(spec("1x24"), RUN, stream, tokenizer, family / "another", family=family)
    assert not (family / "another").exists()
    train(spec("1x24"), RUN, stream, tokenizer, tmp_path / "apart")
    (family / "first" / "step-000020" / "meta.json").unlink()
    with pytest.raises(SpecError, match=line):
        train(spec(), RUN, stream, tokenizer, family / "first")


def test_a_gpu_that_only_imitates_bf16_is_not_given_it(monkeypatch):
    cuda = torch.device("cuda")
    for has, auto in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert loop.resolve_precision("auto", device=cuda) == auto
        assert loop.resolve_precision("fp32", device=cuda) == "fp32"
    with pytest.raises(SpecError, match="precision='bf16' needs a GPU of compute"):
        loop.resolve_precision("bf16", device=cuda)


def test_bf16_trains_in_mixed_precision_with_float32_weights():
    assert loop.resolve_precision("bf16", device=torch.device("cpu")) == "bf16"
    assert loop.resolve_precision("auto", device=torch.device("cpu")) == "fp32"
    rows = torch.arange(CONTEXT + 1)[None, :]
    model = build(spec("2x16"), seed=0)
    loss = NextTokenLoss(model, n_rows=1, n_positions=CONTEXT)
    exact = loss(rows).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(rows)
    value.backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(exact, rel=1e-2) and value.item() != exact
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("copy s r", return_tensors="pt")["input_ids"]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    found.append({"generated": model.generate(ids, **options)[0].tolist(), "logits": model(ids).logits[0].tolist()})
print(json.dumps([found, "models" in sys.modules]))
"""


def test_every_checkpoint_loads_and_generates_with_transformers_alone_and_folds(straight, tmp_path):
    folders, records = checkpoint.checkpoints(straight[0]), straight[1]
    command = [sys.executable, "-c", LOAD, *map(str, folders)]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout
    found, with_us = json.loads(answer.splitlines()[-1])
    assert len(found) == len(records) == 4 and not with_us
    for folder, record, theirs in zip(folders, records, found, strict=True):
        model = build(spec(), seed=99)
        checkpoint.load_weights(folder, model)
        assert checkpoint.weights_digest(model) == record["weights_digest"]
        ids = torch.tensor([theirs["generated"][:-3]])
        ours = model(ids).logits[0]
        assert ids.shape[1] > 2 and ours.abs().max() > 0.1
        torch.testing.assert_close(torch.tensor(theirs["logits"]), ours, rtol=0, atol=1e-6)
        torch.testing.assert_close(fold(model)(ids).logits[0], ours, rtol=0, atol=1e-5)
