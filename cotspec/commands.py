"""Training and evaluation from the command line, for several processes or cards.

``accelerate launch -m cotspec.commands train`` is the training of notebook 05,
``… evaluate`` is notebook 06 for one checkpoint. Enters: a profile's name and the
artifacts of its run. Leaves: the training, where notebook 05 takes it up; or
``runs/<profile>/evaluation/<checkpoint>/`` with every prediction and the accuracies.
"""

from __future__ import annotations

import argparse
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
    writes, act = _COMMANDS[given.command]
    disable_progress_bars()  # of small table operations
    try:
        series = stages.load_series(artifacts.repository_root())
        notebook = next(nb for nb in series if writes in nb.writes)
        overrides = overrides_of(given.profile, given.set, Path.cwd())
        asked = Request(series, given.profile, given.seed, overrides, frozenset())
        # Else the notebook would not take up what is made here.
        given.seed = asked.parameters(notebook)["SEED"]
        act(given, asked.resolved(notebook), notebook)
    except ValueError as error:
        print(f"cotspec.commands {given.command}: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cotspec.commands")
    add, several = parser.add_argument, {"action": "append", "default": []}
    add("command", choices=tuple(_COMMANDS))
    add("--profile", default=profiles.DEFAULT_PROFILE, metavar="NAME")
    add("--seed", type=int, help="default: the notebook's own")
    add("--set", metavar="FIELD=VALUE", help="override a field; repeatable", **several)
    add(
        "--checkpoint",
        default="last",
        metavar="last|start|STEP",
        help="of notebook 05, to evaluate: its last one, the student before training, "
        "or the one at a step (default: %(default)s)",
    )
    return parser


def _train(
    given: argparse.Namespace, profile: profiles.Profile, notebook: stages.Notebook
) -> None:
    if given.checkpoint != "last":
        said = f"--checkpoint {given.checkpoint!r}. Allowed: with evaluate"
        raise ValueError(f"{said}; a training goes on from its newest by itself")
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
    step, folder = find_checkpoint(given.checkpoint, run)
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
        checkpoint=f"step-{step}",
        work_dir=run / "evaluation" / "parts" / models.student_digest(student),
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        target = run / "evaluation" / f"step-{step}"
        options = {"step": step, "confidence": profile.evaluation.confidence}
        results = evaluation.aggregate(predictions, student, seed=given.seed, **options)
        artifacts.write_dataset(target / "predictions.parquet", predictions)
        artifacts.write_frame(target / "results.csv", results)
        columns = ["task", "prompt_mode", "n", "accuracy", "ci_low", "ci_high"]
        print(results[columns].round(3).to_string(index=False))
        print(f"results in {target}")
    accelerator.end_training()


def _artifact(run: Path, name: str) -> Path:
    series = stages.load_series(artifacts.repository_root())
    return run / stages.find_artifacts([name], series, run)[name].path


def find_checkpoint(wanted: str, run: Path) -> tuple[int, Path | None]:
    """Return step and folder of the checkpoint that the command line means.

    Parameters
    ----------
    wanted : str
        ``last``, ``start``, or the number of a step.
    run : Path
        The profile's run, in which notebook 05 may have left checkpoints.

    Raises
    ------
    ValueError
        No such checkpoint, or notebook 05 has not finished.
    """
    if wanted == "start":
        return 0, None
    found = training.list_checkpoints(_artifact(run, "checkpoints"))
    for step, folder in reversed(found):
        if wanted in ("last", str(step)):
            return step, folder
    steps = ", ".join(str(step) for step, _ in found)
    raise ValueError(f"--checkpoint {wanted!r}. Allowed: last, start, {steps}")


# What a command does, and an artifact of the notebook whose work it shares.
_COMMANDS = {"train": ("checkpoints", _train), "evaluate": ("predictions", _evaluate)}


if __name__ == "__main__":
    sys.exit(main())
