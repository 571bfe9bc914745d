"""Decode, score and aggregate with intervals.

Enters: a student, problems by task and the prompt modes to test. Leaves: predictions,
one row per (problem, prompt mode) with the raw completion, and from them the tidy table
of accuracies. Prompts come from `prompts`, scores from `answers`.

Batches are formed from whole (task, prompt mode) cells, several small ones together, in
a fixed order: the same inputs give the same bytes however many processes share them,
and also after an interruption, unless it fell between two files of one group: what is
missing then makes smaller batches, which may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from pandas.api.typing import DataFrameGroupBy
from tqdm import tqdm

from cotspec import artifacts, prompts, statistics
from cotspec.decoding import (
    FINISH_REASONS,
    Generation,
    check_tokenizer,
    decode,
    place,
)
from cotspec.evaluation import cells
from cotspec.evaluation.cells import PREDICTION_FEATURES, Sampling, sampling_of
from cotspec.models import Student
from cotspec.profiles import EvaluationConfig

__all__ = [
    "PREDICTION_FEATURES",
    "Generation",
    "Sampling",
    "aggregate",
    "decode",
    "evaluate",
    "outcomes",
    "sampling_of",
]

TIDY_COLUMNS = (
    "student start size step seed task prompt_mode n accuracy ci_low ci_high"
).split()


def evaluate(
    student: Student,
    problems_by_task: Mapping[str, Dataset],
    prompt_modes: Sequence[str] | Mapping[str, Sequence[str]],
    config: EvaluationConfig,
    *,
    demonstrations: Mapping[str, Sequence[prompts.Demonstration]],
    checkpoint: str,
    descriptions: Mapping[str, str] | None = None,
    work_dir: Path | None = None,
    sampling: Sampling | None = None,
    accelerator: Accelerator | None = None,
) -> Dataset:
    """Test a student on every task in every prompt mode.

    Parameters
    ----------
    student : Student
    problems_by_task : mapping of task to Dataset
        Columns ``problem_id, question, answer``.
    prompt_modes : sequence of str, or mapping of task to one
        Modes of `profiles.DATA_FORMATS` are scored as math, those of
        `prompts.GENERIC_PROMPT_MODES` as BigBench-Hard.
    config : EvaluationConfig
    demonstrations : mapping of task to Demonstration
        Math modes show the first ``config.num_demonstrations``, generic modes all.
    checkpoint : str
        Name of these weights in the predictions.
    descriptions : mapping of task to str, optional
        The sentence a generic prompt begins with.
    work_dir : Path, optional
        Keeps each finished (task, mode), `cells.GROUP_ROWS` problems at a time; a later
        call with the same inputs takes it from there. The student's weights are known
        by name and checkpoint only.
    sampling : Sampling, optional
        Default: as `config` says, with seed 0.
    accelerator : Accelerator, optional
        Shares the batches among its processes; every process returns all predictions.

    Returns
    -------
    Dataset
        Columns of `PREDICTION_FEATURES`, ordered by task, mode and problem.

    Raises
    ------
    ValueError
        Unknown mode, no problems, a task without demonstrations in a mode that shows
        them, samples without a temperature, or a tokenizer of another checkpoint; all
        before anything is decoded.
    """
    check_tokenizer(student)
    sampling = sampling or sampling_of(config)
    pairs = _pairs(list(problems_by_task), prompt_modes)
    for task, mode in pairs:
        cells.check_cell(task, mode, problems_by_task[task], demonstrations)

    def cell_of(task: str, mode: str) -> cells.Cell:
        problems, shown = problems_by_task[task], demonstrations.get(task, ())
        about = (descriptions or {}).get(task, "")
        fitted = cells.fit_prompts(student, problems, mode, shown, about, config)
        return cells.Cell(task, mode, checkpoint, problems, fitted)

    def path_of(cell: cells.Cell) -> Path | None:
        return cells.cell_path(work_dir, cell, student, config, sampling)

    def run(group: Sequence[cells.Cell]) -> list[Dataset]:
        return cells.run_cells(group, student, config, sampling, accelerator)

    is_main = place(accelerator)[0] == 0
    bar = tqdm(total=len(pairs), desc=f"evaluate {checkpoint}", disable=not is_main)
    tables: list[Dataset] = []
    with bar:
        for group in cells.grouped(
            (cell_of(*pair) for pair in pairs), lambda cell: len(cell.problems)
        ):
            tables += _tables(group, [path_of(cell) for cell in group], run, is_main)
            bar.update(len(group))
    return concatenate_datasets(tables)


def _tables(
    group: Sequence[cells.Cell],
    paths: Sequence[Path | None],
    run: Callable[[Sequence[cells.Cell]], list[Dataset]],
    is_main: bool,
) -> list[Dataset]:
    """The predictions of each cell; what is not kept is decoded together."""
    kept = [cells.finished(path, cell) for path, cell in zip(paths, group, strict=True)]
    missing = [i for i, table in enumerate(kept) if table is None]
    decoded = run([group[i] for i in missing]) if missing else []
    for i, table in zip(missing, decoded, strict=True):
        kept[i] = table
        if paths[i] is not None and is_main:
            artifacts.write_dataset(paths[i], table)
    return kept


def _pairs(
    tasks: Sequence[str], prompt_modes: Sequence[str] | Mapping[str, Sequence[str]]
) -> list[tuple[str, str]]:
    """Every (task, prompt mode) to evaluate."""
    if not isinstance(prompt_modes, Mapping):
        prompt_modes = dict.fromkeys(tasks, prompt_modes)
    without = [task for task in tasks if not prompt_modes.get(task)]
    if without or not tasks:
        raise ValueError(
            f"prompt_modes: {prompt_modes!r} has none for {without or 'any task'}"
        )
    return [(task, mode) for task in tasks for mode in prompt_modes[task]]


def aggregate(
    predictions: Dataset,
    *,
    student: str,
    start: str,
    size: int,
    step: int,
    seed: int,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return accuracies with Wilson intervals, one row per task and prompt mode.

    Parameters
    ----------
    predictions : Dataset
        Columns ``task, prompt_mode, is_correct``.
    student, start, size, step, seed
        Describe the checkpoint; copied into every row.
    confidence : float
        Coverage of the interval.

    Returns
    -------
    DataFrame
        Columns `TIDY_COLUMNS`; fractions 0 to 1.

    Raises
    ------
    ValueError
        If there are no predictions.
    """
    rows = []
    for (task, mode), group in _by_task_and_mode(predictions):
        n, num_correct = len(group), int(group["is_correct"].sum())
        low, high = statistics.wilson_interval(num_correct, n, confidence=confidence)
        fixed = (student, start, size, step, seed)
        rows.append((*fixed, task, mode, n, num_correct / n, low, high))
    return pd.DataFrame(rows, columns=TIDY_COLUMNS)


