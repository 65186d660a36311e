"""The report page: whole, ordered, honest about what is missing, and deaf to whatever a model wrote."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from report_tables import PROBES, SIZES, TOKENS, Parsed, few, synthetic_results, with_budgets

from harness import figures, report, wording

SECTIONS = ["headline", "verdicts", "scaling", "curves", "seeds", "missing", "samples", "provenance"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return synthetic_results(Path("nowhere/demo"))


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    return report.build_report(results, tmp_path_factory.mktemp("reports") / "demo")


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(page.read_text(encoding="utf-8"))


def test_the_sections_stand_in_order(parsed):
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
    assert found.sections == [name for name in SECTIONS if name != "seeds"]
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


def test_token_budgets_have_a_section_of_annealed_ends_and_move_no_other_number(results, parsed, tmp_path):
    several = with_budgets(results)
    target = report.build_report(several, tmp_path / "several")
    page = Parsed(target.read_text(encoding="utf-8"))
    after = SECTIONS.index("curves") + 1
    assert page.sections == [*SECTIONS[:after], "budgets", *SECTIONS[after:]]
    assert "Checkpoints of the stable phase are not annealed" in page.text and "left out here" in page.text
    assert "48 branches of these runs ended earlier, at D = 30.7k and 307k tokens" in page.text
    assert "D (tokens)" in page.text and page.text.count("30.7k, 307k and 3.07M") == len(SIZES)
    assert "2x24: 3 runs, D = 30.7k, step 2000" in page.text
    for one_budget in ("D (tokens)", "branches", "Ability against training tokens"):
        assert one_budget not in parsed.text
    # What is drawn over sizes is drawn from the largest budget, to the byte.
    report.build_report(results, tmp_path / "one")
    figures_of = {
        name: {p.name: p.read_bytes() for p in (tmp_path / name / "figures").iterdir()} for name in ("several", "one")
    }
    assert set(figures_of["several"]) - set(figures_of["one"]) == {f"budgets.{kind}" for kind in ("csv", "png", "svg")}
    assert [n for n, drawn in figures_of["one"].items() if figures_of["several"][n] != drawn] == []


def test_the_points_of_the_budgets_are_means_over_seeds_of_annealed_ends(results):
    scores = with_budgets(results).scores
    data = figures.budgets_data(scores)
    assert data["end"].all() and sorted(data["tokens"].unique()) == pytest.approx([0.01 * TOKENS, 0.1 * TOKENS, TOKENS])
    row = data[(data["task"] == "fact") & (data["size"] == "2x96") & (data["tokens"] == 0.1 * TOKENS)].iloc[0]
    same = (scores["task"] == "fact") & (scores["metric"] == "acc") & (scores["size"] == "2x96")
    seeds = scores[same & scores["tokens"].between(0.09 * TOKENS, 0.11 * TOKENS) & scores["trunk"].notna()]["value"]
    assert len(seeds) == 3 and row["value"] == pytest.approx(seeds.mean())
    assert (row["lo"], row["hi"]) == pytest.approx((seeds.min(), seeds.max()))
    assert not figures.budgets_data(results.scores.assign(annealed=results.scores["is_last"])).size
    course = figures.training_data(results.scores)
    assert (
        set(course.loc[course["end"], "tokens"]) == {TOKENS}
        and not course.loc[~course["end"], "tokens"].eq(TOKENS).any()
    )
