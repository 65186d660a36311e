"""The family commands: what a ladder counts, whether one learning rate serves, and an export that says how exact."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_checkpoints as tiny

from harness import cli
from harness.family_check import FamilyCheck, Optimum, best_factor, check_family, slopes
from harness.figures.transfer import transfer_data, transfer_figure
from harness.spec import InputError, load_sweep
from models.decoder import build
from models.ladder import LADDERS, optimal_tokens
from models.spec import NAMED_SIZES, SpecError, TrainSpec, size_to_spec

SPEC = """
name = "tiny"
seeds = [0]
[family]
sizes = ["2x8", "2x16", "2x24", "2x32"]
vocab_size = 384
context_length = 32
base_width = 16
[train]
tokens = 4096
batch_tokens = 256
peak_lr = 0.015625
n_checkpoints = 2
[corpus.mixture]
recall = 1
[evaluate]
documents = 4
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "tiny.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


# ---- ladders ----


def test_a_name_says_how_many_parameters_the_built_model_has() -> None:
    units = {"k": 1e3, "M": 1e6, "B": 1e9}
    for name in NAMED_SIZES:
        model = size_to_spec(name, vocab_size=512, context_length=64)
        assert model.n_params_non_embedding == pytest.approx(float(name[:-1]) * units[name[-1]], rel=0.16)
    built = build(size_to_spec("30k", vocab_size=512, context_length=64), seed=0)
    embeddings = built.model.embed_tokens.weight.numel() + built.lm_head.weight.numel()
    assert sum(p.numel() for p in built.parameters()) - embeddings == 25_248


def test_a_ladder_rises_in_every_dimension_and_text_suits_gpu_kernels() -> None:
    for ladder in LADDERS.values():
        models = ladder.models
        for small, large in itertools.pairwise(models):
            assert small.n_params_non_embedding < large.n_params_non_embedding
            assert small.n_layer <= large.n_layer and small.d_model <= large.d_model
            assert small.d_model / small.n_layer <= 1.7 * large.d_model / large.n_layer
        assert all(16 <= model.d_model / model.n_layer <= 80 for model in models)
    for model in LADDERS["text"].models:
        assert model.head_dim in (64, 128) and model.d_model % 64 == 0 and model.width_multiplier <= 8


def test_tokens_are_twenty_per_parameter_that_multiplies() -> None:
    model = size_to_spec("2x8", vocab_size=300, context_length=16)
    assert optimal_tokens(model) == 20 * (model.n_params - 300 * 8)
    assert optimal_tokens(model, per_param=5) == 5 * (model.n_params - 300 * 8)


def test_a_named_size_is_its_shape_and_brings_its_heads() -> None:
    named = size_to_spec("100k", vocab_size=300, context_length=16, n_head=2)
    assert named == replace(size_to_spec("2x64", vocab_size=300, context_length=16, n_head=4), name="100k")
    with pytest.raises(SpecError, match="LAYERSxWIDTH, for example '2x64', or be one of 30k, 100k"):
        size_to_spec("200k", vocab_size=300, context_length=16)


def test_ladders_are_shown_with_counts_tokens_and_compute(run) -> None:
    code, out, _ = run("family", "show", "text", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["size"] for row in rows] == ["10M", "30M", "100M", "300M", "1B", "1.3B"]
    for row in rows:
        assert row["n_params"] - row["n_params_non_embedding"] == 2 * 32_768 * row["d_model"]
        assert row["flops"] == row["tokens"] * row["flops_per_token"]
    out = run("family", "show", "micro")[1]
    assert "97,600" in out and "163,136" in out and 'sizes = ["30k", "100k", "300k", "1M", "3M"]' in out


def test_what_show_prints_of_a_ladder_is_a_family_that_loads(run, spec: Path) -> None:
    printed = run("family", "show", "micro")[1].partition("[family]")[2]
    start, end = SPEC.index("sizes"), SPEC.index("[train]")
    Path("mine.toml").write_text(SPEC[:start] + printed + SPEC[end:])
    shown = json.loads(run("family", "show", "mine.toml", "--json")[1])
    ladder = json.loads(run("family", "show", "micro", "--json")[1])
    same = ("size", "n_layer", "d_model", "n_head", "n_params", "flops_per_token")
    assert [[row[key] for key in same] for row in shown] == [[row[key] for key in same] for row in ladder]


def test_show_without_a_name_shows_the_demo_and_a_wrong_name_the_nearest(run) -> None:
    assert [row["size"] for row in json.loads(run("family", "show", "--json")[1])][:2] == ["2x8", "2x16"]
    code, out, err = run("family", "show", "micor")
    assert (code, out) == (2, "") and "did you mean 'micro'? Known: abilities, demo, smoke, micro, text" in err


# ---- check ----


