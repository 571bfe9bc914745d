"""Checkpoints: weights and everything a killed run needs to go on.

Enters: a `Run` at some step, or a folder of an earlier one. Leaves: folders
``checkpoints/step-000020`` that are whole or absent, with ``model.safetensors``,
``state.json`` and, in the newest one, ``resume/``, Accelerate's own state.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_model, save_file

from cotspec import artifacts
from cotspec.models import Student, copy_of, tokenizer_digest

if TYPE_CHECKING:
    from cotspec.training.loop import Run, TrainResult

logger = logging.getLogger(__name__)

# It says of tied weights that they are saved once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
WEIGHTS, STATE, RESUME = "model.safetensors", "state.json", "resume"


def load_checkpoint(student: Student, path: Path) -> Student:
    """Return a copy of the student with a checkpoint's weights, in evaluation mode.

    Raises
    ------
    ValueError
        The weights are of another model, or were trained with another tokenizer. Only
        weights without their ``state.json`` come without a word on the tokenizer.
    """
    path = Path(path)
    if (path / STATE).exists():
        settings = artifacts.read_json(path / STATE)["settings"]
        digest = tokenizer_digest(student.tokenizer)
        if settings["tokenizer"] != digest:
            raise ValueError(
                f"checkpoint {path}: tokenizer {settings['tokenizer'][:12]} (student "
                f"{settings['student']!r}) was trained with, {digest[:12]} (student "
                f"{student.name!r}) was given. Allowed: the vocabulary it was trained "
                "with"
            )
    loaded = copy_of(student)
    try:
        load_model(loaded.model, path / WEIGHTS)
    except (RuntimeError, OSError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"checkpoint {path}: its weights do not fit student {student.name!r}. "
            f"Allowed: the student it was trained from ({said})"
        ) from error
    loaded.model.eval()
    return loaded


def list_checkpoints(work_dir: Path) -> list[tuple[int, Path]]:
    """Return ``(step, folder)`` of a run's complete checkpoints, in order."""
    folders = (Path(work_dir) / "checkpoints").glob("step-*")
    return sorted(
        (int(folder.name.removeprefix("step-")), folder) for folder in folders
    )


def export_weights(result: TrainResult, folder: Path) -> Path:
    """Link every checkpoint's weights and ``state.json`` into a new folder.

    What a resume needs is left out; ``state.json`` tells what was trained, and with
    which tokenizer.

    Returns
    -------
    Path
        `folder`, readable with `list_checkpoints`.
    """
    for step, source in result.checkpoints:
        target = Path(folder) / "checkpoints" / f"step-{step}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in (WEIGHTS, STATE):
            artifacts.link_or_copy(source / name, target / name)
    return Path(folder)


def save(run: Run) -> None:
    """Gather the weights from all processes and write a checkpoint.

    It is written beside its place, then renamed: whole or absent.
    """
    accelerator, step = run.accelerator, run.progress.step
    folder = run.work_dir / "checkpoints" / f"step-{step:06d}"
    temporary = folder.with_name(f".{folder.name}")
    if accelerator.is_main_process:
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary / RESUME))
    weights = accelerator.get_state_dict(run.model)
    if accelerator.is_main_process:
        names = {name for name, _ in run.student.model.named_parameters()}
        kept = {n: t.cpu().contiguous() for n, t in weights.items() if n in names}
        save_file(kept, temporary / WEIGHTS, {"format": "pt"})
        state = {
            "step": step,
            "validation": run.progress.validation,
            "settings": run.settings,
        }
        artifacts.write_json(temporary / STATE, state)
        for file in (*temporary.rglob("*.*"), run.metrics_path):
            if file.is_file():
                _sync(file)
        os.replace(temporary, folder)
        for _, older in list_checkpoints(run.work_dir)[:-1]:
            shutil.rmtree(older / RESUME, ignore_errors=True)
    accelerator.wait_for_everyone()


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def resume(run: Run) -> None:
    """Take up the newest checkpoint of the run's folder, if there is one.

    Raises
    ------
    ValueError
        The folder is of another run; the message names the first difference.
    """
    if run.accelerator.is_main_process:
        (run.work_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        for torn in (run.work_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(torn)
    run.accelerator.wait_for_everyone()
    found = list_checkpoints(run.work_dir)
    if not found:
        return
    folder = found[-1][1]
    state = artifacts.read_json(folder / STATE)
    for name, value in json.loads(json.dumps(run.settings)).items():
        if state["settings"].get(name) != value:
            raise ValueError(
                f"work_dir: {folder} is of another run: its {name} is "
                f"{state['settings'].get(name)!r}, this run's {value!r}. Allowed: a "
                "new folder"
            )
    # Optimiser, weights, and nothing random: dropout follows from the micro-batch.
    run.accelerator.load_state(str(folder / RESUME))
    run.progress.step = state["step"]
    run.progress.validation = [tuple(pair) for pair in state["validation"]]
    logger.info("resuming after step %d from %s", run.progress.step, folder)
