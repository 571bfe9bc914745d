"""Charts of the experiments: accuracy along the training, and against model size.

Enters: small tidy frames of accuracies with bands. Leaves: charts; accuracies are
fractions in the frames and percent on the axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from cotspec.figures.style import (
    FULL_WIDTH,
    MODEL_STYLES,
    SERIES_STYLES,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

PANEL_HEIGHT = 2.35  # inches
MARGIN = 1.25  # factor left free at both ends of the size axis
MAX_STEP_TICKS = 7  # fewer checkpoints are marked one by one
DODGE = 0.012  # of the axis: points of one size stand side by side, none is hidden


@themed
def accuracy_curves(
    curves: pd.DataFrame,
    *,
    styles: Mapping[str, Style],
    width: float = FULL_WIDTH,
) -> Chart:
    """Draw accuracy against the update, one line a series, with a band.

    Parameters
    ----------
    curves : DataFrame
        ``series, step, accuracy, low, high`` and, for charts side by side, ``panel``
        (its title); a series may stand in several panels.
    styles : mapping
        Look of the series (`LOSS_STYLES`…); others get one of `SERIES_STYLES`.
    width : float
        Inches.
    """
    needed = ("series", "step", "accuracy", "low", "high")
    require_columns(curves, needed, "accuracy_curves")
    looks = _looks(curves["series"], styles)
    chart, panels = _panels(curves, width)
    for axes, (_, panel) in zip(panels, _grouped(curves), strict=True):
        for name, series in panel.groupby("series", sort=False):
            _draw_curve(axes, series.sort_values("step"), looks[name])
        axes.set_xlabel("update")
        steps = sorted(panel["step"].unique())
        if len(steps) <= MAX_STEP_TICKS:
            axes.set_xticks(steps)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="best")
    _finish(panels, curves["high"])
    return chart


@themed
def size_curves(curves: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw accuracy against log size, before (hollow) and after specialization.

    Parameters
    ----------
    curves : DataFrame
        ``start`` (a key of `MODEL_STYLES`), ``stage`` (before, after), ``size``
        (parameters), ``accuracy, ci_low, ci_high`` and the fitted line ``fit, fit_low,
        fit_high``, NaN where there is none; optionally ``panel`` (its title).
    width : float
        Inches.
    """
    needed = "start stage size accuracy ci_low ci_high fit fit_low fit_high".split()
    require_columns(curves, tuple(needed), "size_curves")
    chart, panels = _panels(curves, width)
    for axes, (_, panel) in zip(panels, _grouped(curves), strict=True):
        sizes = sorted(panel["size"].unique())
        groups = panel.groupby(["start", "stage"], sort=False)
        step = (MARGIN**2 * sizes[-1] / sizes[0]) ** DODGE
        for index, ((start, stage), series) in enumerate(groups):
            aside = step ** (index - (len(groups) - 1) / 2)
            _draw_sizes(axes, series.sort_values("size"), start, stage, aside)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [_in_units(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(sizes[0] / MARGIN, sizes[-1] * MARGIN)
        axes.set_xlabel("parameters (log scale)")
    _finish(panels, curves[["ci_high", "fit_high"]].max(axis=1))
    handles = _size_handles(curves)
    place = {"loc": "outside upper center", "ncols": -(-len(handles) // 2)}
    chart.legend(handles.values(), handles.keys(), **place)
    return chart


def _grouped(curves: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if "panel" not in curves:
        return [("", curves)]
    return [(str(name), rows) for name, rows in curves.groupby("panel", sort=False)]


def _panels(curves: pd.DataFrame, width: float) -> tuple[Chart, list[Axes]]:
    """One axes per panel, side by side on one scale, titled."""
    groups = _grouped(curves)
    chart = new_chart(width, PANEL_HEIGHT)
    panels = list(np.ravel(chart.subplots(1, len(groups), sharey=True, squeeze=False)))
    for axes, (title, _) in zip(panels, groups, strict=True):
        axes.set_title(title)
        axes.yaxis.grid(True)
    return chart, panels


def _finish(panels: list[Axes], high: pd.Series) -> None:
    panels[0].set_ylabel("accuracy")
    panels[0].set_ylim(0, min(1.02, max(0.05, float(high.max()) * 1.08)))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _looks(names: pd.Series, styles: Mapping[str, Style]) -> dict[str, Style]:
    spare = itertools.cycle(SERIES_STYLES)
    unique = dict.fromkeys(names)
    return {name: styles[name] if name in styles else next(spare) for name in unique}


def _draw_curve(axes: Axes, series: pd.DataFrame, style: Style) -> None:
    label = style.label or str(series["series"].iloc[0])
    look = {"c": style.colour, "marker": style.marker, "ls": style.line}
    axes.plot(series["step"], series["accuracy"], label=label, **look)
    band = {"color": style.colour, "alpha": 0.18, "lw": 0}
    axes.fill_between(series["step"], series["low"], series["high"], **band)


def _draw_sizes(
    axes: Axes, series: pd.DataFrame, start: str, stage: str, aside: float
) -> None:
    style, is_after = MODEL_STYLES[start], stage == "after"
    accuracy = series["accuracy"]
    error = [accuracy - series["ci_low"], series["ci_high"] - accuracy]
    points = {"mfc": style.colour if is_after else "white", "mec": style.colour}
    points |= {"ecolor": style.colour, "elinewidth": 0.9, "capsize": 1.5, "ls": "none"}
    error = np.clip(error, 0, None)
    x = series["size"] * aside
    axes.errorbar(x, accuracy, error, marker=style.marker, **points)
    fitted = series.dropna(subset=["fit"])
    if fitted.empty:
        return
    line = "-" if is_after else ":"
    axes.plot(fitted["size"], fitted["fit"], line, c=style.colour, lw=1.1)
    band = {"color": style.colour, "alpha": 0.15, "lw": 0}
    axes.fill_between(fitted["size"], fitted["fit_low"], fitted["fit_high"], **band)


def _size_handles(curves: pd.DataFrame) -> dict[str, Line2D]:
    handles = {}
    for start, stage in curves[["start", "stage"]].drop_duplicates().to_numpy():
        style, is_after = MODEL_STYLES[start], stage == "after"
        look = {"mfc": style.colour if is_after else "white", "mec": style.colour}
        line = {"ls": "-" if is_after else ":", "c": style.colour}
        handles[f"{style.label}, {stage}"] = Line2D(
            [], [], marker=style.marker, **line, **look
        )
    return handles


def _in_units(size: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return f"{size:.0f}"
