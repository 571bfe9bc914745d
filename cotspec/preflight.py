"""Checks that take seconds and come before hours of work.

Enters: the resolved profiles of the series. Leaves: nothing, or one ValueError that
lists everything that is missing and what to do about each.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
from pathlib import Path

from cotspec import artifacts, profiles

log = logging.getLogger(__name__)

MIN_FREE_GIB = 2.0


def check(resolved: list[profiles.Profile], run: Path) -> None:
    """Check versions, disk, data, models and credentials.

    Raises
    ------
    ValueError
        Listing every problem found, each with its remedy.
    """
    profile = resolved[0]
    _warn_of_versions(artifacts.repository_root() / "requirements.lock")
    problems = [
        *_disk(run),
        *_data(resolved),
        *_models(resolved),
        *_credentials(resolved),
    ]
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(f"profile {profile.name!r} cannot run yet:\n  - {listed}")


def _warn_of_versions(lock: Path) -> None:
    """Warn about packages that differ from the lock file; nothing here is fatal."""
    pins = [ln.split(";")[0] for ln in lock.read_text().splitlines() if "==" in ln]
    different = [pin for pin in pins if not _matches(*pin.strip().split("=="))]
    if different:
        log.warning(
            "%d packages differ from requirements.lock (%s …): numbers may differ",
            len(different),
            ", ".join(different[:3]),
        )


def _matches(name: str, version: str) -> bool:
    try:
        return importlib.metadata.version(name).split("+")[0] == version
    except importlib.metadata.PackageNotFoundError:
        return name == "appnope"  # macOS only


def _disk(run: Path) -> list[str]:
    existing = next(p for p in (run, *run.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if free >= MIN_FREE_GIB:
        return []
    return [
        f"disk: {free:.1f} GiB free at {existing}, {MIN_FREE_GIB:.0f} GiB needed; "
        "free some or set COTSPEC_RUNS to another disk"
    ]


def _data(resolved: list[profiles.Profile]) -> list[str]:
    names = {name for p in resolved for name in _task_names(p.data)}
    real = sorted(name for name in names if not name.startswith("micro/"))
    if not real:
        return []
    folder = os.environ.get("COTSPEC_DATA")
    if folder:
        from cotspec import tasks

        return tasks.missing(real, Path(folder))
    if _hub_is_reachable():
        return []
    return [
        f"data: {', '.join(real[:4])} come from the Hugging Face hub, which cannot "
        "be reached; set COTSPEC_DATA to a folder laid out as README.md says"
    ]


def _task_names(data: profiles.DataConfig) -> tuple[str, ...]:
    several = data.out_of_distribution_tasks + data.generic_tasks
    return (data.train_task, *several, *data.extra_train_tasks)


def _models(resolved: list[profiles.Profile]) -> list[str]:
    wanted = {("student.model", p.student.model) for p in resolved}
    wanted |= {
        ("teacher.model", p.teacher.model)
        for p in resolved
        if p.teacher.backend == "huggingface"
    }
    return [
        problem
        for field, name in sorted(wanted)
        for problem in (
            _unfit(field, Path(name))
            if Path(name).exists()
            else _not_packed(field, name)
            if name.startswith("micro-")
            else _unavailable(field, name)
        )
    ]


def _not_packed(field: str, name: str) -> list[str]:
    from cotspec.micro import shipped  # imports transformers: seconds

    if (shipped.FOLDER / shipped.MANIFEST).exists():
        return []
    return [
        f"{field}: the weights of {name!r} are not in this package. Make them with "
        "'python -m cotspec.micro build' and 'python -m cotspec.micro pack' (96 "
        "minutes of one thread when last measured)"
    ]


def _unfit(field: str, folder: Path) -> list[str]:
    """Say why a local folder cannot be the student; a teacher may be any."""
    config = folder / "config.json"
    if not config.exists():
        return [f"{field}: no config.json in {folder}"]
    has_encoder = artifacts.read_json(config).get("is_encoder_decoder", False)
    if field == "student.model" and not has_encoder:
        return [
            f"{field}: {str(folder)!r} has no encoder. Allowed: any encoder-decoder, "
            "such as google/flan-t5-base"
        ]
    return []


def _unavailable(field: str, name: str) -> list[str]:
    from cotspec import models

    try:
        if name == "smollm2":
            models.smollm2_gguf()
        elif name.startswith(models.RANDOM_PREFIX):
            models.flan_t5_config(name.removeprefix(models.RANDOM_PREFIX))
        else:
            return _not_on_hub(field, name)
    except ValueError as error:
        return [str(error)]
    return []


def _not_on_hub(field: str, name: str) -> list[str]:
    if _hub_is_reachable():
        return []
    return [
        f"{field}: {name!r} is no local folder and the Hugging Face hub cannot be "
        f"reached; download it and use --set {field}=/path/to/model"
    ]


def _hub_is_reachable() -> bool:
    from cotspec.tasks import hub

    return hub.is_reachable()


def _credentials(resolved: list[profiles.Profile]) -> list[str]:
    for profile in resolved:
        teacher = profile.teacher
        if teacher.backend == "openai" and not teacher.base_urls:
            if not os.environ.get("OPENAI_API_KEY"):
                return [
                    "teacher.backend 'openai': set OPENAI_API_KEY in the environment, "
                    "or --set teacher.base_urls=http://localhost:8000/v1"
                ]
        if teacher.backend in ("recorded", "release"):
            if not teacher.path or not Path(teacher.path).exists():
                return [
                    f"teacher.path: {teacher.path!r} does not exist; backend "
                    f"{teacher.backend!r} reads it: --set teacher.path=/path"
                ]
    return []
