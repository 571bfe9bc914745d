"""Training and evaluation from the command line, for several processes or cards.

``accelerate launch -m cotspec.commands train`` is the training of notebook 05,
``… evaluate`` is notebook 06 for one checkpoint. Enters: a profile's name and the
artifacts of its run. Leaves: the training, where notebook 05 takes it up; or
``runs/<profile>/evaluation/<checkpoint>/`` with every prediction and the accuracies.
"""

import argparse
import os
import sys
from pathlib import Path

from accelerate import Accelerator

from cotspec import artifacts, batching, evaluation, models, selection, stages, training
from cotspec.profiles import DEFAULT_PROFILE
from cotspec.run import USER_ERROR, given_to, overrides_of


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status (0, or 2 for a user error)."""
    parser = argparse.ArgumentParser(prog="python -m cotspec.commands")
    add, several = parser.add_argument, {"action": "append", "default": []}
    add("command", choices=tuple(_ACTS))
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME")
    add("--seed", type=int, help="default: the notebook's own")
    add("--set", metavar="FIELD=VALUE", help="override a field; repeatable", **several)
    help = "of notebook 05, to evaluate: its last, the untrained student, or a step's"
    add("--checkpoint", default="last", metavar="last|start|STEP", help=help)
    given = parser.parse_args(arguments)
    name, act = _ACTS[given.command]
    os.environ[stages.RUNNER] = "1"  # or processes that start together lock each other
    try:
        if given.command == "train" and given.checkpoint != "last":
            said = f"--checkpoint {given.checkpoint!r}. Allowed: with evaluate"
            raise ValueError(f"{said}; a training goes on from its newest by itself")
        series = stages.load_series(artifacts.repository_root())
        notebook = next(nb for nb in series if nb.name == name)
        overrides = overrides_of(given.profile, given.set, Path.cwd())
        # As the notebook's own, or it would not take up what is made here.
        asked = given_to(notebook, given.profile, given.seed, overrides).parameters
        act(stages.open_stage(name, *asked.values()), given.checkpoint)
    except ValueError as error:
        print(f"cotspec.commands {given.command}: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _train(stage: stages.Stage, _: str) -> None:
    profile = stage.profile
    student = models.load_student(profile.student, seed=stage.seed)
    encoded = batching.encode(
        stage.read("examples"),
        student.tokenizer,
        aligned=stage.read("aligned"),
        max_input_tokens=profile.formats.max_input_tokens,
        is_causal=models.is_causal(profile.student),
    )
    options = {"loss": profile.loss, "seed": stage.seed}
    folder = stage.work / "training"
    training.train(student, encoded, profile.training, work_dir=folder, **options)
    print(f"trained; notebook {stage.notebook.name} takes it up")


def _evaluate(stage: stages.Stage, checkpoint: str) -> None:
    accelerator, profile = Accelerator(), stage.profile
    # Not `stage.read`: every process would hash all checkpoints.
    kept = stages.find_artifacts(stage.notebook.reads, stage.run)["checkpoints"]
    found = training.list_checkpoints(stage.run / kept.path)
    known = {"last": found[-1], "start": (0, None)}
    known |= {str(one[0]): one for one in found}
    if checkpoint not in known:
        raise ValueError(f"--checkpoint {checkpoint!r}. Allowed: {', '.join(known)}")
    step, folder = known[checkpoint]
    student = models.load_student(profile.student, seed=stage.seed)
    if folder:
        student = training.load_checkpoint(student, folder)
    student.model.to(accelerator.device)
    problems = stage.read("problems").filter(lambda row: row["split"] == "test")
    home = stage.run / "evaluation"
    predictions = evaluation.evaluate(
        student,
        selection.prompts_by_task(stage.read("demonstrations"), problems),
        selection.prompt_modes_by_task(profile.data, profile.evaluation),
        profile.evaluation,
        checkpoint=f"step-{step}",
        work_dir=home / "parts" / models.student_digest(student),
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        target = home / f"step-{step}"
        options = {"step": step, "confidence": profile.evaluation.confidence}
        results = evaluation.aggregate(predictions, student, seed=stage.seed, **options)
        artifacts.write_dataset(target / "predictions.parquet", predictions)
        artifacts.write_frame(target / "results.csv", results)
        columns = ["task", "prompt_mode", "n", "accuracy", "ci_low", "ci_high"]
        print(results[columns].round(3).to_string(index=False))
        print(f"results in {target}")
    accelerator.end_training()


# What a command does, and the notebook whose work it shares.
_ACTS = {"train": ("05_distillation", _train), "evaluate": ("06_evaluation", _evaluate)}


if __name__ == "__main__":
    sys.exit(main())
