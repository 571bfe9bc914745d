"""How every figure looks: palette, one style per format, model and loss, and `Chart`.

Enters: nothing. Leaves: Okabe-Ito colours (told apart by colour-blind readers), a fixed
colour, marker and hatch for each thing the series draws, so that a reader who learned
one figure can read the next, in colour and in grey.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import MappingProxyType

import matplotlib
import pandas as pd
import seaborn
from matplotlib.figure import Figure

# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
OKABE_ITO = (BLACK, ORANGE, SKY_BLUE, GREEN, YELLOW, BLUE, VERMILLION, PURPLE)
GREY, LIGHT_GREY = "#6B6B6B", "#D9D9D9"

COLUMN_WIDTH, FULL_WIDTH = 3.3, 6.9  # inches: one column, and the page


@dataclass(frozen=True)
class Style:
    """Fixed look of one thing: its label, colour, marker, hatch and line style."""

    label: str
    colour: str
    marker: str
    hatch: str = ""
    line: str = "-"


# Hue says in-context (blue) or zero-shot (red); the darker of the two reasons aloud.
FORMAT_STYLES = MappingProxyType(
    {
        "in_context_chain_of_thought": Style("in-context CoT", BLUE, "o"),
        "in_context_answer_only": Style(
            "in-context answer-only", SKY_BLUE, "s", "///", "--"
        ),
        "zero_shot_chain_of_thought": Style(
            "zero-shot CoT", VERMILLION, "^", "...", "-."
        ),
        "zero_shot_answer_only": Style(
            "zero-shot answer-only", ORANGE, "D", "xxx", ":"
        ),
    }
)

# Generic tasks are asked with their three demonstrations: the in-context styles.
PROMPT_STYLES = MappingProxyType(
    dict(FORMAT_STYLES)
    | {
        "chain_of_thought": FORMAT_STYLES["in_context_chain_of_thought"],
        "answer_only": FORMAT_STYLES["in_context_answer_only"],
    }
)

MODEL_STYLES = MappingProxyType(
    {
        "teacher": Style("teacher", BLACK, "*"),
        "instruction_tuned": Style("instruction-tuned start", GREEN, "o"),
        "raw": Style("raw start", PURPLE, "s", "///", "--"),
        "untouched": Style("before specialization", LIGHT_GREY, "v", "", ":"),
        "specialized": Style("after specialization", GREEN, "o"),
    }
)

LOSS_STYLES = MappingProxyType(
    {
        "distribution_matching": Style("distribution matching", BLUE, "o"),
        "sample_matching": Style("sample matching", ORANGE, "s", "///", "--"),
    }
)

SPLIT_STYLES = MappingProxyType(
    {
        "train": Style("training", BLACK, "."),
        "validation": Style("validation", VERMILLION, "^", "", "--"),
    }
)

# `alignment.Rule` by name; the last two leave the target one-hot.
RULE_STYLES = MappingProxyType(
    {
        "identical": Style("identical token", GREEN, ""),
        "same_span": Style("same text, spelled otherwise", SKY_BLUE, "", "...."),
        "starts_together": Style("starts together", ORANGE, "", "////"),
        "inside": Style("inside (one-hot)", LIGHT_GREY, "", "||||"),
        "not_one_to_one": Style("not one-to-one (one-hot)", PURPLE, "", "xxxx"),
    }
)

# For series without a fixed look of their own (tasks, samplers), in order.
SERIES_STYLES = (
    Style("", GREEN, "P"),
    Style("", PURPLE, "X", "", "--"),
    Style("", BLACK, "*", "", ":"),
    Style("", VERMILLION, "v", "", "-."),
)

# The parts of an example: what the student reads, and what it must write.
PART_STYLES = MappingProxyType(
    {
        "demonstrations": Style("demonstrations", LIGHT_GREY, ""),
        "question": Style("question", SKY_BLUE, ""),
        "rationale": Style("rationale (target)", YELLOW, ""),
        "answer": Style("answer (target)", ORANGE, ""),
    }
)

# A user's own matplotlibrc must neither change a picture nor ask for LaTeX.
_NOT_LOOKS = ("backend", "interactive", "toolbar", "timezone", "webagg", "date.epoch")
DEFAULTS = {
    name: value
    for name, value in matplotlib.rcParamsDefault.items()
    if not name.startswith(_NOT_LOOKS)
}
RC = {
    **DEFAULTS,
    **seaborn.axes_style("ticks"),
    "font.family": ["DejaVu Sans"],
    "font.monospace": ["DejaVu Sans Mono"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.linewidth": 0.7,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.grid": False,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
}

# Decorates a chart function: our look inside it, the caller's settings restored after.
themed = matplotlib.rc_context(RC)


class Chart(Figure):
    """A figure without pyplot's global state that a notebook shows as a picture.

    IPython draws a bare `Figure` only where pyplot's inline backend was switched on;
    `_repr_png_` is the method it asks any object for.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=140)
        return buffer.getvalue()


def new_chart(width: float, height: float, *, layout: str | None = "constrained"):
    """Return an empty white `Chart`, `width` by `height` inches."""
    return Chart(figsize=(width, height), layout=layout, facecolor="white")


def require_columns(frame: pd.DataFrame, columns: tuple[str, ...], chart: str) -> None:
    """Refuse a frame a chart cannot draw.

    Raises
    ------
    ValueError
        A column is missing, or there is no row; the message names chart and columns.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{chart}: missing columns {missing}; it needs {list(columns)}, "
            f"got {list(frame.columns)}"
        )
    if frame.empty:
        raise ValueError(f"{chart}: no rows to draw; it needs {list(columns)}")
