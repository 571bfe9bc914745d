"""Charts of results: changes, pass at k, curves over training or size, and the ledger.

Enters: tidy frames of `evaluation` and `report.curves`, and the ledger's conditions.
Leaves: charts; accuracies are fractions in the frames and percent on the axes.
"""

import itertools
import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from cotspec.figures import style
from cotspec.figures.style import Chart, Style

DOTTED = {"color": style.GREY, "lw": 0.8, "ls": ":"}  # the line of guessing


@style.in_our_look
def before_and_after(results: pd.DataFrame, groups: Mapping[str, list]) -> Chart:
    """Draw each task before and after specialization, joined by a line.

    Parameters
    ----------
    results : DataFrame
        Tidy results of one student and seed: ``task, prompt_mode, step, accuracy,
        ci_low, ci_high``, the paired change's interval, ``gain_low, gain_high``, and
        ``chance`` (NaN where there is none), drawn dotted; one way of asking with and
        one without chain of thought; the smallest step is "before", the largest
        "after".
    groups : mapping
        Group title to its tasks, e.g. ``{"in-distribution": ["gsm8k"]}``.
    """
    heights = [len(tasks) + 0.4 for tasks in groups.values()]
    is_reasoned = results["prompt_mode"].str.endswith("chain_of_thought")
    shape = {"nrows": len(groups), "ncols": 2, "height_ratios": heights}
    shape |= {"sharex": True, "sharey": "row", "squeeze": False}
    height = 0.21 * sum(heights) + 0.3 * len(groups) + 0.6
    chart, panels = style.new_chart(height, **shape)
    for line, (name, tasks) in zip(panels, groups.items(), strict=True):
        labels = [task.rpartition("/")[2].replace("_", " ") for task in tasks]
        line[0].set_yticks(range(len(tasks)), labels, fontsize=7)
        line[0].set_ylim(len(tasks) - 0.3, -0.7)
        for axes, chosen in zip(line, (is_reasoned, ~is_reasoned), strict=True):
            _draw_changes(axes, results[chosen], tasks)
        line[0].set_title(f"{name}, chain of thought")
        line[1].set_title("answer only")
    panels[0, 0].set_xlim(-0.02, min(1.02, results["ci_high"].max() + 0.05))
    panels[0, 0].xaxis.set_major_formatter("{x:.0%}")
    for axes in panels[-1]:
        axes.set_xlabel("accuracy")
    handles = [
        Line2D([], [], ls=look.line, label=look.label, **_marked(look))
        for look in style.CHANGE_STYLES.values()
    ]
    chart.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return chart


def _marked(look: Style) -> dict[str, str]:
    """Before is hollow."""
    face = {"mfc": "white"} if look is style.CHANGE_STYLES["before"] else {}
    return {"c": look.colour, "marker": look.marker} | face


def _draw_changes(axes: Axes, results: pd.DataFrame, tasks: list[str]) -> None:
    looks = style.CHANGE_STYLES
    for y, task in enumerate(tasks):
        both = results[results["task"] == task].sort_values("step")
        if both.empty:
            continue
        ends = both[["accuracy", "ci_low", "ci_high"]].to_numpy(dtype=float)[[0, -1]]
        low, high = both[["gain_low", "gain_high"]].iloc[-1]
        way = "rose" if low > 0 else "fell" if high < 0 else "either"
        axes.plot(ends[:, 0], [y, y], c=looks[way].colour, lw=1.6, zorder=2)
        sides = zip((-0.16, 0.16), ends, ("before", way), strict=True)
        for off, (x, *ci), name in sides:
            at = [y + off] * 2
            axes.plot(ci, at, c=looks[name].colour, lw=0.8, alpha=0.6, zorder=1)
            axes.plot(x, y, **_marked(looks[name]), clip_on=False, zorder=3)
        chance = {"color": style.BLACK, "lw": 1, "ls": ":", "zorder": 2}
        axes.vlines(both["chance"].iloc[0], y - 0.42, y + 0.42, **chance)


