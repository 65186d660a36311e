"""Links: an artefact made of smooth margins is explained, a true jump is not, and what cannot be told stays open."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import norm

from harness.curves import Constants
from harness.fits import LN81
from harness.links import (
    COLUMNS,
    answer_link,
    choice_link,
    curve_link,
    curve_links_table,
    links_table,
    log_odds,
    logistic_regression,
    margins,
)
from harness.store import StoreError
from harness.threshold import Link, judge, smooth_curve
from harness.width import build_curve
from tasks.metrics import METRICS, Cell

BATTERY = Path(__file__).parent.parent.parent / "shared" / "reference" / "synthetic_battery"
K = Constants()
Shape = Callable[[np.ndarray], np.ndarray]  # decades from the smallest size -> 0..1


def rise(middle: float, width: float) -> Shape:
    return lambda x: expit(LN81 * (x - middle) / width)


def grid(*, sizes: int = 8, seeds: int = 3, decades: float = 2.6) -> tuple[np.ndarray, np.ndarray]:
    """Decades (R,) and names (R,) of every run."""
    x = np.repeat(np.linspace(0, decades, sizes), seeds)
    return x, np.array([f"x{v:.2f}" for v in x])


def by_margin(z: np.ndarray, rng: np.random.Generator, *, n: int = 256) -> np.ndarray:
    """Margins (R, n) about z: effects of document and seed, and noise."""
    own = rng.normal(0, 0.7, n) + rng.normal(0, 0.12, (len(z), 1)) + 0.6 * rng.standard_t(6, (len(z), n))
    return z[:, None] + own


def choices(z: Shape, draw: int = 0, *, n: int = 256, **options: Any) -> Link:
    x, size = grid(**options)
    margin = by_margin(z(x), np.random.default_rng(draw), n=n)
    return choice_link(11 + x, size, margin, (margin > 0).astype(float))


def answers(nats: Shape, draw: int = 0, *, n_tokens: int = 6, n: int = 256) -> Link:
    """Answers whose tokens are right where their probability passes a bar of the document's own; `nats` per token."""
    x, size = grid()
    rng = np.random.default_rng(draw)
    runs = nats(x) * np.exp(rng.normal(0, 0.08, len(x)))
    spread = rng.normal(0, 0.3, (n, 1)) + rng.normal(0, 0.3, (n, n_tokens)) + rng.normal(0, 0.4, (len(x), n, n_tokens))
    each = runs[:, None, None] * np.exp(spread)
    right = (np.exp(-each) > rng.uniform(0.15, 0.5, each.shape)).all(axis=2).astype(float)
    odds = -np.log(np.expm1(np.clip(each.sum(axis=2), 1e-7, 700)))
    return answer_link(11 + x, size, odds, right, np.ones_like(right))


SMOOTH: dict[str, Shape] = {
    "straight": lambda x: x / 2.6,
    "logistic of 1.2 decades": rise(1.4, 1.2),
    "logistic of 2 decades": rise(1.1, 2.0),
    "accelerating": lambda x: np.expm1(1.5 * x) / math.expm1(3.9),
    "saturating": lambda x: np.expm1(-1.5 * x) / math.expm1(-3.9),
}


# ---- the parts ----


def test_margins_and_log_odds_equal_hand_computed_ones() -> None:
    nan = math.nan
    choice = Cell(
        logprobs=np.array([[-1.0, -3.0, -2.0], [-4.0, -1.0, nan]]),
        n_tokens=np.array([[1.0, 3.0, 1.0], [2.0, 1.0, nan]]),
        answer=np.array([0, 0]),
    )
    assert margins(choice, None).tolist() == [1.0, -3.0]
    assert margins(choice, "n_tokens").tolist() == [0.0, -1.0]  # -1 against -3 / 3; -4 / 2 against -1
    answer = Cell(logprobs=np.array([[math.log(0.8), math.log(0.1)]]), n_tokens=np.array([[2.0, 1.0]]))
    assert log_odds(answer, per_token=False) == pytest.approx([math.log(4)])
    p = math.sqrt(0.8)
    assert log_odds(answer, per_token=True) == pytest.approx([math.log(p / (1 - p))])
    assert np.isfinite(log_odds(Cell(logprobs=np.array([[0.0]]), n_tokens=np.array([[1.0]])), per_token=False)).all()


