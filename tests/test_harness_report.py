"""The report page: whole, ordered, honest about what is missing, and deaf to whatever a model wrote."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness import figures, report, wording

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>\x00\x1b[31m\u202e\n</pre>"
SIZES = {"2x8": 1_600, "2x16": 6_700, "2x24": 14_000, "2x32": 24_000, "2x48": 56_000, "2x64": 101_000, "2x96": 222_000}
SIZES["2x128"] = 390_000
TOKENS = 3_072_000
SECTIONS = ["headline", "verdicts", "scaling", "curves", "missing", "samples", "provenance"]

# name, kind, role, headline, partner, levels, chance, (midpoint, width in decades of C) or None, label, partner's label
PROBES = [
    ("copy", "generation", "probe", "exact_match", "nats_per_token", ["k=2", "k=4", "k=6", "k=10"], 0.0, (12.1, 0.3),
     "emergent_sharp", "smooth"),
    ("reverse", "generation", "probe", "exact_match", "nats_per_token", ["k=2", "k=4", "k=6"], 0.0, (12.3, 0.5),
     "bimodal_seeds", "inconclusive"),
    ("sort", "generation", "probe", "exact_match", "nats_per_token", ["k=3", "k=5", "k=7"], 0.0, (12.4, 1.8),
     "smooth_late_onset", "smooth"),
    ("addition", "generation", "probe", "exact_match", "nats_per_token", ["digits=1", "digits=2"], 0.0, None,
     "flat_at_chance", "smooth"),
    ("recall", "qa", "probe", "acc", "logloss", ["pairs=2", "pairs=4", "pairs=8"], 0.125, (12.0, 0.3),
     "emergent_sharp", "emergent_sharp"),
    ("fact", "qa", "probe", "acc", "logloss", [""], 1 / 16, (11.8, 2.0), "smooth", "smooth"),
    ("fact_new", "qa", "control", "acc", "logloss", [""], 1 / 16, None, "flat_at_chance", "inverse"),
    ("hop", "qa", "probe", "acc", "logloss", ["links=2", "links=3"], 0.25, None, "flat_above_chance", "inconclusive"),
    ("icl", "classification", "probe", "acc", "logloss", [""], 0.5, (12.4, 0.3), "bimodal_seeds", "emergent_sharp"),
    ("sentiment", "classification", "probe", "acc", "logloss", [""], 0.5, (11.2, 1.5), "smooth", "smooth"),
    ("coin", "classification", "control", "acc", "logloss", [""], 0.5, None, "flat_at_chance", "flat_at_chance"),
    ("parity", "classification", "probe", "acc", "logloss", [""], 0.5, None, "inconclusive", "inconclusive"),
]  # fmt: skip


def synthetic_results(path: Path, *, checkpoints: int = 3) -> SimpleNamespace:
    """Tables of the harness's own shape: 8 sizes, 3 seeds, 13 tasks, every label, holes and hostile text."""
    rng = np.random.default_rng(0)
    runs, scores, verdicts, examples = [], [], [], []
    for size, n in SIZES.items():
        layers, width = map(int, size.split("x"))
        for seed in range(3):
            for step, share in zip((200, 700, 2000)[-checkpoints:], (0.1, 0.35, 1.0)[-checkpoints:], strict=True):
                tokens = int(TOKENS * share)
                runs.append({
                    "run_id": f"{size}-{seed}", "sweep": "demo", "size": size, "n_layer": layers, "d_model": width,
                    "n_params": n + 2 * 768 * width, "n_params_non_embedding": n,
                    "flops_per_token": 6.0 * (n + 768 * width),
                    "seed": seed, "step": step, "tokens": tokens, "flops": 6.0 * (n + 768 * width) * tokens,
                    "is_last": share == 1, "train_loss": 3.0, "parametrization": "mup", "precision": "fp32",
                    "attention": "sdpa", "device": "cpu", "weights_digest": f"{n:08x}{seed}", "data_digest": f"d{seed}",
                    "tokenizer_digest": "t0", "context_length": 96, "vocab_size": 768, "peak_lr": 2**-8,
                })  # fmt: skip

    def add(task, kind, role, level, metric, headline, continuous, partner, chance, curve, label):
        for run in runs:
            where = math.log10(run["flops"])
            value = curve(where) + rng.normal(0, 0.02)
            if "bimodal" in label and 11.9 < where < 12.6:
                value = 0.95 if (run["seed"] + len(run["size"])) % 2 else (chance or 0.02)
            value = value if continuous else min(max(value, 0.0), 1.0)
            lost = task == "sort" and level == "k=7" and run["size"] == "2x24"
            scores.append({
                **{k: run[k] for k in ("run_id", "size", "n_params", "n_params_non_embedding", "seed", "step", "tokens",
                                       "flops", "is_last")},
                "task": task, "kind": kind, "ability": "", "role": role, "level": level, "metric": metric,
                "headline": headline, "continuous": continuous, "higher_is_better": not continuous, "partner": partner,
                "value": math.nan if lost else value, "item_se": 0.02, "item_lo": value - 0.04, "item_hi": value + 0.04,
                "n": 0 if lost else 500, "chance": chance, "chance_source": None if chance is None else "uniform",
                "n_seeds": 3, "task_digest": "x", "note": "no document fits the context" if lost else None,
            })  # fmt: skip
        settled = not label.startswith(("flat", "inconclusive"))
        verdicts.append({
            "task": task, "level": level, "metric": metric, "kind": kind, "ability": "", "role": role,
            "headline": headline, "continuous": continuous, "partner": partner, "axis": "flops", "label": label,
            "width": 0.42 if settled else math.nan, "width_lo": 0.3 if settled else math.nan,
            "width_hi": (math.inf if label == "smooth" else 0.71) if settled else math.nan,
            "onset": 12.0 if settled else math.nan, "onset_lo": 11.8 if settled else math.nan,
            "onset_hi": 12.2 if settled else math.nan, "effect": 0.6, "effect_lo": 0.5, "effect_hi": 0.7,
            "p_chance": 0.001, "q_chance": 0.01, "p_trend": 0.001, "q_trend": 0.01, "n_sizes": 8, "n_seeds": 3,
            "n_docs": 500, "chance": chance,
            "reasons": f"The 10-90 % rise of {metric} takes 0.42 decades of C (95 % interval 0.30 to 0.71), below 1.",
            "sensitivity": json.dumps({"W0=0.5": label, "W0=1.5": label, "n_params_non_embedding": "inconclusive"}),
            "constants": json.dumps({"alpha": 0.05, "min_effect": 0.10, "sharp_width": 1.0, "min_sizes": 5}),
        })  # fmt: skip

    tasks = []
    for name, kind, role, metric, partner, levels, chance, rise, label, partner_label in PROBES:
        metrics = [metric, partner] + (["acc_all8"] if name == "fact" else []) + (["acc_char"] if kind == "qa" else [])
        tasks.append({"name": name, "kind": kind, "ability": "", "role": role, "levels": levels, "metrics": metrics,
                      "metric": metric, "digest": "ab" * 16, "description": f"The {name} task."})  # fmt: skip
        for i, level in enumerate(levels):
            centre, width = rise or (99.0, 1.0)
            sigmoid = lambda x, c=centre + 0.25 * i, w=width: 1 / (1 + math.exp(-math.log(81) * (x - c) / w))  # noqa: E731
            floor = 1 / int(level.split("=")[1]) if name == "recall" else chance
            accuracy = lambda x, f=floor, s=sigmoid: f + (0.96 - f) * s(x)  # noqa: E731
            add(name, kind, role, level, metric, True, False, partner, floor, accuracy, label)
            top = math.log(1 / floor) if floor else 3.2
            add(name, kind, role, level, partner, False, True, metric, top if floor else None,
                lambda x, t=top, s=sigmoid: t * (1 - 0.95 * s(x)), partner_label)  # fmt: skip
            if name == "fact":
                add(name, kind, role, level, "acc_all8", False, False, partner, chance**8,
                    lambda x, a=accuracy: a(x) ** 8, "emergent_metric_dependent")  # fmt: skip
            if kind == "qa":
                add(name, kind, role, level, "acc_char", False, False, partner, floor, accuracy, label)
            for doc_id in range(2):
                for size, n in SIZES.items():
                    right = float(sigmoid(math.log10(6 * (n + 6144) * TOKENS)) > 0.5)
                    examples.append({
                        "task": name, "level": level, "doc_id": doc_id, "prompt": f"{name} s r e l ->",
                        "target": " s r e l", "size": size, "n_params_non_embedding": n, "seed": 0,
                        "correct": right, "logprob": -2.0,
                        "response": " s r e l" if right else (HOSTILE if size == "2x8" else " s r r r"),
                    })  # fmt: skip
    tasks.append({"name": "text", "kind": "language modeling", "ability": "", "role": "probe", "levels": [""],
                  "metrics": ["nats_per_token"], "metric": "nats_per_token", "digest": "cd",
                  "description": "Plays."})  # fmt: skip
    law = lambda where: 3.9 - 0.45 * (where - 11.2)  # noqa: E731
    add("text", "language modeling", "probe", "", "nats_per_token", True, True, None, None, law, "smooth")
    table = pd.DataFrame(scores)
    cells = table.groupby(["size", "step", "task", "level", "metric"], sort=False)["value"]
    table["seed_mean"], table["seed_sd"] = cells.transform("mean"), cells.transform("std")
    half = 4.303 * table["seed_sd"] / math.sqrt(3)
    table["seed_lo"], table["seed_hi"] = table["seed_mean"] - half, table["seed_mean"] + half
    text = table[table["task"].eq("text") & table["is_last"]]
    slope, height = np.polyfit(np.log(text["n_params_non_embedding"]), np.log(text["value"]), 1)
    grid = np.geomspace(1_600, 390_000, 30)
    curve = np.exp(height) * grid**slope
    fits = [{
        "subject": "text:nats_per_token", "form": "power_law", "x": "n_params_non_embedding",
        "params": json.dumps({"A": float(np.exp(height)), "alpha": -slope}),
        "ci": json.dumps({"alpha": [0.035, 0.044]}),
        "objective": 1e-3, "n_points": 24, "n_sizes": 8, "n_starts": 40, "n_starts_agreeing": 40, "converged": True,
        "aicc": -80.0, "note": "The floor is not identified by 8 sizes: its bootstrap interval reaches 0.",
        "band": json.dumps({"x": list(grid), "y": list(curve), "lo": list(curve * 0.99), "hi": list(curve * 1.01)}),
    }]  # fmt: skip
    missing = [{"run_id": f"2x24-{s}", "size": "2x24", "seed": s, "step": 2000, "task": "sort",
                "reason": "no document fits the context"} for s in range(3)]  # fmt: skip
    return SimpleNamespace(
        runs=pd.DataFrame(runs), scores=table, fits=pd.DataFrame(fits), verdicts=pd.DataFrame(verdicts),
        examples=pd.DataFrame(examples), missing=pd.DataFrame(missing), tasks=tasks, path=path,
        spec={"spec": {"name": "demo", "seeds": [0, 1, 2], "note": "The mixture was\nchosen so that thresholds show."}},
        ledger=[{"run_id": f"{s}-{i}", "cpu_seconds": 40.0 + n / 4000, "wall_seconds": 50.0}
                for s, n in SIZES.items() for i in range(3)],
    )  # fmt: skip


