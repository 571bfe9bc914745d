"""Charts of tokens and texts: probabilities, alignments, formats, the six tokens.

Enters: one trace, spans of tokens, training examples. Leaves: charts, and the small
frames that they draw.
"""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cotspec import prompts
from cotspec.figures import style
from cotspec.figures.style import FULL_WIDTH, Chart, Style, box, write, write_token

MARGIN = 0.08  # inches, of every canvas
LINE = 0.118  # inches, from one line of small text to the next


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
    fields = ("token_bytes", "token_logprobs", "topk_bytes", "topk_logprobs")
    steps = zip(*(trace[field] for field in fields), strict=True)
    rows = []
    for position, (sampled, sampled_logprob, tokens, logprobs) in enumerate(steps):
        step = position, style.printable(sampled), math.exp(sampled_logprob)
        ranked = sorted(zip(logprobs, tokens, strict=True), key=lambda pair: -pair[0])
        for rank, (logprob, token) in enumerate(ranked, start=1):
            alternative = rank, style.printable(token), math.exp(logprob)
            rows.append((*step, *alternative, token == sampled))
    columns = "position sampled sampled_probability rank alternative probability"
    return pd.DataFrame(rows, columns=[*columns.split(), "is_sampled"])


_COLUMNS = 9  # tokens a row
_CELL, _HEAD, _GAP = (FULL_WIDTH - 2 * MARGIN) / _COLUMNS, 0.2, 0.12  # inches
_BAR, _TRACK = "#9CCDEB", "#F2F2F2"  # SKY_BLUE lightened, so that text stays readable
_LEGEND = (
    "bold: sampled token;  bar and number: probability, 0 to 1;  "
    "outlined: the alternative that was sampled;  ␣\u00a0space;  ↵\u00a0newline"
)


@style.in_our_look
def probability_strip(alternatives: pd.DataFrame) -> Chart:
    """Draw a teacher's solution with its top alternatives, one column per token.

    Parameters
    ----------
    alternatives : DataFrame
        From `top_alternatives`, or some of its positions.

    Returns
    -------
    Chart
        Each column is headed by the sampled token; below it the alternatives, each with
        its probability as a number and as the length of its bar, the sampled one
        outlined.
    """
    steps = alternatives.groupby("position", sort=True)
    row_height = _HEAD + int(alternatives["rank"].max()) * LINE + _GAP
    bottom = math.ceil(len(steps) / _COLUMNS) * row_height
    chart, axes = style.canvas(bottom + 2 * MARGIN + 0.12)
    for index, (_, step) in enumerate(steps):
        row, column = divmod(index, _COLUMNS)
        _draw_step(axes, step, MARGIN + column * _CELL, MARGIN + row * row_height)
    write(axes, MARGIN, bottom + MARGIN + 0.06, _LEGEND, color=style.GREY)
    return chart


def _draw_step(axes: Axes, step: pd.DataFrame, left: float, top: float) -> None:
    room, height = _CELL - 0.06, LINE - 0.016
    sampled = str(step["sampled"].iloc[0])
    write_token(axes, left, top + _HEAD / 2, sampled, room, 8, weight="bold")
    for row in step.itertuples():
        y = top + _HEAD + (row.rank - 1) * LINE
        box(axes, left, y, room, height, fc=_TRACK)
        box(axes, left, y, room * min(row.probability, 1.0), height, fc=_BAR)
        if row.is_sampled:
            box(axes, left, y, room, height, fc="none", ec=style.BLACK)
        middle = y + height / 2
        number = _short_probability(row.probability)
        write(axes, left + room - 0.02, middle, number, ha="right", fontsize=6)
        write_token(axes, left + 0.03, middle, row.alternative, room - 0.3, 6.3)


def _short_probability(probability: float) -> str:
    """Two decimals without the leading zero: there is little room."""
    if probability < 0.005:
        return "<.01"
    return "1.0" if probability >= 0.995 else f"{probability:.2f}"[1:]


_TOKEN_FONT = 7.5
_CHARACTER = style.text_width(" ", _TOKEN_FONT) + 0.012
_LABEL, _ROW, _BOX, _DROP = 0.52, 0.86, 0.17, 0.46  # inches
_RULES_A_LINE = 4


