"""The micro-world's models that come with the package.

Enters: a name. Leaves: a transformers model with its tokenizer, from float16 weights
under ``weights/`` whose SHA-256 is checked against ``weights/manifest.json``.
``python -m cotspec.micro build`` and ``pack`` make that folder again.
"""

from __future__ import annotations

import hashlib
import json
import types
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cotspec.micro import tokenizers
from cotspec.micro.architectures import new_model


@dataclass(frozen=True)
class MicroConfig:
    """How the micro-world's shipped models were trained (`cotspec.micro.build`)."""

    num_demonstrations: int = 2  # at most, in a student's pretraining example
    pool_size: int = 20_000  # training items per math family, a quarter per generic
    teacher_steps: int = 0
    teacher_hidden: int = 128
    teacher_layers: int = 4
    teacher_demonstrations: int = 4  # at most, in a teacher's document
    teacher_batch_size: int = 16
    teacher_learning_rate: float = 3e-3  # AdamW
    teacher_out_of_distribution_share: float = 0.0  # of its documents
    raw_steps: int = 0  # span corruption before instruction tuning
    student_steps: int = 0
    student_hidden: int = 128
    student_layers: int = 2
    student_heads: int = 8
    # Of the math problems of one, two and three steps: how many students see.
    num_steps_shares: tuple[float, ...] = (1.0, 1.0, 1.0)
    generic_share: float = 0.6  # of instruction examples
    out_of_distribution_share: float = 0.4  # of instruction examples in math
    in_context_share: float = 0.5  # of instruction examples
    chain_of_thought_share: float = 0.7  # chains are longer to learn than answers
    batch_size: int = 64
    learning_rate: float = 5e-2  # Adafactor, relative to a parameter's size
    checkpoint_every: int = 200


MICRO_STARTS = ("raw", "instruction_tuned")
# Shapes of the shipped students micro-small … micro-xl, a factor 3 apart: hidden size
# and heads.
MICRO_SIZES = types.MappingProxyType(
    {"small": (16, 3), "base": (32, 4), "large": (72, 4), "xl": (128, 8)}
)
MICRO_STUDENTS = tuple(f"micro-{size}" for size in MICRO_SIZES)
SHIPPED_MICRO = MicroConfig(
    teacher_steps=650,
    teacher_learning_rate=2e-3,
    raw_steps=500,
    student_steps=3000,
    batch_size=16,
    num_steps_shares=(1.0, 0.1, 0.0),
    generic_share=0.55,
    out_of_distribution_share=0.65,
    in_context_share=0.4,
    checkpoint_every=500,
)

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
        One of `MICRO_SIZES`.
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
