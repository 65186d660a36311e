"""However a step is computed - in pieces, compiled, in half precision - it is the same loss and the same gradients."""

import shutil
from dataclasses import replace

import pytest
import torch
from tiny_runs import CONTEXT, RUN, spec, tiny_stream
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models import loss as module
from models import recipe as recipes
from models.decoder import build
from models.loop import Loop
from models.loss import NextTokenLoss, _FusedLinearCrossEntropy
from models.recipe import Recipe
from models.spec import SpecError, size_to_spec

LARGE = 32_768
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def random(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation makes."""

    n_elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.n_elements = max(self.n_elements, tensor.numel())
        return made


@pytest.fixture
def head():
    """Hidden states (48, 8), the weight of a large vocabulary, targets, and what float64 makes of them."""
    hidden, weight = random(48, 8, seed=0), random(LARGE, 8, seed=1, scale=0.3)
    targets = torch.randint(LARGE, (48,), generator=torch.Generator().manual_seed(2))
    exact = hidden.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.cross_entropy(exact[0] @ exact[1].t(), targets)
    (3 * expected).backward()
    return hidden.requires_grad_(), weight.requires_grad_(), targets, expected, [tensor.grad for tensor in exact]


# A product of a few left-over rows (20 + 20 + 8) is as inexact as that of a plain head: measured 3e-6.
@pytest.mark.parametrize(("at_once", "rel"), [(48, 1e-6), (24, 1e-6), (16, 1e-6), (20, 5e-6)])
def test_a_head_in_pieces_has_the_gradients_of_a_whole_one_and_bounded_memory(head, at_once, rel):
    hidden, weight, targets, expected, grads = head
    buffer = torch.full((at_once, LARGE), torch.nan)  # what is left in it is of no effect
    with Largest() as largest:
        value = _FusedLinearCrossEntropy.apply(hidden, weight, targets, buffer)
        (3 * value).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip((hidden.grad, weight.grad), grads, strict=True):
        assert (mine - theirs).norm() < rel * theirs.norm()
    assert largest.n_elements == LARGE * max(at_once, 8)  # the whole logits are 48 wide


def test_half_precision_products_keep_float32_sums_and_gradients(head):
    hidden, weight, targets, expected, grads = head
    value = _FusedLinearCrossEntropy.apply(hidden, weight, targets, torch.empty(20, LARGE), torch.bfloat16)
    (3 * value).backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=1e-3)
    for mine, theirs in zip((hidden.grad, weight.grad), grads, strict=True):
        assert mine.dtype == torch.float32
        assert 1e-6 * theirs.norm() < (mine - theirs).norm() < 2e-2 * theirs.norm()


def gradients(model, rows, **options):
    model.zero_grad()
    loss = NextTokenLoss(model, n_rows=len(rows), n_positions=CONTEXT, **options)
    value = loss(rows)
    value.backward()
    return value.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def agree(found, expected, rel):
    assert found[0] == pytest.approx(expected[0], rel=rel)
    for name, grad in expected[1].items():
        assert (found[1][name] - grad).norm() < rel * grad.norm(), name


def test_a_model_of_a_large_vocabulary_never_holds_all_its_logits(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_BUFFER", 8 * LARGE)
    model = build(size_to_spec("1x8", vocab_size=LARGE, context_length=CONTEXT), seed=0)
    rows = torch.randint(LARGE, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(3))
    with Largest() as largest:
        found = gradients(model, rows)
    assert largest.n_elements == 8 * LARGE  # 64 tokens in 8 pieces
    monkeypatch.undo()
    agree(found, gradients(model, rows), 1e-5)


def small():
    return build(spec("1x8"), seed=0), torch.randint(300, (3, CONTEXT + 1), generator=torch.Generator().manual_seed(4))


@pytest.mark.long
@pytest.mark.parametrize("head", ["whole", "pieces"])
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
# torch's compiler uses what torch itself and Python deprecate.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_step_has_the_loss_and_the_gradients_of_an_eager_one(head):
    model, rows = small()
    expected = gradients(model, rows)
    agree(gradients(model, rows, recipe=Recipe(compile="on", head=head)), expected, 1e-4)
    assert all("_orig_mod" not in name for name in model.state_dict())


@pytest.mark.parametrize(("compile", "mode"), [("on", "default"), ("graphs", "reduce-overhead")])
def test_what_is_compiled_has_fixed_shapes_and_is_all_of_the_step_or_what_precedes_the_pieces(
    monkeypatch, compile, mode
):
    options, run = [], []

    def pretend(function, **given):
        options.append(given)
        return lambda *arguments: run.append(function.__name__) or function(*arguments)

    monkeypatch.setattr(torch, "compile", pretend)
    monkeypatch.setattr(module.Body, "__call__", lambda *_: pytest.fail("our own layers were run"))
    model, rows = small()
    whole = gradients(model, rows, recipe=Recipe(compile=compile, head="whole"))
    pieces = gradients(model, rows, recipe=Recipe(compile=compile, head="pieces"))
    assert run == ["_loss", "_states"] and options == 4 * [{"dynamic": False, "mode": mode}]
    monkeypatch.undo()
    agree(whole, gradients(model, rows), 1e-4)
    agree(pieces, whole, 1e-4)


def test_under_cuda_graphs_gradients_stay_where_they_are_and_the_run_is_the_same(tmp_path, monkeypatch):
    stream = tiny_stream(tmp_path)
    plain = Loop(spec(), RUN, stream, 4, 2)
    monkeypatch.setattr(Recipe, "resolved", lambda *_: Recipe(compile="graphs", head="whole"))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    graphs = Loop(spec(), RUN, stream, 4, 2)
    places = [parameter.grad.data_ptr() for parameter in graphs.parameters]
    for run in (plain, graphs):
        for _ in range(3):
            run.advance()
    assert [parameter.grad.data_ptr() for parameter in graphs.parameters] == places and len(begun) == 6
    assert not any(parameter.grad.any() for parameter in graphs.parameters)
    assert all(parameter.grad is None for parameter in plain.parameters)
    for a, b in zip(plain.parameters, graphs.parameters, strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()
    assert (plain.layers, graphs.layers) == ("own", "transformers")


@pytest.mark.parametrize(
    ("asked", "device", "size", "vocab_size", "compile", "head"),
    [
        (Recipe(), CUDA, "10M", 512, "off", "whole"),
        (Recipe(compile="auto"), CPU, "10M", LARGE, "off", "pieces"),
        (Recipe(compile="auto"), CUDA, "1M", 512, "graphs", "whole"),
        (Recipe(compile="auto"), CUDA, "10M", LARGE - 1, "on", "whole"),
        (Recipe(compile="graphs", head="whole"), CUDA, "10M", LARGE, "graphs", "whole"),
    ],
)
def test_auto_follows_device_and_size(asked, device, size, vocab_size, compile, head):
    found = asked.resolved(size_to_spec(size, vocab_size=vocab_size, context_length=64), device)
    assert (found.compile, found.head) == (compile, head)
    assert found.resolved(size_to_spec("1M", vocab_size=512, context_length=64), device) == found


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    with pytest.raises(SpecError, match="compile='graphs' needs a CUDA device, this is cpu"):
        Recipe(compile="graphs").resolved(spec(), CPU)
    monkeypatch.setattr(recipes.shutil, "which", lambda name: None)
    with pytest.raises(SpecError, match=r"needs a C\+\+ compiler"):
        Recipe(compile="on").resolved(spec(), CPU)
    assert Recipe(compile="on").resolved(spec(), CUDA).compile == "on"
    with pytest.raises(SpecError, match="compile must be one of off, on, graphs, auto, got 'fast'"):
        Recipe(compile="fast")


def test_the_record_says_how_a_step_was_computed(tmp_path):
    stream = tiny_stream(tmp_path)
    assert Loop(spec(), RUN, stream, 4).layers == "own"
    run = Loop(spec(), replace(RUN, precision="bf16"), stream, 4)
    assert run.layers == "transformers" and run.recipe.record() == {
        "compile": "off",
        "head": "whole",
        "products": "highest",
    }