@style.in_our_look
def token_alignment(spans: pd.DataFrame, *, pairs: Sequence | None = None) -> Chart:
    """Draw how teacher tokens became student targets.

    Parameters
    ----------
    spans : DataFrame
        ``side`` ("teacher" or "student"), ``token``, ``start`` and ``end`` (characters
        of the shared text), ``rule`` (a key of `RULE_STYLES`; "" for teacher tokens).

    pairs : sequence of (int, int), optional
        The numbers of a teacher's and a student's token for each line. Default: those
        that share letters.
    """
    student = spans[spans["side"] == "student"]
    # A word's mark (``▁``) stands over the whitespace that its span leaves out.
    has_gap = student["start"] > student["end"].shift(fill_value=0)
    student = student.assign(start=student["start"] - has_gap)
    upper = list(spans[spans["side"] == "teacher"].itertuples())
    lower = list(student.itertuples())
    if pairs is None:
        lines = [(a, b) for b in lower for a in upper if _share_letters(a, b)]
    else:
        lines = [(upper[i], lower[j]) for i, j in pairs]
    extents = [(span.start, span.end) for span in upper + lower]
    extents += [(min(a.start, b.start), max(a.end, b.end)) for a, b in lines]
    starts = _row_starts(extents, int((FULL_WIDTH - 2 * MARGIN - _LABEL) / _CHARACTER))
    rules = set(student["rule"])
    looks = [look for rule, look in style.RULE_STYLES.items() if rule in rules]
    legend = 0.16 * math.ceil(len(looks) / _RULES_A_LINE)
    chart, axes = style.canvas(len(starts) * _ROW + 2 * MARGIN + legend)
    for row, (first, after) in enumerate(itertools.pairwise([*starts, math.inf])):
        inside = [span for span in upper + lower if first <= span.start < after]
        joined = [(a, b) for a, b in lines if first <= b.start < after]
        _draw_row(axes, inside, joined, first, MARGIN + row * _ROW)
    shape = {"ncols": _RULES_A_LINE, "handlelength": 1.5, "columnspacing": 1.2}
    style.patch_legend(chart, looks, bbox_to_anchor=(0.5, 0.0), **shape)
    return chart


def _row_starts(extents: Sequence[tuple[int, int]], room: int) -> list[int]:
    """Cut the text, `room` characters at most, where no token or line is cut."""
    covered = set()
    for start, end in extents:
        covered.update(range(start + 1, end))
    first, last = min(start for start, _ in extents), max(end for _, end in extents)
    cuts = [offset for offset in range(first + 1, last + 1) if offset not in covered]
    starts = [first]
    for cut, following in itertools.pairwise(cuts):
        if following > starts[-1] + room:
            starts.append(cut)
    return starts


def _draw_row(axes: Axes, inside: list, lines: list, first: int, top: float) -> None:
    """Draw the tokens of both sides and their lines, from the `first` character on."""

    def place(offset: float) -> float:
        return MARGIN + _LABEL + (offset - first) * _CHARACTER

    tops = {"teacher": top, "student": top + _DROP}
    for name, y in tops.items():
        write(axes, MARGIN, y + _BOX / 2, name, color=style.GREY, fontsize=7)
    for above, below in lines:
        x = [place((s.start + _end(s)) / 2) for s in (above, below)]
        line = {"color": style.RULE_STYLES[below.rule].colour, "lw": 1.3}
        axes.plot(x, [top + _BOX, top + _DROP], zorder=0, **line)
    for span in inside:
        _draw_token(axes, span, place, tops[span.side])


def _share_letters(above: object, below: object) -> bool:
    """Whitespace that the student folds away ties it to no teacher token."""
    first, last = max(above.start, below.start), min(above.end, below.end)
    shared = above.token[first - above.start : last - above.start]
    return last > first and bool(shared.strip() or not below.token.strip(" \n\t▁"))


def _end(span: object) -> float:
    """A token without text of its own is drawn half a character wide."""
    return max(span.end, span.start + 0.5)


