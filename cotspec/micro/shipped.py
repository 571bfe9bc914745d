"""The micro-world's models that come with the package.

Enters: a name. Leaves: a transformers model with its tokenizer, from float16 weights
under ``weights/`` whose SHA-256 is checked against ``weights/manifest.json``.
``python -m cotspec.micro build`` and ``pack`` make that folder again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
)

from cotspec import artifacts
from cotspec.micro import tokenizers
from cotspec.profiles import NUM_BASES
from cotspec.t5 import new_t5

FOLDER = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
TEACHER = "teacher"
ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class MicroConfig:
    """How the micro-world's shipped models were trained (`cotspec.micro.build`)."""

    num_demonstrations: int = 2  # at most, in a student's pretraining example
    pool_size: int = 20_000  # training items per math family, a quarter per generic
    teacher_steps: int = 650
    teacher_hidden: int = 128
    teacher_layers: int = 4
    teacher_demonstrations: int = 4  # at most, in a teacher's document
    teacher_batch_size: int = 16
    teacher_learning_rate: float = 2e-3  # AdamW
    teacher_out_of_distribution_share: float = 0.0  # of its documents
    # Span corruption before instruction tuning; a shipped raw student has as many
    # updates of it as its tuned twin has of both.
    raw_steps: int = 500
    student_steps: int = 2000
    student_hidden: int = 128
    student_layers: int = 2
    student_heads: int = 8
    # One instruction example in seventeen is a problem of the training family: what a
    # small model with many tasks learned a little of each, and gains by concentrating.
    generic_share: float = 0.8  # of instruction examples
    out_of_distribution_share: float = 0.7  # of instruction examples in math
    in_context_share: float = 0.4  # of instruction examples
    chain_of_thought_share: float = 0.7  # chains are longer to learn than answers
    batch_size: int = 16
    learning_rate: float = 5e-2  # Adafactor, relative to a parameter's size


MICRO_STARTS = ("raw", "instruction_tuned")
NOT_SHIPPED = ("xl", "raw")  # Table 2 of the paper has three sizes
# Shapes of the shipped students micro-small … micro-xl, a factor 3 apart: hidden size
# and heads.
MICRO_SIZES = {"small": (16, 3), "base": (32, 4), "large": (72, 4), "xl": (128, 8)}
_TEACHER_HEAD_SIZE = 32
# In every size. With heads of 32, students hardly learned to copy a running total into
# the next step (139 of 152 errors); with 8 heads of 8 instead of 4 of 16, the student
# of 304k ended at 57% instead of 72% of the validation problems.
STUDENT_HEAD_SIZE = 16
_MAX_POSITIONS = 2048


def new_model(kind: str, config: MicroConfig, *, seed: int) -> ModelAndTokenizer:
    """Return a model with random weights, and its tokenizer.

    The teacher is a Llama; ``raw`` and ``instruction_tuned`` are shaped like FlanT5.
    Torch's global generator is left alone.
    """
    is_teacher = kind == TEACHER
    tokenizer = tokenizers.load_teacher() if is_teacher else tokenizers.load_student()
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if is_teacher:
        new = LlamaForCausalLM
        shape = LlamaConfig(
            **ids,
            bos_token_id=None,
            hidden_size=config.teacher_hidden,
            intermediate_size=config.teacher_hidden * 3,
            num_hidden_layers=config.teacher_layers,
            num_attention_heads=config.teacher_hidden // _TEACHER_HEAD_SIZE,
            max_position_embeddings=_MAX_POSITIONS,
            tie_word_embeddings=True,
        )
    else:
        new = new_t5
        shape = T5Config(
            **ids,
            decoder_start_token_id=tokenizer.pad_token_id,
            d_model=config.student_hidden,
            d_kv=STUDENT_HEAD_SIZE,
            d_ff=config.student_hidden * 2,
            num_layers=config.student_layers,
            num_heads=config.student_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            tie_word_embeddings=False,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new(shape), tokenizer


def names() -> tuple[str, ...]:
    """Return the name of every shipped model: ``teacher``, ``small-raw-0`` …"""
    kinds = [kind for kind in product(MICRO_SIZES, MICRO_STARTS) if kind != NOT_SHIPPED]
    students = [
        f"{size}-{start}-{i}" for i in range(NUM_BASES) for size, start in kinds
    ]
    return (TEACHER, *students)


def name_of(size: str, start: str, seed: int) -> str:
    """Return which shipped model the student of a seed starts from."""
    return f"{size}-{start}-{seed % NUM_BASES}"


def load_teacher() -> ModelAndTokenizer:
    """Return the shipped teacher, float32, and its tokenizer.

    Raises
    ------
    ValueError
        Missing or changed weights.
    """
    return _load(TEACHER, TEACHER, MicroConfig())


def load_student(size: str, start: str, *, seed: int = 0) -> ModelAndTokenizer:
    """Return a shipped student, float32, and its tokenizer.

    Parameters
    ----------
    size : str
        One of `MICRO_SIZES`; `profiles` refuses others.
    start : str
        ``raw`` or ``instruction_tuned``.
    seed : int
        Chooses one of the `NUM_BASES` bases.

    Raises
    ------
    ValueError
        A start that is not shipped; missing or changed weights.
    """
    allowed = [one for one in MICRO_STARTS if (size, one) != NOT_SHIPPED]
    if start not in allowed:
        raise ValueError(
            f"student.start: {start!r} of 'micro-{size}'. Allowed: {', '.join(allowed)}"
        )
    return _load(name_of(size, start, seed), start, config_of(size))


def facts(name: str) -> dict[str, object]:
    """Return the manifest's entry of one model: checksum, parameters, steps …"""
    return artifacts.read_json(FOLDER / MANIFEST)[name]


def config_of(size: str) -> MicroConfig:
    """Return the recipe of one size."""
    hidden, heads = MICRO_SIZES[size]
    return MicroConfig(student_hidden=hidden, student_heads=heads)


def _load(name: str, kind: str, config: MicroConfig) -> ModelAndTokenizer:
    path = FOLDER / f"{name}.safetensors"
    if not path.exists() or not (FOLDER / MANIFEST).exists():
        raise ValueError(
            f"{path}: no such weights. Reinstall cotspec, or make them with "
            "'python -m cotspec.micro build' and 'python -m cotspec.micro pack'"
        )
    found, wanted = artifacts.checksum(path), facts(name)["sha256"]
    if found != wanted:
        raise ValueError(
            f"{path}: changed or damaged (SHA-256 {found[:12]}…, expected "
            f"{wanted[:12]}…). Reinstall cotspec"
        )
    model, tokenizer = new_model(kind, config, seed=0)
    try:
        load_model(model, path)
    except RuntimeError as error:
        _, *differing = str(error).splitlines()
        raise ValueError(
            f"{path}: weights of another architecture ({len(differing)} differences, "
            f"the first: {differing[0].strip()})"
        ) from error
    return model.eval(), tokenizer
