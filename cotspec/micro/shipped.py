"""The micro-world's models that come with the package.

Enters: a name. Leaves: a transformers model with its tokenizer, from float16 weights
under ``weights/`` whose SHA-256 is checked against ``weights/manifest.json``.
``python -m cotspec.micro build`` and ``pack`` make that folder again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cotspec.micro import tokenizers
from cotspec.micro.architectures import new_model
from cotspec.profiles import MICRO_SIZES, MICRO_STARTS, SHIPPED_MICRO, MicroConfig

FOLDER = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
TEACHER = "teacher"


def names() -> tuple[str, ...]:
    """Return the name of every shipped model: ``teacher``, ``small-raw`` …"""
    students = [f"{size}-{start}" for size in MICRO_SIZES for start in MICRO_STARTS]
    return (TEACHER, *students)


def load_teacher(
    folder: Path = FOLDER,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the shipped teacher, float32, and its tokenizer.

    Raises
    ------
    ValueError
        Missing or changed weights.
    """
    tokenizer = tokenizers.load_teacher()
    model = new_model(TEACHER, SHIPPED_MICRO, tokenizer, seed=0)
    return _with_weights(model, TEACHER, folder), tokenizer


def load_student(
    size: str, start: str, folder: Path = FOLDER
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a shipped student, float32, and its tokenizer.

    Parameters
    ----------
    size : str
        One of `profiles.MICRO_SIZES`.
    start : str
        ``raw`` or ``instruction_tuned``.

    Raises
    ------
    ValueError
        Unknown size or start; missing or changed weights.
    """
    for field, value, allowed in (
        ("student.model", f"micro-{size}", [f"micro-{s}" for s in MICRO_SIZES]),
        ("student.start", start, MICRO_STARTS),
    ):
        if value not in allowed:
            raise ValueError(f"{field}: {value!r}. Allowed: {', '.join(allowed)}")
    tokenizer = tokenizers.load_student()
    model = new_model(start, config_of(size), tokenizer, seed=0)
    return _with_weights(model, f"{size}-{start}", folder), tokenizer


def facts(name: str, folder: Path = FOLDER) -> dict[str, object]:
    """Return the manifest's entry of one model: checksum, parameters, steps …"""
    return json.loads((folder / MANIFEST).read_text())[name]


def checksum(name: str, folder: Path = FOLDER) -> str:
    """Return the SHA-256 of one model's weights, as the manifest has it."""
    return str(facts(name, folder)["sha256"])


def config_of(size: str) -> MicroConfig:
    """Return the recipe of one size."""
    hidden, heads = MICRO_SIZES[size]
    return replace(SHIPPED_MICRO, student_hidden=hidden, student_heads=heads)


def _with_weights(model: PreTrainedModel, name: str, folder: Path) -> PreTrainedModel:
    tensors = {key: t.float() for key, t in load(_checked(name, folder)).items()}
    # Tied parameters are named once on either side.
    wanted = {key: tuple(p.shape) for key, p in model.named_parameters()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    differing = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
    if differing:
        raise ValueError(
            f"{folder / name}.safetensors: weights of another architecture "
            f"({len(differing)} tensors differ, such as {differing[0]}: "
            f"{found.get(differing[0])}, expected {wanted.get(differing[0])})"
        )
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def _checked(name: str, folder: Path) -> bytes:
    path, manifest = folder / f"{name}.safetensors", folder / MANIFEST
    if not path.exists() or not manifest.exists():
        raise ValueError(
            f"{path}: no such weights. Reinstall cotspec, or make them with "
            "'python -m cotspec.micro build' and 'python -m cotspec.micro pack'"
        )
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    wanted = checksum(name, folder)
    if found != wanted:
        raise ValueError(
            f"{path}: changed or damaged (SHA-256 {found[:12]}…, expected "
            f"{wanted[:12]}…). Reinstall cotspec"
        )
    return data
