"""Training and evaluation from the command line, for several processes or cards.

``accelerate launch -m cotspec.commands train`` is the training of notebook 05,
``… evaluate`` is notebook 06 for one checkpoint. Enters: a profile's name and the
artifacts of its run. Leaves: the training, where notebook 05 takes it up; or
``runs/<profile>/evaluation/<checkpoint>/`` with every prediction and the accuracies.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from accelerate import Accelerator
from datasets import disable_progress_bars

from cotspec import (
    artifacts,
    batching,
    evaluation,
    models,
    profiles,
    selection,
    stages,
    training,
)
from cotspec.run import USER_ERROR, Request, overrides_of


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status (0, or 2 for a user error)."""
    given = _parser().parse_args(arguments)
    disable_progress_bars()  # of small table operations
    try:
        series = stages.load_series(artifacts.repository_root())
        notebook = next(nb for nb in series if given.writes in nb.writes)
        overrides = overrides_of(given.profile, given.set, Path.cwd())
        asked = Request(series, given.profile, given.seed, overrides, frozenset())
        # Else the notebook would not take up what is made here.
        given.seed = asked.parameters(notebook)["SEED"]
        given.run(given, asked.resolved(notebook), notebook)
    except ValueError as error:
        print(f"cotspec.commands {given.command}: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", default=profiles.DEFAULT_PROFILE, metavar="NAME")
    common.add_argument("--seed", type=int, help="default: the notebook's own")
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="override of the profile; may be repeated",
    )
    parser = argparse.ArgumentParser(prog="python -m cotspec.commands")
    commands = parser.add_subparsers(dest="command", required=True)
    options = {"parents": [common]}
    train = commands.add_parser("train", help="train the profile's student", **options)
    train.set_defaults(run=_train, writes="checkpoints")
    evaluate = commands.add_parser("evaluate", help="evaluate a checkpoint", **options)
    evaluate.add_argument(
        "--checkpoint",
        default="last",
        metavar="last|start|FOLDER",
        help="notebook 05's last one, the student before training, or a folder step-N "
        "of any training (default: %(default)s)",
    )
    evaluate.set_defaults(run=_evaluate, writes="predictions")
    return parser


def _train(
    given: argparse.Namespace, profile: profiles.Profile, notebook: stages.Notebook
) -> None:
    run = artifacts.run_dir(given.profile)
    stage = stages.Stage(notebook, profile, given.seed, run)
    student = models.load_student(profile.student, seed=given.seed)
    encoded = batching.encode(
        stage.read("examples"),
        student.tokenizer,
        aligned=stage.read("aligned"),
        max_input_tokens=profile.formats.max_input_tokens,
        is_causal=models.is_causal(profile.student),
    )
    training.train(
        student,
        encoded,
        profile.training,
        work_dir=stage.work / "training",
        loss=profile.loss,
        seed=given.seed,
    )
    print(f"trained; notebook {notebook.name} takes it up")


def _evaluate(
    given: argparse.Namespace, profile: profiles.Profile, _: stages.Notebook
) -> None:
    accelerator = Accelerator()
    run = artifacts.run_dir(given.profile)
    name, folder = find_checkpoint(given.checkpoint, run)
    student = models.load_student(profile.student, seed=given.seed)
    if folder:
        student = training.load_checkpoint(student, folder)
    student.model.to(accelerator.device)
    paths = (_artifact(run, name) for name in ("problems", "demonstrations"))
    problems, shown = map(artifacts.read_dataset, paths)
    problems = problems.filter(lambda row: row["split"] == "test")
    predictions = evaluation.evaluate(
        student,
        selection.split_by_task(problems),
        selection.prompt_modes_by_task(profile.data, profile.evaluation),
        profile.evaluation,
        demonstrations=selection.demonstrations_by_task(shown, problems),
        descriptions=selection.descriptions_by_task(shown),
        checkpoint=name,
        work_dir=run / "evaluation" / "parts" / models.student_digest(student),
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        target = run / "evaluation" / name
        results = evaluation.aggregate(
            predictions,
            student,
            step=int(name.split("-")[1]),
            seed=given.seed,
            confidence=profile.evaluation.confidence,
        )
        artifacts.write_dataset(target / "predictions.parquet", predictions)
        artifacts.write_frame(target / "results.csv", results)
        columns = ["task", "prompt_mode", "n", "accuracy", "ci_low", "ci_high"]
        print(results[columns].round(3).to_string(index=False))
        print(f"results in {target}")
    accelerator.end_training()


def _artifact(run: Path, name: str) -> Path:
    series = stages.load_series(artifacts.repository_root())
    return run / stages.find_artifacts([name], series, run)[name].path


def find_checkpoint(wanted: str, run: Path) -> tuple[str, Path | None]:
    """Return the name and folder of the checkpoint that the command line means.

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
    if wanted == "start":
        return "step-0", None
    if wanted == "last":
        step, folder = training.list_checkpoints(_artifact(run, "checkpoints"))[-1]
        return f"step-{step}", folder
    folder = Path(wanted).resolve()
    weights = folder / "model.safetensors"
    step = re.fullmatch(r"step-(\d+)", folder.name)
    if step is None or not weights.exists():
        raise ValueError(
            f"--checkpoint {wanted!r}: no checkpoint. Allowed: last, start, or a "
            "folder step-N with model.safetensors, such as out/checkpoints/step-000100"
        )
    return f"step-{int(step[1])}-{artifacts.checksum(weights)[:8]}", folder


if __name__ == "__main__":
    sys.exit(main())