def _draw_token(axes: Axes, span: object, place: Callable, top: float) -> None:
    left = place(span.start) + 0.006
    room = place(_end(span)) - 0.006 - left
    is_student = span.side == "student"
    look = style.RULE_STYLES[span.rule] if is_student else Style("", style.LIGHT_GREY)
    fill = {"fc": look.colour, "ec": style.BLACK}
    box(axes, left, top, room, _BOX, alpha=0.45, lw=0.5, **fill)
    if is_student:
        # The hatch stands in a strip under the text, where it does not cover it.
        box(axes, left, top + _BOX, room, 0.07, lw=0.3, hatch=look.hatch, **fill)
    middle = left + room / 2, top + _BOX / 2
    text = style.printable(span.token)
    write_token(axes, *middle, text, room + 0.02, _TOKEN_FONT, ha="center")


@style.in_our_look
def cost_matrix(matrix: pd.DataFrame, path: Sequence[tuple[int, int]]) -> Chart:
    """Draw the edit distances of two token sequences and a path through them.

    Parameters
    ----------
    matrix : DataFrame
        Distances; the index holds the teacher's tokens, the columns the student's.
    path : sequence of (int, int)
        Row and column of each pair, from the start.

    Returns
    -------
    Chart
        The distance stands in each cell, the darker the smaller; the path's are ringed.
    """
    rows, columns = matrix.shape
    chart, axes = style.new_chart(0.26 * rows + 0.9, 0.34 * columns + 1.1)
    axes.imshow(matrix.to_numpy(), cmap="Greys_r", aspect="auto", alpha=0.4)
    ring = {"marker": "o", "markersize": 11, "mfc": "white"}
    axes.plot([j for _, j in path], [i for i, _ in path], c=style.BLUE, **ring)
    for (i, j), distance in np.ndenumerate(matrix.to_numpy()):
        axes.text(j, i, f"{distance}", ha="center", va="center", fontsize=6.5)
    teacher = matrix.index.map(str).map(style.printable)
    student = matrix.columns.map(str).map(style.printable)
    axes.set_xticks(range(columns), student, rotation=90, family="monospace")
    axes.set_yticks(range(rows), teacher, family="monospace")
    axes.set(xlabel="student", ylabel="teacher")
    return chart


