"""Charts of the pipeline: sampling, filtering, rule shares, losses, lengths.

Enters: small tidy frames. Leaves: charts; shares are fractions in the frames and
percent on the axes.
"""

from __future__ import annotations

import itertools
from types import MappingProxyType

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cotspec.figures.style import (
    BLACK,
    BLUE,
    FORMAT_STYLES,
    FULL_WIDTH,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PURPLE,
    RULE_STYLES,
    SERIES_STYLES,
    SKY_BLUE,
    SPLIT_STYLES,
    VERMILLION,
    YELLOW,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)


@themed
def funnel(stages: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw what filtering leaves: one bar a stage, with counts, shares and losses.

    Parameters
    ----------
    stages : DataFrame
        In order: ``stage`` (sampled, answered, right, aligned, kept), ``count``
        (solutions left after it) and ``reason`` (why the missing ones were dropped, ""
        for the first).
    width : float
        Inches.
    """
    require_columns(stages, ("stage", "count", "reason"), "funnel")
    counts = stages["count"].to_numpy()
    total = max(int(counts[0]), 1)
    chart = new_chart(width, 0.36 * len(stages) + 0.55)
    axes = chart.subplots()
    rows = np.arange(len(stages))
    axes.barh(rows, counts, color=BLUE, height=0.62)
    lost = np.concatenate([[0], counts[:-1] - counts[1:]])
    look = {"color": LIGHT_GREY, "hatch": "////", "edgecolor": "white"}
    axes.barh(rows, lost, left=counts, height=0.62, **look)
    for row, (count, gone, reason) in enumerate(
        zip(counts, lost, stages["reason"], strict=True)
    ):
        label = f"{count:,} ({count / total:.0%})"
        label += f"   −{gone:,} {reason}" if gone else ""
        look = {"va": "center", "fontsize": 7, "parse_math": False}
        axes.text(count + gone + total * 0.012, row, label, **look)
    axes.set_yticks(rows, stages["stage"])
    axes.invert_yaxis()
    axes.set_xlim(0, total * 1.42)
    ticks = MaxNLocator(5, integer=True).tick_values(0, total)
    axes.set_xticks([tick for tick in ticks if tick <= total])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("solutions (hatched: dropped at this stage)", loc="left")
    return chart


@themed
def rule_shares(shares: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw the share of student tokens by alignment rule, one bar a method.

    Parameters
    ----------
    shares : DataFrame
        ``method``, ``rule`` (a key of `RULE_STYLES`), ``share`` (fraction of the
        method's student tokens, 0 to 1).
    width : float
        Inches.
    """
    require_columns(shares, ("method", "rule", "share"), "rule_shares")
    methods = list(dict.fromkeys(shares["method"]))
    chart = new_chart(width, 0.34 * len(methods) + 1.05)
    axes = chart.subplots()
    left = np.zeros(len(methods))
    present = set(shares["rule"])
    for rule, style in RULE_STYLES.items():
        if rule not in present:
            continue
        picked = shares[shares["rule"] == rule].set_index("method")["share"]
        values = picked.reindex(methods).fillna(0).to_numpy()
        look = {"color": style.colour, "hatch": style.hatch, "edgecolor": BLACK}
        axes.barh(methods, values, left=left, lw=0.5, label=style.label, **look)
        for row, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 0.05:
                box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.85}
                centre = {"ha": "center", "va": "center", "fontsize": 7, "bbox": box}
                axes.text(start + value / 2, row, f"{value:.0%}", **centre)
        left += values
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("student tokens (% by rule)")
    chart.legend(loc="outside upper center", ncols=3)
    return chart


@themed
def loss_curves(
    metrics: pd.DataFrame,
    *,
    styles: dict[str, Style] | None = None,
    width: float = FULL_WIDTH,
) -> Chart:
    """Draw the training loss and the learning rate against the update.

    Parameters
    ----------
    metrics : DataFrame
        ``step`` (updates), ``loss`` (nats per token), ``learning_rate``; an optional
        ``series`` (training and validation, or two losses) makes one curve each.
    styles : dict, optional
        Look of each series (`LOSS_STYLES`, `FORMAT_STYLES`…); default `SPLIT_STYLES`.
    width : float
        Inches.
    """
    require_columns(metrics, ("step", "loss", "learning_rate"), "loss_curves")
    styles = dict(SPLIT_STYLES if styles is None else styles)
    chart = new_chart(width, 2.3)
    left, right = chart.subplots(1, 2, width_ratios=(2, 1))
    if "series" not in metrics:
        metrics = metrics.assign(series="train")
    for name, series in metrics.groupby("series", sort=False):
        style = styles.get(name, Style(str(name), GREY, "."))
        _draw_loss(left, series.dropna(subset=["loss"]), style)
        rates = series.dropna(subset=["learning_rate"])
        right.plot(rates["step"], rates["learning_rate"], style.line, c=style.colour)
    left.set(xlabel="update", ylabel="loss (nats per target token)")
    right.set(xlabel="update", ylabel="learning rate")
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    left.legend()
    return chart


def _draw_loss(axes: Axes, series: pd.DataFrame, style: Style) -> None:
    """A noisy curve is drawn faint, its running mean (a tenth of it) strong."""
    window = max(len(series) // 10, 1)
    smooth = series["loss"].rolling(window, min_periods=1, center=True).mean()
    label = style.label if window == 1 else f"{style.label} (mean of {window})"
    if window > 1:
        axes.plot(series["step"], series["loss"], c=style.colour, lw=0.6, alpha=0.35)
    spread = {"marker": style.marker, "markevery": max(len(series) // 8, 1)}
    axes.plot(series["step"], smooth, style.line, c=style.colour, label=label, **spread)


@themed
def length_histogram(
    lengths: pd.DataFrame,
    *,
    limit: int | None = None,
    unit: str = "tokens",
    width: float = FULL_WIDTH,
) -> Chart:
    """Draw how long texts are, one outline per kind.

    Parameters
    ----------
    lengths : DataFrame
        ``kind`` (what is counted: a data format, "right" and "wrong"), ``length``.
    limit : int, optional
        A dashed line: where texts are cut.
    unit : str
        Unit of ``length`` for the axis.
    width : float
        Inches.
    """
    require_columns(lengths, ("kind", "length"), "length_histogram")
    kinds = list(dict.fromkeys(lengths["kind"]))
    spare = itertools.cycle(SERIES_STYLES)
    chart = new_chart(width, 1.9 + 0.12 * len(kinds))
    axes = chart.subplots()
    for index, kind in enumerate(kinds):
        picked = lengths.loc[lengths["kind"] == kind, "length"]
        style = FORMAT_STYLES.get(kind) or next(spare)
        label = style.label or kind
        seaborn.histplot(
            x=picked,
            bins=np.histogram_bin_edges(lengths["length"], bins=30),
            element="step",
            fill=index == 0,
            alpha=1.0 if index else 0.35,
            linestyle=style.line,
            linewidth=1.3,
            color=style.colour,
            label=f"{label} (n = {len(picked):,}, median {picked.median():.0f})",
            ax=axes,
        )
    if limit is not None:
        axes.axvline(limit, color=BLACK, ls="--", lw=1, label=f"cut at {limit:,}")
    axes.set(xlabel=f"length ({unit})", ylabel="count", xlim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    chart.legend(loc="outside upper center", ncols=3 if len(kinds) < 3 else 2)
    return chart


# `teacher.studies.KINDS`; what is right is plain, what fails is hatched.
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
        ci_high``; from `teacher.studies.summarize`.
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
        solutions, 0 to 1), ``num_questions``; from `teacher.studies.shares_by_steps`.
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
