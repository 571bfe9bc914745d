"""Train a grid's cells and decode what is measured on them; each thing once.

Enters: cells, measurements, and a `Grid`: the artifacts of earlier notebooks and the
profile's sections. Leaves: predictions, one row per cell, step, problem and prompt
mode; and in the grid's folder, which notebooks share::

    cells/<name>/cell.json                       the training is finished
                 metrics.csv  checkpoints/       log and weights
                 predictions/step-20/*.parquet   a file per split, task and prompt mode
                 training/                       while it trains; a killed run resumes
    bases/<name>/predictions/step-0/*.parquet    students before training

The name of a folder or file holds a digest of all that its contents depend on; files
are whole or absent. So a run can be killed at any moment and called again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from cotspec import artifacts, batching, evaluation, models, selection, stages, training
from cotspec.alignment import Rule
from cotspec.grids import TRAINING, Cell, Measurement
from cotspec.profiles import EvaluationConfig, FormatsConfig, TrainingConfig
from cotspec.prompts import TaskPrompts

CELL_COLUMNS = [*TRAINING, "settings"]
COLUMNS = [
    *CELL_COLUMNS,
    *"step split problem_id task prompt_mode".split(),
    *"predicted_answer is_correct no_answer".split(),
    *"reference_is_correct lm_eval_is_correct".split(),  # none for generic tasks
]
DONE = "cell.json"
# Rules that a method never gives: by them a table tells that another made it.
_FOREIGN_RULES: Mapping[str, set[Rule]] = {
    "offsets": {Rule.NOT_ONE_TO_ONE},
    "dtw": {Rule.STARTS_TOGETHER, Rule.INSIDE},
}


class CellsFailed(RuntimeError):
    """Some cells failed; the message names them, all others are finished."""


class Base(NamedTuple):
    """What is known of a student before training."""

    digest: str  # of its weights and tokenizer
    size: int


class Unit(NamedTuple):
    """One task in one prompt mode: a file of predictions per checkpoint."""

    split: str
    task: str
    prompt_mode: str
    file: str  # its name has a digest of all that the rows depend on but the weights


@dataclass(frozen=True)
class Job:
    """A cell to train, or with `step` a checkpoint to decode; step 0 is its base."""

    cell: Cell = field(compare=False)  # one of those that share the folder
    folder: Path
    step: int | None = None
    units: tuple[Unit, ...] = ()

    @property
    def files(self) -> dict[Unit, Path]:
        """Where the predictions of each unit are kept."""
        folder = self.folder / "predictions" / f"step-{self.step}"
        return {unit: folder / unit.file for unit in self.units}

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        if self.step is None:
            # Without weights, its base would pass for its last checkpoint.
            has_weights = bool(training.list_checkpoints(self.folder))
            return has_weights and (self.folder / DONE).exists()
        return all(path.exists() for path in self.files.values())

    def do(self, work: Callable[[Job], None]) -> None:
        """Do it unless it is done; others wait meanwhile: notebooks share the store."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".step-{self.step}.lock"):
            if not self.is_done():
                work(self)