@pytest.fixture(scope="module")
def found(spec: Path) -> dict[str, FamilyCheck]:
    return {name: check_family(load_sweep(_with(spec, name)), steps=24) for name in ("mup", "sp")}


def _with(spec: Path, parametrization: str) -> Path:
    path = spec.with_name(f"{parametrization}.toml")
    path.write_text(SPEC.replace("base_width", f'parametrization = "{parametrization}"\nbase_width'))
    return path


def test_activations_move_alike_over_sizes_under_mup(found: dict[str, FamilyCheck]) -> None:
    check = found["mup"]
    assert check.coordinates_verified
    wide, deep = ({s.sizes for s in check.slopes if s.along == along} for along in ("width", "depth"))
    assert wide == {("2x8", "2x16", "2x32", "2x64")} and deep == {("2x16", "4x16", "8x16")}


def test_under_the_standard_parametrization_they_do_not(found: dict[str, FamilyCheck]) -> None:
    check = found["sp"]
    worst = {a: max(s.slope for s in check.slopes if s.along == a) for a in ("width", "depth")}
    assert not check.coordinates_verified and not check.verified
    assert worst["width"] > 1 and worst["depth"] > 0.5


def test_the_bracket_holds_the_losses_of_three_sizes_and_five_rates(found: dict[str, FamilyCheck]) -> None:
    optima = found["mup"].optima
    assert [optimum.size for optimum in optima] == ["2x8", "2x16", "2x32"]  # smallest, nearest the middle, largest
    for optimum in optima:
        assert sorted(optimum.losses) == [0.25, 0.5, 1, 2, 4]
        assert len(set(optimum.losses.values())) == 5
        # Untrained, a model of 384 tokens is near log 384.
        assert all(loss is not None and 0 < loss < math.log(384) + 0.5 for loss in optimum.losses.values())
        assert optimum.best_factor == best_factor(optimum.losses)


def test_a_check_measured_twice_is_the_same(found: dict[str, FamilyCheck], spec: Path) -> None:
    again = check_family(load_sweep(_with(spec, "mup")), steps=24, factors=(0.5, 1, 2))
    assert again.points == found["mup"].points
    assert again.optima[0].losses == {f: found["mup"].optima[0].losses[f] for f in (0.5, 1, 2)}


def test_texts_of_the_mixture_are_read_as_in_training(spec: Path) -> None:
    (spec.parent / "own.txt").write_text("\n\n".join(f"{i} sheep and {i * i} more of them" for i in range(400)))
    path = _with(spec, "mup").with_name("own.toml")
    mixed = SPEC.replace("[corpus.mixture]", '[corpus.texts.own]\nfiles = "own.txt"\n[corpus.mixture]\nown = 0.5')
    path.write_text(mixed)
    check = check_family(load_sweep(path, results=spec.parent), steps=3, coordinate_steps=2, factors=(1,))
    assert all(loss is not None for optimum in check.optima for loss in optimum.losses.values())


def test_the_figure_draws_every_number(found: dict[str, FamilyCheck]) -> None:
    measured = json.loads(json.dumps(found["mup"].to_json()))
    data = transfer_data(measured)
    counted = data.groupby(["panel", "name"]).size()
    assert set(counted["width"]) == {4} and set(counted["depth"]) == {3} and set(counted["learning rate"]) == {5}
    drawn = [line for ax in transfer_figure(data).axes for line in ax.lines if len(line.get_xdata()) > 2]
    assert len(drawn) == 5 + 5 + 3


def test_a_parabola_gives_its_vertex_and_an_open_bracket_nothing() -> None:
    def losses(vertex: float, **gone: None) -> dict[float, float | None]:
        return {f: 2 + 0.1 * (math.log2(f) - vertex) ** 2 for f in (0.25, 0.5, 1.0, 2.0, 4.0)}

    assert best_factor(losses(0.3)) == pytest.approx(2**0.3)
    assert best_factor(losses(-1.2)) == pytest.approx(2**-1.2)
    assert best_factor(losses(2.4)) is None and best_factor(losses(-3)) is None
    assert best_factor(losses(0.3) | {4.0: None}) == pytest.approx(2**0.3)  # too fast a rate diverges: no neighbour
    assert best_factor(losses(0.3) | {2.0: None, 4.0: None}) is None
    assert best_factor(dict.fromkeys((0.5, 1.0, 2.0))) is None


def _judged(*best: float | None) -> FamilyCheck:
    optima = [
        Optimum(size=str(i), n_params_non_embedding=i, best_factor=factor, lowest=factor, losses={})
        for i, factor in enumerate(best)
    ]
    train = TrainSpec(tokens=8, batch_tokens=8, peak_lr=0.1)
    rest = {"train": train, "coordinate_steps": 2, "points": [], "slopes": [], "bracket_steps": 3, "cpu_seconds": 1.0}
    return FamilyCheck(name="x", parametrization="mup", optima=optima, **rest)


