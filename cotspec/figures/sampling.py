"""Charts of the teacher's samples: temperature, and the ways to fail.

Enters: tidy frames from `teacher.temperatures` and `teacher.failures`. Leaves: charts;
shares are fractions in the frames and percent on the axes.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from cotspec.figures.style import (
    BLACK,
    BLUE,
    FULL_WIDTH,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    SERIES_STYLES,
    SKY_BLUE,
    VERMILLION,
    YELLOW,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

# `teacher.failures.KINDS`; what is right is plain, what fails is hatched.
KIND_STYLES = MappingProxyType(
    {
        "right": Style("right", GREEN, ""),
        "wrong arithmetic": Style(
            "wrong arithmetic: a false sum", VERMILLION, "", "///"
        ),
        "wrong plan": Style("wrong plan: true sums, wrong ones", ORANGE, "", "\\\\\\"),
        "unsupported answer": Style("true sums, another answer", YELLOW, "", "++"),
        "no equation": Style("wrong, no equation to check", SKY_BLUE, "", "..."),
        "no answer": Style("no answer", PURPLE, "", "xxx"),
        "cut off": Style("cut off at the limit", LIGHT_GREY, "", "|||"),
    }
)
_GROUPS = MappingProxyType(
    {
        "accuracy": ("questions solved by …", (GREEN, PURPLE, BLACK)),
        "diversity": ("share of a question's samples", (BLUE, VERMILLION)),
    }
)
_APART = 0.008  # of the axis, between the intervals of two measures


@themed
def temperature_study(
    study: pd.DataFrame, *, used: float | None = None, width: float = FULL_WIDTH
) -> Chart:
    """Draw accuracy, and beside it diversity, against the sampling temperature.

    Parameters
    ----------
    study : DataFrame
        ``temperature, group`` ("accuracy" or "diversity"), ``measure, value, ci_low,
        ci_high``; from `teacher.temperatures.summarize`.
    used : float, optional
        The temperature of the run, marked by a dotted line.
    width : float
        Inches.
    """
    needed = ("temperature", "group", "measure", "value", "ci_low", "ci_high")
    require_columns(study, needed, "temperature_study")
    chart = new_chart(width, 2.6)
    panels = chart.subplots(1, 2)
    for axes, (group, (label, colours)) in zip(panels, _GROUPS.items(), strict=True):
        _draw_measures(axes, study[study["group"] == group], colours)
        axes.set_xticks(sorted(set(study["temperature"])))
        if used is not None:
            axes.axvline(used, color=GREY, ls=":", lw=1, label=f"this run: {used:g}")
        axes.set(xlabel="temperature", ylabel=label, ylim=(0, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2)
    return chart


def _draw_measures(axes: Axes, study: pd.DataFrame, colours: tuple[str, ...]) -> None:
    apart = _APART * max(np.ptp(study["temperature"]), 1)
    measures = study.groupby("measure", sort=False)
    looks = zip(measures, colours, SERIES_STYLES, strict=False)
    for index, ((name, curve), colour, style) in enumerate(looks):
        curve = curve.sort_values("temperature")
        below, above = (
            curve["value"] - curve["ci_low"],
            curve["ci_high"] - curve["value"],
        )
        axes.errorbar(
            curve["temperature"] + apart * (index - 1),
            curve["value"],
            np.clip([below, above], 0, None),
            color=colour,
            marker=style.marker,
            ls=style.line,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )


@themed
def failures_by_steps(shares: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw how solutions end, one bar for each number of steps a question takes.

    Parameters
    ----------
    shares : DataFrame
        ``steps, kind`` (a key of `KIND_STYLES`), ``count, share`` (of the bar's
        solutions, 0 to 1), ``num_questions``; from `teacher.failures.shares_by_steps`.
    width : float
        Inches.
    """
    needed = ("steps", "kind", "count", "share", "num_questions")
    require_columns(shares, needed, "failures_by_steps")
    steps = list(dict.fromkeys(shares["steps"]))
    chart = new_chart(width, 0.34 * len(steps) + 1.15)
    axes = chart.subplots()
    left = np.zeros(len(steps))
    for kind, style in KIND_STYLES.items():
        picked = shares[shares["kind"] == kind].set_index("steps")["share"]
        values = picked.reindex(steps).fillna(0).to_numpy()
        if not values.any():
            continue
        look = {"color": style.colour, "hatch": style.hatch, "edgecolor": "white"}
        axes.barh(np.arange(len(steps)), values, left=left, label=style.label, **look)
        _write_shares(axes, left, values)
        left += values
    axes.set_yticks(np.arange(len(steps)), _step_labels(shares, steps))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="solutions", ylabel="steps of the question")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    chart.legend(loc="outside upper center", ncols=3)
    return chart


def _write_shares(axes: Axes, left: np.ndarray, values: np.ndarray) -> None:
    """Write a share into its part of the bar, where it has the room."""
    box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.85}
    for row, (start, value) in enumerate(zip(left, values, strict=True)):
        if value >= 0.05:
            middle = start + value / 2
            look = {"ha": "center", "va": "center", "fontsize": 7, "bbox": box}
            axes.text(middle, row, f"{value:.0%}", **look)


def _step_labels(shares: pd.DataFrame, steps: list[str]) -> list[str]:
    counts = shares.groupby("steps", sort=False)["count"].sum()
    questions = shares.groupby("steps", sort=False)["num_questions"].first()
    return [f"{s}  ({questions[s]:,} q., {counts[s]:,} sol.)" for s in steps]