@style.in_our_look
def pass_at_k(curves: pd.DataFrame) -> Chart:
    """Draw the share of questions that k sampled solutions solve (some, or most).

    Parameters
    ----------
    curves : DataFrame
        ``series`` ("pass@k", "majority@k"), ``k, accuracy, ci_low, ci_high``.
    """
    chart, axes = style.new_chart(2.4, style.COLUMN_WIDTH)
    series = curves.groupby("series", sort=False)
    for (name, curve), look in zip(series, style.SERIES_STYLES, strict=False):
        x = curve["k"]
        line = {"c": look.colour, "marker": look.marker, "ls": look.line}
        marked = list(np.flatnonzero(_is_marked(x)))
        axes.plot(x, curve["accuracy"], label=str(name), markevery=marked, **line)
        band = {"color": look.colour, "alpha": 0.15, "lw": 0}
        axes.fill_between(x, curve["ci_low"], curve["ci_high"], **band)
    axes.set_xscale("log", base=2)
    ticks = np.unique(curves["k"][_is_marked(curves["k"])])
    axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axes.minorticks_off()
    axes.set(xlabel="k (sampled solutions)", ylabel="questions solved", ylim=(0, 1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(title="95% interval shaded", title_fontsize=7)
    return chart


MAX_MARKERS = 16  # on a curve of more points they would lie on each other
MAX_TICKS = 7  # fewer samples, steps or sizes are marked one by one


def _is_marked(k: pd.Series) -> pd.Series:
    """Of many, the powers of two are marked."""
    return (np.log2(k) % 1 == 0) | (k.nunique() <= MAX_TICKS)


@style.in_our_look
def curve_panels(
    curves: pd.DataFrame,
    *,
    xlabel: str = "update",
    ylabel: str = "accuracy",
    is_log: bool = False,
    chance: float | None = None,
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
        A dotted line where guessing on the generic tasks would be.
    """
    groups = curves.groupby("panel", sort=False)
    grid = {"ncols": len(groups), "sharey": True, "squeeze": False}
    chart, panels = style.new_chart(2.6, **grid)
    names, spare = curves["series"].unique(), itertools.cycle(style.SERIES_STYLES)
    looks = {name: style.CURVE_STYLES.get(name) or next(spare) for name in names}
    handles = {}
    for axes, (title, panel) in zip(panels.flat, groups, strict=True):
        for name, series in panel.groupby("series", sort=False):
            _draw_curve(axes, series.sort_values("x"), name, looks[name])
        if chance is not None:
            axes.axhline(chance, **DOTTED, label="chance, generic")
        axes.set(title=title, xlabel=xlabel)
        axes.yaxis.grid(True)
        _mark_x(axes, sorted((curves if is_log else panel)["x"].unique()), is_log)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    first = panels[0, 0]
    low, high = min(0, curves["low"].min()), max(chance or 0, curves["high"].max())
    first.set(ylabel=ylabel, ylim=(1.08 * low, 1.08 * high + 1e-3))
    first.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if ylabel == "accuracy":
        first.yaxis.set_major_formatter("{x:.0%}")
    place = {"loc": "outside upper center", "ncols": min(5, len(handles))}
    chart.legend(handles.values(), handles.keys(), **place)
    return chart


@style.in_our_look
def ability_paths(curves: pd.DataFrame, across: str, up: str, chance: float) -> Chart:
    """Draw each panel of `curve_panels` as a path: one ability against another.

    Parameters
    ----------
    curves : DataFrame
        ``panel, series, x, value``.
    across, up : str
        The series on either axis.
    chance : float
        A dotted line where guessing would be on the axis across.
    """
    chart, axes = style.new_chart(2.8, style.COLUMN_WIDTH)
    groups = curves.groupby("panel", sort=False)
    for (name, panel), look in zip(groups, style.SERIES_STYLES, strict=False):
        path = panel.pivot(index="x", columns="series", values="value")[[across, up]]
        line = {"c": look.colour, "marker": look.marker, "ls": look.line}
        axes.plot(*path.to_numpy().T, label=name, clip_on=False, **line)
        straight = path.iloc[[0, -1]].to_numpy().T
        axes.plot(*straight, c=style.LIGHT_GREY, lw=0.8, zorder=0)
        labelled = path.iloc[:0]
        for step, point in path.iloc[::-1].iterrows():
            if labelled.sub(point).abs().max(axis=1).lt(0.03).any():
                continue  # it would lie on the label of a later one
            labelled = path.loc[[*labelled.index, step]]
            place = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 6.5}
            axes.annotate(f"{step:,}", point, **place)
    axes.axvline(chance, **DOTTED, label="chance")
    axes.set(xlabel=across, ylabel=up, xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    chart.legend(loc="outside upper center", ncols=3)
    return chart


def _draw_curve(axes: Axes, series: pd.DataFrame, name: str, look: Style) -> None:
    x, is_point = series["x"], len(series) == 1
    line = {"c": look.colour, "ls": "none" if is_point else look.line}
    marker = look.marker if len(series) <= MAX_MARKERS else None
    if look.marker or look.line != "none":  # else a band without a line in it
        axes.plot(x, series["value"], label=name, marker=marker, clip_on=False, **line)
        name = None
    if is_point:
        axes.plot([x, x], series[["low", "high"]].T, color=look.colour, lw=0.9)
    else:
        band = {"color": look.colour, "alpha": 0.18, "lw": 0, "label": name}
        axes.fill_between(x, series["low"], series["high"], **band)


def _mark_x(axes: Axes, places: list[float], is_log: bool) -> None:
    if is_log:
        axes.set_xscale("log")
        # Labels of sizes that nearly agree would lie on each other.
        apart = [p for i, p in enumerate(places) if not i or p > 1.2 * places[i - 1]]
        axes.set_xticks(apart, [_in_units(place) for place in apart])
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


@style.in_our_look
def claim_effects(conditions: pd.DataFrame) -> Chart:
    """Draw every condition of every claim with its 95% interval, in points.

    Parameters
    ----------
    conditions : DataFrame
        From `report.claims.conditions_table`; those in another unit than points
        (losses, shares) are named and not drawn.
    """
    chart, axes = style.new_chart(0.2 * len(conditions) + 0.9)
    axes.axvline(0, color=style.GREY, lw=0.8, zorder=0)
    marker = {"mec": style.BLACK, "mew": 0.5, "ls": "none"}
    labels = []
    for row, one in enumerate(conditions.itertuples()):
        look = style.STATUS_STYLES[one.status]
        if one.unit == "points":
            ends = [100 * one.ci_low, 100 * one.ci_high]
            axes.plot(ends, [row, row], c=style.BLACK, lw=1.1)
            point = {"marker": look.marker, "c": look.colour, "ms": 5.5}
            axes.plot(100 * one.effect, row, **point, **marker)
        else:
            text = f"{one.effect:+.2g} [{one.ci_low:+.2g}, {one.ci_high:+.2g}]"
            text = f"{one.status}: {text} {one.unit}"
            place = {"va": "center", "transform": axes.get_yaxis_transform()}
            axes.text(0.01, row, text, fontsize=6.5, color=look.colour, **place)
        label = f"{one.claim}  {one.condition}".strip()
        labels.append(textwrap.shorten(label, 70, placeholder=" …"))
    for status, look in style.STATUS_STYLES.items():
        if status in set(conditions["status"]):
            point = {"marker": look.marker, "c": look.colour, "label": look.label}
            axes.plot([], [], **point, **marker)
    for row in np.flatnonzero(~conditions["claim"].duplicated())[1:]:
        axes.axhline(row - 0.5, color=style.LIGHT_GREY, lw=0.6, zorder=0)
    axes.set_yticks(range(len(conditions)), labels)
    axes.tick_params(axis="y", length=0, labelsize=6.5)
    axes.set_ylim(len(conditions) - 0.4, -0.6)
    axes.set_xlabel("points, with 95% interval (right: as claimed; “within”: near 0)")
    chart.legend(loc="outside upper center", ncols=4)
    return chart