class Parsed(HTMLParser):
    """What a browser would find in a page: element names, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


def few(results: SimpleNamespace, keep) -> SimpleNamespace:
    """Return results with every frame filtered by `keep` (frame -> mask)."""
    frames = {k: v[keep(v)].copy() if isinstance(v, pd.DataFrame) else v for k, v in vars(results).items()}
    return SimpleNamespace(**frames)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return synthetic_results(Path("results/demo"))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return report.build_report(results, tmp_path_factory.mktemp("reports") / "demo")


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(page.read_text(encoding="utf-8"))


def test_the_seven_sections_stand_in_order(parsed):
    assert parsed.sections == SECTIONS


def test_the_page_asks_for_nothing_outside_its_folder(parsed, page):
    allowed = {
        "html",
        "head",
        "body",
        "meta",
        "title",
        "style",
        "svg",
        "a",
        "section",
        "table",
        "pre",
        "details",
        "use",
    }
    names = {tag for tag, _ in parsed.elements}
    assert names >= allowed
    assert not names & {"script", "img", "iframe", "link", "object", "embed", "form", "base"}
    for _, attributes in parsed.elements:
        assert not [key for key in attributes if key.startswith("on") or key in {"src", "srcset", "action", "data"}]
        for key in ("href", "xlink:href"):
            target = attributes.get(key)
            assert target is None or target.startswith("#") or (page.parent / target).is_file()
    assert "url(http" not in page.read_text(encoding="utf-8").replace(" ", "")


def test_no_two_figures_share_an_id(parsed):
    ids = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)
    assert len(ids) > 50
    assert max(ids.values()) == 1


def test_what_a_model_wrote_is_shown_and_does_nothing(parsed, page):
    raw = page.read_text(encoding="utf-8")
    assert "<script>alert(1)</script>" in parsed.text  # as text
    assert "&lt;script&gt;alert(1)" in raw and "<script" not in raw
    assert "\x1b" not in raw and "\x00" not in raw and "\u202e" not in raw
    assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩↵" in parsed.text


def test_the_headline_counts_what_the_tables_hold(parsed, results):
    heads = results.verdicts[results.verdicts["headline"]]
    probes = heads[heads["role"] == "probe"]["label"].value_counts()
    assert f"Of {probes.sum()} abilities" in parsed.text
    assert f"{probes['emergent_sharp']} emergent (sharp)" in parsed.text
    assert "N = 1.6k to 390k" in parsed.text and "D = 3.07M tokens" in parsed.text and "24 runs" in parsed.text
    # 7 headlines are sharp, and of those only recall's three partners are; the controls are counted apart.
    assert "Of the 7 that jump on their headline metric, 3 also jump" in parsed.text
    assert "Of 2 controls: 2 flat at chance." in parsed.text


def test_the_ladder_gives_the_mean_loss_and_its_spread_over_seeds(parsed, results):
    rows = results.scores[(results.scores["task"] == "text") & results.scores["is_last"]]
    loss = rows[rows["size"] == "2x8"]["value"]
    assert f"{loss.mean():.3f} ± {loss.std(ddof=1):.3f}" in parsed.text


def test_an_onset_in_compute_is_also_said_in_parameters(parsed):
    # C = 10^12 lies between 2x32 (9.0e11, N = 24k) and 2x48 (1.68e12, N = 56k), nearer to the first in log C.
    low, high = 6 * (24_000 + 768 * 32) * TOKENS, 6 * (56_000 + 768 * 48) * TOKENS
    share = math.log(1e12 / low) / math.log(high / low)
    expected = 24_000 * (56_000 / 24_000) ** share
    assert f"N ≈ {expected / 1000:.0f}k" in parsed.text


def test_a_label_that_another_choice_would_change_says_so(parsed):
    assert "It would be inconclusive along parameters N, without embeddings." in parsed.text


def test_every_reason_of_a_hole_is_told(parsed):
    missing = parsed.text[parsed.text.index("What is missing\n") :]
    assert "2x24: 3 runs, step 2000" in missing and "no document fits the context" in missing
    assert "Nothing is missing" not in parsed.text


def test_a_score_that_was_not_measured_is_not_drawn_as_zero(results, page):
    cell = pd.read_csv(page.parent / "figures" / "difficulty.csv").query("task == 'sort' and level == 'k=7'")
    assert cell.set_index("size")["value"].isna().to_dict()["2x24"]
    curve = pd.read_csv(page.parent / "figures" / "curve-sort.csv").query("level == 'k=7' and size == '2x24'")
    assert len(curve) == 6 and curve["value"].isna().all()


def test_answers_stand_side_by_side_from_the_smallest_size_to_the_largest(page):
    raw = page.read_text(encoding="utf-8")
    article = raw[raw.index("<article") : raw.index("</article>")]
    assert re.findall(r"<b>(2x\d+)</b>", article) == list(SIZES)
    marks = re.findall(r"(✓ right|✗ wrong)", article)
    assert marks == sorted(marks, reverse=True) and set(marks) == {"✓ right", "✗ wrong"}


def test_the_documents_on_which_an_ability_appears_come_first(page):
    raw = page.read_text(encoding="utf-8")
    first = re.findall(r"<article class=\"sample\">\n<h3>(\w+)", raw)[: len(PROBES)]
    assert set(first) == {name for name, *_ in PROBES}  # every task once, before any comes again
    never = {name for name, *_, rise, _, _ in PROBES if rise is None}  # no size of these is right
    assert set(first[-len(never) :]) == never


def test_every_figure_has_its_numbers_beside_it_and_all_of_it_is_small(page):
    files = sorted((page.parent / "figures").iterdir())
    stems = Counter(file.stem for file in files)
    assert set(stems.values()) == {3} and {f.suffix for f in files} == {".png", ".svg", ".csv"}
    assert sum(file.stat().st_size for file in [page, *files]) < 3_000_000


def test_panels_pair_a_threshold_with_its_twin_and_leave_out_normalisations(results):
    assert figures.panels(results.scores, "fact") == ["acc", "acc_all8", "logloss"]
    assert figures.panels(results.scores, "recall") == ["acc", "logloss"]
    assert figures.panels(results.scores, "no such task") == []


def test_the_same_tables_give_the_same_bytes(results, tmp_path):
    small = few(results, lambda f: f["task"].isin(["copy", "text"]) if "task" in f else f.index >= 0)
    small.tasks = [t for t in small.tasks if t["name"] in {"copy", "text"}]
    one, two = (report.build_report(small, tmp_path / name).parent for name in ("one", "two"))
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) > 10
    assert [p for p in files if (one / p).read_bytes() != (two / p).read_bytes()] == []


@pytest.mark.parametrize("absent", ["all", "verdicts and fits", "None"])
def test_tables_that_are_not_there_give_an_honest_page(results, tmp_path, absent):
    names = ["runs", "scores", "fits", "verdicts", "examples", "missing"]
    names = ["verdicts", "fits"] if absent == "verdicts and fits" else names
    bare = few(results, lambda f: f["task"].eq("coin") if "task" in f else f.index >= 0)
    vars(bare).update({name: None if absent == "None" else pd.DataFrame() for name in names})
    found = Parsed(report.build_report(bare, tmp_path).read_text(encoding="utf-8"))
    assert found.sections == SECTIONS
    assert "There is no verdict" in found.text and "no verdicts" in found.text
    if absent != "verdicts and fits":
        assert "No run of this sweep is finished" in found.text and "no answers were scored" in found.text


def test_a_sweep_without_holes_says_that_nothing_is_missing(results, tmp_path):
    whole = few(results, lambda f: f["task"].isin(["coin", "text"]) if "task" in f else f.index >= 0)
    whole.fits = results.fits
    text = Parsed(report.build_report(whole, tmp_path).read_text(encoding="utf-8")).text
    assert "Nothing is missing" in text


def test_one_size_and_one_seed_are_reported_without_a_spread(results, tmp_path):
    one = few(results, lambda f: f["size"].eq("2x8") & f["seed"].eq(0) if "seed" in f else f.index < 0)
    one.scores = one.scores[one.scores["task"].isin(["fact", "text"])].copy()
    one.scores[["seed_lo", "seed_hi", "seed_sd"]], one.scores["n_seeds"] = math.nan, 1
    text = Parsed(report.build_report(one, tmp_path).read_text(encoding="utf-8")).text
    assert "1 size (2x8; N = 1.6k parameters without embeddings), 1 seed, 1 run." in text
    assert "±" not in text.split("Verdicts")[1].split("N: parameters")[0]


def test_names_and_numbers_are_written_for_readers():
    assert [wording.si(x) for x in (390_000, 999.9, 3_072_000, 0.25)] == ["390k", "1k", "3.07M", "0.25"]
    assert [wording.scientific(x) for x in (1.23e11, 1e12, 0.0)] == ["1.2×10¹¹", "10¹²", "–"]
    assert sorted(["k=10", "k=2", ""], key=wording.natural) == ["", "k=2", "k=10"]
    assert wording.interval(0.42, 0.3, math.inf, "{:.2g}") == "0.42 (0.3 or more)"
    assert wording.visible("a\x7f\ud800\nb\u200b") == "a⟨U+007F⟩⟨U+D800⟩\nb⟨U+200B⟩"
    assert wording.visible("naïve 中文 → ✓") == "naïve 中文 → ✓"


def test_a_browser_without_a_network_shows_the_whole_page(page, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or chrome on this machine: the page was checked by its markup only")
    alone = tmp_path / "moved.html"  # the page is whole when it is moved without its figures
    shutil.copy(page, alone)
    quiet = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --proxy-server=127.0.0.1:9"
    command = [browser, "--headless", *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--log-net-log={tmp_path / 'net.json'}", "--dump-dom", alone.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = Parsed(dom)
    assert found.sections == SECTIONS
    assert not {tag for tag, _ in found.elements} & {"script", "img"}
    assert sum(tag == "svg" for tag, _ in found.elements) == len(list((page.parent / "figures").glob("*.svg")))
    asked = set(
        re.findall(r'"url":"(\w+://[^"]*)"', (tmp_path / "net.json").read_text(encoding="utf-8", errors="replace"))
    )
    assert not [url for url in asked if "evil.example" in url or "w3.org" in url]