@dataclass(frozen=True)
class Grid:
    """What all cells share.

    Attributes
    ----------
    folder : Path
        The store; other notebooks may share it.
    formats, training, evaluation
        Sections of a profile.
    num_workers : int, optional
        Processes, one thread each if several; None: as many as fit.
    examples : Dataset
        Training examples in all formats.
    aligned : mapping of str to Dataset
        Aligned targets by alignment method, from `alignment.table.targets_table`.
    problems : Dataset
        With ``split`` and ``task``.
    demonstrations : Dataset
        From `selection.select_demonstrations`.
    evaluated : Path, optional
        What notebook 06 decoded, a folder for each student: it is not decoded again.
    """

    folder: Path
    formats: FormatsConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    num_workers: int | None = 1
    _: KW_ONLY
    examples: Dataset
    aligned: Mapping[str, Dataset]
    problems: Dataset
    demonstrations: Dataset
    evaluated: Path | None = None
    _bases: dict = field(default_factory=dict, init=False, repr=False)
    _encoded: dict = field(default_factory=dict, init=False, repr=False)

    def plan(self, cells: list[Cell], measurements: list[Measurement]) -> pd.DataFrame:
        """Count what is left to do for the cells, without doing it.

        Returns
        -------
        DataFrame
            A row for each kind of cell, whatever its seed, and ``state``: ``to train``,
            ``to decode`` (trained, but not all predictions are there) or ``finished``.
            Columns: ``model``, those of `CELL_COLUMNS` in which cells differ,
            ``state`` and ``trainings``, how many.
        """
        rows = []
        for cell, (training_job, *others) in self._jobs(cells, measurements).items():
            state = "finished" if all(job.is_done() for job in others) else "to decode"
            state = state if training_job.is_done() else "to train"
            rows.append(self._described(cell) | {"state": state})
        plan = pd.DataFrame(rows).drop(columns="seed")
        kinds = [n for n in plan if n in ("model", "state") or plan[n].nunique() > 1]
        return plan.groupby(kinds, sort=False).size().reset_index(name="trainings")

    def run(self, cells: list[Cell], measurements: list[Measurement]) -> pd.DataFrame:
        """Train and decode what the store does not hold yet; return all predictions.

        Parameters
        ----------
        cells : list of Cell
            Equal ones count once; `num_workers` processes share them.
        measurements : list of Measurement

        Returns
        -------
        DataFrame
            Columns `COLUMNS`. A base model is decoded once and its rows (step 0) are
            repeated for every cell that starts from it. ``attrs`` counts: ``cells``,
            ``trained`` and ``decoded`` (checkpoints, in this call).

        Raises
        ------
        ValueError
            No cells or measurements, a measurement without problems, a missing
            alignment.
        CellsFailed
            After all other cells are finished.
        """
        done = do(lambda: self._due(cells, measurements), self)
        if failed := {str(job.cell): error for job, error in done.items() if error}:
            count = f"{len(failed)} of {len(done)}"
            errors = "\n".join(f"{name}:\n{error}" for name, error in failed.items())
            raise CellsFailed(f"{count} failed; the others are finished\n{errors}")
        jobs = self._jobs(cells, measurements)
        read = functools.cache(_read)
        tables = []
        for cell, (_, *found) in jobs.items():
            for job in found:
                parts = [read(p).assign(split=u.split) for u, p in job.files.items()]
                facts = self._described(cell) | {"step": job.step}
                tables.append(pd.concat(parts).assign(**facts))
        predictions = pd.concat(tables, ignore_index=True)[COLUMNS]
        trained = sum(job.step is None for job in done)
        counts = {"trained": trained, "decoded": len(done) - trained}
        predictions.attrs = {"cells": len(jobs), **counts}
        return predictions

    def keep(self, cell: Cell, work_dir: Path) -> None:
        """Put a finished training into the store: the cell need not be trained again.

        What the store has already, it keeps. The weights are those of `work_dir` to the
        bit; a grid with several workers, one thread each, would have rounded otherwise.
        A training on other examples or targets than the grids ask for is not kept.
        """
        try:
            job = Job(cell, self._folder(cell))
        except ValueError as error:
            print(f"not shared with notebooks 07 to 10: {error}")
            return
        job.do(functools.partial(_export, work_dir=work_dir))

    def trained(self, cell: Cell, step: int | None = None) -> models.Student:
        """Return a training's student after `step` updates, by default after all."""
        student = models.load_student(cell.student, seed=cell.seed)
        saved = dict(training.list_checkpoints(self._folder(cell)))
        step = max(saved, default=None) if step is None else step
        if step == 0:
            return student
        if step not in saved:
            said = f"cell {cell}, step {step}: not trained"
            raise ValueError(f"{said}. Allowed: one that was run, at {[0, *saved]}")
        return training.load_checkpoint(student, saved[step])

    def loss_logs(self, cells: Sequence[Cell], temperature: float) -> pd.DataFrame:
        """Return the loss of finished trainings above its floor, update by update.

        A divergence is 0 at best. Cross-entropy on samples is at best the entropy of
        the distribution that they were drawn from: the teacher's at the sampling
        temperature, of the very examples of each update.

        Parameters
        ----------
        cells : sequence of Cell
        temperature : float
            At which the solutions were sampled.

        Returns
        -------
        DataFrame
            ``loss, seed, step, training_loss, excess``, nats per target token.
        """
        rows = []
        for cell in cells:
            log = pd.read_csv(self._folder(cell) / "metrics.csv")
            floor = 0.0 if cell.targets else self._floors(cell, len(log), temperature)
            kept = {"loss": cell.loss.name, "seed": cell.seed, "step": log["step"]}
            kept |= {"training_loss": log["loss"], "excess": log["loss"] - floor}
            rows.append(pd.DataFrame(kept))
        return pd.concat(rows, ignore_index=True)

    def updates(
        self, encoded: batching.EncodedExamples, seed: int, num_updates: int
    ) -> Iterator[np.ndarray]:
        """Yield the rows of the examples that each update of a training sees."""
        budget, lengths = self.training.batch_tokens, encoded.lengths()
        stream = batching.batch_stream(lengths, budget, seed=seed)
        for _ in range(num_updates):
            update = itertools.islice(stream, self.training.gradient_accumulation_steps)
            yield np.concatenate([rows for _, rows in update])

    def _floors(self, cell: Cell, num_updates: int, temperature: float) -> np.ndarray:
        """The samples' entropy in each update, nats per target token."""
        matching = replace(cell.loss, name="distribution_matching")
        matched = replace(cell, loss=matching)
        encoded = self.encoded_of(matched, models.load_student_tokenizer(cell.student))
        entropies = encoded.teacher_entropies(temperature)  # per example
        lengths = encoded.lengths()[:, 1]
        floors = [
            entropies[rows].sum() / lengths[rows].sum()
            for rows in self.updates(encoded, cell.seed, num_updates)
        ]
        return np.array(floors)

    # --- what there is to do ----------------------------------------------------------

    def _jobs(
        self, cells: list[Cell], measurements: list[Measurement]
    ) -> dict[Cell, list[Job]]:
        """Of each cell: its training, its base's decoding, each checkpoint's."""
        if not cells or not measurements:
            raise ValueError("cells or measurements: none. Allowed: at least one")
        wanted = []
        for one in measurements:
            places = itertools.product(one.tasks, one.prompt_modes)
            wanted.append((one, [self._unit(one.split, *place) for place in places]))
        found: dict[Cell, list[Job]] = {}
        for cell in dict.fromkeys(cells):
            folder = self._folder(cell)
            found[cell] = [Job(cell, folder)]
            if not found[cell][0].is_done():
                continue
            base = self.folder / "bases" / _name(cell, self._base(cell).digest)
            steps = [0, *(step for step, _ in training.list_checkpoints(folder))]
            for step in steps:
                due = [own for one, own in wanted if step in one.chosen(cell, steps)]
                if units := tuple(dict.fromkeys(itertools.chain(*due))):
                    where = folder if step else base
                    found[cell].append(Job(cell, where, step, units))
        return found

    def _due(self, cells: list[Cell], measurements: list[Measurement]) -> list[Job]:
        """What can be done now: trainings, and decodings of what is trained.

        Trainings come first, the largest first, so that no process is left alone with
        a long one.
        """
        jobs = itertools.chain(*self._jobs(cells, measurements).values())
        due = [job for job in dict.fromkeys(jobs) if not job.is_done()]
        sizes = {job: self._base(job.cell).size for job in due if job.step is None}
        return sorted(due, key=lambda job: -sizes.get(job, 0))

    def _described(self, cell: Cell) -> dict[str, object]:
        facts = vars(cell) | vars(cell.loss) | {"loss": cell.loss.name}
        facts |= {"size": self._base(cell).size, "settings": self.settings_digest}
        facts["data_formats"] = cell.formats_name
        return {name: facts[name] for name in CELL_COLUMNS}

    # --- what results depend on -------------------------------------------------------

    @property
    def settings_digest(self) -> str:
        """Names the numbers of training and decoding, so that no report mixes two."""
        trained = vars(models.in_precision(self.training))
        decoded = evaluation.decoding_settings(self.evaluation)
        parts = trained, decoded, self.formats.max_input_tokens
        return artifacts.digest_of(parts)[:8]

    def _folder(self, cell: Cell) -> Path:
        """The folder of a cell, named by what its weights depend on."""
        found = [*self.examples.unique("data_format"), *self.aligned]
        needed = [*cell.data_formats, *filter(None, [cell.targets])]
        if missing := [name for name in needed if name not in found]:
            said = f"inputs.examples, inputs.aligned: {found}. Allowed: with {missing}"
            raise ValueError(f"{said} (03: formats.data_formats, 04: alignment.method)")
        targets = self.aligned.get(cell.targets)
        parts = {
            "base": [cell.model, cell.start, self._base(cell).digest],
            "seed": cell.seed,
            "loss": vars(cell.loss) if cell.targets else cell.loss.name,
            "training": vars(models.in_precision(self.training)),
            "max_input_tokens": self.formats.max_input_tokens,
            "examples": [dataset_digest(self.examples), *cell.data_formats],
            "aligned": cell.targets and targets_digest(targets, cell.targets),
            "code": stages.code_of("cotspec.training"),
        }
        return self.folder / "cells" / _name(cell, artifacts.digest_of(parts))

    def _unit(self, split: str, task: str, prompt_mode: str) -> Unit:
        parts = self.prompts_of(split, task)
        name = evaluation.file_name(task, prompt_mode, self.evaluation, parts)
        return Unit(split, task, prompt_mode, name)

    def _base(self, cell: Cell) -> Base:
        """Digest and size of the student that the cell starts from; loaded once."""
        key = cell.student, models.base_seed(cell.student, cell.seed)
        if key not in self._bases:
            base = models.load_student(key[0], seed=key[1])
            self._bases[key] = Base(models.student_digest(base), base.size)
        return self._bases[key]

    # --- inputs -----------------------------------------------------------------------

    def prompts_of(self, split: str, task: str, most: int | None = None) -> TaskPrompts:
        """Return what one task is asked: problems of one split, at least one."""
        pairs = zip(self.problems["split"][:], self.problems["task"][:], strict=True)
        rows = [i for i, pair in enumerate(pairs) if pair == (split, task)]
        if not rows:
            raise ValueError(f"inputs.problems: no {split} problems of task {task!r}")
        problems = self.problems.select(rows[:most])
        return selection.prompts_by_task(self.demonstrations, problems)[task]

    def encoded_of(
        self, cell: Cell, tokenizer: PreTrainedTokenizerBase
    ) -> batching.EncodedExamples:
        """Return a cell's examples as the student's tokens, with its targets.

        All formats are encoded at once, and the last encoding is kept: what a process
        trains one after the other mostly shares it.
        """
        key = cell.targets, models.tokenizer_digest(tokenizer)
        if key not in self._encoded:
            self._encoded.clear()
            self._encoded[key] = batching.encode(
                self.examples,
                tokenizer,
                aligned=self.aligned.get(cell.targets),
                max_input_tokens=self.formats.max_input_tokens,
                is_causal=models.is_causal(cell.student),
            )
        return self._encoded[key].of_formats(cell.data_formats)