def test_the_best_rate_may_move_by_less_than_a_factor_of_two() -> None:
    assert _judged(0.8, 1.0, 1.5).rate_verified
    assert _judged(0.8, 1.0, 1.5).moved == pytest.approx(math.log2(1.5 / 0.8))
    assert not _judged(0.8, 1.0, 1.7).rate_verified
    assert not _judged(1.0, None, 1.0).rate_verified and _judged(1.0, None, 1.0).moved is None


def test_what_does_not_move_at_all_is_not_verified() -> None:
    points = [
        {"size": f"2x{d}", "d_model": d, "n_layer": 2, "step": 4, "kind": kind, "change": 0.0 if kind == "MLP" else 1.0}
        for d in (8, 16, 32, 64)
        for kind in ("embedding", "attention", "MLP", "residual stream", "logits")
    ]
    judged = {slope.kind: slope for slope in slopes(points, "width", ["2x8", "2x16", "2x32", "2x64"])}
    assert judged["MLP"].slope is None and not judged["MLP"].verified
    assert judged["logits"].slope == pytest.approx(0, abs=1e-12) and judged["logits"].verified


def test_the_command_prints_its_verdict_writes_its_figure_and_exits_by_it(
    run, spec: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, FamilyCheck]
) -> None:
    import harness.family_check

    kept = found["mup"]
    good = replace(kept, optima=[replace(optimum, best_factor=1.1) for optimum in kept.optima])
    for check, code_wanted, said in (
        (good, 0, "learning rate, 24 steps: transfer verified"),
        (
            replace(good, optima=[*good.optima[:2], replace(good.optima[2], best_factor=None)]),
            1,
            "not bracketed at 2x32",
        ),
        (found["sp"], 1, "coordinate check, 16 steps: transfer not verified"),
    ):
        monkeypatch.setattr(harness.family_check, "check_family", lambda *a, check=check, **k: check)
        code, out, _ = run("family", "check", spec, "--out", "here")
        assert code == code_wanted and said in out
        written = json.loads(Path("here/transfer.json").read_text())
        assert written["verified"] is (code_wanted == 0)
        assert {path.suffix for path in Path("here").iterdir()} == {".json", ".png", ".svg", ".csv"}
    code, out, _ = run("family", "check", spec, "--json")
    assert code == 1 and json.loads(out) == json.loads(Path("reports/tiny-family/transfer.json").read_text())


def test_progress_goes_to_stderr(run, spec: Path) -> None:
    code, out, err = run(
        *("family", "check", spec, "--steps", 3, "--sizes", "1x8,2x8,2x16", "--widths", "8,16,24,32", "--json")
    )
    measured = json.loads(out)
    assert code in (0, 1) and code == (0 if measured["verified"] else 1)
    assert "learning rate: 2x16 at 4 x 0.015625, 3 steps" in err and "coordinate check: 2x24" in err
    assert [size["size"] for size in measured["learning_rate"]["sizes"]] == ["1x8", "2x8", "2x16"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "smoke"), "needs three different sizes, got 1x16, 2x16"),
        (("check", "demo", "--sizes", "2x8,2x16"), "needs three different sizes"),
        (("check", "demo", "--sizes", "2x8,2x16,3y4"), "LAYERSxWIDTH"),
        (("check", "demo", "--widths", "8,16,32"), "--widths: the coordinate check needs 4 different ones"),
        (("check", "demo", "--depths", "2,2,4"), "--depths: the coordinate check needs 3 different ones"),
        (("check", "demo", "--widths", "8,wide"), "expected whole numbers above 0"),
        (("check", "demo", "--widths", "8,16,32,33"), "must be a multiple of 4"),
        (("check", "nowhere"), "no such file"),
        (("export", "nowhere", "out"), "no such folder"),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("family", *words)
    assert (code, out) == (2, "") and message in err and err.startswith("harness: ") and err.count("\n") == 1


def test_too_few_sizes_are_refused_before_anything_is_trained(spec: Path) -> None:
    lines: list[str] = []
    with pytest.raises(InputError, match="three different sizes"):
        check_family(load_sweep(spec), sizes=["2x8"], tell=lines.append)
    assert lines == []


# ---- export ----


def test_an_export_says_how_close_it_is(run, tmp_path: Path) -> None:
    source = tiny.ours(tmp_path / "step-000010", size="2x16")
    (source / "meta.json").write_text(json.dumps({"step": 10, "tokens": 5120}))
    code, out, _ = run("family", "export", source, "plain")
    assert code == 0 and out.startswith("plain: LlamaForCausalLM in fp32, 5,120 tokens seen; logits differ by at most")
    code, out, err = run("family", "export", source, "plain")
    assert (code, out) == (2, "") and "plain: is already there" in err
