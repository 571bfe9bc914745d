"""Charts of abilities: accuracy before and after, and pass at k.

Enters: tidy results (artifact 9). Leaves: charts with 95% intervals; accuracies are
fractions in the frames and percent on the axes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cotspec.figures.style import (
    BLACK,
    COLUMN_WIDTH,
    FULL_WIDTH,
    GREY,
    PROMPT_STYLES,
    SERIES_STYLES,
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
