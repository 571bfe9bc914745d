"""Stage two: which solutions are kept, and why the others are not.

Enters: traces. Leaves: the same rows with ``predicted_answer``, ``is_correct`` and
``drop_reason`` (empty for a kept solution), and the tables that count them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import pandas as pd
from datasets import Dataset, Value

from cotspec import answers
from cotspec.profiles import FilterConfig

KEPT = ""
VERDICT = {"predicted_answer": "string", "is_correct": "bool", "drop_reason": "string"}
# In the order in which they are tested: a solution is counted under its first reason.
DROP_REASONS = ("truncated", "no_answer", "wrong", "unaligned", "duplicate", "over_cap")
_WORD = re.compile(r"[a-z]+|\d+(?:[.,]\d+)*|[-+*/=%$]")


def filter_traces(traces: Dataset, config: FilterConfig) -> Dataset:
    """Score every solution and mark those that are dropped with the first reason.

    Parameters
    ----------
    traces : Dataset with the columns of `traces.FEATURES`

    Returns
    -------
    Dataset
        All rows of `traces` in their order, with ``predicted_answer`` (str or None),
        ``is_correct`` and ``drop_reason``; see `kept`.

    Notes
    -----
    PAPER: every right solution is kept. HERE: the same, less those that did not end,
    or ran on behind their end; duplicates and a cap are options.
    """
    columns = [c for c in traces.column_names if not c.startswith(("topk", "token_l"))]
    earlier: dict[str, list[frozenset]] = defaultdict(list)
    verdicts = []
    for row in traces.select_columns(columns):
        score, text = _score(row), row["completion"].replace("\r\n", "\n")
        # One that ran on, into a next question or control tokens, did not end either.
        if row["finish_reason"] != "stop" or answers.cut_at_next_question(text) != text:
            reason = "truncated"
        elif score.no_answer:
            reason = "no_answer"
        elif not score.is_correct:
            reason = "wrong"
        elif b"".join(row["token_bytes"]) != row["completion"].encode():
            reason = "unaligned"
        else:
            solutions = earlier[row["problem_id"]]
            reason = _redundancy(row["completion"], solutions, config)
        predicted = None if score.no_answer else str(score.predicted)
        verdicts.append((predicted, score.is_correct, reason))
    for place, (name, kind) in enumerate(VERDICT.items()):
        values = [verdict[place] for verdict in verdicts]
        traces = traces.add_column(name, values, feature=Value(kind))
    return traces


def kept(marked: Dataset) -> Dataset:
    """Return the rows without a ``drop_reason``."""
    reasons = marked["drop_reason"][:]
    return marked.select([i for i, reason in enumerate(reasons) if reason == KEPT])


def _score(row: Mapping[str, str]) -> answers.Score:
    completion, gold = row["completion"], row["answer"]
    if row["task"].startswith("bbh/"):
        mode, stem = "chain_of_thought", row["task"].removeprefix("bbh/")
        return answers.score_bbh(stem, completion, gold, prompt_mode=mode)
    return answers.score_math(completion, gold)


def _redundancy(text: str, solutions: list[frozenset], config: FilterConfig) -> str:
    """Compare a right solution with the question's earlier ones; add it if it stays."""
    shingles = word_shingles(text) if config.drop_duplicates else frozenset()
    # The Jaccard index, 0 to 1 (Broder 1997).
    likeness = (len(shingles & s) / max(1, len(shingles | s)) for s in solutions)
    least = config.duplicate_similarity
    if config.drop_duplicates and any(like >= least for like in likeness):
        return "duplicate"
    cap = config.max_solutions_per_question
    if cap is not None and len(solutions) >= cap:
        return "over_cap"
    solutions.append(shingles)
    return KEPT


def word_shingles(text: str, size: int = 3) -> frozenset[tuple[str, ...]]:
    """Return the runs of `size` words, numbers and signs; case and spaces ignored.

    A text shorter than `size` is one run.
    """
    words = _WORD.findall(text.lower())
    runs = (tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))
    return frozenset(runs)


def funnel(marked: Dataset) -> pd.DataFrame:
    """Count solutions by reason.

    Returns
    -------
    DataFrame
        ``stage`` ("sampled", each reason in the order tested, "kept"),
        ``num_solutions``, ``fraction`` of the sampled, ``num_questions`` with such a
        solution.
    """
    frame = marked.select_columns(["drop_reason", "problem_id"]).to_pandas()
    both = pd.concat([frame.assign(drop_reason="sampled"), frame])
    questions = both.groupby("drop_reason")["problem_id"]
    table = questions.agg(num_solutions="size", num_questions="nunique")
    table = table.reindex(["sampled", *DROP_REASONS, KEPT], fill_value=0)
    table.insert(1, "fraction", table["num_solutions"] / max(1, len(frame)))
    return table.rename({KEPT: "kept"}).rename_axis("stage").reset_index()


def contaminated(texts: Iterable[str], test_questions: Iterable[str]) -> list[bool]:
    """Tell which texts share a run of thirteen words with a test question.

    Thirteen words is GPT-3's measure (Brown et al. 2020, appendix C). A test question
    shorter than that counts where it is contained whole.
    """
    runs: dict[int, set] = defaultdict(set)
    for question in test_questions:
        for run in word_shingles(question, 13):
            runs[len(run)].add(run)
    return [
        any(not shared.isdisjoint(word_shingles(text, n)) for n, shared in runs.items())
        for text in texts
    ]


def masked(question: str) -> str:
    """Return a question without its names and without the thing it counts.

    Two questions that become equal are twins: the same numbers in the same plan.
    """
    for thing in re.findall(r"[Hh]ow many (\w+)", question):
        question = re.sub(rf"\b{thing.removesuffix('s') or thing}s?\b", "_", question)
    names: dict[str, str] = {}
    name = re.compile(r"\b[A-Z][a-z]+\b")
    return name.sub(lambda one: names.setdefault(one[0], str(len(names))), question)