def outcomes(predictions: Dataset) -> pd.DataFrame:
    """Return what was lost and why: counts, one row per task and prompt mode.

    Columns: ``n``; ``no_answer``; one per finish reason other than ``stop``;
    ``shortened_prompts`` (at least one demonstration dropped); and
    ``unspellable_answers`` (the gold cannot be written in the student's vocabulary).

    Raises
    ------
    ValueError
        If there are no predictions.
    """
    rows = []
    for (task, mode), group in _by_task_and_mode(predictions):
        counts = {"task": task, "prompt_mode": mode, "n": len(group)}
        counts["no_answer"] = int(group["no_answer"].sum())
        for reason in FINISH_REASONS[1:]:
            counts[reason] = int((group["finish_reason"] == reason).sum())
        dropped = group["num_dropped_demonstrations"] > 0
        counts["shortened_prompts"] = int(dropped.sum())
        counts["unspellable_answers"] = int((~group["is_answer_spellable"]).sum())
        rows.append(counts)
    return pd.DataFrame(rows)


def _by_task_and_mode(predictions: Dataset) -> DataFrameGroupBy:
    if len(predictions) == 0:
        raise ValueError(
            "predictions: no rows, so no accuracy. Evaluate at least one problem"
        )
    frame = predictions.to_pandas()
    return frame.groupby(["task", "prompt_mode"], sort=False)
