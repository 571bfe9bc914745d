"""A drawn token alignment: teacher tokens above, student tokens below.

Enters: one tidy frame of token spans over one text (`table.token_spans`). Leaves: a
chart in which both rows stand over that text, so that boundaries which agree line up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from cotspec.figures.canvas import canvas, printable, text_width, write, write_token
from cotspec.figures.style import (
    BLACK,
    BLUE,
    FULL_WIDTH,
    GREY,
    LIGHT_GREY,
    RULE_STYLES,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

_MARGIN, _LABEL, _ROW, _BOX, _DROP = 0.08, 0.52, 0.86, 0.17, 0.46  # inches
_LEGEND_ENTRY = 1.65


@themed
def token_alignment(
    spans: pd.DataFrame,
    *,
    width: float = FULL_WIDTH,
    fontsize: float = 7.5,
) -> Chart:
    """Draw how teacher tokens became student targets.

    Parameters
    ----------
    spans : DataFrame
        ``side`` ("teacher" or "student"), ``token``, ``start`` and ``end`` (characters
        of the shared text), ``rule`` (a key of `RULE_STYLES`; "" for teacher tokens).
    width, fontsize : float
        Inches, points.

    Returns
    -------
    Chart
        A line joins each student token to every teacher token it shares letters with.
    """
    needed = ("side", "token", "start", "end", "rule")
    require_columns(spans, needed, "token_alignment")
    teacher = spans[spans["side"] == "teacher"]
    student = _with_marks(spans[spans["side"] == "student"])
    spans = pd.concat([teacher, student])
    character = text_width(" ", fontsize) + 0.012
    room = int((width - 2 * _MARGIN - _LABEL) / character)
    rows = _wrapped(spans, room)
    used = [
        style for rule, style in RULE_STYLES.items() if rule in set(student["rule"])
    ]
    per_line = max(int(width / _LEGEND_ENTRY), 1)
    legend = 0.16 * -(-len(used) // per_line)
    chart, axes = canvas(width, len(rows) * _ROW + 2 * _MARGIN + legend)
    for index, (first, last) in enumerate(rows):
        top = _MARGIN + index * _ROW
        inside = spans[(spans["start"] >= first) & (spans["start"] < last)]

        def place(offset: float, first: int = first) -> float:
            return _MARGIN + _LABEL + (offset - first) * character

        _draw_row(axes, inside, place, top, fontsize)
    _draw_legend(chart, used, per_line)
    return chart


def _with_marks(student: pd.DataFrame) -> pd.DataFrame:
    """Let a word's mark (``▁``) stand over the whitespace that its span leaves out."""
    previous_end = student["end"].shift(fill_value=0)
    return student.assign(start=student["start"] - (student["start"] > previous_end))


def _wrapped(spans: pd.DataFrame, room: int) -> list[tuple[int, int]]:
    """Cut the text where both sides have a boundary, `room` characters at most."""
    covers = set()
    for start, end in zip(spans["start"], spans["end"], strict=True):
        covers.update(range(start + 1, end))
    end = int(spans["end"].max())
    cuts = [offset for offset in range(1, end + 1) if offset not in covers]
    rows, first = [], int(spans["start"].min())
    while first < end:
        fitting = [cut for cut in cuts if first < cut <= first + room]
        last = fitting[-1] if fitting else next(cut for cut in cuts if cut > first)
        rows.append((first, last))
        first = last
    # A token without text of its own may stand at the very end.
    return rows[:-1] + [(rows[-1][0], rows[-1][1] + 1)]


def _draw_row(
    axes: Axes,
    inside: pd.DataFrame,
    place: Callable[[float], float],
    top: float,
    fontsize: float,
) -> None:
    upper = list(inside[inside["side"] == "teacher"].itertuples())
    lower = list(inside[inside["side"] == "student"].itertuples())
    for name, y in (("teacher", top), ("student", top + _DROP)):
        write(axes, _MARGIN, y + _BOX / 2, name, color=GREY, fontsize=7)
    for below in lower:
        colour = RULE_STYLES[below.rule].colour
        for above in upper:
            if _share_letters(above, below):
                ends = [_centre(place, above), _centre(place, below)]
                heights = [top + _BOX, top + _DROP]
                axes.plot(ends, heights, color=colour, lw=1.3, zorder=0)
    for above in upper:
        _draw_box(axes, above, Style("", LIGHT_GREY, ""), place, top, fontsize)
    for below in lower:
        _draw_box(axes, below, RULE_STYLES[below.rule], place, top + _DROP, fontsize)


def _share_letters(above: object, below: object) -> bool:
    """Whitespace that the student folds away ties it to no teacher token."""
    first, last = max(above.start, below.start), min(above.end, below.end)
    shared = above.token[first - above.start : last - above.start]
    return last > first and bool(shared.strip() or not below.token.strip(" \n\t▁"))


def _centre(place: Callable[[float], float], span: object) -> float:
    return place((span.start + max(span.end, span.start + 0.5)) / 2)


def _draw_box(
    axes: Axes,
    span: object,
    style: Style,
    place: Callable[[float], float],
    top: float,
    fontsize: float,
) -> None:
    left = place(span.start) + 0.006
    room = place(max(span.end, span.start + 0.5)) - 0.006 - left
    look = {"fc": style.colour, "ec": BLACK, "lw": 0.5}
    axes.add_patch(Rectangle((left, top), room, _BOX, alpha=0.45, **look))
    # The hatch stands in a strip under the text, where it does not cover it.
    strip = {"fc": style.colour, "ec": BLACK, "lw": 0.3, "hatch": style.hatch}
    if style.hatch or style.colour != LIGHT_GREY:
        axes.add_patch(Rectangle((left, top + _BOX), room, 0.07, **strip))
    middle = left + room / 2
    text = printable(span.token)
    write_token(
        axes,
        middle,
        top + _BOX / 2,
        text,
        room=room + 0.02,
        ha="center",
        fontsize=fontsize,
    )


def _draw_legend(chart: Chart, styles: list[Style], per_line: int) -> None:
    handles = [
        Patch(fc=style.colour, ec=BLACK, lw=0.4, hatch=style.hatch, label=style.label)
        for style in styles
    ]
    chart.legend(
        handles=handles,
        loc="lower center",
        ncols=per_line,
        bbox_to_anchor=(0.5, 0.0),
        handlelength=1.5,
        columnspacing=1.2,
    )


@themed
def cost_matrix(matrix: pd.DataFrame, path: Sequence[tuple[int, int]]) -> Chart:
    """Draw the edit distances of two token sequences and a path through them.

    Parameters
    ----------
    matrix : DataFrame
        Distances; the index holds the teacher's tokens, the columns the student's.
    path : sequence of (int, int)
        Row and column of each pair, from the start.
    """
    rows, columns = matrix.shape
    chart = new_chart(0.34 * columns + 1.1, 0.26 * rows + 0.9)
    axes = chart.subplots()
    axes.imshow(matrix.to_numpy(), cmap="Greys_r", aspect="auto", alpha=0.6)
    axes.plot([j for _, j in path], [i for i, _ in path], color=BLUE, marker="o")
    names = [
        [printable(str(name)) for name in side]
        for side in (matrix.columns, matrix.index)
    ]
    axes.set_xticks(range(columns), names[0], rotation=90, family="monospace")
    axes.set_yticks(range(rows), names[1], family="monospace")
    axes.set(xlabel="student", ylabel="teacher")
    return chart
