"""The paper's alignment: dynamic time warping at minimal total edit distance.

Enters: two token sequences. Leaves: the cheapest pairing of them, and of it the
one-to-one pairs of equal tokens. Fu et al. 2023, section 3, equations 1 to 3.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

from cotspec.alignment.offsets import Match
from cotspec.alignment.records import Rule, TeacherTrace
from cotspec.alignment.student import StudentTokenizer, Token

Pair = tuple[int, int]


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
        if step is None:
            matches.append(Match(None, 0.0, Rule.NOT_ONE_TO_ONE))
            continue
        is_equal = student.spelled[token.id] == trace.token_bytes[step]
        rule = Rule.IDENTICAL if is_equal else Rule.SAME_SPAN
        matches.append(Match(step, trace.token_logprobs[step], rule))
    return matches


def _bare(piece: bytes) -> str:
    return piece.decode("utf-8", "replace").replace(" ", "")
