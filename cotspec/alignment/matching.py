"""Which teacher token each student token takes its alternatives from: two methods.

Enters: the student's tokens of a text and the teacher's trace of it. Leaves: a `Match`
per student token. `by_offsets` reads them off the text itself, in O(n + m);
`by_warping` is the paper's: dynamic time warping at minimal total edit distance, of
which the one-to-one pairs of equal tokens count (Fu et al. 2023, section 3, equations
1 to 3).
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from cotspec.alignment.records import Rule, TeacherTrace
from cotspec.alignment.student import StudentTokenizer, Token, spelled_bytes


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
    # T5 folds newlines and repeated spaces: places are counted without them, so that
    # ``▁In``, ``In`` after a newline and `` In`` lie at one place.
    place = list(accumulate(spelled_bytes(trace.text, tokens), initial=0))
    ends = list(accumulate(map(len, trace.token_bytes), initial=0))
    # Teacher tokens of folded whitespace only are no decision of the student's.
    teacher = [
        (place[start], place[end], step)
        for step, (start, end) in enumerate(pairwise(ends))
        if place[end] > place[start]
    ]
    begins = {start: (end, step) for start, end, step in teacher}
    logprobs = trace.token_logprobs.tolist()
    teacher.append((math.inf, math.inf, -1))  # none lies behind it
    matches: list[Match] = []
    first = 0  # the first teacher token that may touch the student's
    before_id = before_start = -1  # the student token before
    open_end = -1  # where its teacher token ends, if it goes on after it
    for token in tokens:
        start, end = place[token.start], place[token.end]
        # Two tokens at one place: the second has the first one's teacher behind it.
        teacher_end, step = begins.pop(start, (-1, None))
        opened = start
        follows_mark = before_id == student.bare_mark and start < open_end
        if follows_mark:
            step, opened = matches[-1].step, before_start
        is_same = teacher_end == end > start and not follows_mark
        rule = Rule.INSIDE if step is None else Rule.STARTS_TOGETHER
        if is_same:
            rule = _spelling_rule(token, step, trace, student)
        while teacher[first][0] < opened:
            first += 1
        # A token that runs on past the teacher's is as probable as all it touches.
        logprob, touched, reach = 0.0, first, max(end, start + 1)
        while teacher[touched][0] < reach:
            logprob += logprobs[teacher[touched][2]]
            touched += 1
        matches.append(Match(step, logprob, rule, follows_mark))
        open_end = -1 if step is None or is_same else teacher_end
        before_id, before_start = token.id, start
    return matches


def _spelling_rule(
    token: Token, step: int, trace: TeacherTrace, student: StudentTokenizer
) -> Rule:
    is_equal = student.spelled[token.id] == trace.token_bytes[step]
    return Rule.IDENTICAL if is_equal else Rule.SAME_SPAN


def warp(left: Sequence[str], right: Sequence[str]) -> tuple[list[list[int]], list]:
    """Return the cost of every pair of tokens, and the cheapest path through them.

    f(i, j) = min(f(i−1, j), f(i, j−1), f(i−1, j−1)) + c(i, j); c: edit distance.
    """
    n, m = len(left), len(right)
    cost = [[edit_distance(a, b) for b in right] for a in left]  # (n, m)
    total = [[math.inf] * (m + 1) for _ in range(n + 1)]  # f, with a border
    total[0][0] = 0
    for i in range(n):
        row, above = total[i + 1], total[i]
        for j in range(m):
            row[j + 1] = cost[i][j] + min(above[j], above[j + 1], row[j])
    path, i, j = [], n, m
    while i and j:
        path.append((i - 1, j - 1))
        back = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(back, key=lambda cell: total[cell[0]][cell[1]])  # ties: diagonal
    return cost, path[::-1]


def equal_partners(left: Sequence[str], right: Sequence[str]) -> list[int | None]:
    """Return each right token's partner: equal, and neither has another."""
    cost, path = warp(left, right)
    lefts, rights = Counter(i for i, _ in path), Counter(j for _, j in path)
    is_alone = {(i, j) for i, j in path if lefts[i] == rights[j] == 1}
    pairs = {j: i for i, j in is_alone if cost[i][j] == 0}
    return [pairs.get(j) for j in range(len(right))]


@functools.lru_cache(2**20)
def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance of two tokens."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            change = diagonal + (x != y)
            diagonal, row[j] = row[j], min(change, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def by_warping(
    tokens: Sequence[Token], trace: TeacherTrace, student: StudentTokenizer
) -> list[Match]:
    """Match by the paper's rule: one-to-one, equal tokens of the cheapest warping."""
    # PAPER: compares the tokens' names, so that "If" and "▁If" differ and the first
    # token never has a distribution. HERE: word marks and spaces do not count.
    left = [_bare(piece) for piece in trace.token_bytes]
    right = [_bare(student.spelled[token.id]) for token in tokens]
    matches = []
    for token, step in zip(tokens, equal_partners(left, right), strict=True):
        match = Match(None, 0.0, Rule.NOT_ONE_TO_ONE)
        if step is not None:
            rule = _spelling_rule(token, step, trace, student)
            match = Match(step, trace.token_logprobs[step], rule)
        matches.append(match)
    return matches


def _bare(piece: bytes) -> str:
    return piece.decode("utf-8", "replace").replace(" ", "")
