"""Charts of tokens and texts: probabilities, alignments, formats, the six tokens.

Enters: one trace, spans of tokens, training examples. Leaves: charts, and the small
frames that they draw.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from cotspec.figures.style import (
    BLACK,
    BLUE,
    FORMAT_STYLES,
    FULL_WIDTH,
    GREEN,
    GREY,
    LIGHT_GREY,
    ORANGE,
    PART_STYLES,
    PURPLE,
    RULE_STYLES,
    SKY_BLUE,
    VERMILLION,
    Chart,
    Style,
    canvas,
    new_chart,
    printable,
    require_columns,
    text_width,
    themed,
    write,
    write_token,
)

_BAR, _TRACK = "#9CCDEB", "#F2F2F2"  # SKY_BLUE lightened, so that text stays readable
_MARGIN, _HEAD, _LINE, _GAP = 0.08, 0.2, 0.135, 0.12  # inches
_LEGEND = (
    "bold: sampled token;  bar and number: probability, 0 to 1;  "
    "outlined: the alternative that was sampled;  ␣\u00a0space;  ↵\u00a0newline"
)
_LEGEND_CHARACTER = 0.052  # inches, a generous mean at 6.5 points


def top_alternatives(trace: Mapping[str, object]) -> pd.DataFrame:
    """Return what the teacher considered at each step of one trace, tidy.

    Parameters
    ----------
    trace : mapping
        One row of the traces: ``token_bytes`` (T'), ``token_logprobs`` (T'),
        ``topk_bytes`` (T', k), ``topk_logprobs`` (T', k), in nats.

    Returns
    -------
    DataFrame
        ``position, sampled, sampled_probability, rank, alternative, probability,
        is_sampled``; one row per alternative, the likeliest first.
    """
    steps = zip(
        trace["token_bytes"],
        trace["token_logprobs"],
        trace["topk_bytes"],
        trace["topk_logprobs"],
        strict=True,
    )
    rows = []
    for position, (sampled, sampled_logprob, tokens, logprobs) in enumerate(steps):
        ranked = sorted(zip(logprobs, tokens, strict=True), key=lambda pair: -pair[0])
        for rank, (logprob, token) in enumerate(ranked, start=1):
            rows.append(
                {
                    "position": position,
                    "sampled": printable(sampled),
                    "sampled_probability": math.exp(sampled_logprob),
                    "rank": rank,
                    "alternative": printable(token),
                    "probability": math.exp(logprob),
                    "is_sampled": token == sampled,
                }
            )
    return pd.DataFrame(rows)


@themed
def probability_strip(
    alternatives: pd.DataFrame, *, width: float = FULL_WIDTH, columns: int = 9
) -> Chart:
    """Draw a teacher's solution with its top alternatives, one column per token.

    Parameters
    ----------
    alternatives : DataFrame
        From `top_alternatives`, or some of its positions.
    width : float
        Inches; about 0.75 per column is readable.
    columns : int
        Tokens per row before the strip wraps.

    Returns
    -------
    Chart
        Each column is headed by the sampled token; below it the alternatives, each with
        its probability as a number and as the length of its bar, the sampled one
        outlined.
    """
    needed = ("position", "sampled", "rank", "alternative", "probability", "is_sampled")
    require_columns(alternatives, needed, "probability_strip")
    steps = [step for _, step in alternatives.groupby("position", sort=True)]
    row_height = _HEAD + int(alternatives["rank"].max()) * _LINE + _GAP
    num_rows = -(-len(steps) // columns)
    legend = textwrap.wrap(_LEGEND, int(width / _LEGEND_CHARACTER))
    height = num_rows * row_height + 2 * _MARGIN
    chart, axes = canvas(width, height + 0.12 * len(legend))
    cell = (width - 2 * _MARGIN) / columns
    for index, step in enumerate(steps):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * cell, _MARGIN + row * row_height
        _draw_step(axes, step, left, top, cell - 0.06)
    for index, line in enumerate(legend):
        y = num_rows * row_height + _MARGIN + 0.06 + 0.12 * index
        write(axes, _MARGIN, y, line, color=GREY)
    return chart


def _draw_step(
    axes: Axes, step: pd.DataFrame, left: float, top: float, room: float
) -> None:
    bold = {"fontsize": 8, "weight": "bold"}
    sampled = str(step["sampled"].iloc[0])
    write_token(axes, left, top + _HEAD / 2, sampled, room=room, **bold)
    for row in step.itertuples():
        y = top + _HEAD + (row.rank - 1) * _LINE
        height = _LINE - 0.016
        axes.add_patch(Rectangle((left, y), room, height, fc=_TRACK, ec="none"))
        bar = room * min(row.probability, 1.0)
        axes.add_patch(Rectangle((left, y), bar, height, fc=_BAR, ec="none"))
        if row.is_sampled:
            axes.add_patch(Rectangle((left, y), room, height, fc="none", ec=BLACK))
        middle = y + height / 2
        number = _short_probability(row.probability)
        write(axes, left + room - 0.02, middle, number, ha="right", fontsize=6)
        write_token(
            axes, left + 0.03, middle, row.alternative, room=room - 0.3, fontsize=6.3
        )


def _short_probability(probability: float) -> str:
    """Two decimals without the leading zero: there is little room."""
    if probability < 0.005:
        return "<.01"
    return "1.0" if probability >= 0.995 else f"{probability:.2f}"[1:]


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
    _draw_rules_legend(chart, used, per_line)
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


def _draw_rules_legend(chart: Chart, styles: list[Style], per_line: int) -> None:
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


_FONT, _LINE, _TITLE, _MARGIN, _TAB = 6.2, 0.118, 0.26, 0.08, 0.07
_TARGET_PARTS = ("rationale", "answer")


def example_parts(
    examples: Iterable[Mapping[str, str]],
    *,
    block_start: str = "Q: ",
    answer_lead: str = "The answer is",
) -> pd.DataFrame:
    """Split training examples into the parts a reader should see.

    Parameters
    ----------
    examples : iterable of mapping
        With ``data_format``, ``inputs`` and ``targets``.
    block_start, answer_lead : str
        How a block begins, and how the answer sentence does (from `prompts`).

    Returns
    -------
    DataFrame
        ``data_format, part, text`` in reading order, part one of `PART_STYLES`; the
        texts of a format joined are its inputs, a newline, and its targets.
    """
    rows = []
    for example in examples:
        demonstrations, found, question = example["inputs"].rpartition(
            f"\n\n{block_start}"
        )
        rationale, lead, answer = example["targets"].rpartition(answer_lead)
        texts = {
            "demonstrations": f"{demonstrations}\n\n" if found else "",
            "question": (block_start if found else "") + question + "\n",
            "rationale": rationale if lead else example["targets"],
            "answer": lead + answer if lead else "",
        }
        for part, text in texts.items():
            if text:
                row = {"data_format": example["data_format"], "part": part}
                rows.append(row | {"text": text})
    return pd.DataFrame(rows, columns=["data_format", "part", "text"])


@themed
def four_formats(
    parts: pd.DataFrame, *, width: float = FULL_WIDTH, max_lines: int = 12
) -> Chart:
    """Draw one example of each data format, two by two, in colour.

    Parameters
    ----------
    parts : DataFrame
        From `example_parts`, one example per format.
    width : float
        Inches.
    max_lines : int
        Lines shown of the demonstrations, from their end; how many are hidden is said.
    """
    require_columns(parts, ("data_format", "part", "text"), "four_formats")
    panel = (width - 3 * _MARGIN) / 2
    characters = int((panel - _TAB - 0.08) / (text_width(" ", _FONT) * 1.02))
    panels = [
        (name, _panel_lines(parts[parts["data_format"] == name], characters, max_lines))
        for name in FORMAT_STYLES
        if (parts["data_format"] == name).any()
    ]
    grid = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    heights = [
        _TITLE + _LINE * max(len(lines) for _, lines in row) + 0.12 for row in grid
    ]
    chart, axes = canvas(width, sum(heights) + 2 * _MARGIN + 0.32)
    top = _MARGIN
    for row, height in zip(grid, heights, strict=True):
        for column, (name, lines) in enumerate(row):
            _draw_panel(
                axes, name, lines, _MARGIN + column * (panel + _MARGIN), top, panel
            )
        top += height
    _draw_legend(chart)
    return chart


def _panel_lines(
    parts: pd.DataFrame, characters: int, max_lines: int
) -> list[tuple[str, str]]:
    """Return (part, line) pairs, wrapped; demonstrations are cut at their start."""
    lines = []
    for row in parts.itertuples():
        wrapped = [
            piece
            for line in row.text.rstrip("\n").split("\n")
            for piece in textwrap.wrap(line, characters) or [""]
        ]
        hidden = len(wrapped) - max_lines if row.part == "demonstrations" else 0
        if hidden > 0:
            wrapped = [f"… {hidden + 1} more lines …", *wrapped[hidden + 1 :]]
        lines += [(row.part, piece) for piece in wrapped]
    return lines


def _draw_panel(
    axes: Axes,
    name: str,
    lines: list[tuple[str, str]],
    left: float,
    top: float,
    panel: float,
) -> None:
    style = FORMAT_STYLES[name]
    axes.plot(
        [left + 0.06],
        [top + _TITLE / 2 - 0.02],
        style.marker,
        color=style.colour,
        ms=6,
    )
    bold = {"fontsize": 8.5, "weight": "bold"}
    write(axes, left + 0.16, top + _TITLE / 2 - 0.02, style.label, **bold)
    first_target = next(
        (i for i, (part, _) in enumerate(lines) if part in _TARGET_PARTS), len(lines)
    )
    for index, (part, line) in enumerate(lines):
        y = top + _TITLE + index * _LINE + (0.05 if index >= first_target else 0)
        colour = PART_STYLES[part].colour
        fill = {"fc": colour, "ec": "none", "lw": 0}
        axes.add_patch(Rectangle((left, y), _TAB, _LINE, **fill))
        body = (left + _TAB, y), panel - _TAB, _LINE
        axes.add_patch(Rectangle(*body, alpha=0.35, **fill))
        text = {"fontsize": _FONT, "family": "monospace"}
        write(axes, left + _TAB + 0.04, y + _LINE / 2, line, **text)
    middle = top + _TITLE + first_target * _LINE + 0.025
    axes.plot([left, left + panel], [middle, middle], color=BLACK, lw=1.0)


def _draw_legend(chart: Chart) -> None:
    handles = [
        Patch(fc=style.colour, ec=BLACK, lw=0.4, label=style.label)
        for style in PART_STYLES.values()
    ]
    title = "above the line: what the student reads; below it: what it must write"
    look = {"title": title, "title_fontsize": 7, "loc": "lower center"}
    chart.legend(handles=handles, ncols=len(handles), **look)


# By the options of `losses.distribution_matching`.
OBJECTIVE_STYLES = MappingProxyType(
    {
        "sample_matching": Style("sample matching", ORANGE, "s", "", "--"),
        "bucket": Style("matching, tail in a bucket", BLUE, "o"),
        "renormalized": Style("matching, renormalized", SKY_BLUE, "D", "", "-."),
        "paper": Style("matching, as published", VERMILLION, "^", "", ":"),
        "reverse_kl": Style("reverse KL", PURPLE, "X", "", "--"),
        "jensen_shannon": Style("Jensen–Shannon", GREEN, "P", "", "-."),
    }
)
_PER_ROW = 3
_HIGHEST = 2.0  # nats; above it a curve leaves the chart


@themed
def logit_pushes(pushes: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw where one step of gradient descent moves each token, one panel a loss.

    Parameters
    ----------
    pushes : DataFrame
        ``loss`` (a key of `OBJECTIVE_STYLES`), ``token``, ``push`` (minus the gradient
        of the loss by the token's logit; positive: more probable).
    width : float
        Inches.
    """
    require_columns(pushes, ("loss", "token", "push"), "logit_pushes")
    names = list(dict.fromkeys(pushes["loss"]))
    num_rows = -(-len(names) // _PER_ROW)
    chart = new_chart(width, 1.35 * num_rows + 0.25)
    panels = chart.subplots(num_rows, _PER_ROW, sharey=True, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        _draw_pushes(axes, pushes[pushes["loss"] == name])
        axes.set_title(OBJECTIVE_STYLES[name].label)
    chart.supylabel("push on the logit (− gradient)", fontsize=8)
    return chart


def _draw_pushes(axes: Axes, picked: pd.DataFrame) -> None:
    up = picked["push"].to_numpy() > 0
    place = np.arange(len(picked))
    for chosen, colour, hatch in ((up, BLUE, ""), (~up, VERMILLION, "////")):
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "width": 0.7}
        axes.bar(place[chosen], picked["push"].to_numpy()[chosen], **look)
    axes.axhline(0, color=BLACK, lw=0.7)
    axes.set_xticks(place, [str(token) for token in picked["token"]])
    axes.tick_params(axis="x", length=0)


@themed
def loss_shapes(
    shapes: pd.DataFrame, *, teacher: float, width: float = FULL_WIDTH
) -> Chart:
    """Draw each loss against the student's probability of one token.

    Parameters
    ----------
    shapes : DataFrame
        ``loss`` (a key of `OBJECTIVE_STYLES`), ``probability`` (0 to 1), ``nats``.
    teacher : float
        The teacher's probability of that token: a dotted line.
    width : float
        Inches.

    Returns
    -------
    Chart
        The marker on a curve is its lowest point.
    """
    require_columns(shapes, ("loss", "probability", "nats"), "loss_shapes")
    chart = new_chart(width, 2.7)
    axes = chart.subplots()
    axes.axhline(0, color=GREY, lw=0.6)
    axes.axvline(teacher, color=BLACK, ls=":", lw=1, label="the teacher")
    for name in dict.fromkeys(shapes["loss"]):
        curve, style = shapes[shapes["loss"] == name], OBJECTIVE_STYLES[name]
        x, y = curve["probability"].to_numpy(), curve["nats"].to_numpy()
        # Hollow: three of them lie at the same point.
        lowest = {"marker": style.marker, "markevery": [int(y.argmin())]}
        lowest |= {"markersize": 8, "mfc": "none", "mew": 1.3}
        axes.plot(x, y, style.line, c=style.colour, label=style.label, **lowest)
    axes.set(xlim=(0, 1), ylim=(min(-0.1, shapes["nats"].min() * 1.1), _HIGHEST))
    axes.set_xlabel("student's probability of the sampled token")
    axes.set_ylabel("loss (nats)")
    chart.legend(loc="outside upper center", ncols=3)
    return chart