def open_grid(stage: stages.Stage, **other_alignments: Dataset) -> Grid:
    """Return the grid of a notebook's stage, on the store that the series shares.

    Parameters
    ----------
    stage : Stage
    other_alignments : Dataset
        Targets beside those of the profile's method, by the method's name.
    """
    profile = stage.profile
    sections = profile.formats, profile.training, profile.evaluation
    inputs = {"examples": stage.read("examples"), "problems": stage.read("problems")}
    inputs |= {"demonstrations": stage.read("demonstrations")}
    aligned = {profile.alignment.method: stage.read("aligned")} | other_alignments
    inputs |= {"aligned": aligned, "evaluated": stage.run / "evaluation" / "parts"}
    workers = profile.experiments.num_workers
    return Grid(stage.store("experiments"), *sections, workers, **inputs)


# --- processes ------------------------------------------------------------------------


def do(due: Callable[[], list[Job]], grid: Grid) -> dict[Job, str | None]:
    """Do what is due, and what becomes due by that; return jobs and tracebacks."""
    done: dict[Job, str | None] = {}
    count = len(due())
    num_workers = max(grid.num_workers or workers_that_fit(), len(models.cards()))
    is_shared = num_workers > 1 and count > 1
    each = side_by_side(due, num_workers, grid) if is_shared else in_turn(due, grid)
    what = "trainings and checkpoints"
    with tqdm(total=count, desc=what, unit="part", disable=not count) as bar:
        for job, error, bar.total in each:
            done[job] = error
            bar.update()
            if error:
                bar.write(f"failed: {job.cell}: {error.strip().splitlines()[-1]}")
    return done


