"""Plan a grid, run what is missing of it, gather its predictions.

Enters: cells, measurements, the artifacts and settings they share, and a store. Leaves:
one frame of predictions. Every cell is trained once, whoever asks for it: its folder in
the store is named by what its weights depend on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from datasets import Dataset

from cotspec import artifacts
from cotspec.experiments import jobs as work
from cotspec.experiments import workers
from cotspec.experiments.grid import Cell, Measurement
from cotspec.experiments.jobs import Inputs, Job, Settings, Unit
from cotspec.experiments.keys import Keys, student_digest
from cotspec.models import RANDOM_PREFIX
from cotspec.profiles import (
    EvaluationConfig,
    ExperimentsConfig,
    FormatsConfig,
    StudentConfig,
    TrainingConfig,
)
from cotspec.training import TrainResult

CELL_COLUMNS = (
    "model start size seed data_formats loss tail divergence cross_entropy_weight "
    "alignment"
).split()
COLUMNS = [
    *CELL_COLUMNS,
    *"step split problem_id task prompt_mode".split(),
    *"predicted_answer is_correct no_answer".split(),
    *"reference_is_correct lm_eval_is_correct".split(),  # none for generic tasks
]

BaseId = tuple[StudentConfig, int]  # with the seed of random weights


class CellsFailed(RuntimeError):
    """Some cells failed; the message names them, all others are finished."""


def plan(
    cells: Sequence[Cell],
    measurements: Sequence[Measurement],
    *,
    inputs: Inputs,
    settings: Settings,
    work_dir: Path,
) -> pd.DataFrame:
    """Return the cells and what is left to do for each, without doing it.

    Returns
    -------
    DataFrame
        Columns `CELL_COLUMNS` and ``state``: ``to train``, ``to decode`` (trained, but
        not all predictions are there) or ``finished``.
    """
    planned, _ = _jobs(cells, measurements, inputs, settings, Path(work_dir))
    rows = [_described(job) | {"state": _state(job)} for job in planned]
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, "state"])


def run(
    cells: Sequence[Cell],
    measurements: Sequence[Measurement],
    *,
    inputs: Inputs,
    settings: Settings,
    work_dir: Path,
) -> pd.DataFrame:
    """Train and decode what the store does not hold yet; return all predictions.

    Parameters
    ----------
    cells : sequence of Cell
        Equal ones count once.
    measurements : sequence of Measurement
    inputs : Inputs
    settings : Settings
        ``experiments.num_workers`` processes share the cells, the largest first.
    work_dir : Path
        The store, which other notebooks may share.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`; one row per cell, step, problem and prompt mode. A base model
        is decoded once and its rows (step 0) are repeated for every cell that starts
        from it. ``attrs`` counts: ``cells``, ``trained`` (in this call) and ``decoded``
        (files of predictions, in this call).

    Raises
    ------
    ValueError
        No cells or measurements, a measurement without problems, a missing alignment.
    CellsFailed
        After all other cells are finished.
    """
    trained, bases = _jobs(cells, measurements, inputs, settings, Path(work_dir))
    due = [job for job in [*bases.values(), *trained] if not job.is_finished()]
    num_trained = sum(not job.is_trained() for job in due)
    known = {path for job in due if job.is_trained() for path in _done(job)}
    failed = workers.run_jobs(
        sorted(due, key=lambda job: job.size, reverse=True),
        functools.partial(work.run_job, inputs=inputs, settings=settings),
        num_workers=settings.experiments.num_workers,
    )
    if failed:
        raise CellsFailed(_failure(failed, len(due)))
    predictions = _gather(trained, bases)
    decoded = {path for job in due for *_, path in job.files()} - known
    predictions.attrs = {
        "cells": len(trained),
        "trained": num_trained,
        "decoded": len(decoded),
    }
    return predictions


def keep(
    cell: Cell,
    result: TrainResult,
    *,
    examples: Dataset,
    aligned: Dataset,
    config: TrainingConfig,
    formats: FormatsConfig,
    work_dir: Path,
) -> None:
    """Put a finished training into the store: grids with this cell need not train it.

    What the store has already, it keeps. The weights are those of `result` to the bit;
    a grid with several workers, one thread each, would have rounded otherwise.

    Parameters
    ----------
    cell : Cell
    result : TrainResult
        Of the cell's student.
    examples, aligned : Dataset
        What it was trained on.
    config : TrainingConfig
    formats : FormatsConfig
        How it was trained, as `training.train` was told.
    work_dir : Path
        The store.
    """
    nothing = examples.select([])  # a training asks for no problems, nor how to decode
    inputs = Inputs(examples, {cell.alignment: aligned}, nothing, nothing)
    settings = Settings(formats, config, EvaluationConfig(), ExperimentsConfig())
    keys, (digest, size) = Keys(inputs, settings), _base(cell, inputs, {})
    work.keep(Job(cell, _folder(cell, keys, digest, Path(work_dir)), (), size), result)


def _folder(cell: Cell, keys: Keys, base: str, work_dir: Path) -> Path:
    return work_dir / "cells" / _name(cell, keys.cell(cell, base))


def _jobs(
    cells: Sequence[Cell],
    measurements: Sequence[Measurement],
    inputs: Inputs,
    settings: Settings,
    work_dir: Path,
) -> tuple[list[Job], dict[BaseId, Job]]:
    """The job of every cell and of every base model."""
    if not cells:
        raise ValueError("cells: none. Allowed: at least one")
    keys = Keys(inputs, settings)
    planned: list[Job] = []
    bases: dict[BaseId, Job] = {}
    known: dict[BaseId, tuple[str, int]] = {}
    for cell in dict.fromkeys(cells):
        digest, size = _base(cell, inputs, known)
        after = tuple(_units(cell, measurements, keys, is_base=False))
        folder = _folder(cell, keys, digest, work_dir)
        planned.append(Job(cell, folder, after, size))
        before = tuple(_units(cell, measurements, keys, is_base=True))
        folder = work_dir / "bases" / _name(cell, digest)
        bases[_base_id(cell)] = Job(cell, folder, before, size, is_base=True)
    return planned, bases


def _base_id(cell: Cell) -> BaseId:
    """Only random weights depend on the seed; the others share one base."""
    return cell.student, cell.seed if cell.model.startswith(RANDOM_PREFIX) else 0


def _base(
    cell: Cell, inputs: Inputs, known: dict[BaseId, tuple[str, int]]
) -> tuple[str, int]:
    """Digest and number of parameters of the student a cell starts from."""
    if _base_id(cell) not in known:
        student = work.load_base(cell, inputs)
        known[_base_id(cell)] = student_digest(student), student.size
    return known[_base_id(cell)]


def _name(cell: Cell, digest: str) -> str:
    model = re.sub(r"[^\w.-]+", "-", Path(cell.model).name)
    return f"{model}-{cell.start}-{digest[:16]}"


def _units(
    cell: Cell, measurements: Iterable[Measurement], keys: Keys, *, is_base: bool
) -> list[Unit]:
    """What is decoded of a cell, or of its base model; nothing twice."""
    found: dict[tuple[str, str, str], Unit] = {}
    for measurement in measurements:
        if not measurement.concerns(cell):
            continue
        if is_base and measurement.steps == "last":
            continue
        for task in measurement.tasks:
            ids = _problem_ids(measurement.split, task, keys.inputs)
            for mode in measurement.prompt_modes:
                name = measurement.split, task, mode
                is_every = measurement.steps == "all"
                is_every |= name in found and found[name].is_every
                found[name] = Unit(*name, keys.unit(*name), ids, is_every)
    return list(found.values())


def _problem_ids(split: str, task: str, inputs: Inputs) -> tuple[str, ...]:
    ids = tuple(inputs.problems_of(split, task)["problem_id"][:])
    if not ids:
        problems = inputs.problems
        pairs = zip(problems["split"][:], problems["task"][:], strict=True)
        raise ValueError(
            f"measurement: no {split} problems of task {task!r}. Allowed: "
            f"{', '.join(sorted({f'{s} of {t}' for s, t in pairs}))}"
        )
    return ids


def _done(job: Job) -> list[Path]:
    return [path for *_, unit, path in job.files() if unit.is_done(path)]


def _state(job: Job) -> str:
    if not job.is_trained():
        return "to train"
    return "finished" if job.is_finished() else "to decode"


def _described(job: Job) -> dict[str, object]:
    cell = job.cell
    return {
        "model": cell.model,
        "start": cell.start,
        "size": job.size,
        "seed": cell.seed,
        "data_formats": cell.formats_name,
        "loss": cell.loss.name,
        "tail": cell.loss.tail,
        "divergence": cell.loss.divergence,
        "cross_entropy_weight": cell.loss.cross_entropy_weight,
        "alignment": cell.alignment,
    }


def _gather(trained: list[Job], bases: dict[BaseId, Job]) -> pd.DataFrame:
    tables = []
    read = functools.cache(_read)
    for job in trained:
        for source in (bases[_base_id(job.cell)], job):
            for step, _, unit, path in source.files():
                named = _described(job) | {"step": step, "split": unit.split}
                tables.append(read(path).assign(**named))
    if not tables:
        raise ValueError("measurements: none. Allowed: at least one")
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def _read(path: Path) -> pd.DataFrame:
    frame = artifacts.read_dataset(path).to_pandas()
    # Other scorers leave generic tasks out: one type for both kinds of file.
    return frame.astype(dict.fromkeys(COLUMNS[-2:], "boolean"))


def _failure(failed: dict[str, str], count: int) -> str:
    parts = [f"{len(failed)} of {count} cells failed; the others are finished"]
    for name, error in failed.items():
        tail = "\n".join(f"    {line}" for line in error.strip().splitlines()[-4:])
        parts.append(f"{name}:\n{tail}")
    return "\n".join(parts)