def test_a_positive_margin_is_what_accuracy_counts() -> None:
    rng = np.random.default_rng(0)
    cell = Cell(
        logprobs=-rng.exponential(2, (500, 4)),
        n_tokens=rng.integers(1, 5, (500, 4)).astype(float),
        answer=rng.integers(0, 4, 500),
    )
    assert np.array_equal(margins(cell, None) > 0, METRICS["acc"].function(cell)[0] == 1)
    assert np.array_equal(margins(cell, "n_tokens") > 0, METRICS["acc_token"].function(cell)[0] == 1)


def test_logistic_regression_recovers_the_line_it_was_drawn_from() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, 40_000)
    a, b = logistic_regression(x, (rng.random(40_000) < expit(0.7 + 1.4 * x)).astype(float), np.ones(40_000))
    assert (a, b) == pytest.approx((0.7, 1.4), abs=0.06)
    # Scaling all weights changes nothing; a share is as good as that many documents.
    half = logistic_regression(np.array([0.0, 1.0, 2.0]), np.array([0.2, 0.5, 0.8]), np.full(3, 7.0))
    assert half == pytest.approx((-math.log(4), math.log(4)), abs=5e-3)  # the penalty's share
    assert math.isfinite(logistic_regression(np.arange(8.0), (np.arange(8) > 3).astype(float), np.ones(8))[1])


def test_sampling_gives_the_identity_between_probability_and_share_right() -> None:
    x, size = grid(sizes=5, seeds=4)
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1.5, (len(x), 2000)) - 2 + 2 * x[:, None]
    right = (rng.random(odds.shape) < expit(odds)).astype(float)
    link = answer_link(11 + x, size, odds, right, np.ones_like(odds))
    assert (link.params["a"], link.params["b"]) == pytest.approx((0, 1), abs=0.03)
    assert link.at(np.zeros(len(x))) == pytest.approx(expit(odds).mean(axis=1), abs=0.01)


def test_weights_count_in_metric_prediction_and_location() -> None:
    x, size = grid(sizes=2, seeds=1)
    odds = np.array([[0.0, 2.0], [1.0, 3.0]])
    link = answer_link(11 + x, size, odds, expit(odds), np.array([[1.0, 3.0], [1.0, 3.0]]))
    assert link.z.tolist() == [1.5, 2.5]
    assert link.at(np.zeros(2)) == pytest.approx(link.y, abs=1e-3)
    assert link.y == pytest.approx([(expit(0) + 3 * expit(2)) / 4, (expit(1) + 3 * expit(3)) / 4])


def test_normal_margins_give_the_normal_curve_of_their_standardised_mean() -> None:
    rng = np.random.default_rng(0)
    s, size = 11 + np.arange(6) / 2, np.arange(6).astype(str)
    margin = rng.normal(0, [[1], [2], [1], [3], [1], [2]], (6, 20_000)) + np.linspace(-2, 4, 6)[:, None]
    link = choice_link(s, size, margin, (margin > 0).astype(float))
    assert link.at(np.zeros(6)) == pytest.approx(norm.cdf(link.z), abs=0.01)
    assert link.at(np.full(6, 0.5)) == pytest.approx(norm.cdf(link.z + 0.5), abs=0.01)
    assert link.z == pytest.approx(margin.mean(axis=1) / margin.std(axis=1))


def test_groups_of_eight_follow_from_the_same_margins() -> None:
    rng = np.random.default_rng(0)
    s, size = 11 + np.arange(5) / 2, np.arange(5).astype(str)
    margin = rng.normal(np.linspace(0, 3, 5)[:, None], 1, (5, 400))
    logprobs = np.stack([margin, np.zeros_like(margin)], axis=2)
    cells = [Cell(logprobs=v, n_tokens=np.ones((400, 2)), answer=np.zeros(400, dtype=int)) for v in logprobs]
    values = np.array([METRICS["acc_all8"].function(cell)[0] for cell in cells])
    link = choice_link(s, size, margin, values, power=8)
    assert link.at(np.zeros(5)) == pytest.approx(link.y, abs=0.06)
    assert np.ptp(link.y) > 0.9


def test_the_error_of_a_gap_is_that_of_repeated_draws() -> None:
    drawn = [choices(lambda x: -1 + x, i, sizes=5, seeds=1) for i in range(200)]
    gaps = np.array([link.y - link.at(np.zeros(5)) for link in drawn])
    stated = np.sqrt(np.mean([link.gap_var for link in drawn], axis=0))
    assert gaps.std(axis=0) == pytest.approx(stated, rel=0.3)


