"""An elbow that was put into synthetic curves is found, and so is its place at no examples; else a reason is given."""

import numpy as np
import pytest

from harness.elbows import Elbow, elbow, forecast

SIZES = np.logspace(3, 7, 9)


def curve(at: float, *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    rise = 0.5 + 0.15 * np.maximum(0, np.log10(SIZES) - at)
    return rise + np.random.default_rng(seed).normal(0, noise, len(SIZES))


@pytest.mark.parametrize("at", [4.0, 5.3])
def test_a_known_elbow_is_found(at: float) -> None:
    assert elbow(16, SIZES, curve(at), chance=0.5, error=0.01).x == pytest.approx(at, abs=0.03)
    assert elbow(16, SIZES, curve(at, noise=0.01), chance=0.5, error=0.01).x == pytest.approx(at, abs=0.5)


@pytest.mark.parametrize(("at", "told"), [(9.0, "above all sizes"), (1.0, "below all sizes")])
def test_an_elbow_outside_the_sizes_is_said_to_be(at: float, told: str) -> None:
    found = elbow(16, SIZES, curve(at), chance=0.5, error=0.01)
    assert found.x is None
    assert told in found.reason


def test_too_few_sizes_show_no_elbow() -> None:
    assert "3 sizes" in elbow(16, SIZES[:3], curve(4.0)[:3], chance=0.5, error=0.01).reason


def test_a_known_shift_is_extrapolated_to_no_examples() -> None:
    true, shift = 6.0, -0.2
    elbows = [elbow(n, SIZES, curve(true + shift * np.log2(1 + n)), chance=0.5, error=0.01) for n in (7, 31, 127, 511)]
    found = forecast(elbows)
    assert found.conclusive
    assert found.shift == pytest.approx(shift, abs=0.02)
    assert found.x == pytest.approx(true, abs=0.1)
    assert found.low <= found.x <= found.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, hits, tries = np.random.default_rng(0), 0, 400
    for _ in range(tries):
        points = [Elbow(n, 6 - 0.2 * np.log2(1 + n) + draw.normal(0, 0.03)) for n in (7, 31, 127, 511)]
        found = forecast(points)
        assert found.conclusive
        hits += found.low <= 6 <= found.high
    assert 0.91 < hits / tries < 0.985


def test_elbows_that_do_not_carry_a_line_are_inconclusive_with_a_reason() -> None:
    two = forecast([Elbow(16, 5.0), Elbow(64, 4.5), Elbow(256, None, "no rise")])
    still = forecast([Elbow(16, 5.0), Elbow(64, 5.05), Elbow(256, 5.0)])
    for found, told in ((two, "256 examples: no rise"), (still, "do not move")):
        assert not found.conclusive
        assert told in found.reason
