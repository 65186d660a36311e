"""Figures of a report, drawn from tables.

Each figure is two functions: `*_data` selects the numbers that are drawn (and saved beside the figure as CSV),
`*_figure` draws them."""

from harness.figures.abilities import ability_data, ability_figure
from harness.figures.answers import MIN_ANSWERS, position_data, position_figure, reliability_data, reliability_figure
from harness.figures.base import bounds, by_size, inline_svg, save
from harness.figures.compression import compression_data, compression_figure
from harness.figures.curves import curve_data, curve_figure, panels, seeds_data, seeds_figure
from harness.figures.forecasts import (
    backtest_data,
    backtest_figure,
    calibration_figure,
    coverage_data,
    forecast_data,
    forecast_figure,
    pit_values,
)
from harness.figures.links import link_data, link_figure
from harness.figures.maps import budgets_data, heatmap_data, heatmap_figure, training_data, training_figure
from harness.figures.scaling import (
    frontier_data,
    frontier_figure,
    isoflop_data,
    isoflop_figure,
    scaling_data,
    scaling_figure,
)
from harness.figures.tuning import tuning_data, tuning_figure

__all__ = [
    "MIN_ANSWERS",
    "ability_data",
    "ability_figure",
    "backtest_data",
    "backtest_figure",
    "bounds",
    "budgets_data",
    "by_size",
    "calibration_figure",
    "compression_data",
    "compression_figure",
    "coverage_data",
    "curve_data",
    "curve_figure",
    "forecast_data",
    "forecast_figure",
    "frontier_data",
    "frontier_figure",
    "heatmap_data",
    "heatmap_figure",
    "inline_svg",
    "isoflop_data",
    "isoflop_figure",
    "link_data",
    "link_figure",
    "panels",
    "pit_values",
    "position_data",
    "position_figure",
    "reliability_data",
    "reliability_figure",
    "save",
    "scaling_data",
    "scaling_figure",
    "seeds_data",
    "seeds_figure",
    "training_data",
    "training_figure",
    "tuning_data",
    "tuning_figure",
]