def a_curve(values: np.ndarray, x: np.ndarray, sd: float = 0.02) -> Any:
    rng = np.random.default_rng(0)
    runs = [v + rng.normal(0, sd, 3) for v in values]
    return build_curve(x, runs, np.full(len(x), 1e-6), n_docs=256, paired=True)


@pytest.mark.parametrize("shape", SMOOTH.values(), ids=SMOOTH)
def test_no_jump_is_found_beside_a_smooth_curve(shape: Shape) -> None:
    x = np.linspace(0, 2.6, 8)
    found = smooth_curve(a_curve(shape(x), x), 1.0, rise(1.3, 0.1)(x))
    assert found.jump < 0.15
    assert found.hi < 0.35
    assert np.abs(found.fitted - shape(x)).max() < 0.05
    assert found.miss > 0.2


def test_a_jump_is_measured_alone_and_beside_a_slope() -> None:
    x, step = np.linspace(0, 2.6, 8), rise(1.3, 0.1)(np.linspace(0, 2.6, 8))
    alone = smooth_curve(a_curve(step, x), 1.0, step)
    assert alone.lo > 0.8
    half = smooth_curve(a_curve((step + x / 2.6) / 2, x), 1.0, step)
    assert half.lo < 0.5 < half.hi
    assert half.lo > 0.2
    assert smooth_curve(a_curve(step, x), 1.0, SMOOTH["logistic of 1.2 decades"](x)).miss < 0.02


# ---- the answer ----


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_margins_through_the_threshold_explain_the_jump(name: str) -> None:
    found = Counter(judge(choices(lambda x: -8 + 16 * SMOOTH[name](x), i), K)["holds"] for i in range(10))
    assert found[False] == 0
    assert found[True] >= 7


def test_log_probabilities_that_fall_as_a_power_explain_exact_match() -> None:
    found = Counter(judge(answers(lambda x: 2 * 10 ** (-1.2 * x), i), K)["holds"] for i in range(10))
    assert found[False] == 0
    assert found[True] >= 7


@pytest.mark.parametrize("middle", [1.1, 1.3, 1.7])
def test_margins_that_jump_are_not_explained_by_the_threshold(middle: float) -> None:
    notes = [judge(choices(lambda x: -1 + 3 * rise(middle, 0.2)(x), i), K) for i in range(10)]
    found = Counter(row["holds"] for row in notes)
    assert found[True] == 0
    assert found[False] >= 8
    assert not any("No one function" in row["note"] for row in notes)


def test_answers_whose_log_probability_jumps_are_not_explained() -> None:
    nats: Shape = lambda x: 2.5 * np.exp(-4.5 * rise(1.3, 0.2)(x))  # noqa: E731
    found = Counter(judge(answers(nats, i), K)["holds"] for i in range(10))
    assert found[True] == 0
    assert found[False] >= 7


def test_a_jump_right_across_the_threshold_is_seen_though_the_metric_follows() -> None:
    # With the jump smoothed out the margins still pass the threshold between the same two sizes.
    row = judge(choices(lambda x: -9 + 18 * rise(1.3, 0.05)(x)), K)
    assert row["holds"] is False
    assert row["max_gap"] < row["max_gap_limit"]
    assert "jumps with the metric: beside a smooth curve a jump of" in row["note"]


def test_a_small_jump_that_carries_the_metric_far_is_seen_in_the_metric() -> None:
    # Smoothed out, the margins would lift the metric before and after the jump by more than their noise allows.
    row = judge(choices(lambda x: -1 + 3 * rise(1.3, 0.1)(x)), K)
    assert row["holds"] is False
    assert row["max_gap"] > row["max_gap_limit"]
    assert "not smooth: the link holds, but a smooth movement gives" in row["note"]


def test_a_link_that_changes_with_size_fails() -> None:
    x, size = grid()
    rng = np.random.default_rng(0)
    margin = by_margin(-3 + 6 * x / 2.6, rng)
    # From the fifth size on a fifth of the documents is far ahead and pulls the mean up; the others stay behind.
    late = x > 1.4
    margin[late, :50] += 12.0
    margin[late, 50:] -= 12.0 * 50 / 206
    row = judge(choice_link(11 + x, size, margin, (margin > 0).astype(float)), K)
    assert row["holds"] is False
    assert "No one function of the continuous quantity gives the metric: at size x" in row["note"]
    assert row["p_lack_of_fit"] < 0.001


