"""Charts of results: bars, pass at k, curves over training or size, and the ledger.

Enters: tidy frames of `evaluation` and `report.curves`, and the ledger's conditions.
Leaves: charts; accuracies are fractions in the frames and percent on the axes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from cotspec.figures.style import (
    BLACK,
    BLUE,
    COLUMN_WIDTH,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PROMPT_STYLES,
    PURPLE,
    SERIES_STYLES,
    VERMILLION,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

TASKS_PER_ROW = 9
PANEL_MARGIN = 0.2  # around a panel's groups of bars, in groups


@themed
def accuracy_bars(
    results: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    *,
    published: pd.DataFrame | None = None,
    width: float = FULL_WIDTH,
) -> Chart:
    """Draw accuracy before and after specialization, per task and prompt mode.

    Parameters
    ----------
    results : DataFrame
        Tidy results of one student and seed: ``task, prompt_mode, step, accuracy,
        ci_low, ci_high``; the smallest step is "before", the largest "after".
    groups : mapping
        Group title to its tasks, e.g. ``{"in-distribution": ["gsm8k"]}``; long groups
        wrap into rows of equal length. Bars are equally wide in all rows.
    published : DataFrame, optional
        ``task, prompt_mode, step, accuracy`` of the paper: hollow markers; only
        for a student of the paper's size.
    width : float
        Inches.
    """
    needed = ("task", "prompt_mode", "step", "accuracy", "ci_low", "ci_high")
    require_columns(results, needed, "accuracy_bars")
    panels = _panels(results, groups)
    rows = _packed(panels)
    chart = new_chart(width, 1.85 * len(rows) + 0.4)
    top = min(1.0, max(0.05, float(results["ci_high"].max())) * 1.08)
    widest = max(map(_row_width, rows))
    for figure, row in zip(
        np.atleast_1d(chart.subfigures(len(rows), 1)), rows, strict=True
    ):
        ratios = [len(tasks) + PANEL_MARGIN for _, tasks in row]
        ratios.append(widest - sum(ratios) + 1e-3)  # left empty; no ratio may be 0
        grid = figure.add_gridspec(1, len(ratios), width_ratios=ratios)
        for index, (title, tasks) in enumerate(row):
            axes = figure.add_subplot(grid[index])
            _draw_bars(axes, results[results["task"].isin(tasks)], tasks, published)
            axes.set(title=title, ylim=(0, top))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelleft=index == 0)
            axes.set_ylabel("accuracy" if index == 0 else "")
    _draw_legend(chart, results["prompt_mode"], published is not None)
    return chart


def _panels(
    results: pd.DataFrame, groups: Mapping[str, Sequence[str]]
) -> list[tuple[str, list[str]]]:
    """Keep groups and tasks with results; split those too long for a row evenly."""
    present = set(results["task"])
    panels = []
    for title, tasks in groups.items():
        tasks = [task for task in tasks if task in present]
        num_rows = -(-len(tasks) // TASKS_PER_ROW)
        for row, part in enumerate(np.array_split(tasks, max(num_rows, 1))):
            more = " (continued)" if row else ""
            if part.size:
                panels.append((title + more, part.tolist()))
    if not panels:
        raise ValueError(
            f"groups: no task of {dict(groups)} is in the results {sorted(present)}"
        )
    return panels


def _packed(
    panels: list[tuple[str, list[str]]],
) -> list[list[tuple[str, list[str]]]]:
    """Put panels into rows of at most `TASKS_PER_ROW` tasks, in order."""
    rows: list[list[tuple[str, list[str]]]] = [[]]
    for panel in panels:
        taken = sum(len(tasks) for _, tasks in rows[-1])
        if rows[-1] and taken + len(panel[1]) > TASKS_PER_ROW // 2 + 1:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _row_width(row: list[tuple[str, list[str]]]) -> float:
    return sum(len(tasks) + PANEL_MARGIN for _, tasks in row)


def _draw_bars(
    axes: Axes,
    results: pd.DataFrame,
    tasks: Sequence[str],
    published: pd.DataFrame | None,
) -> None:
    modes = [mode for mode in PROMPT_STYLES if mode in set(results["prompt_mode"])]
    before, after = results["step"].min(), results["step"].max()
    bar = 0.84 / (2 * len(modes))
    for index, mode in enumerate(modes):
        style = PROMPT_STYLES[mode]
        for side, step in enumerate(dict.fromkeys((before, after))):
            picked = results[
                (results["prompt_mode"] == mode) & (results["step"] == step)
            ]
            picked = picked.set_index("task").reindex(tasks)
            x = np.arange(len(tasks)) - 0.42 + bar * (2 * index + side + 0.5)
            _draw_series(axes, x, picked, bar, style, is_after=bool(side))
            if published is not None:
                theirs = published[
                    (published["prompt_mode"] == mode) & (published["step"] == step)
                ]
                theirs = theirs.set_index("task")["accuracy"].reindex(tasks)
                hollow = {"mfc": "white", "mec": BLACK, "ms": 6, "zorder": 5}
                axes.plot(x, theirs, style.marker, **hollow)
    labels = [_short_task(task) for task in tasks]
    axes.set_xticks(np.arange(len(tasks)), labels, fontsize=6.5)
    side = (1 + PANEL_MARGIN) / 2
    axes.set_xlim(-side, len(tasks) - 1 + side)


def _draw_series(
    axes: Axes,
    x: np.ndarray,
    picked: pd.DataFrame,
    bar: float,
    style: Style,
    *,
    is_after: bool,
) -> None:
    """Before: white with a coloured hatch. After: the full colour."""
    face = style.colour if is_after else "white"
    hatch = "" if is_after else "/////"
    look = {"fc": face, "ec": style.colour, "hatch": hatch, "lw": 0.8}
    accuracy = picked["accuracy"].to_numpy(dtype=float)
    axes.bar(x, np.nan_to_num(accuracy), bar * 0.88, **look)
    below = accuracy - picked["ci_low"].to_numpy(dtype=float)
    above = picked["ci_high"].to_numpy(dtype=float) - accuracy
    error = np.clip([below, above], 0, None)
    look = {"mfc": style.colour, "mec": "white", "mew": 0.4, "ms": 4}
    look["ecolor"] = BLACK if is_after else GREY
    axes.errorbar(
        x, accuracy, error, fmt=style.marker, elinewidth=0.9, clip_on=False, **look
    )


def _short_task(task: str) -> str:
    name = task.rpartition("/")[2].replace("_", " ")
    return textwrap.fill(name, 13, break_long_words=False)


def _draw_legend(chart: Chart, modes: pd.Series, has_published: bool) -> None:
    present = set(modes)
    styles = [style for mode, style in PROMPT_STYLES.items() if mode in present]
    handles = {style.label: _format_handle(style) for style in styles}
    handles["before"] = Patch(fc="white", ec=BLACK, hatch="/////")
    handles["after (interval: 95%)"] = Patch(fc="#444444", ec=BLACK)
    if has_published:
        hollow = {"mfc": "white", "mec": BLACK, "ms": 6, "ls": "none"}
        handles["paper (hollow)"] = Line2D([], [], marker="o", **hollow)
    place = {"loc": "outside upper center", "ncols": -(-len(handles) // 2)}
    chart.legend(handles.values(), handles.keys(), **place)


def _format_handle(style: Style) -> tuple[Patch, Line2D]:
    look = {"mfc": style.colour, "mec": "white", "mew": 0.6, "ms": 5, "ls": "none"}
    marker = Line2D([], [], marker=style.marker, **look)
    return Patch(fc=style.colour), marker


@themed
def pass_at_k(curves: pd.DataFrame, *, width: float = COLUMN_WIDTH) -> Chart:
    """Draw the share of questions that k sampled solutions solve (some, or most).

    Parameters
    ----------
    curves : DataFrame
        ``series`` ("pass@k", "majority@k"), ``k, accuracy, ci_low, ci_high``.
    width : float
        Inches.
    """
    needed = ("series", "k", "accuracy", "ci_low", "ci_high")
    require_columns(curves, needed, "pass_at_k")
    chart = new_chart(width, 2.4)
    axes = chart.subplots()
    for index, (name, curve) in enumerate(curves.groupby("series", sort=False)):
        style, curve = SERIES_STYLES[index % len(SERIES_STYLES)], curve.sort_values("k")
        look = {"color": style.colour, "marker": style.marker, "ls": style.line}
        look["markevery"] = list(np.flatnonzero(np.log2(curve["k"]) % 1 == 0))
        axes.plot(curve["k"], curve["accuracy"], label=str(name), **look)
        band = {"color": style.colour, "alpha": 0.15, "lw": 0}
        axes.fill_between(curve["k"], curve["ci_low"], curve["ci_high"], **band)
    axes.set_xscale("log", base=2)
    ticks = [k for k in sorted(set(curves["k"])) if np.log2(k) % 1 == 0]
    axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axes.minorticks_off()
    axes.set(xlabel="k (sampled solutions)", ylabel="questions solved")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(title="95% interval shaded", title_fontsize=7)
    return chart


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