def example_parts(examples: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Split training examples into the parts a reader should see.

    Parameters
    ----------
    examples : iterable of mapping
        With ``data_format``, ``inputs`` and ``targets``.

    Returns
    -------
    DataFrame
        ``data_format, part, text`` in reading order, part one of `PART_STYLES`; the
        texts of a format joined are its inputs, a newline, and its targets.
    """
    rows = []
    block = prompts.QUESTION_PREFIX
    for example in examples:
        before, found, question = example["inputs"].rpartition(f"\n\n{block}")
        rationale, lead, answer = example["targets"].rpartition(prompts.ANSWER_PREFIX)
        texts = {
            "demonstrations": f"{before}\n\n" if found else "",
            "question": (block if found else "") + question + "\n",
            "rationale": rationale if lead else example["targets"],
            "answer": lead + answer if lead else "",
        }
        name = example["data_format"]
        rows += [(name, part, text) for part, text in texts.items() if text]
    return pd.DataFrame(rows, columns=["data_format", "part", "text"])


_PANEL = (FULL_WIDTH - 3 * MARGIN) / 2
_FONT, _TITLE, _TAB = 6.2, 0.26, 0.07
_CHARACTERS = int((_PANEL - _TAB - 0.08) / (style.text_width(" ", _FONT) * 1.02))
_SHOWN_LINES = 12  # of the demonstrations


@style.in_our_look
def four_formats(parts: pd.DataFrame) -> Chart:
    """Draw one example of each data format, two by two, in colour.

    Parameters
    ----------
    parts : DataFrame
        From `example_parts`, one example per format. Of the demonstrations the last
        lines are shown; how many are hidden is said.
    """
    present = set(parts["data_format"])
    names = [name for name in style.FORMAT_STYLES if name in present]
    panels = [(n, _panel_lines(parts[parts["data_format"] == n])) for n in names]
    grid = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    longest = [max(len(lines) for _, lines in row) for row in grid]
    heights = [_TITLE + LINE * lines + 0.12 for lines in longest]
    chart, axes = style.canvas(sum(heights) + 2 * MARGIN + 0.32)
    top = MARGIN
    for row, height in zip(grid, heights, strict=True):
        for column, (name, lines) in enumerate(row):
            left = MARGIN + column * (_PANEL + MARGIN)
            _draw_panel(axes, style.FORMAT_STYLES[name], lines, left, top)
        top += height
    title = "above the line: what the student reads; below it: what it must write"
    looks = style.PART_STYLES.values()
    style.patch_legend(chart, looks, title=title, title_fontsize=7, ncols=len(looks))
    return chart


def _panel_lines(parts: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (part, line) pairs, wrapped; demonstrations are cut at their start."""
    lines = []
    for row in parts.itertuples():
        wrapped = []
        for line in row.text.rstrip("\n").split("\n"):
            wrapped += textwrap.wrap(line, _CHARACTERS) or [""]
        hidden = len(wrapped) - _SHOWN_LINES
        if row.part == "demonstrations" and hidden > 0:
            wrapped = [f"… {hidden + 1} more lines …", *wrapped[hidden + 1 :]]
        lines += [(row.part, piece) for piece in wrapped]
    return lines


def _draw_panel(axes: Axes, look: Style, lines: list, left: float, top: float) -> None:
    y = top + _TITLE / 2 - 0.02
    axes.plot(left + 0.06, y, look.marker, color=look.colour, ms=6)
    write(axes, left + 0.16, y, look.label, fontsize=8.5, weight="bold")
    num_read = sum(part in ("demonstrations", "question") for part, _ in lines)
    for index, (part, line) in enumerate(lines):
        y = top + _TITLE + index * LINE + (0.05 if index >= num_read else 0)
        fill = {"fc": style.PART_STYLES[part].colour, "lw": 0}
        box(axes, left, y, _TAB, LINE, **fill)
        box(axes, left + _TAB, y, _PANEL - _TAB, LINE, alpha=0.35, **fill)
        text = {"fontsize": _FONT, "family": "monospace"}
        write(axes, left + _TAB + 0.04, y + LINE / 2, line, **text)
    y = top + _TITLE + num_read * LINE + 0.025
    axes.plot([left, left + _PANEL], [y, y], color=style.BLACK, lw=1.0)


_LOSSES_A_ROW = 3


@style.in_our_look
def logit_pushes(pushes: pd.DataFrame) -> Chart:
    """Draw where one step of gradient descent moves each token, one panel a loss.

    Parameters
    ----------
    pushes : DataFrame
        ``loss`` (a key of `OBJECTIVE_STYLES`), ``token``, ``push`` (minus the gradient
        of the loss by the token's logit; positive: more probable).
    """
    losses = pushes.groupby("loss", sort=False)
    num_rows = math.ceil(len(losses) / _LOSSES_A_ROW)
    grid = {"nrows": num_rows, "ncols": _LOSSES_A_ROW, "squeeze": False}
    chart, panels = style.new_chart(1.35 * num_rows + 0.25, sharey=True, **grid)
    for axes in panels.flat[len(losses) :]:
        axes.set_visible(False)
    for axes, (name, picked) in zip(panels.flat, losses, strict=False):
        place, push = np.arange(len(picked)), picked["push"].to_numpy()
        up, down = (push > 0, style.BLUE, ""), (push <= 0, style.VERMILLION, "////")
        for chosen, colour, hatch in (up, down):
            look = {"color": colour, "hatch": hatch, "edgecolor": "white"}
            axes.bar(place[chosen], push[chosen], width=0.7, **look)
        axes.axhline(0, color=style.BLACK, lw=0.7)
        axes.set_xticks(place, picked["token"].astype(str))
        axes.tick_params(axis="x", length=0)
        axes.set_title(style.OBJECTIVE_STYLES[name].label)
    chart.supylabel("push on the logit (− gradient)", fontsize=8)
    return chart
