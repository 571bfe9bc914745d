"""Problems of every task in one schema, from a local folder or the Hugging Face hub.

Enters: a task name and, optionally, a split and a folder. Leaves: a `Dataset` with
``problem_id, task, split, question, rationale, answer``; the demonstrations of a task;
what cannot be scored, what is missing, and which training questions a test set repeats.

A folder is laid out as ``$COTSPEC_DATA``: ``gsm8k/{train,test}.jsonl``,
``multiarith/MultiArith.json``, ``svamp/SVAMP.json``, ``asdiv/ASDiv.xml`` and
``bbh/tasks/*.json``. Without one the same sets are fetched from the hub at pinned
revisions. Numbers of problems are checked against the published ones. BBH's prompts and
the rows of GSM8K that are held out come with the package.
"""

from __future__ import annotations

import logging
from pathlib import Path

from datasets import Dataset, Features, Value

from cotspec.micro import generic, world
from cotspec.profiles import BBH_TASKS
from cotspec.prompts import Demonstration
from cotspec.tasks import published
from cotspec.tasks.published import NUM_PUBLISHED, REAL_TASKS, data_folder, missing
from cotspec.tasks.readers import (
    NUM_GSM8K,
    NUM_MATH_DEMONSTRATIONS,
    NUM_MULTIARITH_TEST,
    NUM_VALIDATION,
    bbh_prompt,
    clean_rationale,
)
from cotspec.tasks.repeats import overlap
from cotspec.tasks.sources import HUB

__all__ = [
    "BBH_TASKS",
    "COLUMNS",
    "FEATURES",
    "HUB",
    "MICRO_SEED",
    "NUM_GSM8K",
    "NUM_MATH_DEMONSTRATIONS",
    "NUM_MICRO",
    "NUM_MULTIARITH_TEST",
    "NUM_PUBLISHED",
    "NUM_VALIDATION",
    "REAL_TASKS",
    "SPLITS",
    "clean_rationale",
    "demonstrations",
    "load",
    "missing",
    "overlap",
    "task_description",
    "unscorable",
]

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
# The micro-world has no end: this many unless `num` says otherwise.
NUM_MICRO = {"train": 8_000, "validation": 500, "test": 1_000}
MICRO_SEED = 0
COLUMNS = ("problem_id", "task", "split", "question", "rationale", "answer")
FEATURES = Features({name: Value("string") for name in COLUMNS})


def load(
    name: str,
    split: str | None = None,
    *,
    source: Path | str | None = None,
    num: int | None = None,
) -> Dataset:
    """Load the problems of one task.

    Parameters
    ----------
    name : str
        ``gsm8k``, ``multiarith``, ``asdiv``, ``svamp``, ``bbh/<stem>`` for the 27 stems
        of `profiles.BBH_TASKS`, or ``micro/<family>``.
    split : str, optional
        ``train`` (GSM8K: the 7,473 less the 200 held out), ``validation`` (GSM8K: those
        200; MultiArith: 200) or ``test``; None gives all. ASDiv, SVAMP and BBH are test
        sets throughout. The micro-world has every split.
    source : Path or str, optional
        Folder with the data; default ``$COTSPEC_DATA``, else the hub.
    num : int, optional
        The first `num` problems of each split only (no problem depends on it).

    Returns
    -------
    Dataset
        Columns `COLUMNS`. Numbers in golds have no commas or units. Problems whose gold
        is not one number (212 of ASDiv) are left out: see `unscorable`.

    Raises
    ------
    ValueError
        Unknown task or split, missing or damaged file, hub out of reach, wrong count.
    """
    check_name(name)
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: {split!r}. Allowed: {', '.join(SPLITS)} or None")
    if name.startswith("micro/"):
        rows = micro_problems(name, split, num)
    else:
        rows = _of_split(_scorable(name, source), split)
    if not rows:
        raise ValueError(f"split: {name} has no {split!r} split")
    if num is not None:
        rows = [row for one in SPLITS for row in _of_split(rows, one)[:num]]
    table = {column: [row[column] for row in rows] for column in COLUMNS}
    return Dataset.from_dict(table, features=FEATURES)


def unscorable(name: str, *, source: Path | str | None = None) -> Dataset:
    """List the problems whose gold is not one number, with the reason.

    Of ASDiv's 2,305 these are 212: 90 ``several numbers``, 61 ``ratio or time`` and 61
    ``words``. Its nine fractions are numbers.

    Returns
    -------
    Dataset
        ``problem_id, question, answer, reason``; empty for every task but ASDiv.
    """
    check_name(name)
    columns = ("problem_id", "question", "answer", "reason")
    features = Features({column: Value("string") for column in columns})
    rows = [] if name != "asdiv" else published.problems(name, data_folder(source))
    found = [row for row in rows if row["reason"]]
    table = {column: [row[column] for row in found] for column in columns}
    return Dataset.from_dict(table, features=features)


def demonstrations(
    name: str, *, source: Path | str | None = None
) -> list[Demonstration]:
    """Return the worked problems shown before a question of this task.

    BBH: the three published ones, chains as they are. Math tasks, GSM8K's and all
    others: the first four GSM8K training problems with their published solutions.
    Micro-world: fixed ones from a split of their own (two; four for math).

    Raises
    ------
    ValueError
        Unknown task, missing or damaged file.
    """
    check_name(name)
    if name.startswith("micro/"):
        return [
            Demonstration(row["question"], row["rationale"], row["answer"])
            for row in micro_demonstrations(name)
        ]
    return published.demonstrations(name, data_folder(source))


def task_description(name: str) -> str:
    """Return the sentence a BBH prompt begins with; empty for every other task."""
    check_name(name)
    return bbh_prompt(name)[0] if name.startswith("bbh/") else ""


def check_name(name: str) -> None:
    if name in NUM_PUBLISHED or name in micro_names():
        return
    raise ValueError(
        f"task: {name!r}. Allowed: {', '.join(REAL_TASKS[:4])}, "
        f"{', '.join(micro_names())} and {', '.join(BBH_TASKS)}"
    )


def _of_split(rows: list[dict], split: str | None) -> list[dict]:
    return [row for row in rows if split in (None, row["split"])]


def _scorable(name: str, source: Path | str | None) -> list[dict]:
    rows = published.problems(name, data_folder(source))
    kept = [row for row in rows if not row["reason"]]
    if len(kept) < len(rows):
        log.info(
            "%s: %d of %d problems have one number as gold; tasks.unscorable lists "
            "the others",
            name,
            len(kept),
            len(rows),
        )
    return kept


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
