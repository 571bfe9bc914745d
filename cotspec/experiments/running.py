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

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from cotspec import (
    artifacts,
    batching,
    evaluation,
    models,
    selection,
    stages,
    training,
)
from cotspec.alignment import Rule
from cotspec.experiments.grid import Cell, Measurement
from cotspec.profiles import (
    EvaluationConfig,
    ExperimentsConfig,
    FormatsConfig,
    TrainingConfig,
)

CELL_COLUMNS = (
    "model start size seed data_formats loss tail divergence cross_entropy_weight "
    "alignment settings"
).split()
COLUMNS = [
    *CELL_COLUMNS,
    *"step split problem_id task prompt_mode".split(),
    *"predicted_answer is_correct no_answer".split(),
    *"reference_is_correct lm_eval_is_correct".split(),  # none for generic tasks
]
DONE = "cell.json"
# Fields of the evaluation section that say what is tested, not how it is decoded.
_NOT_DECODING = ("math_prompt_modes", "generic_prompt_modes", "confidence")
# Rules that only this method gives: by them a table tells how it was made.
_OWN_RULES: Mapping[str, tuple[Rule, ...]] = {
    "offsets": (Rule.STARTS_TOGETHER, Rule.INSIDE),
    "dtw": (Rule.NOT_ONE_TO_ONE,),
}


class CellsFailed(RuntimeError):
    """Some cells failed; the message names them, all others are finished."""


@dataclass(frozen=True)
class Unit:
    """One task in one prompt mode: a file of predictions per checkpoint."""

    split: str
    task: str
    prompt_mode: str
    digest: str  # of all that its rows depend on but the weights

    @property
    def file(self) -> str:
        """The name of its files."""
        task = self.task.replace("/", "-")
        return f"{self.split}.{task}.{self.prompt_mode}.{self.digest[:16]}.parquet"


@dataclass(frozen=True)
class Job:
    """A cell to train, or with `step` a checkpoint to decode; step 0 is its base."""

    cell: Cell
    folder: Path
    step: int | None = None
    units: tuple[Unit, ...] = ()

    def __str__(self) -> str:
        if self.step == 0:
            return f"{self.cell.model}, {self.cell.start}, before training"
        return str(self.cell)

    @property
    def files(self) -> dict[Unit, Path]:
        """Where the predictions of each unit are kept."""
        folder = self.folder / "predictions" / f"step-{self.step}"
        return {unit: folder / unit.file for unit in self.units}

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        if self.step is None:
            return (self.folder / DONE).exists()
        return all(path.exists() for path in self.files.values())


