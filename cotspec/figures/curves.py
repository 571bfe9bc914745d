"""Charts of the experiments: curves along the training or over size, and the ledger.

Enters: tidy frames of `report.curves`, and the ledger's conditions. Leaves: charts;
accuracies are fractions in the frames and percent on the axes.
"""

from __future__ import annotations

import textwrap
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from cotspec.figures.style import (
    BLACK,
    BLUE,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SERIES_STYLES,
    VERMILLION,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

PANEL_HEIGHT = 2.5  # inches
MAX_TICKS = 7  # fewer steps or sizes are marked one by one
# Each series looks the same wherever it is drawn.
CURVE_STYLES = MappingProxyType(
    {
        "in-distribution": Style("", BLUE, "o"),
        "out of distribution": Style("", VERMILLION, "^", "", "--"),
        "generic, CoT": Style("", GREEN, "s"),
        "generic, answer-only": Style("", ORANGE, "D", "", "--"),
        "asked in context": Style("", BLUE, "o"),
        "asked zero-shot": Style("", VERMILLION, "^", "", "--"),
        "distribution matching": Style("", BLUE, ""),
        "sample matching": Style("", ORANGE, "", "", "--"),
        "teacher": Style("", BLACK, "*", "", ""),
        "instruction-tuned": Style("", GREEN, "o"),
        "raw": Style("", PURPLE, "s", "", "--"),
        "before": Style("", GREY, "v", "", ":"),
        "after": Style("", GREEN, "o"),
    }
)
STATUS_STYLES = MappingProxyType(
    {
        "met": Style("holds", GREEN, "o"),
        "open": Style("open", GREY, "d"),
        "excluded": Style("an effect of interest is excluded", ORANGE, "s"),
        "opposite": Style("the other way", VERMILLION, "X"),
    }
)


@themed
def curve_panels(
    curves: pd.DataFrame,
    *,
    xlabel: str = "update",
    ylabel: str = "accuracy",
    is_log: bool = False,
    chance: float | None = None,
    width: float = FULL_WIDTH,
) -> Chart:
    """Draw curves with their bands, panels side by side on one scale.

    Parameters
    ----------
    curves : DataFrame
        ``panel, series, x, value, low, high``; a series of one point is a marker.
    xlabel, ylabel : str
        Accuracies are drawn in percent, other values as they are.
    is_log : bool
        A logarithmic x axis (parameters).
    chance : float, optional
        A dotted line where guessing would be.
    width : float
        Inches.
    """
    needed = ("panel", "series", "x", "value", "low", "high")
    require_columns(curves, needed, "curve_panels")
    groups = list(curves.groupby("panel", sort=False))
    chart = new_chart(width, PANEL_HEIGHT + 0.1)
    panels = np.ravel(chart.subplots(1, len(groups), sharey=True, squeeze=False))
    spare = iter(SERIES_STYLES * 4)
    looks = {
        name: CURVE_STYLES[name] if name in CURVE_STYLES else next(spare)
        for name in dict.fromkeys(curves["series"])
    }
    for axes, (title, panel) in zip(panels, groups, strict=True):
        for name, series in panel.groupby("series", sort=False):
            _draw_curve(axes, series.sort_values("x"), name, looks[name])
        if chance is not None:
            axes.axhline(chance, color=GREY, lw=0.8, ls=":", label="chance")
        axes.set(title=title, xlabel=xlabel)
        axes.yaxis.grid(True)
        _mark_x(axes, sorted(panel["x"].unique()), is_log=is_log)
    panels[0].set_ylabel(ylabel)
    panels[0].set_ylim(0, float(curves["high"].max()) * 1.08 + 1e-3)
    panels[0].yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if ylabel == "accuracy":
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    place = {"loc": "outside upper center", "ncols": min(5, len(handles))}
    chart.legend(handles.values(), handles.keys(), **place)
    return chart


def _draw_curve(axes: Axes, series: pd.DataFrame, name: str, style: Style) -> None:
    line = style.line if len(series) > 1 else "none"
    look = {"c": style.colour, "marker": style.marker or None, "ls": line or "none"}
    axes.plot(series["x"], series["value"], label=name, clip_on=False, **look)
    band = {"color": style.colour, "alpha": 0.18, "lw": 0}
    if len(series) > 1:
        axes.fill_between(series["x"], series["low"], series["high"], **band)
        return
    ends = [series["low"].iloc[0], series["high"].iloc[0]]
    axes.plot([series["x"].iloc[0]] * 2, ends, color=style.colour, lw=0.9)


def _mark_x(axes: Axes, places: list[float], *, is_log: bool) -> None:
    if is_log:
        axes.set_xscale("log")
        axes.set_xticks(places, [_in_units(place) for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    elif len(places) <= MAX_TICKS:
        axes.set_xticks(places)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _in_units(size: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return f"{size:.0f}"


@themed
def claim_effects(conditions: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw every condition of every claim with its 95% interval, in points.

    Parameters
    ----------
    conditions : DataFrame
        From `report.conditions_table`; those in another unit than points (losses,
        shares) are named and not drawn.
    width : float
        Inches.
    """
    needed = ("claim", "condition", "effect", "ci_low", "ci_high", "unit", "status")
    require_columns(conditions, needed, "claim_effects")
    chart = new_chart(width, 0.2 * len(conditions) + 0.9)
    axes = chart.subplots()
    axes.axvline(0, color=GREY, lw=0.8, zorder=0)
    for row, one in enumerate(conditions.itertuples()):
        style = STATUS_STYLES[one.status]
        look = {"color": style.colour, "ms": 5.5, "mec": BLACK, "mew": 0.5}
        if one.unit != "points":
            text = f"{one.effect:+.3f} [{one.ci_low:+.3f}, {one.ci_high:+.3f}]"
            place = {"va": "center", "fontsize": 6.5, "color": style.colour}
            axes.text(0, row, f"  {text} {one.unit}", **place)
            continue
        axes.plot([100 * one.ci_low, 100 * one.ci_high], [row] * 2, c=BLACK, lw=1.1)
        axes.plot([100 * one.effect], [row], style.marker, **look)
    for status, style in STATUS_STYLES.items():
        if (conditions["status"] == status).any():
            look = {"color": style.colour, "mec": BLACK, "mew": 0.5, "ls": "none"}
            axes.plot([], [], marker=style.marker, label=style.label, **look)
    labels = [
        textwrap.shorten(f"{one.claim}  {one.condition}", 70, placeholder=" …")
        for one in conditions.itertuples()
    ]
    axes.set_yticks(range(len(conditions)), labels)
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    axes.set_ylim(len(conditions) - 0.4, -0.6)
    axes.set_xlabel("effect with 95% interval (percentage points; right: as claimed)")
    chart.legend(loc="outside upper center", ncols=4)
    return chart