def test_a_metric_that_rises_smoothly_itself_needs_no_explanation() -> None:
    row = judge(choices(lambda x: -1 + 2 * x / 2.6), K)
    assert row["holds"] is None
    assert row["note"] == "Nothing to explain: the link holds, and the metric itself rises smoothly."
    assert row["p_lack_of_fit"] > 0.01


@pytest.mark.parametrize("level", [-0.7, 0.0, 1.0])
def test_a_flat_metric_has_nothing_to_explain(level: float) -> None:
    rows = [judge(choices(lambda x: level + 0 * x, i), K) for i in range(10)]
    assert {row["note"] for row in rows} == {"Nothing to explain: the metric rises by less than 0.1."}
    assert all(row["holds"] is None and math.isnan(row["max_gap"]) for row in rows)


def test_noise_alone_is_never_called_explained() -> None:
    noise = np.random.default_rng(0).normal(0, 0.15, (20, 8)).repeat(3, axis=1)
    tried = [judge(choices(lambda x, z=z: z, i), K)["holds"] for i, z in enumerate(noise)]
    assert not any(holds is True for holds in tried)


@pytest.mark.parametrize(
    ("options", "had"),
    [
        ({"sizes": 4}, "4 sizes over 2.60 decades and 256 documents, needs 5, 1.5 and 30"),
        ({"decades": 1.2}, "8 sizes over 1.20 decades"),
        ({"n": 20}, "and 20 documents"),
    ],
)
def test_too_little_is_left_open_with_what_is_needed(options: dict[str, Any], had: str) -> None:
    row = judge(choices(lambda x: -8 + 16 * rise(1.3, 0.2)(x), **options), K)
    assert row["holds"] is None
    assert row["note"].startswith("Too little to tell: ")
    assert had in row["note"]


def test_what_is_smooth_is_set_by_the_sharp_width() -> None:
    link = choices(lambda x: -6 + 12 * rise(1.3, 0.7)(x))
    assert judge(link, Constants(sharp_width=0.5))["holds"] is True
    assert judge(link, Constants(sharp_width=1.5))["holds"] is False


def test_the_row_holds_predictions_by_size() -> None:
    link = choices(lambda x: -8 + 16 * x / 2.6)
    row = judge(link, K)
    points = json.loads(row["predicted"])
    assert [point["size"] for point in points] == list(dict.fromkeys(link.size))
    assert [point["flops"] for point in points] == pytest.approx(10 ** np.linspace(11, 13.6, 8))
    assert [point["observed"] for point in points] == pytest.approx(link.y.reshape(8, 3).mean(axis=1))
    assert all(0 <= point["lo"] <= point["predicted"] <= point["hi"] <= 1 for point in points)
    gaps = [abs(point["observed"] - point["predicted"]) for point in points]
    assert min(abs(gap - row["max_gap"]) for gap in gaps) < 1e-12
    assert row["max_gap"] <= row["max_gap_limit"]


# ---- curves alone ----


def curves(y: np.ndarray, z: np.ndarray, *, n: int = 500, noise: float = 0.0, **options: Any) -> Link:
    """The link of a metric's expected values y (R,), counted over n documents, to a partner z (R,) with noise."""
    rng = np.random.default_rng(0)
    seen = rng.binomial(n, y) / n
    share = (seen * n + 1) / (n + 2)
    options = {"per_token": False, "n_items": n, "y_var": share * (1 - share) / n, "z_var": np.zeros(len(z))} | options
    x, size = grid()
    return curve_link(11 + x, size, seen, z + rng.normal(0, 1, len(z)) * noise, **options)


@pytest.mark.parametrize("length", [3, 12, 30])
def test_the_length_is_recovered_from_exact_match_and_log_probability(length: int) -> None:
    z = -2 * 10 ** (-1.1 * grid()[0])
    link = curves(np.exp(length * z), z, noise=0.02 * np.abs(z), per_token=True)
    assert link.form == "exp(-(-l z)^g)"
    assert link.params["l"] == pytest.approx(length, rel=0.1)
    assert link.params["g"] == pytest.approx(1, abs=0.1)
    assert judge(link, K)["holds"] is not False


