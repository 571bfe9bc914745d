"""The micro-world's families as tasks; nothing is read and nothing is fetched.

Enters: ``micro/<family>``, a split and a number of problems. Leaves: problems and
demonstrations as the generators of `cotspec.micro` make them.
"""

from __future__ import annotations

from cotspec.micro import generic, world

SPLITS = ("train", "validation", "test")
# The micro-world has no end: this many unless `num` says otherwise.
NUM_MICRO = {"train": 8_000, "validation": 500, "test": 1_000}
MICRO_SEED = 0


def micro_names() -> tuple[str, ...]:
    """Return every ``micro/<family>``."""
    return tuple(f"micro/{family}" for family in (*world.FAMILIES, *generic.FAMILIES))


def micro_problems(name: str, split: str | None, num: int | None) -> list[dict]:
    """Return the first `num` problems of one split, or of all (None)."""
    family = name.removeprefix("micro/")
    generate = (world if family in world.FAMILIES else generic).generate
    wanted = SPLITS if split is None else (split,)
    rows = []
    for one in wanted:
        count = NUM_MICRO[one] if num is None else min(num, NUM_MICRO[one])
        rows += generate(family, one, count, seed=MICRO_SEED)
    return rows


def micro_demonstrations(name: str) -> list[dict]:
    """Return two worked problems of a split of their own; four for math."""
    family = name.removeprefix("micro/")
    if family in world.FAMILIES:
        return world.demonstrations()
    return generic.demonstrations(family)
