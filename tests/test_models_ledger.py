"""What a run is said to have cost follows from its record, and what is unknown says so."""

import numpy as np
import pytest
import torch

from models import ledger as module
from models.data import write_stream
from models.ledger import PUBLISHED_PEAKS, ledger, matmul_flops_per_second, peak_memory_bytes, published_peak
from models.spec import TrainSpec, size_to_spec
from models.tokenizer import train_tokenizer
from models.train import train

MODEL = size_to_spec("1x8", vocab_size=300, context_length=16)


@pytest.fixture
def ceiling(monkeypatch):
    monkeypatch.setattr(module, "matmul_flops_per_second", lambda device, precision: 5e10)


def record(**changes):
    return {
        "device": "cpu",
        "precision": "fp32",
        "step": 3,
        "tokens": 6000,
        "cpu_seconds": 2.0,
        "wall_seconds": 8.0,
        "peak_memory_bytes": 123,
    } | changes


def test_speeds_follow_from_the_record_by_hand(ceiling):
    found = ledger(MODEL, record())
    # 1 layer: 4 * 8 * 8 + 3 * 8 * 24 + 16 weights, 8 of the last norm, 2,400 of the head; attention 6 * 1 * 8 * 16.
    flops_per_token = 6 * (256 + 576 + 16 + 8 + 2400) + 768
    assert found["tokens_per_second"] == 3000
    assert found["flops_per_second"] == 3000 * flops_per_token
    assert found["utilisation_of_matmul"] == pytest.approx(3000 * flops_per_token / 5e10)
    assert (found["device_name"], found["busy_seconds"]) == ("CPU", 2.0)


def test_before_the_first_step_there_is_no_speed(ceiling):
    found = ledger(MODEL, record(step=0, tokens=0, cpu_seconds=0.1))
    speeds = ("busy_seconds", "tokens_per_second", "flops_per_second", "utilisation_of_matmul", "utilisation_of_peak")
    assert [found[key] for key in speeds] == [None] * 5


def test_a_gpu_is_counted_in_wall_seconds_against_its_data_sheet(ceiling, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    found = ledger(MODEL, record(device="cuda:0", precision="bf16"))
    assert (found["tokens_per_second"], found["peak_memory_bytes"]) == (750, 123)
    assert found["utilisation_of_peak"] == pytest.approx(found["flops_per_second"] / 989e12)
    assert found["peak_unknown"] is None


def test_four_gpus_are_held_against_four_and_four_cpu_processes_against_their_seconds(ceiling, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    one, four = (ledger(MODEL, record(device="cuda:0", precision="bf16", processes=n)) for n in (1, 4))
    assert four["tokens_per_second"] == one["tokens_per_second"]
    for name in ("utilisation_of_peak", "utilisation_of_matmul"):
        assert four[name] == pytest.approx(one[name] / 4)
    # The CPU seconds of a record are those of all its processes.
    assert ledger(MODEL, record(processes=4)) == ledger(MODEL, record())


@pytest.mark.parametrize("name", ["CPU", "NVIDIA H200 MIG 1g.18gb", "a card of tomorrow"])
def test_an_unlisted_device_has_no_peak_but_a_reason(name):
    peak, reason = published_peak(name, "bf16")
    assert peak is None and name in reason


def test_every_listed_card_has_both_precisions_and_bf16_is_the_faster():
    for name, peaks in PUBLISHED_PEAKS.items():
        assert published_peak(name, "bf16") == (peaks["bf16"], None)
        assert peaks["bf16"] > peaks["fp32"] > 1e13


def test_the_ceiling_is_measured_once_and_no_product_beats_it_by_much():
    import time

    matmul_flops_per_second.cache_clear()
    begin = time.process_time()
    found = matmul_flops_per_second("cpu", "fp32")
    first = time.process_time() - begin
    assert matmul_flops_per_second("cpu", "fp32") == found
    assert time.process_time() - begin - first < 0.01 < first
    a = torch.randn(512, 512)
    begin = time.process_time()
    for _ in range(10):
        a @ a
    # Other work on the machine may slow either; a product timed wrongly would be off by far more.
    assert 0.05 < 10 * 2 * 512**3 / (time.process_time() - begin) / found < 3


def test_peak_memory_grows_with_what_was_held():
    before = peak_memory_bytes("cpu")
    held = np.ones(before // 8 + 2**24)  # as many bytes again as the process has ever held, and 128 MiB
    assert peak_memory_bytes("cpu") >= before + 2**26
    del held


def test_the_records_of_a_run_are_enough(tmp_path, ceiling):
    rows = np.random.default_rng(0).integers(0, 280, (8, 17))
    stream = write_stream(tmp_path / "s.bin", rows, 17, {})
    spec = TrainSpec(tokens=128, batch_tokens=32, peak_lr=0.01, n_checkpoints=2)
    before = peak_memory_bytes("cpu")
    records = train(MODEL, spec, stream, train_tokenizer(["a b c"], 280), tmp_path / "run")
    found = ledger(MODEL, records[-1])
    assert before <= found["peak_memory_bytes"] <= peak_memory_bytes("cpu")
    assert found["tokens_per_second"] == 128 / records[-1]["cpu_seconds"]
    assert 0 < found["utilisation_of_matmul"] < 1 and found["utilisation_of_peak"] is None
