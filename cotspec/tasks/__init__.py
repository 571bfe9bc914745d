"""Problems of every task in one schema, from a local folder or the Hugging Face hub.

Enters: a task name and, optionally, a split. Leaves: a `Dataset` with
``problem_id, task, split, question, rationale, answer``; the demonstrations of a task;
what cannot be scored, what is missing, and which training questions a test set repeats.

``$COTSPEC_DATA`` names a folder with ``gsm8k/{train,test}.jsonl``,
``multiarith/MultiArith.json``, ``svamp/SVAMP.json``, ``asdiv/ASDiv.xml`` and
``bbh/tasks/*.json``. Without one the same sets are fetched from the hub at pinned
revisions. Numbers of problems are checked against the published ones. BBH's prompts and
the rows of GSM8K that are held out come with the package.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import pandas as pd
from datasets import Dataset, Features, Value

from cotspec.micro import world
from cotspec.profiles import BBH_TASKS
from cotspec.prompts import Demonstration
from cotspec.tasks import readers

REAL_TASKS = tuple(readers.NUM_PUBLISHED)
MICRO_TASKS = tuple(f"micro/{family}" for family in world.FAMILIES)
SPLITS = ("train", "validation", "test")
# The micro-world has no end: this many.
NUM_MICRO = {"train": 8_000, "validation": 500, "test": 1_000}
MICRO_SEED = 0
COLUMNS = ("problem_id", "task", "split", "question", "rationale", "answer")
_generated = functools.cache(world.generate)  # takes seconds
_WORD = re.compile(r"[a-z]+|\d+(?:[.,]\d+)*")


def load(name: str, split: str | None = None) -> Dataset:
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
    _check_name(name)
    if split not in (None, *SPLITS):
        raise ValueError(f"split: {split!r}. Allowed: {', '.join(SPLITS)} or None")
    is_micro, rows = name in MICRO_TASKS, []
    published = [] if is_micro else readers.problems(name)
    for one in SPLITS if split is None else (split,):
        if is_micro:
            family = name.removeprefix("micro/")
            rows += _generated(family, one, NUM_MICRO[one], seed=MICRO_SEED)
        else:
            rows += (r for r in published if r["split"] == one and not r["reason"])
    if not rows:
        raise ValueError(f"split: {name} has no {split!r} split")
    return _table(rows, COLUMNS)


def unscorable(name: str) -> Dataset:
    """List the problems whose gold is not one number, with the reason.

    Of ASDiv's 2,305 these are 212: 90 ``several numbers``, 61 ``ratio or time`` and 61
    ``words``. Its nine fractions are numbers.

    Returns
    -------
    Dataset
        ``problem_id, question, answer, reason``; empty for every task but ASDiv.
    """
    _check_name(name)
    rows = readers.problems(name) if name == "asdiv" else []
    columns = ("problem_id", "question", "answer", "reason")
    return _table([row for row in rows if row["reason"]], columns)


def _table(rows: list[dict], columns: Sequence[str]) -> Dataset:
    table = {column: [row[column] for row in rows] for column in columns}
    features = Features({column: Value("string") for column in columns})
    return Dataset.from_dict(table, features=features)


def demonstrations(name: str) -> list[Demonstration]:
    """Return the worked problems shown before a question of this task.

    BBH: the three published ones, chains as they are. Math tasks, GSM8K's and all
    others: the first four GSM8K training problems with their published solutions.
    Micro-world: fixed ones from a split of their own (two; four for math).

    Raises
    ------
    ValueError
        Unknown task, missing or damaged file.
    """
    _check_name(name)
    if name in MICRO_TASKS:
        return world.demonstrations(name.removeprefix("micro/"))
    return readers.demonstrations(name)


def task_description(name: str) -> str:
    """Return the sentence a BBH prompt begins with; empty for every other task."""
    _check_name(name)
    return readers.bbh_prompt(name)[0] if name.startswith("bbh/") else ""


def _check_name(name: str) -> None:
    if name not in REAL_TASKS + MICRO_TASKS:
        allowed = ", ".join(REAL_TASKS[:4] + MICRO_TASKS + BBH_TASKS)
        raise ValueError(f"task: {name!r}. Allowed: {allowed}")


def missing(names: Iterable[str]) -> list[str]:
    """Return what is wrong with ``$COTSPEC_DATA``, one sentence a task; seconds.

    Every file the tasks need is read and counted, so a folder with nothing missing
    also loads.
    """
    found = {}
    for name in names:
        try:
            readers.problems(name)
            readers.demonstrations(name)
        except ValueError as error:
            found[str(error)] = name
    return list(found)


def overlap(
    train_questions: Sequence[str],
    test_questions: Sequence[str],
    *,
    ngram: int = 8,
    threshold: float = 0.5,
) -> pd.DataFrame:
    """Find test questions that training questions repeat.

    Parameters
    ----------
    train_questions, test_questions : sequence of str
    ngram : int
        Words per n-gram; words are lower-cased, punctuation is ignored.
    threshold : float, 0 to 1
        Smallest share of a test question's n-grams found in one training question.

    Returns
    -------
    DataFrame
        ``test_index, train_index, kind, similarity``, at most one row per test
        question: ``exact`` (equal words, similarity 1) or ``near``.

    An index of n-grams: 7,273 by 6,000 questions take 2 to 3 s on one busy core.

    Source: word n-gram overlap as in Brown et al. 2020, appendix C.
    """
    train = [tuple(_WORD.findall(question.lower())) for question in train_questions]
    index = defaultdict(set)
    for train_index, words in enumerate(train):
        for gram in _ngrams(words, ngram):
            index[gram].add(train_index)
    rows = []
    for test_index, question in enumerate(test_questions):
        words = tuple(_WORD.findall(question.lower()))
        grams = _ngrams(words, ngram)
        shared = Counter(one for gram in grams for one in index.get(gram, ()))
        # Of those that share most an equal one, or the earliest.
        order = {one: (-n, train[one] != words, one) for one, n in shared.items()}
        best = min(order, key=order.get, default=-1)
        share = shared[best] / len(grams)
        if share >= threshold:
            kind = "exact" if shared and train[best] == words else "near"
            rows.append((test_index, best, kind, share))
    columns = ["test_index", "train_index", "kind", "similarity"]
    return pd.DataFrame(rows, columns=columns)


def _ngrams(words: tuple[str, ...], n: int) -> set[tuple[str, ...]]:
    """Return all runs of `n` words; fewer words are one run."""
    return {words[i : i + n] for i in range(max(len(words) - n, 0) + 1)}