def test_noise_in_proportion_to_the_partner_does_not_blur_where_it_is_near_zero() -> None:
    z = -2 * 10 ** (-1.1 * grid()[0])
    link = curves(np.exp(30 * z), z, noise=0.1 * np.abs(z), per_token=True)
    assert np.sqrt(link.gap_var).max() < 0.1
    assert "Too little to tell" not in judge(link, K)["note"]


def test_noise_of_the_partner_alone_does_not_bend_the_link() -> None:
    z = -0.3 * 10 ** (-0.6 * grid()[0])
    link = curves(np.exp(30 * z), z, noise=0.01, per_token=True)
    assert link.params["l"] == pytest.approx(30, rel=0.25)
    assert judge(link, K)["holds"] is not False


def test_a_jump_of_the_metric_over_a_smooth_partner_is_no_known_link() -> None:
    x = grid()[0]
    y = 0.02 + 0.9 * rise(1.3, 0.2)(x)
    row = judge(curves(y, -2 * 10 ** (-0.7 * x), per_token=True), K)
    assert row["holds"] is False
    assert "No one function" in row["note"]
    row = judge(curves(0.25 + 0.7 * rise(1.3, 0.2)(x), -1.4 + 0.45 * x, chance=0.25, spread=0.5), K)
    assert row["holds"] is False
    assert "No one function" in row["note"]


def test_documents_much_alike_may_cross_together() -> None:
    x = grid()[0]
    z = -1.4 + 0.45 * x
    y = 0.25 + 0.7 * norm.cdf((z + 0.8) / 0.12)
    assert judge(curves(y, z, chance=0.25, spread=0.12), K)["holds"] is True
    assert judge(curves(y, z, chance=0.25, spread=0.6), K)["holds"] is False
    row = judge(curves(y, z, chance=0.25), K)
    assert row["holds"] is None
    assert "spread over documents is not known" in row["note"]


def test_a_partner_that_jumps_with_the_metric_keeps_the_link_but_is_not_smooth() -> None:
    x = grid()[0]
    z = -1.4 + 1.3 * rise(1.3, 0.15)(x)
    row = judge(curves(0.25 + 0.7 * expit(8 * (z + 0.8)), z, chance=0.25, spread=0.2, noise=0.01), K)
    assert row["holds"] is False
    assert "The link holds, but" in row["note"] or "not smooth: the link holds, but" in row["note"]
    assert row["p_lack_of_fit"] > 0.01


def test_an_error_rate_is_linked_downwards() -> None:
    x = grid()[0]
    z = -1.4 + 0.45 * x
    link = curves(1 - norm.cdf((z + 0.8) / 0.12), z, spread=0.12, higher_is_better=False)
    assert link.params["b"] < 0
    assert judge(link, K)["holds"] is True


def battery() -> pd.DataFrame:
    """Read the reference curves as a scores table."""
    table = pd.read_csv(BATTERY / "curves.csv.gz").rename(columns={"n_examples": "n"})
    partner = table["metric"].map({"exact_match": "token_logprob"})
    same = {"level": "", "is_last": True, "higher_is_better": True, "item_se": math.nan, "partner": partner}
    return table.assign(continuous=table["metric"] == "token_logprob", **same)


def test_the_reference_exact_matches_are_powers_of_their_token_probability() -> None:
    if not BATTERY.is_dir():
        pytest.skip(f"the reference curves are not at {BATTERY}")
    table = curve_links_table(battery())
    truth = pd.read_csv(BATTERY / "labels.csv").set_index(["task", "metric"])["note"]
    length = [float(truth[task, "exact_match"].split("**")[1]) for task in table["task"]]
    found = table["params"].map(lambda params: json.loads(params)["l"])
    assert len(table) == 5
    assert found.to_numpy() == pytest.approx(length, rel=0.25)
    assert (table["p_lack_of_fit"] > 0.05).all()
    assert not (table["holds"] == False).any()  # noqa: E712 (None counts as neither)


# ---- tables ----

SIZES, SEEDS, DOCS = 6, 2, 60


