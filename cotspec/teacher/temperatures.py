"""What temperature does: a few questions, sampled at several.

Enters: problems, a backend and the ``study_*`` settings. Leaves: their solutions, and
accuracy and diversity at each temperature with intervals over the questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets

from cotspec import prompts, statistics, teacher
from cotspec.profiles import FilterConfig, TeacherConfig
from cotspec.teacher.filtering import filter_traces
from cotspec.teacher.release import fold
from cotspec.teacher.studies import votes_by_question
from cotspec.teacher.traces import Backend

# Backends whose temperature was chosen by others, or that have none.
RECORDED = ("recorded", "release", "dataset")


def sample_study(
    problems: Dataset,
    backend: Backend,
    config: TeacherConfig,
    *,
    seed: int,
    demonstrations: Sequence[prompts.Demonstration] = (),
    store: Path | str | None = None,
) -> Dataset:
    """Sample `study_questions` questions, spread over all, at each temperature.

    Recorded solutions have one temperature, ``teacher.temperature``.

    Returns
    -------
    Dataset
        Filtered traces (all rows, see `filter_traces`) with ``temperature``.

    Raises
    ------
    ValueError
        If there is no temperature to study.
    """
    if not config.study_temperatures:
        raise ValueError("teacher.study_temperatures: (). Allowed: at least one")
    recorded = config.backend in RECORDED
    temperatures = (config.temperature,) if recorded else config.study_temperatures
    count = min(config.study_questions, len(problems))
    chosen = problems.select(np.arange(count) * len(problems) // count)
    parts = []
    for temperature in temperatures:
        traces = teacher.sample(
            chosen,
            backend,
            num_samples=config.study_samples,
            temperature=temperature,
            seed=seed,
            demonstrations=demonstrations,
            store=store,
        )
        marked = filter_traces(traces, FilterConfig())
        parts.append(marked.add_column("temperature", [temperature] * len(marked)))
    return concatenate_datasets(parts)


def summarize(study: Dataset) -> pd.DataFrame:
    """Return accuracy and diversity at each temperature.

    Returns
    -------
    DataFrame
        ``temperature, group, measure, value, ci_low, ci_high``: fractions, with 95%
        bootstrap intervals over questions. Of n samples a question, group "accuracy"
        has ``one sample``, ``majority of n``, ``any of n``; group "diversity" the
        share of ``different texts`` and of ``different answers`` among the n.
    """
    temperatures = np.array(study["temperature"])
    rows = []
    for temperature in sorted(set(temperatures)):
        picked = study.select(np.flatnonzero(temperatures == temperature))
        questions = votes_by_question(picked)
        n = min(len(votes) for votes, _ in questions)
        texts = picked.to_pandas().groupby("problem_id", sort=False)["completion"]
        measures = {
            ("accuracy", f"any of {n}"): _each(questions, _any),
            ("accuracy", f"majority of {n}"): _each(questions, _majority),
            ("accuracy", "one sample"): _each(questions, _one),
            ("diversity", "different texts"): texts.agg(_different_texts).tolist(),
            ("diversity", "different answers"): _each(questions, _different_answers),
        }
        for (group, measure), values in measures.items():
            mean = statistics.mean_interval(values)
            interval = mean.estimate, mean.ci_low, mean.ci_high
            rows.append((float(temperature), group, measure, *interval))
    names = ["temperature", "group", "measure", "value", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=names)


Votes = list[str | None]


def _each(
    questions: Sequence[tuple[Votes, str]], measure: Callable[[Votes, str], float]
) -> list[float]:
    return [measure(votes, gold) for votes, gold in questions]


def _one(votes: Votes, gold: str) -> float:
    return votes.count(gold) / len(votes)


def _majority(votes: Votes, gold: str) -> float:
    return statistics.majority_at_k(votes, gold, len(votes))


def _any(votes: Votes, gold: str) -> float:
    return float(gold in votes)


def _different_answers(votes: Votes, gold: str) -> float:
    return len(Counter(votes)) / len(votes)


def _different_texts(texts: pd.Series) -> float:
    return texts.map(fold).nunique() / len(texts)
