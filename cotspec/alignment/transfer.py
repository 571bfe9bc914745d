"""From a match to sparse targets over the student's vocabulary.

Enters: a text's student tokens, their matches and the teacher's trace. Leaves:
`AlignedTargets`. `cotspec.alignment.align` states the rules in words.
"""

import math
import re
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from cotspec.alignment.matching import Match
from cotspec.alignment.records import AlignedTargets, TeacherTrace
from cotspec.alignment.student import StudentTokenizer, Token, spelled_bytes


def targets_of(
    tokens: Sequence[Token],
    matches: Sequence[Match],
    trace: TeacherTrace,
    student: StudentTokenizer,
) -> AlignedTargets:
    """Give matched tokens the teacher's alternatives; the others stay one-hot."""
    k = max(1, trace.k)
    top = np.exp(trace.topk_logprobs).tolist()
    ids, probs = [], []  # of all slots, token by token
    is_word = _word_starts(tokens, trace, student)
    for t, (token, match) in enumerate(zip(tokens, matches, strict=True)):
        slots = {token.id: 1.0}
        if match.step is not None:
            mark = tokens[t - 1].id if match.follows_mark else None
            given = token.id, match, trace, top[match.step], student
            slots = candidates(*given, at_word=is_word[match.step], mark=mark)
        label = slots.pop(token.id)
        best = sorted(slots, key=slots.__getitem__, reverse=True)[: k - 1]
        unused = k - 1 - len(best)
        ids += [token.id, *best, *[-1] * unused]
        probs += [label, *map(slots.__getitem__, best), *[0.0] * unused]
    probs = np.array(probs, np.float32).reshape(-1, k)
    tail = np.maximum(0, 1 - probs.sum(1, dtype=np.float64)).astype(np.float32)
    return AlignedTargets(
        student_ids=np.array([token.id for token in tokens], np.int32),
        topk_ids=np.array(ids, np.int32).reshape(-1, k),
        topk_probs=probs,
        tail_mass=tail,
        rule=np.array([match.rule for match in matches], np.int8),
    )


def candidates(
    label: int,
    match: Match,
    trace: TeacherTrace,
    top: Sequence[float],
    student: StudentTokenizer,
    *,
    at_word: bool,
    mark: int | None = None,
) -> dict[int, float]:
    """Return ``{student token: probability}`` at one matched token.

    Parameters
    ----------
    label : int
        The student's token here; the teacher's sampled one goes to it.
    match : Match
    trace : TeacherTrace
    top : sequence of float, length k
        The alternatives' probabilities here.
    student : StudentTokenizer
    at_word : bool
        Whether an alternative without a space begins a word here.
    mark : int, optional
        The bare ``▁`` before, where it took the teacher token's beginning.
    """
    step = match.step
    sampled, names = trace.token_bytes[step], trace.topk_bytes[step]
    own = math.exp(trace.token_logprobs[step])
    scale = max(1.0, sum(top) + (0 if sampled in names else own), own)  # rounding
    slots = {label: math.exp(max(match.logprob, -1e3)) / scale}
    excluded = 0.0
    for name, probability in zip(names, top, strict=True):
        if name == sampled or not probability:
            continue  # counted at the label; an empty slot
        first, second = student.first_two(name, at_word)
        if first is None:
            continue  # the student cannot write it: the tail
        if mark is not None and first != mark:
            excluded += probability / scale
            continue
        student_id = first if mark is None else second
        if student_id is not None:  # alternatives that begin alike add
            slots[student_id] = slots.get(student_id, 0.0) + probability / scale
    if mark is None:
        return slots
    # The mark is written, which rules out all that begins otherwise: Bayes' rule.
    left = max(1 - excluded, slots[label])
    return {i: p / left for i, p in slots.items()} if left > 0 else slots


def _word_starts(
    tokens: Sequence[Token], trace: TeacherTrace, student: StudentTokenizer
) -> list[bool]:
    """For each teacher token, whether the student marks a word where it begins.

    It does after whitespace that it has not written as a token, and at the start.
    """
    raw, is_spelled = trace.text.encode(), spelled_bytes(trace.text, tokens)
    starts = list(accumulate(map(len, trace.token_bytes), initial=0))[:-1]
    spaces = re.finditer(rb"\s", raw)
    words = {space.end() for space in spaces if not is_spelled[space.start()]}
    if student.marks_words:
        words.add(0)
    return [at in words for at in starts]
