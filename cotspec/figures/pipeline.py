"""Charts of the pipeline: sampling, filtering, rule shares, losses, lengths.

Enters: small tidy frames. Leaves: charts; shares are fractions in the frames and
percent on the axes.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cotspec.figures import style
from cotspec.figures.style import Chart

_BOX, _ARROW, _EDGE = 0.3, 0.34, 0.05  # inches
MAX_NUMBERED = 12  # bars
_HEAD = {"arrowstyle": "-|>", "color": style.BLACK, "shrinkA": 0, "shrinkB": 0}
_LINE = {"color": style.BLACK, "lw": 1}

# The way past notebook 05 is a box without a number.
SERIES = pd.read_csv(
    Path(__file__).with_name("series.csv"), dtype={"notebook": str}, na_filter=False
)


@style.in_our_look
def pipeline_map(steps: pd.DataFrame) -> Chart:
    """Draw the steps of the series from top to bottom, one column wide.

    Parameters
    ----------
    steps : DataFrame
        ``level`` (boxes of one level stand side by side), ``width`` (share of its
        level's width, 0 to 1), ``notebook`` (its number; "" for a line that goes past
        the level: all boxes above are then joined to all below), ``step`` (what it
        does), ``leaves`` (what it hands to the next level; where a box has several
        arrows, " | " parts their texts). A box hands on to those it stands above.
    """
    width = style.COLUMN_WIDTH - _EDGE
    right = _EDGE + width * steps.groupby("level")["width"].cumsum()
    top = _EDGE + steps["level"] * (_BOX + _ARROW)
    left = right - width * steps["width"]
    placed = steps.assign(left=left, right=right - _EDGE, top=top)
    levels = [list(level.itertuples()) for _, level in placed.groupby("level")]
    chart, axes = style.canvas(top.max() + _BOX + _EDGE, style.COLUMN_WIDTH)
    for level, below in itertools.zip_longest(levels, levels[1:], fillvalue=[]):
        for step in level:
            _draw_step(axes, step)
        is_joined = len(level) > 1 and not all(step.notebook for step in below)
        _hand_on(axes, level, below, is_joined=is_joined)
    return chart


def _draw_step(axes: Axes, step) -> None:
    if not step.notebook:
        x = _arrow_x(step, step)
        axes.plot([x, x], [step.top, step.top + _BOX], **_LINE)
        return
    look = {"fc": style.SKY_BLUE, "ec": style.BLACK, "lw": 0.6, "alpha": 0.35}
    style.box(axes, step.left, step.top, step.right - step.left, _BOX, **look)
    number, y = {"weight": "bold", "fontsize": 8.5}, step.top + _BOX / 2
    style.write(axes, step.left + 0.06, y, step.notebook, **number)
    after = step.left + 0.12 + 1.1 * style.text_width(step.notebook, 8.5)
    style.write(axes, after, y, step.step, fontsize=8)


def _hand_on(axes: Axes, level: list, below: list, *, is_joined: bool) -> None:
    """Draw a level's arrows, straight down or by one line across, and their texts."""
    start = level[0].top + _BOX
    end, middle = start + _ARROW, start + _ARROW / 2
    arrows = []
    for step in level:
        xs = [_arrow_x(step, one) for one in below]
        xs = [x for x in xs if step.left < x < step.right]
        for x, text in zip(xs, step.leaves.split(" | "), strict=False):
            look = {"fontsize": 7.5, "style": "italic", "color": style.GREY}
            y = (start + middle) / 2 if is_joined else middle
            style.write(axes, x + 0.15, y, text, **look)
        arrows += xs
    if is_joined:
        into = {_arrow_x(step, step): step.notebook for step in below}
        stubs = [_arrow_x(step, step) for step in level]
        axes.plot([min(stubs), max(into)], [middle, middle], **_LINE)
        axes.vlines(stubs, start, middle, **_LINE)
        axes.vlines([x for x in into if not into[x]], middle, end, **_LINE)
        arrows, start = [x for x in into if into[x]], middle
    for x in arrows:
        axes.annotate("", xytext=(x, start), xy=(x, end), arrowprops=_HEAD)


def _arrow_x(upper, lower) -> float:
    """Where an arrow goes down: at the left of what both boxes have in common."""
    left, right = max(upper.left, lower.left), min(upper.right, lower.right)
    return left + min(0.3, (right - left) / 2)


