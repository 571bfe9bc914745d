"""Seeded items whose split is decided by what they say.

Enters: a function that draws one item from a `random.Random`. Leaves: items that
depend on (seed, family, split, index) alone, never on each other, and whose questions
belong to exactly one split: the split is a hash of the question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random

SPLITS = ("train", "pretraining", "validation", "test", "demonstrations")
# A model may see a question of these twice; of the others every one is asked once.
_MAY_REPEAT = ("train", "pretraining")
_MAX_DRAWS = 10_000


def split_of(question: str) -> str:
    """Return the split a question belongs to: 39 / 39 / 10 / 10 / 2 percent.

    Parameters
    ----------
    question : str
        The question's text; every seed and family uses the same hash.
    """
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 100
    ends = zip((39, 78, 88, 98, 100), SPLITS, strict=True)
    return next(split for end, split in ends if bucket < end)


def draw_items(
    draw: Callable[[Random], dict],
    family: str,
    split: str,
    n: int,
    *,
    seed: int,
    answers: Sequence[str] = (),
) -> list[dict]:
    """Return `n` items of one family and split; item i is the same for every `n`.

    Parameters
    ----------
    draw : callable
        ``draw(rng) -> dict`` with at least ``question``.
    family, split : str
        `split` is one of `SPLITS`.
    n, seed : int
    answers : sequence of str
        Where a family has few answers, these: they take turns, so that always giving
        one of them is right exactly 1 in ``len(answers)`` times.

    Raises
    ------
    ValueError
        Unknown split, `n` below zero, or fewer than `n` different questions.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r}. Allowed: {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"n: {n!r} must be >= 0")
    items: list[dict] = []
    asked: set[str] = set()
    for index in range(n):
        rng = Random(f"{seed}/{family}/{split}/{index}")
        wanted = answers[index % len(answers)] if answers else None
        item = _draw_one(draw, split, wanted, asked, rng)
        if split not in _MAY_REPEAT:
            asked.add(item["question"])
        name = f"micro/{family}/{split}/{index:06d}"
        facts = {"problem_id": name, "task": f"micro/{family}", "split": split}
        items.append(facts | item)
    return items


def _draw_one(
    draw: Callable[[Random], dict],
    split: str,
    wanted: str | None,
    asked: set[str],
    rng: Random,
) -> dict:
    for _ in range(_MAX_DRAWS):
        item = draw(rng)
        question = item["question"]
        is_answer = wanted is None or item["answer"] == wanted
        if is_answer and split_of(question) == split and question not in asked:
            return item
    raise ValueError(
        f"n: no {len(asked) + 1}th {split!r} question with answer {wanted!r} in "
        f"{_MAX_DRAWS} draws"
    )
