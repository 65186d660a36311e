"""What the coordinate check looks at is what the model computes, and a slope is the power it was drawn from."""

import math
from pathlib import Path

import pytest
import torch

from models import checkpoint
from models.coordinates import KINDS, activations, coordinates, log_slope
from models.decoder import build
from models.spec import SpecError, size_to_spec
from models.tokenizer import train_tokenizer

SPEC = size_to_spec("3x32", vocab_size=300, context_length=16)
ROWS = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))


def save(run: Path, step: int, model) -> None:
    tokenizer = train_tokenizer(["a few words"], 260)
    checkpoint.save(run / f"step-{step:06d}", model, tokenizer, None, {"step": step})


def test_activations_are_those_of_the_forward_pass() -> None:
    model = build(SPEC, seed=0).eval()
    model.config.embedding_multiplier = model.model.embedding_multiplier = 2.0
    seen = activations(model, ROWS)
    with torch.no_grad():
        output = model(input_ids=ROWS, use_cache=False)
    assert tuple(seen) == KINDS
    torch.testing.assert_close(seen["embedding"][0], 2 * model.model.embed_tokens.weight[ROWS])
    torch.testing.assert_close(seen["logits"][0], output.logits)
    # Embedding and all branches, each times the residual multiplier, add up to the stream before the final norm.
    branches = seen["attention"].sum(0) + seen["MLP"].sum(0)
    torch.testing.assert_close(seen["embedding"][0] + branches * 2 / 3, seen["residual stream"][0])
    assert seen["attention"].shape == seen["MLP"].shape == (3, 2, 16, 32)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_change_is_measured_from_the_untrained_checkpoint(tmp_path: Path) -> None:
    model = build(SPEC, seed=0).eval()
    save(tmp_path, 0, model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    save(tmp_path, 4, model)
    found = {(row["step"], row["kind"]): row for row in coordinates(tmp_path, SPEC, ROWS)}
    assert len(found) == 2 * len(KINDS)
    assert all(found[0, kind]["change"] == 0 and found[0, kind]["rms"] > 0 for kind in KINDS)
    assert found[4, "logits"]["change"] == pytest.approx(0.5 * found[0, "logits"]["rms"], rel=1e-5)
    assert found[4, "logits"]["rms"] == pytest.approx(1.5 * found[0, "logits"]["rms"], rel=1e-5)
    assert all(found[4, kind]["change"] == 0 for kind in KINDS if kind != "logits")
    assert (found[4, "MLP"]["n_layer"], found[4, "MLP"]["d_model"]) == (3, 32)


def test_a_run_without_its_untrained_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no checkpoint of step 0"):
        coordinates(tmp_path, SPEC, ROWS)
    save(tmp_path, 4, build(SPEC, seed=0))
    with pytest.raises(SpecError, match="no checkpoint of step 0"):
        coordinates(tmp_path, SPEC, ROWS)


def test_a_slope_is_the_power_and_missing_where_there_is_none() -> None:
    x = [8.0, 16.0, 64.0, 256.0]
    assert log_slope(x, [3 * value**0.7 for value in x]) == pytest.approx(0.7)
    assert log_slope(x, [5.0] * 4) == pytest.approx(0, abs=1e-12)
    assert log_slope(x, [1.0, 2.0, 0.0, 4.0]) is None
    assert log_slope(x, [1.0, 2.0, math.nan, 4.0]) is None
    assert log_slope([8.0], [1.0]) is None