def in_turn(due: Callable[[], list[Job]], grid: Grid) -> Iterator[tuple]:
    """Yield each job that is due, its error, and how many jobs there are by now."""
    done: list[Job] = []
    while left := [job for job in due() if job not in done]:
        done.append(left[0])
        yield left[0], error_of(left[0], grid), len(done) + len(left) - 1


def workers_that_fit() -> int:
    """Return how many processes of tiny students this machine has room for, 2 to 8.

    Never one, which would compute with other threads and so round otherwise.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 2
    return max(2, min(cores, psutil.virtual_memory().available // 2**30, 8))


def side_by_side(
    due: Callable[[], list[Job]], num_workers: int, grid: Grid, work: Callable = None
) -> Iterator[tuple]:
    """As `in_turn`, by several processes, one card each."""
    # A server that has imported everything once forks the workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    cards = context.SimpleQueue()
    for _, card in zip(range(num_workers), itertools.cycle(models.cards())):
        cards.put(card)
    options = {"initializer": _begin, "initargs": (replace(grid), cards)}
    # A process that is killed takes the jobs of all with it, and what would follow.
    killed = "a process was killed, perhaps for its memory: run again with "
    killed += f"experiments.num_workers below {num_workers}"
    with ProcessPoolExecutor(num_workers, context, **options) as pool:
        waiting: dict[Future, Job] = {}
        fresh, known = due(), set()
        while fresh or waiting:
            known.update(fresh)
            for job in fresh:
                try:
                    waiting[pool.submit(work or error_of, job)] = job
                except BrokenProcessPool:
                    yield job, killed, len(known)
            fresh = []
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                broke = isinstance(future.exception(), BrokenProcessPool)
                yield job, killed if broke else future.result(), len(known)
                if job.step is None:  # what is trained can be decoded
                    fresh = [job for job in due() if job not in known]


_GRID: list[Grid] = []  # of a worker


def _begin(grid: Grid, cards) -> None:
    """Make a worker: one thread, one card, and no bars that write over each other's."""
    if not cards.empty():
        os.environ["CUDA_VISIBLE_DEVICES"] = cards.get()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")
    _GRID[:] = [grid]


