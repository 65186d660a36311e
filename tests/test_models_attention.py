"""Which kernel runs: the fastest that is proved right, and never another than the one asked for."""

import pytest
import torch

from models import attention
from models.attention import Capabilities, choose, tiny_model_results
from models.spec import SpecError

ALL = frozenset({"flash_attention_2", "flash_attention_3", "flash_attention_4"})
NONE: frozenset[str] = frozenset()
HOPPER = Capabilities("cuda", (9, 0), ALL)
AMPERE = Capabilities("cuda", (8, 0), ALL)
CPU = Capabilities("cpu", None, ALL)


def right(name, device, dtype, head_dim):
    return {"output": torch.tensor([1.0, 2.0]), "gradient": torch.tensor([3.0])}


def wrong_in(broken, *, error=None, key="gradient"):
    def compute(name, device, dtype, head_dim):
        if name != broken:
            return right(name, device, dtype, head_dim)
        if error is not None:
            raise error
        return right(name, device, dtype, head_dim) | {key: torch.tensor([3.5])}

    return compute


def pick(requested="auto", capabilities=HOPPER, dtype=torch.bfloat16, head_dim=64, compute=right):
    return choose(
        requested,
        device=torch.device("cpu"),
        dtype=dtype,
        head_dims=head_dim if isinstance(head_dim, tuple) else (head_dim,),
        capabilities=capabilities,
        compute=compute,
    )


def gpu(major, minor=0, flash=NONE):
    return Capabilities("cuda", (major, minor), frozenset(flash))


@pytest.mark.parametrize(
    ("capabilities", "expected", "cudnn_first"),
    [
        (HOPPER, "flash_attention_3", False),
        (gpu(9, flash={"flash_attention_2", "flash_attention_4"}), "sdpa", True),
        (gpu(9), "sdpa", True),
        (gpu(10, flash=ALL), "flash_attention_4", False),
        (gpu(10, flash={"flash_attention_3"}), "sdpa", True),
        (AMPERE, "flash_attention_2", False),
        (gpu(8, 9), "sdpa", False),
        (gpu(12, flash=ALL), "flash_attention_2", False),
        (gpu(12), "sdpa", False),
        (gpu(7, 5, ALL), "sdpa", False),
        (CPU, "sdpa", False),
    ],
)
def test_the_order_follows_what_the_machine_offers(capabilities, expected, cudnn_first):
    found = pick(capabilities=capabilities)
    assert found.implementation == expected
    assert (found.backends[:1] == ("CUDNN_ATTENTION",)) == cudnn_first


def test_every_better_kernel_is_rejected_with_a_reason():
    found = pick(capabilities=gpu(8, flash={"flash_attention_3", "flash_attention_4"}))
    assert found.implementation == "sdpa"
    assert "9.x, this device has 8.0" in found.rejected["flash_attention_3"]
    assert "8.0" in found.rejected["flash_attention_4"]
    assert "flash-attn is not installed" in found.rejected["flash_attention_2"]
    assert pick(capabilities=CPU).rejected == {} and list(pick(capabilities=gpu(9)).rejected) == ["flash_attention_3"]


def test_torchs_own_kernels_are_proved_on_a_gpu_too():
    broken = wrong_in("sdpa+cudnn", error=RuntimeError("No available kernel."))
    found = pick(capabilities=gpu(9), compute=broken)
    assert (found.implementation, found.backends) == ("sdpa", ())
    assert "No available kernel" in found.rejected["sdpa+cudnn"]
    found = pick(capabilities=gpu(7, 5), compute=wrong_in("sdpa"))
    assert found.implementation == "eager" and "wrong numbers" in found.rejected["sdpa"]
    with pytest.raises(SpecError, match="attention='sdpa' cannot be used: wrong numbers"):
        pick("sdpa", capabilities=gpu(7, 5), compute=wrong_in("sdpa"))


