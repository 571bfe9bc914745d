"""The work of one process: train a cell, or decode what is measured on a checkpoint.

Enters: a `Job`, the artifacts of earlier notebooks and the profile's sections. Leaves,
in the job's folder::

    cell.json                           written last: the training is finished
    metrics.csv                         the training's log
    checkpoints/step-20/                model.safetensors, state.json; no optimiser
    predictions/step-20/*.parquet       one file per split, task and prompt mode
    training/                           only while it trains; a killed run resumes there

Every file is whole or absent, so a job can be killed at any moment and run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from cotspec import artifacts, batching, evaluation, models, selection, training
from cotspec.alignment import Rule
from cotspec.evaluation import cells
from cotspec.experiments.grid import Cell
from cotspec.profiles import (
    EvaluationConfig,
    ExperimentsConfig,
    FormatsConfig,
    TrainingConfig,
)

logger = logging.getLogger(__name__)

DONE = "cell.json"

# Rules that only this method gives: by them a table tells how it was made.
_OWN_RULES: Mapping[str, tuple[Rule, ...]] = {
    "offsets": (Rule.STARTS_TOGETHER, Rule.INSIDE),
    "dtw": (Rule.NOT_ONE_TO_ONE,),
}


@dataclass(frozen=True)
class Inputs:
    """What earlier notebooks wrote.

    Attributes
    ----------
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
        Targets that another method has made.
    """

    examples: Dataset
    aligned: Mapping[str, Dataset]
    problems: Dataset
    demonstrations: Dataset
    # The last one made: what a process trains one after the other mostly shares it.
    _encoded: dict[tuple, batching.EncodedExamples] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for method, table in self.aligned.items():
            _check_method(method, table)

    def __getstate__(self) -> dict:
        return vars(self) | {"_encoded": {}}  # a worker makes its own

    def problems_of(self, split: str, task: str) -> Dataset:
        """Return one task's problems of one split."""
        return self.problems.select(self._problem_rows.get((split, task), []))

    @functools.cached_property
    def _problem_rows(self) -> dict[tuple[str, str], list[int]]:
        rows: dict[tuple[str, str], list[int]] = {}
        pairs = zip(self.problems["split"][:], self.problems["task"][:], strict=True)
        for row, pair in enumerate(pairs):
            rows.setdefault(pair, []).append(row)
        return rows

    def examples_of(self, cell: Cell) -> Dataset:
        """Return the training examples in the cell's formats; each must have some."""
        found = self._found_formats(cell)
        return self.examples.select(np.flatnonzero(np.isin(found, cell.data_formats)))

    def encoded_of(
        self, cell: Cell, tokenizer: PreTrainedTokenizerBase, *, max_input_tokens: int
    ) -> batching.EncodedExamples:
        """Return `examples_of` as the student's tokens, with the cell's targets.

        All formats are encoded at once, so every sampled solution needs its targets.
        """
        self._found_formats(cell)
        aligned = self.aligned_of(cell)
        key = (
            None if aligned is None else cell.alignment,
            tokenizer.backend_tokenizer.to_str(),
            max_input_tokens,
        )
        if key not in self._encoded:
            self._encoded.clear()
            self._encoded[key] = batching.encode(
                self.examples,
                tokenizer,
                aligned=aligned,
                max_input_tokens=max_input_tokens,
            )
        return self._encoded[key].of_formats(cell.data_formats)

    def _found_formats(self, cell: Cell) -> np.ndarray:
        found = np.array(self.examples["data_format"][:])
        missing = [f for f in cell.data_formats if f not in found]
        if missing:
            raise ValueError(
                f"inputs.examples: none in {', '.join(missing)}, which cell {cell} "
                f"learns from. Found: {', '.join(np.unique(found))}. Run notebook 03 "
                "again with all of the cell's formats in formats.data_formats"
            )
        return found

    def aligned_of(self, cell: Cell) -> Dataset | None:
        """Return the targets that the cell learns from; none for sample matching."""
        if cell.loss.name == "sample_matching":
            return None
        if cell.alignment not in self.aligned:
            raise ValueError(
                f"inputs.aligned: no targets by {cell.alignment!r} for cell {cell}. "
                f"Allowed: {', '.join(self.aligned)}"
            )
        return self.aligned[cell.alignment]


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