@style.in_our_look
def right_per_question(counts: pd.DataFrame) -> Chart:
    """Draw how many questions have so many right solutions, stacked by their steps.

    Parameters
    ----------
    counts : DataFrame
        ``right`` (solutions of a question, 0 to all), ``steps`` (a label such as "2",
        in order), ``questions`` (how many there are of both).
    """
    wide = counts.pivot_table(index="right", columns="steps", values="questions")
    wide = wide.reindex(range(wide.index.max() + 1)).fillna(0)
    chart, axes = style.new_chart(2.3, style.COLUMN_WIDTH)
    shades = matplotlib.colormaps["Blues"](np.linspace(0.25, 0.95, len(wide.columns)))
    below, look = np.zeros(len(wide)), {"ec": style.BLACK, "lw": 0.5}
    for (steps, part), shade in zip(wide.items(), shades, strict=True):
        axes.bar(wide.index, part, bottom=below, fc=shade, label=steps, **look)
        below += part.to_numpy()
    if len(wide) <= MAX_NUMBERED:
        for right, total in zip(wide.index, below, strict=True):
            axes.annotate(f"{total:,.0f}", (right, total), ha="center", va="bottom")
    axes.set(xlabel="right solutions of a question", ylabel="questions")
    axes.set_ylim(0, 1.12 * below.max())
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    chart.legend(title="steps", loc="outside right upper", title_fontsize=7)
    return chart


@style.in_our_look
def rule_shares(shares: pd.DataFrame) -> Chart:
    """Draw the share of student tokens by alignment rule, one bar a method.

    Parameters
    ----------
    shares : DataFrame
        ``method``, ``rule`` (a key of `RULE_STYLES`), ``share`` (fraction of the
        method's student tokens, 0 to 1).
    """
    wide, edge = _wide(shares, "method", "rule"), {"edgecolor": style.BLACK, "lw": 0.5}
    chart, axes = _stacked_bars(wide, style.RULE_STYLES, 1.05, **edge)
    axes.set_xlabel("student tokens (% by rule)")
    return chart


_VISIBLE = 0.002  # of a bar


@style.in_our_look
def failures_by_steps(shares: pd.DataFrame) -> Chart:
    """Draw how solutions end, one bar for each number of steps a question takes.

    Parameters
    ----------
    shares : DataFrame
        ``steps, kind`` (a key of `KIND_STYLES`), ``count, share`` (of the bar's
        solutions, 0 to 1), ``num_questions``; from `teacher.studies.shares_by_steps`.
    """
    bars = shares.groupby("steps", sort=False)
    bars = bars.agg({"num_questions": "first", "count": "sum"})
    labels = [f"{n}  ({q:,} q., {s:,} sol.)" for n, q, s in bars.itertuples()]
    wide = _wide(shares, "steps", "kind").set_axis(labels)
    seen = wide.loc[:, wide.max() >= _VISIBLE]  # others are in the table alone
    chart, axes = _stacked_bars(seen, style.KIND_STYLES, 1.15, edgecolor="white")
    axes.set(xlabel="solutions", ylabel="steps of the question")
    return chart


def _wide(shares: pd.DataFrame, bar: str, part: str) -> pd.DataFrame:
    """Return a row for each bar, in order, and a column for each of its parts."""
    wide = shares.pivot(index=bar, columns=part, values="share")
    return wide.reindex(shares[bar].unique()).fillna(0)


def _stacked_bars(wide: pd.DataFrame, styles: Mapping, above: float, **edge: object):
    """Draw each row as a bar; shares stand in their parts where there is room."""
    chart, axes = style.new_chart(0.34 * len(wide) + above)
    box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.85}
    rows, left = range(len(wide)), np.zeros(len(wide))
    for name, look in styles.items():
        if name not in wide:
            continue
        part = {"color": look.colour, "hatch": look.hatch, "label": look.label} | edge
        values = wide[name].to_numpy()
        axes.barh(rows, values, left=left, **part)
        for row, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= 0.05:
                place = {"ha": "center", "va": "center", "fontsize": 7, "bbox": box}
                axes.text(start + value / 2, row, f"{value:.0%}", **place)
        left += values
    axes.set_yticks(rows, wide.index)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    chart.legend(loc="outside upper center", ncols=3)
    return chart, axes


@style.in_our_look
def loss_curves(metrics: pd.DataFrame) -> Chart:
    """Draw the training loss and the learning rate against the update.

    Parameters
    ----------
    metrics : DataFrame
        One row an update, in order: ``batch`` (what it holds: "with reasoning" or
        "answers alone"), ``step``, ``loss`` (nats per token), ``learning_rate``,
        ``epoch`` (told by an axis above).
    """
    chart, (left, right) = style.new_chart(2.3, ncols=2, width_ratios=(2, 1))
    for name, updates in metrics.groupby("batch", sort=False):
        _draw_loss(left, updates.dropna(subset=["loss"]), name)
    right.plot(metrics["step"], metrics["learning_rate"], c=style.BLACK)
    left.set_ylabel("loss (nats per target token)")
    right.set_ylabel("learning rate")
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    for axes in (left, right):
        axes.set_xlabel("update")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    left.set_ylim(top=1.2 * metrics["loss"].max())  # room for the legend
    passes = (metrics["epoch"].diff() / metrics["step"].diff()).mean()  # an update
    if passes > 0:
        scale = (lambda step: step * passes, lambda epoch: epoch / passes)
        left.secondary_xaxis("top", functions=scale).set_xlabel("epoch")
    left.legend(ncols=2)
    return chart