def a_sweep(z: Shape) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]], pd.DataFrame, pd.DataFrame]:
    """Samples, documents, tasks, runs and scores of a choice task (margins about z) and an answer task."""
    rng = np.random.default_rng(0)
    x = np.repeat(np.linspace(0, 2.6, SIZES), SEEDS)
    ids = [f"r{i:02d}" for i in range(len(x))]
    runs = pd.DataFrame({"run_id": ids, "step": 9, "size": [f"n{i // SEEDS}" for i in range(len(x))], "is_last": True})
    runs["seed"], runs["flops"] = np.arange(len(x)) % SEEDS, 1e11 * 10**x
    early = runs.assign(step=3, is_last=False, flops=runs["flops"] / 3)
    docs, samples = [], []
    for task, output in (("quiz", "Choice"), ("say", "Answer")):
        texts = [[" yes", " no"]] * DOCS if output == "Choice" else [[" ab"]] * DOCS
        answer = 0 if output == "Choice" else None
        part = pd.DataFrame({"doc_id": range(DOCS), "continuations": texts, "answer": [answer] * DOCS})
        docs.append(part.assign(task=task, level="", output=output))
        margin = by_margin(z(x), rng, n=DOCS)
        for i, run_id in enumerate(ids):
            # A document's log-odds are its margin, so both tasks know the same.
            right = -np.logaddexp(0, -margin[i])
            wrong = -np.logaddexp(0, margin[i])
            both = np.stack([right, wrong], axis=1) if output == "Choice" else right[:, None]
            n = both.shape[1]
            frame = pd.DataFrame({"doc_id": range(DOCS), "logprobs": both.tolist(), "n_tokens": [[2] * n] * DOCS})
            frame["n_greedy"] = [[2 if v > 0 else 1] * n for v in margin[i]]
            units = dict.fromkeys(f"{u}{g}" for u in ("words", "chars", "sentences") for g in ("", "_greedy"))
            samples.append(frame.assign(run_id=run_id, step=9, task=task, level="", generation=None, **units))
            samples.append(samples[-1].assign(step=3))
    tasks = [
        {"name": "quiz", "metrics": ["acc", "logloss"]},
        {"name": "say", "metrics": ["exact_match", "f1", "other"]},
    ]
    rows = [
        (task, metric, partner, metric == "logloss", run)
        for task, metric, partner in (
            ("quiz", "acc", "logloss"),
            ("quiz", "logloss", None),
            ("say", "exact_match", "nats_per_token"),
            ("say", "f1", "nats_per_token"),
            ("old", "acc", "margin"),
            ("old", "margin", None),
        )
        for run in runs.to_dict("records")
    ]
    scores = pd.DataFrame([run | {"task": t, "metric": m, "partner": p} for t, m, p, _, run in rows])
    scores["continuous"] = scores["partner"].isna()
    scores["higher_is_better"] = scores["metric"] != "logloss"
    scale = np.log10(scores["flops"] / 1e11)
    scores["value"] = np.where(scores["continuous"], scale, 0.25 + 0.7 * rise(1.3, 0.3)(scale.to_numpy()))
    return (
        pd.concat(samples, ignore_index=True),
        pd.concat(docs, ignore_index=True),
        tasks,
        pd.concat([runs, early], ignore_index=True),
        scores.assign(level="", item_se=0.02, n=DOCS, chance=0.25),
    )


@pytest.fixture(scope="module")
def artefact() -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]], pd.DataFrame, pd.DataFrame]:
    return a_sweep(lambda x: -6 + 12 * x / 2.6)


def test_the_table_has_a_row_per_threshold_metric_with_a_partner(artefact: Any) -> None:
    table = links_table(*artefact)
    assert list(table.columns) == COLUMNS
    assert [*zip(table["task"], table["metric"], strict=True)] == [
        ("old", "acc"),
        ("quiz", "acc"),
        ("say", "exact_match"),
        ("say", "f1"),
    ]
    row = table.set_index(["task", "metric"])
    assert row.loc[("quiz", "acc"), "holds"] is True
    assert row.loc[("quiz", "acc"), "link"] == "P(e > -d')"
    assert row.loc[("say", "exact_match"), "holds"] is True
    assert row.loc[("quiz", "acc"), "n_items"] == DOCS
    # Nothing was generated, so f1 has no values; the old task has no answers, only curves.
    assert row.loc[("say", "f1"), "note"] == "0 of 12 runs have answers that can be used."
    assert row.loc[("old", "acc"), "link"].startswith("c + (1 - c)")