@dataclass(frozen=True)
class Settings:
    """The sections of a profile that all cells share."""

    formats: FormatsConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    experiments: ExperimentsConfig

    def __post_init__(self) -> None:
        evaluation.sampling_of(self.evaluation)  # raises before anything is trained


@dataclass(frozen=True)
class Unit:
    """One task in one prompt mode: a file of predictions per checkpoint.

    `digest` changes with all that its rows depend on but the weights; `problem_ids` are
    its rows'; `is_every` asks for every checkpoint instead of the last.
    """

    split: str
    task: str
    prompt_mode: str
    digest: str
    problem_ids: tuple[str, ...]
    is_every: bool = False

    def path(self, folder: Path, step: int) -> Path:
        """Return where the predictions of a checkpoint are kept."""
        task = self.task.replace("/", "-")
        name = f"{self.split}.{task}.{self.prompt_mode}.{self.digest[:16]}.parquet"
        return folder / "predictions" / f"step-{step}" / name

    def is_done(self, path: Path) -> bool:
        """Whether a file is there, whole, and of its problems."""
        # One column, since a grid has thousands of files; a torn one has no footer.
        try:
            found = pq.read_table(path, columns=["problem_id"])
            return found["problem_id"].to_pylist() == list(self.problem_ids)
        except (OSError, ValueError, KeyError):
            return False


@dataclass(frozen=True)
class Job:
    """A cell to train and measure, or (`is_base`) a base model to measure.

    With `step`, the part of it that decodes this checkpoint.
    """

    cell: Cell
    folder: Path
    units: tuple[Unit, ...]
    size: int
    is_base: bool = False
    step: int | None = None

    def __str__(self) -> str:
        base = f"{self.cell.model}, {self.cell.start}, before training"
        return base if self.is_base else str(self.cell)

    def checkpoints(self) -> list[tuple[int, Path | None]]:
        """Return ``(step, folder)``; step 0 without folder for a base model."""
        return [(0, None)] if self.is_base else training.list_checkpoints(self.folder)

    def is_trained(self) -> bool:
        """Whether there is nothing left to train."""
        return self.is_base or (self.folder / DONE).exists()

    def files(self) -> Iterator[tuple[int, Path | None, Unit, Path]]:
        """Yield ``(step, checkpoint, unit, file)`` of a trained job's predictions."""
        steps = self.checkpoints()
        for step, checkpoint in steps:
            for unit in self.units:
                if unit.is_every or step == steps[-1][0]:
                    yield step, checkpoint, unit, unit.path(self.folder, step)

    def is_finished(self) -> bool:
        """Whether it is trained and every prediction is there."""
        return self.is_trained() and not self.missing()

    def missing(self) -> dict[int, list[tuple[Unit, Path]]]:
        """Return the predictions of a trained job that are not there, by step."""
        found: dict[int, list[tuple[Unit, Path]]] = {}
        for step, _, unit, path in self.files():
            if not unit.is_done(path):
                found.setdefault(step, []).append((unit, path))
        return found

    def parts(self) -> list[Job]:
        """Return what is to be done next: the training, else the decoding by step."""
        if self.step is not None:
            return []
        if not self.is_trained():
            return [self]
        return [dataclasses.replace(self, step=step) for step in self.missing()]