def _draw_loss(axes: Axes, series: pd.DataFrame, name: str) -> None:
    """A noisy curve is drawn faint, its running mean (a tenth of it) strong."""
    look, window = style.CURVE_STYLES[name], max(len(series) // 10, 1)
    smooth = series["loss"].rolling(window, min_periods=1, center=True).mean()
    label = name if window == 1 else f"{name} (mean of {window})"
    if window > 1:
        axes.plot(series["step"], series["loss"], c=look.colour, lw=0.6, alpha=0.35)
    spread = {"marker": look.marker, "markevery": max(len(series) // 8, 1)}
    axes.plot(series["step"], smooth, look.line, c=look.colour, label=label, **spread)


@style.in_our_look
def length_histogram(lengths: pd.DataFrame, *, limit: int) -> Chart:
    """Draw how many tokens texts take, one outline per kind, each of the same area.

    Parameters
    ----------
    lengths : DataFrame
        ``kind`` (a data format), ``length``.
    limit : int
        Where texts are cut: a dashed line, or a note if it lies far beyond them all.
    """
    kinds = lengths.groupby("kind", sort=False)["length"]
    bins = np.histogram_bin_edges(lengths["length"], bins=30)
    chart, axes = style.new_chart(1.9 + 0.12 * len(kinds))
    for index, (kind, picked) in enumerate(kinds):
        look = style.FORMAT_STYLES[kind]
        numbers = f"(n = {len(picked):,}, median {picked.median():.0f})"
        outline = {"color": look.colour, "linestyle": look.line, "linewidth": 1.3}
        outline |= {"fill": index == 0, "alpha": 1.0 if index else 0.35}
        outline["stat"] = "probability"  # formats differ in their number of examples
        outline["label"] = f"{look.label} {numbers}"
        seaborn.histplot(x=picked, bins=bins, element="step", ax=axes, **outline)
    if limit <= 1.3 * lengths["length"].max():
        axes.axvline(limit, color=style.BLACK, ls="--", lw=1, label=f"limit {limit:,}")
    else:
        beyond = {"ha": "right", "va": "top", "transform": axes.transAxes}
        axes.text(0.995, 0.97, f"limit {limit:,} →", fontsize=7, **beyond)
    axes.set(xlabel="length (tokens)", ylabel="share of its kind", xlim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    chart.legend(loc="outside upper center", ncols=2)
    return chart


_PANELS = {
    "accuracy": ("questions solved by …", (style.GREEN, style.PURPLE, style.BLACK)),
    "diversity": ("share of a question's samples", (style.BLUE, style.VERMILLION)),
}
_APART = 0.008  # of the axis, between the intervals of two measures


@style.in_our_look
def temperature_study(study: pd.DataFrame, *, used: float) -> Chart:
    """Draw accuracy, and beside it diversity, against the sampling temperature.

    Parameters
    ----------
    study : DataFrame
        ``temperature, group`` ("accuracy" or "diversity"), ``measure, value, ci_low,
        ci_high``; from `teacher.studies.compare_temperatures`.
    used : float
        The temperature of the run, marked by a dotted line.
    """
    chart, panels = style.new_chart(2.6, ncols=2)
    for axes, (group, (label, colours)) in zip(panels, _PANELS.items(), strict=True):
        _draw_measures(axes, study[study["group"] == group], colours)
        axes.set_xticks(study["temperature"].unique())
        axes.axvline(used, c=style.GREY, ls=":", lw=1, label=f"this run: {used:g}")
        axes.set(xlabel="temperature", ylabel=label, ylim=(0, 1.02))
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2)
    return chart


def _draw_measures(axes: Axes, study: pd.DataFrame, colours: tuple[str, ...]) -> None:
    apart = _APART * max(np.ptp(study["temperature"]), 1)
    measures = study.groupby("measure", sort=False)
    looks = zip(measures, colours, style.SERIES_STYLES, strict=False)
    for index, ((name, curve), colour, look) in enumerate(looks):
        curve = curve.sort_values("temperature")
        x = curve["temperature"] + apart * (index - 1)
        line = {"color": colour, "marker": look.marker, "ls": look.line, "label": name}
        ends = curve["value"] - curve["ci_low"], curve["ci_high"] - curve["value"]
        axes.errorbar(x, curve["value"], ends, elinewidth=0.8, capsize=2, **line)
