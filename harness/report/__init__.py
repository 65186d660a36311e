"""The report of a sweep: one page that is whole by itself, and its figures with the numbers behind them.

The page needs no network and no script. It is a function of the tables: the same tables give the same bytes. Every
string in it is escaped and its control characters are made visible, because part of them was written by a model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.report import abilities, answers, compression, drawing, overview, provenance, science, tuning, verdicts
from harness.report.tables import Tables
from harness.wording import AXES, DASH, LABELS, label_name, metric_name, si, visible

OPEN_SAMPLES = 6  # documents shown unfolded
OPEN_ROWS = 40  # of a long table


def build_report(results: Any, out: Path) -> Path:
    """Write `out`/index.html and `out`/figures/ from the tables of `results`; return the path of the page.

    `results` has .runs .scores .fits .verdicts .examples .missing (frames), .tasks, .spec, .ledger, .path, and may have
    .links .backtests .forecasts .pairs .positions .reliability .abilities .compression .elbows; any table may be empty
    or None: the page then says what is missing."""
    page = Tables(results)
    figures = out / "figures"
    out.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {"metric_name": metric_name, "label_name": label_name, "si": si, "answer": overview.answer}
    rows = verdicts.verdict_rows(page)
    text = environment.get_template("report.html.j2").render(
        name=page.name,
        note=" ".join(str(page.about.get("note") or "").split()),
        headline=overview.headline(page, rows),
        ladder=overview.ladder(page),
        abilities=abilities.ability_map(page, rows),
        ability_figures=abilities.ability_figures(page, figures),
        verdicts=verdicts.in_two([row for row in rows if row["headline"]], OPEN_ROWS),
        other_verdicts=[row for row in rows if not row["headline"]],
        meanings={key: meaning for key, (_, _, meaning) in LABELS.items()},
        constants=page.constants,
        axis=AXES.get(page.verdict_axis, page.verdict_axis),
        unit=page.verdict_unit,
        surprise=any(row["surprise"] != DASH for row in rows),
        scaling=drawing.scaling_figures(page, figures),
        fits=science.fit_rows(page),
        limits=science.fit_limits(page),
        curves=drawing.curve_figures(page, figures, rows),
        maps=drawing.map_figures(page, figures),
        budgets=drawing.budget_figures(page, figures),
        seeds=drawing.seeds_figures(page, figures),
        compression=compression.compression_facts(page),
        tuning=tuning.tuning_facts(page),
        tuning_figures=tuning.tuning_figures(page, figures),
        compression_figures=compression.compression_figures(page, figures),
        links=science.link_rows(page),
        link_figures=drawing.link_figures(page, figures),
        forecast=science.forecast_facts(page),
        backtest=science.backtest_facts(page),
        forecast_figures=drawing.forecast_figures(page, figures),
        backtest_figures=drawing.backtest_figures(page, figures),
        behind=answers.behind(page, figures),
        missing=overview.missing_rows(page),
        samples=overview.samples(page),
        open_samples=OPEN_SAMPLES,
        open_rows=OPEN_ROWS,
        provenance=provenance.provenance(page),
        trace=provenance.trace(page),
    )
    target, temporary = out / "index.html", out / f".index.html.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target