@dataclass(frozen=True)
class Grid:
    """What all cells share.

    Attributes
    ----------
    folder : Path
        The store; other notebooks may share it.
    formats, training, evaluation, experiments
        Sections of a profile.
    examples : Dataset
        Training examples in all formats.
    aligned : mapping of str to Dataset
        Aligned targets by alignment method, from `alignment.table.targets_table`.
    problems : Dataset
        With ``split`` and ``task``.
    demonstrations : Dataset
        From `selection.select_demonstrations`.

    Raises
    ------
    ValueError
        Sampling that makes no sense.
    """

    folder: Path
    formats: FormatsConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    experiments: ExperimentsConfig
    _: dataclasses.KW_ONLY
    examples: Dataset
    aligned: Mapping[str, Dataset]
    problems: Dataset
    demonstrations: Dataset

    def __post_init__(self) -> None:
        evaluation.sampling_of(self.evaluation)  # raises before anything is trained

    def plan(
        self, cells: Sequence[Cell], measurements: Sequence[Measurement]
    ) -> pd.DataFrame:
        """Return the cells and what is left to do for each, without doing it.

        Returns
        -------
        DataFrame
            Columns `CELL_COLUMNS` and ``state``: ``to train``, ``to decode`` (trained,
            but not all predictions are there) or ``finished``.
        """
        rows = []
        for cell, jobs in self._jobs(cells, measurements).items():
            state = "finished" if all(job.is_done() for job in jobs) else "to decode"
            state = state if jobs[0].is_done() else "to train"
            rows.append(self._described(cell) | {"state": state})
        return pd.DataFrame(rows, columns=[*CELL_COLUMNS, "state"])

    def run(
        self, cells: Sequence[Cell], measurements: Sequence[Measurement]
    ) -> pd.DataFrame:
        """Train and decode what the store does not hold yet; return all predictions.

        Parameters
        ----------
        cells : sequence of Cell
            Equal ones count once; ``experiments.num_workers`` processes share them.
        measurements : sequence of Measurement

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
        first = self._jobs(cells, measurements)
        # All trainings come before what is decoded, the largest first, so that no
        # process is left alone with a long one.
        due = {jobs[0]: self._base(cell).size for cell, jobs in first.items()}
        due = sorted((j for j in due if not j.is_done()), key=due.get, reverse=True)
        failed = self._do(due)
        jobs = self._jobs(cells, measurements)
        ready = [job for js in jobs.values() if js[0].is_done() for job in js[1:]]
        left = [job for job in dict.fromkeys(ready) if not job.is_done()]
        failed |= self._do(left)
        if failed:
            raise CellsFailed(_failure(failed, len(due) + len(left)))
        read = functools.cache(_read)
        tables = [
            read(path).assign(**self._described(cell), step=job.step, split=unit.split)
            for cell, found in jobs.items()
            for job in found[1:]
            for unit, path in job.files.items()
        ]
        if not tables:
            raise ValueError("measurements: none. Allowed: at least one")
        predictions = pd.concat(tables, ignore_index=True)[COLUMNS]
        predictions.attrs = {
            "cells": len(jobs),
            "trained": len(due),
            "decoded": len(left),
        }
        return predictions

    def keep(self, cell: Cell, result: training.TrainResult) -> None:
        """Put a finished training into the store: the cell need not be trained again.

        What the store has already, it keeps. The weights are those of `result` to the
        bit; a grid with several workers, one thread each, would have rounded otherwise.
        A training on other examples or targets than the grids ask for is not kept.
        """
        try:
            job = Job(cell, self._folder(cell))
        except ValueError as error:
            print(f"not shared with notebooks 07 to 10: {error}")
            return
        with _alone_in(job.folder):
            if not job.is_done():
                _export(job, result)

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
            floor = np.zeros(len(log))
            if cell.loss.name == "sample_matching":
                floor = self._floors(cell, len(log), temperature)
            kept = {"loss": cell.loss.name, "seed": cell.seed, "step": log["step"]}
            kept |= {"training_loss": log["loss"], "excess": log["loss"] - floor}
            rows.append(pd.DataFrame(kept))
        return pd.concat(rows, ignore_index=True)

    def _floors(self, cell: Cell, num_updates: int, temperature: float) -> np.ndarray:
        """The samples' entropy in each update, nats per target token."""
        matching = dataclasses.replace(cell.loss, name="distribution_matching")
        matched = dataclasses.replace(cell, loss=matching)
        tokenizer = models.load_student_tokenizer(cell.student)
        encoded = self.encoded_of(matched, tokenizer)
        entropies = encoded.teacher_entropies(temperature)  # per example
        lengths = encoded.lengths()
        stream = batching.batch_stream(
            lengths, self.training.batch_tokens, seed=cell.seed, start=0
        )
        floors = []
        for _ in range(num_updates):
            group = [
                next(stream)[1]
                for _ in range(self.training.gradient_accumulation_steps)
            ]
            rows = np.concatenate(group)
            floors.append(entropies[rows].sum() / lengths[rows, 1].sum())
        return np.array(floors)

    # --- what there is to do ----------------------------------------------------------

    def _jobs(
        self, cells: Sequence[Cell], measurements: Sequence[Measurement]
    ) -> dict[Cell, list[Job]]:
        """Of each cell: its training, its base's decoding, each checkpoint's."""
        if not cells:
            raise ValueError("cells: none. Allowed: at least one")
        found: dict[Cell, list[Job]] = {}
        for cell in dict.fromkeys(cells):
            mine = [one for one in measurements if one.concerns(cell)]
            units = {
                steps: self._units(mine, steps) for steps in ("first", "each", "last")
            }
            folder = self._folder(cell)
            base = self.folder / "bases" / _name(cell, self._base(cell).digest)
            # A base is one job for all cells that start from it.
            start = dataclasses.replace(
                Cell(cell.model, cell.start, self._base_seed(cell)),
                tokenizer=cell.tokenizer,
                revision=cell.revision,
            )
            jobs = [Job(cell, folder), Job(start, base, 0, units["first"])]
            steps = [step for step, _ in training.list_checkpoints(folder)]
            for step in steps if jobs[0].is_done() else ():
                what = units["last" if step == steps[-1] else "each"]
                jobs.append(Job(cell, folder, step, what))
            found[cell] = [job for job in jobs if job.step is None or job.units]
        return found

    def _units(
        self, measurements: Sequence[Measurement], when: str
    ) -> tuple[Unit, ...]:
        asked = {
            "first": ("first_and_last", "all"),
            "each": ("all",),
            "last": ("last", "first_and_last", "all"),
        }[when]
        units = [
            self._unit(one.split, task, mode)
            for one in measurements
            if one.steps in asked
            for task in one.tasks
            for mode in one.prompt_modes
        ]
        return tuple(dict.fromkeys(units))

    def _described(self, cell: Cell) -> dict[str, object]:
        return {
            "model": cell.model,
            "start": cell.start,
            "size": self._base(cell).size,
            "seed": cell.seed,
            "data_formats": cell.formats_name,
            "loss": cell.loss.name,
            "tail": cell.loss.tail,
            "divergence": cell.loss.divergence,
            "cross_entropy_weight": cell.loss.cross_entropy_weight,
            "alignment": cell.alignment,
            "settings": self.settings_digest,
        }

    @functools.cached_property
    def settings_digest(self) -> str:
        """Names the numbers of training and decoding, so that no report mixes two."""
        parts = dataclasses.asdict(self._training()), self._decoding()
        return artifacts.digest_of([*parts, self.formats.max_input_tokens])[:8]

    def _training(self) -> TrainingConfig:
        return models.in_precision(self.training)

    def _decoding(self) -> dict[str, object]:
        fields = dataclasses.asdict(models.in_precision(self.evaluation))
        return {k: v for k, v in fields.items() if k not in _NOT_DECODING}

    # --- what results depend on -------------------------------------------------------

    def _folder(self, cell: Cell) -> Path:
        """The folder of a cell, named by what its weights depend on."""
        is_sample = cell.loss.name == "sample_matching"
        loss = {"name": cell.loss.name} if is_sample else dataclasses.asdict(cell.loss)
        aligned = self.aligned_of(cell)
        parts = {
            "base": [cell.model, cell.start, self._base(cell).digest],
            "seed": cell.seed,
            "loss": loss,
            "training": dataclasses.asdict(self._training()),
            "max_input_tokens": self.formats.max_input_tokens,
            "examples": self._digest(cell.data_formats, lambda: self.examples_of(cell)),
            "aligned": aligned and self._digest(cell.alignment, lambda: aligned),
            "sources": _sources("cotspec.training"),
            "packages": _packages(),
        }
        return self.folder / "cells" / _name(cell, artifacts.digest_of(parts))

    def _unit(self, split: str, task: str, prompt_mode: str) -> Unit:
        name = split, task, prompt_mode
        return self._once(("unit", *name), lambda: self._new_unit(*name))

    def _new_unit(self, split: str, task: str, prompt_mode: str) -> Unit:
        problems = self.problems_of(split, task)
        shown = selection.demonstrations_by_task(self.demonstrations, problems)
        said = selection.descriptions_by_task(self.demonstrations)
        parts = {
            "problems": self._digest((split, task), lambda: problems),
            "prompt_mode": prompt_mode,
            "demonstrations": [vars(d) for d in shown[task]],
            "description": said.get(task, ""),
            "evaluation": self._decoding(),
            "sources": _sources("cotspec.evaluation"),
            "packages": _packages(),
        }
        return Unit(split, task, prompt_mode, artifacts.digest_of(parts))

    @functools.cached_property
    def _known(self) -> dict:
        """What was computed once: digests of tables and bases, encoded examples."""
        return {}

    def __getstate__(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def _once(self, key: object, compute: Callable[[], object]):
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def _digest(self, name: object, table: Callable[[], Dataset]) -> str:
        return self._once(("table", name), lambda: dataset_digest(table()))

    def _base(self, cell: Cell) -> Base:
        """Digest and size of the student a cell starts from."""
        key = "base", cell.student, self._base_seed(cell)
        return self._once(key, lambda: Base.of(load_base(cell)))

    def _base_seed(self, cell: Cell) -> int:
        return models.base_seed(cell.student, cell.seed)

    # --- inputs -----------------------------------------------------------------------

    def problems_of(self, split: str, task: str) -> Dataset:
        """Return one task's problems of one split; at least one."""

        def by_task() -> dict[tuple[str, str], list[int]]:
            rows: dict[tuple[str, str], list[int]] = {}
            columns = self.problems["split"][:], self.problems["task"][:]
            for row, pair in enumerate(zip(*columns, strict=True)):
                rows.setdefault(pair, []).append(row)
            return rows

        rows = self._once("problems", by_task)
        if (split, task) not in rows:
            known = ", ".join(sorted(f"{s} of {t}" for s, t in rows))
            raise ValueError(
                f"measurement: no {split} problems of task {task!r}. Allowed: {known}"
            )
        return self.problems.select(rows[split, task])

    def examples_of(self, cell: Cell) -> Dataset:
        """Return the training examples in the cell's formats; each must have some."""
        found = np.array(self.examples["data_format"][:])
        missing = [f for f in cell.data_formats if f not in found]
        if missing:
            raise ValueError(
                f"inputs.examples: none in {', '.join(missing)}, which cell {cell} "
                f"learns from. Found: {', '.join(np.unique(found))}. Run notebook 03 "
                "again with all of the cell's formats in formats.data_formats"
            )
        return self.examples.select(np.flatnonzero(np.isin(found, cell.data_formats)))

    def aligned_of(self, cell: Cell) -> Dataset | None:
        """Return the targets that the cell learns from; none for sample matching."""
        if cell.loss.name == "sample_matching":
            return None
        if cell.alignment not in self.aligned:
            raise ValueError(
                f"inputs.aligned: no targets by {cell.alignment!r} for cell {cell}. "
                f"Allowed: {', '.join(self.aligned)}"
            )
        table = self.aligned[cell.alignment]
        self._once(
            ("method", cell.alignment), lambda: _check_method(cell.alignment, table)
        )
        return table

    def encoded_of(
        self, cell: Cell, tokenizer: PreTrainedTokenizerBase
    ) -> batching.EncodedExamples:
        """Return `examples_of` as the student's tokens, with the cell's targets.

        All formats are encoded at once, and the last encoding is kept: what a process
        trains one after the other mostly shares it.
        """
        aligned = self.aligned_of(cell)
        key = (
            None if aligned is None else cell.alignment,
            models.tokenizer_digest(tokenizer),
        )
        if self._known.get("encoded", (None,))[0] != key:
            encoded = batching.encode(
                self.examples,
                tokenizer,
                aligned=aligned,
                max_input_tokens=self.formats.max_input_tokens,
                is_causal=models.is_causal(cell.student),
            )
            self._known["encoded"] = key, encoded
        return self._known["encoded"][1].of_formats(cell.data_formats)

    # --- processes --------------------------------------------------------------------

    def _do(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Do all jobs; return the tracebacks of those that failed, by name."""
        failed: dict[str, str] = {}
        run = self._in_turn
        num_workers = max(self.experiments.num_workers, len(models.cards()))
        if num_workers > 1 and len(jobs) > 1:
            run = self._side_by_side
        with tqdm(total=len(jobs), desc="cells", unit="part", disable=not jobs) as bar:
            for job, error in run(list(jobs)):
                bar.update()
                if error:
                    failed[str(job)] = error
                    bar.write(f"failed: {job}: {error.strip().splitlines()[-1]}")
        return failed

    def _in_turn(self, jobs: list[Job]) -> Iterator[tuple[Job, str | None]]:
        for job in jobs:
            yield job, error_of(job, self)

    def _side_by_side(
        self, jobs: list[Job], work: Callable[[Job], str | None] | None = None
    ) -> Iterator[tuple[Job, str | None]]:
        num_workers = max(self.experiments.num_workers, len(models.cards()))
        # A server that has imported everything once forks the workers.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        while jobs:
            cards = context.SimpleQueue()
            for _, card in zip(range(num_workers), itertools.cycle(models.cards())):
                cards.put(card)
            with ProcessPoolExecutor(
                num_workers, context, initializer=_begin, initargs=(self, cards)
            ) as pool:
                waiting = {pool.submit(work or _work, job): job for job in jobs}
                for future in as_completed(waiting):
                    try:
                        error = future.result()
                    except BrokenProcessPool:
                        continue
                    jobs.remove(waiting[future])
                    yield waiting[future], error
            # A process that was killed takes the whole pool with it. Alone, the jobs
            # that are left show which of them does that: the first.
            if jobs and num_workers == 1:
                yield jobs.pop(0), "its process was killed, perhaps for its memory"
            num_workers = 1


@dataclass(frozen=True)
class Base:
    """What is known of a student before training."""

    digest: str  # of its weights and tokenizer
    size: int

    @classmethod
    def of(cls, student: models.Student) -> Base:
        """Hash a freshly loaded student."""
        digest = hashlib.sha256(student.tokenizer.backend_tokenizer.to_str().encode())
        for name, tensor in sorted(student.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        return cls(digest.hexdigest(), student.size)


def load_base(cell: Cell) -> models.Student:
    """Load the student that a cell starts from."""
    return models.load_student(cell.student, seed=cell.seed)


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


def _work(job: Job) -> str | None:
    return error_of(job, _GRID[0])


def error_of(job: Job, grid: Grid) -> str | None:
    """Do a job; return its traceback or None."""
    try:
        with _alone_in(job.folder / ("" if job.step is None else f"step-{job.step}")):
            if not job.is_done():
                (_train if job.step is None else _decode)(job, grid)
    except Exception:
        return traceback.format_exc()
    return None


def _alone_in(folder: Path) -> FileLock:
    """Wait until no other process works in the folder: notebooks share the store."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _train(job: Job, grid: Grid) -> None:
    student = load_base(job.cell)
    grid.examples_of(job.cell)  # says what is missing
    result = training.train(
        student,
        grid.encoded_of(job.cell, student.tokenizer),
        grid.training,
        work_dir=job.folder / "training",
        loss=job.cell.loss,
        seed=job.cell.seed,
    )
    _export(job, result)
    shutil.rmtree(job.folder / "training")


def _export(job: Job, result: training.TrainResult) -> None:
    training.export_weights(result, job.folder)
    log = result.metrics_path.read_bytes()
    artifacts.write_bytes(job.folder / "metrics.csv", log)
    artifacts.write_json(job.folder / DONE, dataclasses.asdict(job.cell))


def _decode(job: Job, grid: Grid) -> None:
    """Decode all that is missing of a checkpoint, and write a file for each unit."""
    student = load_base(job.cell)
    if job.step:
        folder = dict(training.list_checkpoints(job.folder))[job.step]
        student = training.load_checkpoint(student, folder)
    student.model.to(models.device())
    due = {unit: path for unit, path in job.files.items() if not path.exists()}
    for split in sorted({unit.split for unit in due}):
        mine = [unit for unit in due if unit.split == split]
        modes: dict[str, list[str]] = {}
        for unit in mine:
            modes.setdefault(unit.task, []).append(unit.prompt_mode)
        problems = {task: grid.problems_of(split, task) for task in modes}
        predictions = evaluation.evaluate(
            student,
            problems,
            modes,
            grid.evaluation,
            demonstrations=selection.demonstrations_by_task(
                grid.demonstrations, concatenate_datasets(list(problems.values()))
            ),
            descriptions=selection.descriptions_by_task(grid.demonstrations),
            checkpoint=f"step-{job.step}",
        )
        task, mode = (np.array(predictions[n][:]) for n in ("task", "prompt_mode"))
        for unit in mine:
            rows = np.flatnonzero((task == unit.task) & (mode == unit.prompt_mode))
            artifacts.write_dataset(due[unit], predictions.select(rows))


def dataset_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of a table's columns and rows."""
    table = dataset.with_format("arrow")[:].replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _check_method(method: str, table: Dataset) -> None:
    """Refuse targets with a rule that another alignment method gives."""
    rules = table.select_columns("rule").with_format("arrow")[:]["rule"]
    found = set(pc.unique(pc.list_flatten(rules)).to_pylist())
    for other, own in _OWN_RULES.items():
        foreign = [rule.name for rule in own if rule in found]
        if other != method and foreign:
            raise ValueError(
                f"inputs.aligned[{method!r}]: its targets were made by {other!r} (rule "
                f"{', '.join(foreign)}). Allowed: targets by {method!r}. Give this "
                "notebook the alignment.method that notebook 04 was run with, or run "
                "notebook 04 again without it"
            )


@functools.cache
def _sources(module: str) -> str:
    return stages.sources_digest(module)


@functools.cache
def _packages() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate")
    return {name: importlib.metadata.version(name) for name in names}


def _name(cell: Cell, digest: str) -> str:
    model = re.sub(r"[^\w.-]+", "-", Path(cell.model).name)
    return f"{model}-{cell.start}-{digest[:16]}"


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
