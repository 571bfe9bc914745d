"""Charts of what specialization costs: abilities along training, formats by prompts.

Enters: the curves and choices of notebook 07, the matrix of notebook 08. Leaves:
charts; accuracies are fractions in the frames and percent on the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cotspec.figures.style import (
    BLACK,
    BLUE,
    COLUMN_WIDTH,
    FORMAT_STYLES,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

ABILITY_STYLES = MappingProxyType(
    {
        "in-distribution": Style("in-distribution", BLUE, "o"),
        "out of distribution": Style("out of distribution", VERMILLION, "^", "", "--"),
        "generic CoT": Style("generic, CoT", GREEN, "s"),
        "generic answer-only": Style("generic, answer-only", ORANGE, "D", "", "--"),
    }
)
_PANELS = (
    ("math", ("in-distribution", "out of distribution")),
    ("generic tasks", ("generic CoT", "generic answer-only")),
)
# How the matrix names what a student was trained on, in this order.
TRAINED_ON = MappingProxyType(
    {
        "start": "nothing (start)",
        "all": "all four",
        "in_context": "in-context",
        "zero_shot": "zero-shot",
        "chain_of_thought": "CoT",
        "answer_only": "answer-only",
    }
)


@themed
def ability_curves(
    curves: pd.DataFrame, choices: pd.DataFrame, *, width: float = COLUMN_WIDTH
) -> Chart:
    """Draw abilities along the training and the checkpoints that would be chosen.

    Parameters
    ----------
    curves : DataFrame
        ``ability, step, accuracy, low, high`` on test problems; the band joins lowest
        and highest seed.
    choices : DataFrame
        ``chosen_by`` (an ability), ``seed, step``; may be empty.
    width : float
        Inches.
    """
    needed = ("ability", "step", "accuracy", "low", "high")
    require_columns(curves, needed, "ability_curves")
    panels = [
        (title, [name for name in names if (curves["ability"] == name).any()])
        for title, names in _PANELS
    ]
    panels = [(title, names) for title, names in panels if names]
    chart = new_chart(width, 1.55 * len(panels) + 1.1)
    ratios = [3] * len(panels) + [1]
    *upper, strip = chart.subplots(len(ratios), sharex=True, height_ratios=ratios)
    for axes, (title, names) in zip(upper, panels, strict=True):
        _draw_abilities(axes, curves, names)
        axes.set(title=title, ylabel="accuracy")
    _draw_choices(strip, choices, upper)
    steps = sorted(curves["step"].unique())
    strip.set_xlabel("update")
    strip.set_xticks(steps if len(steps) <= 9 else steps[:: -(-len(steps) // 7)])
    return chart


def _draw_abilities(axes: Axes, curves: pd.DataFrame, names: list[str]) -> None:
    for name in names:
        style = ABILITY_STYLES[name]
        curve = curves[curves["ability"] == name].sort_values("step")
        band = {"color": style.colour, "alpha": 0.18, "lw": 0}
        axes.fill_between(curve["step"], curve["low"], curve["high"], **band)
        look = {"color": style.colour, "marker": style.marker, "ls": style.line}
        axes.plot(curve["step"], curve["accuracy"], label=style.label, **look)
    top = float(curves.loc[curves["ability"].isin(names), "high"].max())
    # Room for the legend above the curves.
    axes.set_ylim(0, max(0.05, top) * 1.35)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    # Opaque: lines at the chosen checkpoints pass behind it.
    box = {"frameon": True, "framealpha": 1, "facecolor": "white", "edgecolor": "none"}
    axes.legend(loc="upper center", ncols=2, columnspacing=1, fontsize=6.5, **box)


def _draw_choices(strip: Axes, choices: pd.DataFrame, above: list[Axes]) -> None:
    """One row per validation set: a marker per chosen step, with its seeds counted."""
    names = [name for name in _PANELS[0][1] if (choices["chosen_by"] == name).any()]
    for row, name in enumerate(names):
        style = ABILITY_STYLES[name]
        counts = choices[choices["chosen_by"] == name]["step"].value_counts()
        for step, count in counts.items():
            look = {"color": style.colour, "mec": BLACK, "mew": 0.5, "ms": 6}
            strip.plot([step], [row], style.marker, clip_on=False, **look)
            note = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            strip.annotate(f"×{count}", (step, row), fontsize=6.5, **note)
            for axes in above:
                axes.axvline(step, color=GREY, lw=0.6, ls=style.line, zorder=0)
    labels = ["in-distr." if name == "in-distribution" else "out" for name in names]
    strip.set_yticks(range(len(names)), labels, fontsize=6.5)
    strip.set_ylabel("chosen by" if names else "")
    strip.set_ylim(len(names) - 0.4, -0.6)
    strip.tick_params(axis="y", length=0)
    strip.spines["left"].set_visible(False)


@themed
def format_matrix(matrix: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw accuracy by the formats trained on and the prompt mode asked in.

    Parameters
    ----------
    matrix : DataFrame
        ``data_formats`` (keys of `TRAINED_ON`, or others, which come last),
        ``prompt_mode, accuracy, change, ci_low, ci_high``; one row per cell. The cell
        shows the accuracy and, in brackets, the change against the start in points,
        bold where its interval does not hold 0.
    width : float
        Inches.
    """
    needed = ("data_formats", "prompt_mode", "accuracy", "change", "ci_low", "ci_high")
    require_columns(matrix, needed, "format_matrix")
    present = dict.fromkeys(matrix["data_formats"])
    rows = [name for name in TRAINED_ON if name in present]
    rows += [name for name in present if name not in TRAINED_ON]
    columns = [m for m in FORMAT_STYLES if m in set(matrix["prompt_mode"])]
    cells = matrix.set_index(["data_formats", "prompt_mode"])
    table = cells["accuracy"].unstack().reindex(index=rows, columns=columns)
    chart = new_chart(width, 0.42 * len(rows) + 1.1)
    axes = chart.subplots()
    top = max(0.05, float(np.nanmax(table)))
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if not np.isnan(value):
            cell = cells.loc[(rows[row], columns[column])]
            colour = _readable_on(image.to_rgba(value))
            _write_cell(axes, column, row, cell, colour)
    labels = [FORMAT_STYLES[m].label.replace(" ", "\n", 1) for m in columns]
    axes.set_xticks(range(len(columns)), labels, fontsize=6.5)
    axes.set_yticks(range(len(rows)), [TRAINED_ON.get(r, r) for r in rows])
    axes.set(xlabel="asked", ylabel="trained on")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return chart


def _readable_on(background: Sequence[float]) -> str:
    """White or black, whichever has more contrast (WCAG 2.2, relative luminance)."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in background[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "white" if luminance < 0.179 else BLACK


def _write_cell(axes: Axes, x: int, y: int, cell: pd.Series, colour: str) -> None:
    is_clear = cell["ci_low"] > 0 or cell["ci_high"] < 0
    text = f"{100 * cell['accuracy']:.1f}%"
    if cell.name[0] != "start":
        text += f"\n({100 * cell['change']:+.1f})"
    look = {"ha": "center", "va": "center", "color": colour, "fontsize": 7}
    look["fontweight"] = "bold" if is_clear else "normal"
    axes.text(x, y, text, **look)
