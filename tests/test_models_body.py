"""The layers that train on a CPU compute what transformers' own do, whatever the weights and multipliers."""

import pytest
import torch
from torch.nn import functional as F

from models import loss as loss_module
from models.body import is_plain
from models.decoder import build
from models.loss import NextTokenLoss
from models.spec import size_to_spec

CONTEXT, ROWS = 12, 3


def trained_looking(size="3x24", n_head=3, attention="sdpa"):
    """A model in which nothing is at its start: gains are not one, and no multiplier is."""
    spec = size_to_spec(size, vocab_size=50, context_length=CONTEXT, n_head=n_head, base_depth=2, base_width=16)
    model = build(spec, seed=0, attention=attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.model.embedding_multiplier = 1.7
    model.config.embedding_multiplier = 1.7
    return model


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("size", "n_head"), [("3x24", 3), ("1x8", 1), ("2x16", 8), ("1x384", 12)])
def test_loss_and_every_gradient_equal_transformers_own(size, n_head, monkeypatch):
    model = trained_looking(size, n_head)
    rows = torch.randint(50, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(2))
    fast = NextTokenLoss(model, n_rows=ROWS, n_positions=CONTEXT)
    monkeypatch.setattr(model.model, "forward", lambda *_, **__: pytest.fail("transformers' layers were run"))
    value = fast(rows)
    found = gradients(value, model)
    monkeypatch.undo()
    expected = F.cross_entropy(model(input_ids=rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, grad in gradients(expected, model).items():
        assert (found[name] - grad).norm() < 1e-4 * grad.norm(), name


def test_gradients_agree_with_finite_differences():
    model = trained_looking()
    rows = torch.randint(50, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(3))
    loss = NextTokenLoss(model, n_rows=ROWS, n_positions=CONTEXT)
    for name, grad in gradients(loss(rows), model).items():
        weight, direction = model.get_parameter(name), grad / grad.norm()
        step = 1e-2 / grad.norm()  # moves the loss by about 1e-2 nats, four digits above rounding
        with torch.no_grad():
            values = []
            for sign in (1, -2):
                weight.add_(sign * step * direction)
                values.append(loss(rows).item())
            weight.add_(step * direction)
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(grad.norm().item(), rel=0.05), name


def test_another_kernel_or_another_model_is_left_to_transformers(monkeypatch):
    rows = torch.randint(50, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(4))
    eager = trained_looking(attention="eager")
    changed = trained_looking()
    changed.config.hidden_act = "gelu"
    half = trained_looking().bfloat16()
    assert [is_plain(model) for model in (trained_looking(), eager, changed, half)] == [True, False, False, False]
    monkeypatch.setattr(loss_module.Body, "__call__", lambda *_: pytest.fail("our layers were run"))
    value = NextTokenLoss(eager, n_rows=ROWS, n_positions=CONTEXT)(rows)
    monkeypatch.undo()
    same = NextTokenLoss(trained_looking(), n_rows=ROWS, n_positions=CONTEXT)(rows)
    assert value.item() == pytest.approx(same.item(), rel=1e-5)


def test_mixed_precision_is_left_to_transformers(monkeypatch):
    model = trained_looking()
    monkeypatch.setattr(loss_module.Body, "__call__", lambda *_: pytest.fail("our layers were run"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(NextTokenLoss(model, n_rows=1, n_positions=CONTEXT)(torch.arange(CONTEXT + 1)[None]))
