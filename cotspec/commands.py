"""Train and evaluate from the command line, on one or several processes.

``accelerate launch -m cotspec.commands train …``
    Enters: a profile's name, Parquet files of examples and aligned targets, a folder.
    Leaves: what `cotspec.training.train` leaves there.
``accelerate launch -m cotspec.commands evaluate …``
    Enters: a profile's name, the artifacts of its run and a checkpoint. Leaves:
    ``runs/<profile>/evaluation/<checkpoint>/`` with predictions and accuracies. It is
    notebook 06 for one checkpoint: finished (task, prompt mode) cells are kept where
    the notebook looks for its own, so each takes up what the other has decoded.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass, replace
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
    """Train or evaluate; return the exit status (0, or 2 for a user error)."""
    given = _parser().parse_args(arguments)
    try:
        given.command(given)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":  # `accelerate launch` numbers processes
            print(f"cotspec.commands: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    sets = {"action": "append", "default": [], "metavar": "SECTION.FIELD=VALUE"}
    common.add_argument(
        "--set", help="override of the profile; may be repeated", **sets
    )
    common.add_argument("--seed", type=int, help="default: 0, or notebook 06's own")
    parser = argparse.ArgumentParser(prog="python -m cotspec.commands")
    commands = parser.add_subparsers(required=True)

    train = commands.add_parser("train", parents=[common])
    train.set_defaults(command=_train)
    train.add_argument("profile", help="such as flan-t5-xl")
    train.add_argument("examples", type=Path, help="training examples, Parquet")
    train.add_argument("work_dir", type=Path, help="where log and checkpoints go")
    train.add_argument("--aligned", type=Path, help="aligned targets, Parquet")

    evaluate = commands.add_parser("evaluate", parents=[common])
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("--profile", default=profiles.DEFAULT_PROFILE)
    evaluate.add_argument(
        "--checkpoint",
        default="last",
        metavar="last|start|FOLDER",
        help="notebook 05's last one, the student before training, or a folder step-N "
        "of any training (default: %(default)s)",
    )
    return parser


def _train(given: argparse.Namespace) -> None:
    profile = profiles.resolve(given.profile, profiles.parse_sets(given.set))
    seed = given.seed or 0
    training.train(
        models.load_student(profile.student, seed=seed),
        artifacts.read_dataset(given.examples),
        profile.training,
        work_dir=given.work_dir,
        aligned=artifacts.read_dataset(given.aligned) if given.aligned else None,
        loss=profile.loss,
        formats=profile.formats,
        seed=seed,
    )


def _evaluate(given: argparse.Namespace) -> None:
    disable_progress_bars()  # of small table operations
    root = artifacts.repository_root()
    notebook = stages.load_notebook(root / "notebooks" / f"{NOTEBOOK}.ipynb")
    seed = notebook.parameters["SEED"] if given.seed is None else given.seed
    own = notebook.parameters["OVERRIDES"] or {}
    profiles.resolve(given.profile, own)  # refuses what is no dict
    profile = profiles.resolve(given.profile, {**own, **profiles.parse_sets(given.set)})
    run = artifacts.run_dir(profile.name)
    checkpoint = find_checkpoint(given.checkpoint, run)
    if not checkpoint.is_of_notebook:  # a stage beside notebook 06
        reads = ("problems", "demonstrations")
        notebook = replace(notebook, name="evaluation", reads=reads)
    stage = stages.Stage(notebook, profile, seed, run)
    student = models.load_student(stage.profile.student, seed=seed)
    if checkpoint.folder:
        student = training.load_checkpoint(student, checkpoint.folder)
    accelerator = Accelerator()
    student.model.to(accelerator.device)
    predictions = _published(stage, checkpoint)
    if predictions is None:
        predictions = _decode(stage, student, checkpoint, accelerator)
    if accelerator.is_main_process:
        _write(stage, student, checkpoint, predictions)
    accelerator.end_training()


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
    series = stages.load_series(artifacts.repository_root())
    trainer = stages.producers(series)["checkpoints"]
    has_trained = stages.read_marker(run, trainer) is not None
    if wanted == "start":
        return Checkpoint("step-0", 0, None, has_trained)
    known = {}
    if has_trained or wanted == "last":
        trained = stages.artifact_path(run, trainer, "checkpoints")
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


def _published(stage: stages.Stage, checkpoint: Checkpoint) -> Dataset | None:
    """What notebook 06 has finished; it deletes its cells when it does."""
    marker = stages.read_marker(stage.run, NOTEBOOK)
    if marker is None or marker["key"] != stage.key.digest:
        return None
    path = stages.artifact_path(stage.run, NOTEBOOK, "predictions")
    rows = artifacts.read_dataset(path).filter(
        lambda row: row["checkpoint"] == checkpoint.name
    )
    return rows if len(rows) else None


def _decode(
    stage: stages.Stage,
    student: models.Student,
    checkpoint: Checkpoint,
    accelerator: Accelerator,
) -> Dataset:
    problems = stage.read("problems").filter(lambda row: row["split"] == "test")
    table, profile = stage.read("demonstrations"), stage.profile
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
    about = {"student": student.name, "start": student.start, "size": student.size}
    about |= {"step": checkpoint.step, "seed": stage.seed}
    confidence = stage.profile.evaluation.confidence
    results = evaluation.aggregate(predictions, **about, confidence=confidence)
    folder = stage.run / "evaluation" / checkpoint.name
    artifacts.write_dataset(folder / "predictions.parquet", predictions)
    artifacts.write_frame(folder / "results.csv", results)
    shown = results.drop(columns=list(about))
    print(f"{student.name} ({student.start}), {checkpoint.name}, {student.size:,}")
    print(shown.to_string(index=False, float_format="{:.3f}".format))
    print(f"predictions and results: {folder}")


if __name__ == "__main__":
    sys.exit(main())
