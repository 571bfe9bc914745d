"""Evaluate from the command line: ``accelerate launch -m cotspec.evaluation``.

Enters: a profile's name, the artifacts of its run and a checkpoint. Leaves:
``runs/<profile>/evaluation/<checkpoint>/`` with every prediction and the accuracies.
It is notebook 06 for one checkpoint: finished (task, prompt mode) cells are kept where
the notebook looks for its own, so each takes up what the other has decoded.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset, disable_progress_bars

from cotspec import artifacts, evaluation, models, profiles, selection, stages, training

NOTEBOOK = "06_evaluation"
USER_ERROR = 2


@dataclass(frozen=True)
class Checkpoint:
    """Which weights are evaluated; `name` stands for them in the predictions."""

    name: str
    step: int
    folder: Path | None  # None: the student's own weights
    is_of_notebook: bool  # notebook 06 knows these weights by the same name


def main(arguments: list[str] | None = None) -> int:
    """Evaluate one checkpoint; return the exit status (0, or 2 for a user error)."""
    given = _parser().parse_args(arguments)
    accelerator = Accelerator()
    try:
        _run(given, accelerator)
    except ValueError as error:
        if accelerator.is_main_process:
            print(f"cotspec.evaluation: {error}", file=sys.stderr)
        return USER_ERROR
    finally:
        accelerator.end_training()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cotspec.evaluation")
    add = parser.add_argument
    add("--profile", default=profiles.DEFAULT_PROFILE, metavar="NAME")
    add(
        "--checkpoint",
        default="last",
        metavar="last|start|FOLDER",
        help="notebook 05's last one, the student before training, or a folder step-N "
        "of any training (default: %(default)s)",
    )
    add("--seed", type=int, help="instead of notebook 06's own")
    add(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="SECTION.FIELD=VALUE",
        help="override of the profile; may be repeated",
    )
    return parser


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as section.field=value")
    return name.strip(), value.strip()


def _run(given: argparse.Namespace, accelerator: Accelerator) -> None:
    disable_progress_bars()  # of small table operations
    root = artifacts.repository_root()
    notebook = stages.load_notebook(root / "notebooks" / f"{NOTEBOOK}.ipynb")
    seed = notebook.parameters["SEED"] if given.seed is None else given.seed
    overrides = {**notebook.parameters["OVERRIDES"], **dict(given.set)}
    profile = profiles.resolve(given.profile, overrides)
    checkpoint = find_checkpoint(given.checkpoint, artifacts.run_dir(given.profile))
    stage = _open_stage(notebook, profile, seed, checkpoint)
    student = models.load_student(stage.profile.student, seed=seed)
    if checkpoint.folder:
        student = training.load_checkpoint(student, checkpoint.folder)
    student.model.to(accelerator.device)
    predictions = _finished(stage, checkpoint)
    if predictions is None:
        predictions = _evaluate(stage, student, checkpoint, accelerator)
    if accelerator.is_main_process:
        _write(stage, student, checkpoint, predictions)


def find_checkpoint(wanted: str, run: Path) -> Checkpoint:
    """Return the checkpoint that the command line names.

    Parameters
    ----------
    wanted : str
        ``last``, ``start``, or a folder ``step-N`` with ``model.safetensors``.
    run : Path
        The profile's run, in which notebook 05 may have left checkpoints.

    Raises
    ------
    ValueError
        No such checkpoint, or ``last`` before notebook 05 has finished.
    """
    producer = stages.producers(stages.load_series(artifacts.repository_root()))
    has_trained = stages.read_marker(run, producer["checkpoints"]) is not None
    if wanted == "start":
        return Checkpoint("step-0", 0, None, has_trained)
    known = {}
    if has_trained or wanted == "last":
        trained = stages.artifact_path(run, producer["checkpoints"], "checkpoints")
        steps = training.list_checkpoints(trained)
        known = {folder.resolve(): step for step, folder in steps}
    folder = list(known)[-1] if wanted == "last" else Path(wanted).resolve()
    if folder in known:
        return Checkpoint(f"step-{known[folder]}", known[folder], folder, True)
    weights = folder / "model.safetensors"
    step = re.fullmatch(r"step-(\d+)", folder.name)
    if step is None or not weights.exists():
        raise ValueError(
            f"--checkpoint {wanted!r}: no checkpoint. Allowed: last, start, or a "
            "folder step-N with model.safetensors, such as out/checkpoints/step-000100"
        )
    name = f"step-{int(step[1])}-{artifacts.checksum(weights)[:8]}"
    return Checkpoint(name, int(step[1]), folder, False)


def _open_stage(
    notebook: stages.Notebook,
    profile: profiles.Profile,
    seed: int,
    checkpoint: Checkpoint,
) -> stages.Stage:
    """Notebook 06's stage, or one beside it for weights the notebook does not read."""
    if not checkpoint.is_of_notebook:
        reads = ("problems", "demonstrations")
        notebook = dataclasses.replace(notebook, name="evaluation", reads=reads)
    return stages.Stage(notebook, profile, seed, artifacts.run_dir(profile.name))


def _finished(stage: stages.Stage, checkpoint: Checkpoint) -> Dataset | None:
    """What notebook 06 has published; it deletes its cells when it finishes."""
    marker = stages.read_marker(stage.run, NOTEBOOK)
    if marker is None or marker["key"] != stage.key.digest:
        return None
    path = stages.artifact_path(stage.run, NOTEBOOK, "predictions")
    published = artifacts.read_dataset(path).cast(evaluation.PREDICTION_FEATURES)
    rows = published.filter(lambda row: row["checkpoint"] == checkpoint.name)
    return rows if len(rows) else None


def _evaluate(
    stage: stages.Stage,
    student: models.Student,
    checkpoint: Checkpoint,
    accelerator: Accelerator,
) -> Dataset:
    problems = stage.read("problems").filter(lambda row: row["split"] == "test")
    table = stage.read("demonstrations")
    profile = stage.profile
    return evaluation.evaluate(
        student,
        selection.split_by_task(problems),
        selection.prompt_modes_by_task(profile.data, profile.evaluation),
        profile.evaluation,
        demonstrations=selection.demonstrations_by_task(table, problems),
        descriptions=selection.descriptions_by_task(table),
        checkpoint=checkpoint.name,
        work_dir=stage.work,
        accelerator=accelerator,
    )


def _write(
    stage: stages.Stage,
    student: models.Student,
    checkpoint: Checkpoint,
    predictions: Dataset,
) -> None:
    """Write predictions and accuracies, and print the latter."""
    results = evaluation.aggregate(
        predictions,
        student=student.name,
        start=student.start,
        size=student.size,
        step=checkpoint.step,
        seed=stage.seed,
        confidence=stage.profile.evaluation.confidence,
    )
    folder = stage.run / "evaluation" / checkpoint.name
    artifacts.write_dataset(folder / "predictions.parquet", predictions)
    artifacts.write_frame(folder / "results.csv", results)
    shown = results.drop(columns=["student", "start", "size", "step", "seed"])
    print(f"{student.name} ({student.start}), {checkpoint.name}, {student.size:,}")
    print(shown.to_string(index=False, float_format="{:.3f}".format))
    print(f"predictions and results: {folder}")


if __name__ == "__main__":
    sys.exit(main())
