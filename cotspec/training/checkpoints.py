"""Checkpoints: weights and everything a killed run needs to go on.

Enters: a `Run` at some step, or a folder of an earlier one. Leaves: folders
``checkpoints/step-000020`` that are whole or absent, safetensors and JSON only; or the
state of such a folder, put back.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from cotspec import artifacts
from cotspec.models import Student, copy_of, tokenizer_digest
from cotspec.training import log
from cotspec.training.run import Progress, Run, TrainResult

logger = logging.getLogger(__name__)

_FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def load_checkpoint(student: Student, path: Path) -> Student:
    """Return a copy of the student with a checkpoint's weights, in evaluation mode.

    Raises
    ------
    ValueError
        The weights are of another model, or were trained with another tokenizer. Only
        weights without their ``state.json`` come without a word on the tokenizer.
    """
    _check_tokenizer(student, Path(path))
    loaded = copy_of(student)
    load_weights(loaded, Path(path))
    loaded.model.eval()
    return loaded


def load_weights(student: Student, path: Path) -> None:
    """Give the student a checkpoint's weights.

    Raises
    ------
    ValueError
        The weights are of another model.
    """
    try:
        load_model(student.model, path / "model.safetensors")
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint {path}: its weights do not fit student {student.name!r}. "
            f"Allowed: the student it was trained from ({_one_line(error)})"
        ) from error


def _check_tokenizer(student: Student, path: Path) -> None:
    if not (path / "state.json").exists():
        return
    settings = artifacts.read_json(path / "state.json")["settings"]
    digest = tokenizer_digest(student.tokenizer)
    if settings["tokenizer"] != digest:
        raise ValueError(
            f"checkpoint {path}: tokenizer {settings['tokenizer'][:12]} (student "
            f"{settings['student']!r}) was trained with, {digest[:12]} (student "
            f"{student.name!r}) was given. Allowed: the vocabulary it was trained with"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def list_checkpoints(work_dir: Path) -> list[tuple[int, Path]]:
    """Return ``(step, folder)`` of a run's complete checkpoints, in order."""
    folders = (Path(work_dir) / "checkpoints").glob("step-*")
    return sorted(
        (int(folder.name.removeprefix("step-")), folder) for folder in folders
    )


def export_weights(result: TrainResult, folder: Path) -> Path:
    """Link every checkpoint's weights and ``state.json`` into a new folder.

    The optimiser's state is left out; ``state.json`` tells what was trained, and with
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
        for name in ("model.safetensors", "state.json"):
            os.link(source / name, target / name)
    return Path(folder)


def _settings(run: Run) -> dict[str, object]:
    """What must be the same for a run to be the same."""
    described = {
        "training": dataclasses.asdict(run.config),
        "loss": dataclasses.asdict(run.loss),
        "seed": run.seed,
        "student": run.student.name,
        "tokenizer": tokenizer_digest(run.student.tokenizer),
        "num_examples": len(run.encoded),
        "num_tokens": run.encoded.lengths().sum(0).tolist(),
        "num_updates": run.num_updates,
        "micro_batches_per_update": run.group_size,
    }
    # Not these: they change the number of checkpoints or processes, not the weights.
    for name in ("num_checkpoints", "gradient_accumulation_steps"):
        described["training"].pop(name)
    return described


def save(run: Run, progress: Progress) -> None:
    """Gather weights and optimiser state from all processes and write a checkpoint."""
    model_state = get_model_state_dict(run.model, options=_FULL_STATE)
    optimizer_state = _optimizer_state(run)
    if run.accelerator.is_main_process:
        weights = {n: t for n, t in model_state.items() if n in run.parameter_names}
        _write(run, progress, weights, optimizer_state)
    run.accelerator.wait_for_everyone()


def _write(
    run: Run,
    progress: Progress,
    weights: dict[str, Tensor],
    optimizer_state: dict[str, dict],
) -> None:
    """Write a folder beside its place, then rename it: it is whole or absent."""
    folder = run.work_dir / "checkpoints" / f"step-{progress.step:06d}"
    temporary = folder.with_name(f".{folder.name}")
    temporary.mkdir(parents=True)
    tensors, scalars = _split_state(optimizer_state)
    save_file(weights, temporary / "model.safetensors", {"format": "pt"})
    save_file(tensors, temporary / "optimizer.safetensors")
    state = {
        "step": progress.step,
        "validation": progress.validation,
        "settings": _settings(run),
        "next_micro_batch": progress.step * run.group_size,
        "optimizer_scalars": scalars,
    }
    artifacts.write_json(temporary / "state.json", state)
    for file in [*temporary.iterdir(), run.metrics_path]:
        _sync(file)
    os.replace(temporary, folder)
    for _, older in list_checkpoints(run.work_dir)[:-1]:
        (older / "optimizer.safetensors").unlink(missing_ok=True)


def _optimizer_state(run: Run) -> dict[str, dict]:
    """State by parameter name, gathered from all processes."""
    gathered = get_optimizer_state_dict(
        run.model, run.optimizer.optimizer, options=_FULL_STATE
    )
    return gathered.get("state", {})  # only the main process has any


def _split_state(
    state: dict[str, dict],
) -> tuple[dict[str, Tensor], dict[str, dict[str, int | float]]]:
    """Tensors by ``parameter/name``, and the numbers JSON can hold."""
    tensors, scalars = {}, {}
    for parameter, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value.contiguous()
            else:
                scalars.setdefault(parameter, {})[name] = value
    return tensors, scalars


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def newest(work_dir: Path, accelerator: Accelerator) -> Path | None:
    """Remove what a killed run left half written; return the newest whole folder."""
    if accelerator.is_main_process:
        for torn in (work_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(torn)
        (work_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    found = list_checkpoints(work_dir)
    return found[-1][1] if found else None


def resume(run: Run, folder: Path | None) -> Progress:
    """Restore optimiser and position; cut the log back to the checkpoint.

    Raises
    ------
    ValueError
        The folder is of another run; the message names the first difference.
    """
    progress = Progress()
    if folder:
        state = artifacts.read_json(folder / "state.json")
        _check_settings(folder, state["settings"], _settings(run))
        _restore_optimizer(run, folder, state["optimizer_scalars"])
        progress.step = state["step"]
        progress.validation = [tuple(pair) for pair in state["validation"]]
        logger.info("resuming after step %d from %s", progress.step, folder)
    if run.accelerator.is_main_process:
        log.truncate(run.metrics_path, log.METRICS, progress.step)
        log.truncate(run.timing_path, log.TIMING, progress.step)
    run.accelerator.wait_for_everyone()
    return progress


def _restore_optimizer(run: Run, folder: Path, scalars: dict[str, dict]) -> None:
    state = {name: dict(values) for name, values in scalars.items()}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        parameter, _, name = key.rpartition("/")
        state.setdefault(parameter, {})[name] = tensor
    inner = run.optimizer.optimizer
    group = inner.param_groups[0] | {"params": list(run.parameter_names)}
    described = {"state": state, "param_groups": [group]}
    set_optimizer_state_dict(run.model, inner, described, options=_FULL_STATE)


def _check_settings(folder: Path, saved: dict, current: dict) -> None:
    current = json.loads(json.dumps(current))
    for name, value in current.items():
        if saved.get(name) != value:
            raise ValueError(
                f"work_dir: {folder} is of another run: its {name} is "
                f"{saved.get(name)!r}, this run's {value!r}. Allowed: a new folder"
            )