def test_a_chosen_order_of_kernels_holds_while_attention_runs():
    from torch.nn.attention import _cur_sdpa_kernel_backends

    before = _cur_sdpa_kernel_backends(with_priority=True)
    chosen = pick(capabilities=gpu(9))
    with chosen.kernels():
        assert [backend.name for backend in _cur_sdpa_kernel_backends(with_priority=True)] == list(chosen.backends)
    with pick(capabilities=CPU).kernels():
        assert _cur_sdpa_kernel_backends(with_priority=True) == before
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_package_that_transformers_would_replace_from_the_network_does_not_count(name, monkeypatch):
    """Importable is not enough: where transformers refuses the version it asks the hub for a kernel instead."""
    monkeypatch.setattr(attention.transformers_utils, f"is_flash_attn_{name[-1]}_available", lambda: True)
    assert Capabilities.of(torch.device("cpu")).flash == {name}
    monkeypatch.delattr(attention.transformers_utils, f"is_flash_attn_{name[-1]}_available")  # an older transformers
    assert Capabilities.of(torch.device("cpu")).flash == NONE


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 64), (torch.bfloat16, 12), (torch.bfloat16, 512)])
def test_a_type_or_head_size_without_a_kernel_falls_to_sdpa(dtype, head_dim):
    assert pick(dtype=dtype, head_dim=head_dim).implementation == "sdpa"


def test_a_family_has_the_kernel_that_all_its_head_sizes_have():
    assert pick(head_dim=(64, 16)).implementation == "flash_attention_3"
    found = pick(head_dim=(64, 20))  # as the named size 300k
    assert found.implementation == "sdpa" and "a model has 20" in found.rejected["flash_attention_3"]
    with pytest.raises(SpecError, match="a model has 20"):
        pick("flash_attention_3", head_dim=(64, 20))

    def wrong_for_large(name, device, dtype, head_dim):
        return (
            right(name, device, dtype, head_dim)
            if head_dim < 64
            else wrong_in("flash_attention_3")(name, device, dtype, 0)
        )

    assert pick(head_dim=(16, 64), compute=wrong_for_large).implementation == "sdpa"
    assert pick(head_dim=(16, 32), compute=wrong_for_large).implementation == "flash_attention_3"


@pytest.mark.parametrize("key", ["output", "gradient"])
def test_a_kernel_with_wrong_numbers_is_rejected(key):
    found = pick(compute=wrong_in("flash_attention_3", key=key))
    assert (found.implementation, found.backends[0]) == ("sdpa", "CUDNN_ATTENTION")
    assert "wrong numbers" in found.rejected["flash_attention_3"]


def test_a_kernel_that_returns_nan_or_fails_is_rejected():
    def nan(name, *rest):
        return right(name, *rest) | ({"output": torch.tensor([float("nan"), 1])} if name == "flash_attention_3" else {})

    assert "wrong numbers" in pick(compute=nan).rejected["flash_attention_3"]
    broken = wrong_in("flash_attention_3", error=RuntimeError("no kernel image\ndetails"))
    assert pick(compute=broken).rejected["flash_attention_3"].endswith("RuntimeError: no kernel image")


def test_an_explicit_name_is_used_or_refused_but_never_replaced():
    assert pick("flash_attention_2").implementation == "flash_attention_2"
    assert pick("flash_attention_4").implementation == "flash_attention_4"
    assert pick("eager", capabilities=CPU).implementation == "eager"
    with pytest.raises(SpecError, match="needs a CUDA device"):
        pick("flash_attention_2", capabilities=CPU)
    with pytest.raises(SpecError, match="wrong numbers"):
        pick("flash_attention_2", compute=wrong_in("flash_attention_2"))
    with pytest.raises(SpecError, match="auto, sdpa"):
        pick("flash")


def test_on_this_cpu_sdpa_is_chosen_and_is_right():
    device = torch.device("cpu")
    assert choose("auto", device=device, dtype=torch.float32, head_dims=[8]).implementation == "sdpa"
    expected = tiny_model_results("eager", device, torch.float32, 8)
    found = tiny_model_results("sdpa", device, torch.float32, 8)
    assert expected.keys() == found.keys() and len(found) > 5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_choice_is_made_from_real_kernels():
    found = choose("auto", device=torch.device("cuda"), dtype=torch.bfloat16, head_dims=[64])
    assert found.implementation in ("flash_attention_4", "flash_attention_3", "flash_attention_2", "sdpa")
    assert all(found.rejected.values())