def _end_with_parent() -> None:
    """Stop when the parent was killed: nobody is left to use the result."""
    multiprocessing.parent_process().join()
    os._exit(1)


def error_of(job: Job, grid: Grid | None = None) -> str | None:
    """Do a job, of a worker's grid by default; return its traceback or None."""
    grid = grid or _GRID[0]
    try:
        job.do(functools.partial(_train if job.step is None else _decode, grid=grid))
    except Exception:
        return traceback.format_exc(limit=-2)
    return None


def _train(job: Job, grid: Grid) -> None:
    cell, work_dir = job.cell, job.folder / "training"
    student = models.load_student(cell.student, seed=cell.seed)
    encoded = grid.encoded_of(cell, student.tokenizer)
    options = {"work_dir": work_dir, "loss": cell.loss, "seed": cell.seed}
    training.train(student, encoded, grid.training, **options)
    _export(job, work_dir)
    shutil.rmtree(work_dir)


def _export(job: Job, work_dir: Path) -> None:
    training.export_weights(work_dir, job.folder)
    log = (work_dir / "metrics.csv").read_bytes()
    artifacts.write_bytes(job.folder / "metrics.csv", log)
    artifacts.write_json(job.folder / DONE, asdict(job.cell))


def _decode(job: Job, grid: Grid) -> None:
    """Decode what neither the store nor notebook 06 has: a file for each unit."""
    student = grid.trained(job.cell, job.step)
    work_dir, weights = job.folder / "predictions", models.student_digest(student)
    for path in job.files.values() if grid.evaluated else ():
        own = grid.evaluated / weights / path.relative_to(work_dir)
        if own.exists() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            artifacts.link_or_copy(own, path)
    student.model.to(models.device())
    options = {"checkpoint": f"step-{job.step}", "work_dir": work_dir}
    asked: dict[str, dict] = defaultdict(lambda: defaultdict(list))
    for unit in job.units:
        asked[unit.split][unit.task].append(unit.prompt_mode)
    for split, modes in asked.items():
        tasks = {task: grid.prompts_of(split, task) for task in modes}
        evaluation.evaluate(student, tasks, modes, grid.evaluation, **options)


@functools.lru_cache(maxsize=32)
def dataset_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of a table's columns and rows."""
    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


@functools.lru_cache(maxsize=32)
def targets_digest(table: Dataset, method: str) -> str:
    """Return the digest of aligned targets; refuse those by another method."""
    rules = table.select_columns("rule").with_format("arrow")[:]["rule"]
    found = pc.unique(pc.list_flatten(rules)).to_pylist()
    if _FOREIGN_RULES[method].intersection(found):
        said = f"inputs.aligned[{method!r}]: its targets were made by another method"
        raise ValueError(f"{said}. Allowed: by {method!r}, 04's alignment.method")
    return dataset_digest(table)


def _name(cell: Cell, digest: str) -> str:
    model = re.sub(r"[^\w.-]+", "-", Path(cell.model).name)
    return f"{model}-{cell.start}-{digest[:16]}"


def _read(path: Path) -> pd.DataFrame:
    frame = artifacts.read_dataset(path).to_pandas()
    # Other scorers leave generic tasks out: one type for both kinds of file.
    return frame.astype(dict.fromkeys(COLUMNS[-2:], "boolean"))
