"""The micro-world's models that come with the package.

Enters: a name. Leaves: a transformers model with its tokenizer, from float16 weights
under ``weights/`` whose SHA-256 is checked against ``weights/manifest.json``.
``python -m cotspec.micro build`` and ``pack`` make that folder again.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from cotspec import artifacts
from cotspec.micro import tokenizers
from cotspec.profiles import NUM_BASES
from cotspec.t5 import new_t5

FOLDER = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
DATA_FILES = ("weights/manifest.json",)  # part of the keys of stages that load models
MICRO_PREFIX = "micro-"  # of a student's name in a profile
TEACHER = "teacher"
MICRO_STARTS = ("raw", "instruction_tuned")
NOT_SHIPPED = ("xl", "raw")  # Table 2 of the paper has three sizes
# Shapes of the shipped students micro-small … micro-xl, a factor 3 apart: hidden size
# and heads.
MICRO_SIZES = {"small": (16, 3), "base": (32, 4), "large": (72, 4), "xl": (128, 8)}
# In every size. With heads of 32, students hardly learned to copy a running total into
# the next step (139 of 152 errors); with 8 heads of 8 instead of 4 of 16, the student
# of 304k ended at 57% instead of 72% of the validation problems.
STUDENT_HEAD_SIZE = 16
# Span corruption before instruction tuning, and that; a shipped raw student has as many
# updates of the first as its tuned twin has of both.
_STEPS = {"pretrained": 500, "instruction_tuned": 2000, "raw": 2500}
_TEACHER_SHAPE = {"hidden": 128, "heads": 4, "layers": 4}
_TEACHER_TRAINING = {"steps": 650, "learning_rate": 2e-3, "num_demonstrations": 4}
_TEACHER_TRAINING |= {"out_of_distribution_share": 0.0}
ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Recipe:
    """What a shipped model is and how it was trained (`cotspec.micro.build`)."""

    kind: str  # teacher, raw or instruction_tuned
    seed: int  # of weights and data
    hidden: int
    heads: int
    steps: int
    layers: int = 2
    learning_rate: float = 5e-2  # Adafactor's, relative to a parameter; teacher: AdamW
    num_demonstrations: int = 2  # at most, in an example
    # One instruction example in seventeen is a problem of the training family: what a
    # small model with many tasks learned a little of each, and gains by concentrating.
    generic_share: float = 0.8  # of instruction examples
    out_of_distribution_share: float = 0.7  # of math examples
    in_context_share: float = 0.4  # of instruction examples
    chain_of_thought_share: float = 0.7  # chains are longer to learn than answers
    batch_size: int = 16
    pool_size: int = 20_000  # training items per math family, a quarter per generic


def recipe_of(name: str) -> Recipe:
    """Return how one of `names` was trained, or ``<size>-pretrained-<seed>``."""
    if name == TEACHER:
        return Recipe(TEACHER, seed=0, **_TEACHER_SHAPE, **_TEACHER_TRAINING)
    size, stage, seed = name.split("-")
    kind = "raw" if stage == "pretrained" else stage
    return Recipe(kind, int(seed), *MICRO_SIZES[size], steps=_STEPS[stage])


def new_model(recipe: Recipe) -> ModelAndTokenizer:
    """Return a model with random weights, and its tokenizer.

    The teacher is a Llama; ``raw`` and ``instruction_tuned`` are shaped like FlanT5.
    Torch's global generator is left alone.
    """
    is_teacher = recipe.kind == TEACHER
    tokenizer = tokenizers.load_teacher() if is_teacher else tokenizers.load_student()
    shape = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    shape["pad_token_id"] = tokenizer.pad_token_id
    if is_teacher:
        shape |= {"hidden_size": recipe.hidden, "intermediate_size": recipe.hidden * 3}
        shape |= {"num_hidden_layers": recipe.layers, "max_position_embeddings": 2048}
        shape |= {"num_attention_heads": recipe.heads, "bos_token_id": None}
        shape["tie_word_embeddings"] = True
        new, config = LlamaForCausalLM, LlamaConfig(**shape)
    else:
        shape |= {"d_model": recipe.hidden, "d_ff": recipe.hidden * 2}
        shape |= {"num_layers": recipe.layers, "feed_forward_proj": "gated-gelu"}
        shape |= {"num_heads": recipe.heads, "d_kv": STUDENT_HEAD_SIZE}
        shape |= {"dropout_rate": 0.0, "tie_word_embeddings": False}
        shape["decoder_start_token_id"] = tokenizer.pad_token_id
        new, config = new_t5, T5Config(**shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return new(config), tokenizer


def name_of(student: str, start: str, seed: int) -> str:
    """Return which shipped model a seed's student, ``micro-small`` say, starts from."""
    return f"{student.removeprefix(MICRO_PREFIX)}-{start}-{seed % NUM_BASES}"


def names() -> tuple[str, ...]:
    """Return the name of every shipped model: ``teacher``, ``small-raw-0`` …"""
    kinds = [kind for kind in product(MICRO_SIZES, MICRO_STARTS) if kind != NOT_SHIPPED]
    students = [name_of(*kind, seed) for seed in range(NUM_BASES) for kind in kinds]
    return (TEACHER, *students)


def load_student(student: str, start: str, *, seed: int = 0) -> ModelAndTokenizer:
    """Return a shipped student, float32, and its tokenizer.

    Parameters
    ----------
    student : str
        ``micro-small`` or one of the other `MICRO_SIZES`; `profiles` refuses others.
    start : str
        ``raw`` or ``instruction_tuned``.
    seed : int
        Chooses one of the `NUM_BASES` bases.

    Raises
    ------
    ValueError
        A start that is not shipped; missing or changed weights.
    """
    allowed = [one for one in MICRO_STARTS if name_of(student, one, seed) in names()]
    if start not in allowed:
        said = f"student.start: {start!r} of {student!r}"
        raise ValueError(f"{said}. Allowed: {', '.join(allowed)}")
    return load(name_of(student, start, seed))


def facts(name: str) -> dict[str, object]:
    """Return the manifest's entry of one model: checksum, parameters, steps …"""
    return artifacts.read_json(FOLDER / MANIFEST)[name]


def load(name: str) -> ModelAndTokenizer:
    """Return one of `names`, float32, and its tokenizer.

    Raises
    ------
    ValueError
        Missing or changed weights.
    """
    path = FOLDER / f"{name}.safetensors"
    is_there = path.exists() and (FOLDER / MANIFEST).exists()
    if not is_there or artifacts.checksum(path) != facts(name)["sha256"]:
        said = f"{path}: no such weights, or changed ones. Reinstall cotspec, or run"
        raise ValueError(f"{said} 'python -m cotspec.micro build' and then 'pack'")
    model, tokenizer = new_model(recipe_of(name))
    load_model(model, path)
    return model.eval(), tokenizer