def test_a_jump_in_the_answers_is_found_in_both_tasks() -> None:
    table = links_table(*a_sweep(lambda x: -3 + 6 * rise(1.3, 0.1)(x))).set_index(["task", "metric"])
    assert table.loc[("quiz", "acc"), "holds"] is False
    assert table.loc[("say", "exact_match"), "holds"] is False


def test_what_only_describes_answers_has_no_link(artefact: Any) -> None:
    samples, documents, tasks, runs, scores = artefact
    described = scores[scores["metric"].eq("acc")].assign(metric="ece")
    more = [task | {"metrics": [*task["metrics"], "ece"]} if "acc" in task["metrics"] else task for task in tasks]
    assert len(described) and more != tasks
    found = links_table(samples, documents, more, runs, pd.concat([scores, described]))
    pd.testing.assert_frame_equal(found, links_table(*artefact))
    assert curve_links_table(described).empty and len(curve_links_table(described.assign(metric="acc")))


def test_the_order_of_the_rows_does_not_matter(artefact: Any) -> None:
    samples, documents, tasks, runs, scores = artefact
    mixed = links_table(samples[::-1], documents[::-1], tasks, runs[::-1], scores.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(links_table(*artefact), mixed)


def test_runs_without_usable_answers_are_left_out(artefact: Any) -> None:
    samples, documents, tasks, runs, scores = artefact
    damaged = samples.copy()
    one = (damaged["run_id"] == "r00") & (damaged["task"] == "quiz")
    damaged.loc[one, "logprobs"] = damaged.loc[one, "logprobs"].map(lambda v: [math.nan] * len(v))
    partial = damaged[~((damaged["run_id"] == "r02") & (damaged["doc_id"] == 3))]
    table = links_table(partial, documents, tasks, runs, scores).set_index(["task", "metric"])
    assert table.loc[("quiz", "acc"), "holds"] is True
    points = json.loads(table.loc[("quiz", "acc"), "predicted"])
    known = links_table(samples[samples["run_id"].isin(["r01"])], documents, tasks, runs, scores)
    assert len(points) == SIZES
    assert known.set_index(["task", "metric"]).loc[("quiz", "acc"), "note"].startswith("1 of 1 runs")


def test_without_answers_the_table_is_made_of_the_curves(artefact: Any) -> None:
    scores = artefact[4]
    table = curve_links_table(scores).set_index(["task", "metric"])
    assert table.loc[("say", "exact_match"), "note"] == "Its partner nats_per_token has no scores."
    assert table.loc[("old", "acc"), "link"].startswith("c + (1 - c)")
    gone = scores.assign(value=scores["value"].where(scores["metric"] != "margin"))
    row = curve_links_table(gone).set_index(["task", "metric"]).loc[("old", "acc")]
    assert row["note"] == "0 of 12 runs have a value of the metric and of its partner margin."
    percent = curve_links_table(scores.assign(value=scores["value"] * 100)).set_index(["task", "metric"])
    assert "not a share of documents" in percent.loc[("old", "acc"), "note"]
    assert curve_links_table(scores[:0]).empty
    with pytest.raises(StoreError, match=r"lacks the column\(s\) partner, chance"):
        curve_links_table(scores.drop(columns=["partner", "chance"]))


@pytest.mark.long
def test_error_rates_over_many_tasks() -> None:
    """Of 200 tasks each: artefacts that fail, jumps that hold."""
    rng = np.random.default_rng(0)
    shapes = list(SMOOTH.values())
    artefacts, jumps = Counter[Any](), Counter[Any]()
    for i in range(200):
        low, height, shape = rng.uniform(3, 8), rng.uniform(9, 14), shapes[i % len(shapes)]
        artefacts[judge(choices(lambda x, s=shape, a=low, b=height: b * s(x) - a, i), K)["holds"]] += 1
        step, low, height = rise(rng.uniform(0.9, 1.9), rng.uniform(0.1, 0.4)), rng.uniform(0.8, 4), rng.uniform(5, 9)
        jumps[judge(choices(lambda x, s=step, a=low, b=height: b * s(x) - a, i), K)["holds"]] += 1
    print(f"artefacts {dict(artefacts)}, jumps {dict(jumps)}")
    assert artefacts[False] <= 4
    assert jumps[True] <= 4
    assert jumps[False] >= 160