def run_job(job: Job, *, inputs: Inputs, settings: Settings) -> None:
    """Train the job's cell, or decode the checkpoint whose part it is.

    Raises
    ------
    Exception
        Whatever training or decoding raises; finished files stay.
    """
    if job.step is None:
        with _alone_in(job.folder):
            if not job.is_trained():
                _train(job, inputs, settings)
        return
    folder = job.folder / "predictions" / f"step-{job.step}"
    with _alone_in(folder):
        _sweep(job.folder, folder)
        _decode(job, inputs, settings)


def load_base(cell: Cell, inputs: Inputs) -> models.Student:
    """Load the student that a cell starts from."""
    return models.load_student(cell.student, seed=cell.seed)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process works in the folder: notebooks share the store."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path, predictions: Path) -> None:
    """Remove what only training needed, and what a killed run was writing."""
    shutil.rmtree(folder / "training", ignore_errors=True)
    torn = [*folder.glob(".*.*"), *(folder / "checkpoints").rglob(".*.*")]
    for path in [*torn, *predictions.glob(".*.*")]:
        path.unlink(missing_ok=True)  # parts of one job may run side by side


def _train(job: Job, inputs: Inputs, settings: Settings) -> None:
    cell, student = job.cell, load_base(job.cell, inputs)
    examples = inputs.encoded_of(
        cell, student.tokenizer, max_input_tokens=settings.formats.max_input_tokens
    )
    result = training.train(
        student,
        examples,
        settings.training,
        work_dir=job.folder / "training",
        loss=cell.loss,
        seed=cell.seed,
    )
    _export(job, result)


def _export(job: Job, result: training.TrainResult) -> None:
    folder = job.folder
    training.export_weights(result, folder)
    artifacts.write_bytes(folder / "metrics.csv", result.metrics_path.read_bytes())
    artifacts.write_json(folder / DONE, dataclasses.asdict(job.cell))


def keep(job: Job, result: training.TrainResult) -> None:
    """Put a training that was done elsewhere into the job's folder if it has none."""
    with _alone_in(job.folder):
        if not job.is_trained():
            _export(job, result)


def _decode(job: Job, inputs: Inputs, settings: Settings) -> None:
    missing = job.missing().get(job.step, [])
    if not missing:
        return
    student = load_base(job.cell, inputs)
    checkpoint = dict(job.checkpoints())[job.step]
    if checkpoint:
        student = training.load_checkpoint(student, checkpoint)
    student.model.to(models.device())
    paths = {path for _, path in missing}
    at_step = [(unit, path) for step, _, unit, path in job.files() if step == job.step]
    for split, files in itertools.groupby(at_step, key=lambda file: file[0].split):
        for group in cells.grouped(files, lambda file: len(file[0].problem_ids)):
            due = [(unit, path) for unit, path in group if path in paths]
            if due:
                _decode_group(student, split, due, job.step, inputs, settings)


def _decode_group(
    student: models.Student,
    split: str,
    due: Sequence[tuple[Unit, Path]],
    step: int,
    inputs: Inputs,
    settings: Settings,
) -> None:
    """Decode units of one split together, and write a file for each."""
    problems: dict[str, Dataset] = {}
    modes: dict[str, list[str]] = {}
    for unit, path in due:
        if path.exists():
            logger.warning(
                "decoding again: %s does not hold its %d problems",
                path,
                len(unit.problem_ids),
            )
        problems[unit.task] = inputs.problems_of(split, unit.task)
        modes.setdefault(unit.task, []).append(unit.prompt_mode)
    table = inputs.demonstrations
    predictions = evaluation.evaluate(
        student,
        problems,
        modes,
        settings.evaluation,
        demonstrations=selection.demonstrations_by_task(
            table, concatenate_datasets(list(problems.values()))
        ),
        descriptions=selection.descriptions_by_task(table),
        checkpoint=f"step-{step}",
    )
    task, mode = (np.array(predictions[name][:]) for name in ("task", "prompt_mode"))
    for unit, path in due:
        rows = np.flatnonzero((task == unit.task) & (mode == unit.prompt_mode))
        artifacts.write_dataset(path, predictions.select(rows))
