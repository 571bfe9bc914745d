"""Which teacher token a student token begins with, read off the text itself.

Enters: the student's tokens of a text and the teacher's trace of it. Leaves: a `Match`
per student token, in O(n + m).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from cotspec.alignment.records import Rule, TeacherTrace
from cotspec.alignment.student import StudentTokenizer, Token


class Match(NamedTuple):
    """What one student token takes from the teacher.

    Attributes
    ----------
    step : int or None
        The teacher token whose alternatives it gets; None: it stays one-hot.
    logprob : float
        Of the label: the sum over all teacher tokens it touches, nats.
    rule : Rule
    follows_mark : bool
        Whether a bare ``▁`` before it took the beginning of the teacher's token.
    """

    step: int | None
    logprob: float
    rule: Rule
    follows_mark: bool = False


def by_offsets(
    tokens: Sequence[Token], trace: TeacherTrace, student: StudentTokenizer
) -> list[Match]:
    """Match student tokens with the teacher tokens that begin where they begin."""
    place = _significant(trace.text, tokens)
    ends = list(accumulate(map(len, trace.token_bytes), initial=0))
    # Teacher tokens of folded whitespace only are no decision of the student's.
    teacher = [
        (place[start], place[end], step)
        for step, (start, end) in enumerate(pairwise(ends))
        if place[end] > place[start]
    ]
    begins = {start: (end, step) for start, end, step in teacher}
    matches: list[Match] = []
    first = 0  # the first teacher token that may touch the student's
    before = Token(-1, -1, -1)  # the student token before, in significant bytes
    open_end = None  # where its teacher token ends, if it goes on after it
    for token in tokens:
        start, end = place[token.start], place[token.end]
        # Two tokens at one place: the second has the first one's teacher behind it.
        teacher_end, step = begins.get(start, (None, None))
        if start == before.start:
            teacher_end = step = None
        opened = start
        follows_mark = bool(
            matches
            and before.id == student.bare_mark
            and open_end is not None
            and start < open_end
        )
        if follows_mark:
            step, opened = matches[-1].step, before.start
        is_same = teacher_end == end and end > start and not follows_mark
        rule = Rule.INSIDE if step is None else Rule.STARTS_TOGETHER
        if is_same:
            is_equal = student.spelled[token.id] == trace.token_bytes[step]
            rule = Rule.IDENTICAL if is_equal else Rule.SAME_SPAN
        while first < len(teacher) and teacher[first][0] < opened:
            first += 1
        # A token that runs on past the teacher's is as probable as all it touches.
        logprob, touched = 0.0, first
        while touched < len(teacher) and teacher[touched][0] < max(end, start + 1):
            logprob += trace.token_logprobs[teacher[touched][2]]
            touched += 1
        matches.append(Match(step, logprob, rule, follows_mark))
        open_end = teacher_end if step is not None and not is_same else None
        before = Token(token.id, start, end)
    return matches


def _significant(text: str, tokens: Sequence[Token]) -> list[int]:
    """For each byte of the text, how many bytes before it some student token spells.

    T5 folds newlines and repeated spaces: places are compared without them, so that
    ``▁In``, ``In`` after a newline and `` In`` lie at one place.
    """
    covered = bytearray(len(text.encode()))
    for token in tokens:
        covered[token.start : token.end] = b"\1" * (token.end - token.start)
    return list(accumulate(covered, initial=0))
