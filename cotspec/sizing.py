"""What a run needs: disk, memory of a card and hours, computed before it starts.

Enters: the notebooks that are about to run, each with its profile. Leaves: bytes and
hours. Weights, gradients, optimiser state and checkpoints are exact; activations and
hours are estimates from shapes and counts, never measured on a card. They say whether
a profile is a matter of hours or of weeks. ``python -m cotspec.sizing`` prints the
table of ``cotspec/accelerate/README.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cotspec import artifacts, profiles
from cotspec.stages import Notebook, load_series

if TYPE_CHECKING:
    from transformers import T5Config

    from cotspec.grids import Cell

Stale = Sequence[tuple[Notebook, profiles.Profile]]

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2
VOCABULARY = 32_128
# T5 tokens, measured on 1,500 GSM8K training problems: 59 a question, 97 a rationale.
QUESTION, SOLUTION, ANSWER = 60, 110, 8
# Of 207,619 in 323,810 sampled solutions (Codex; the authors' release).
RIGHT = 0.64
# The card that each size is meant for: GiB that fit, dense bfloat16 FLOP/s.
CARDS = {
    "small": ("16 GB", 14.5, 65e12),
    "base": ("24 GB", 22.0, 70e12),
    "large": ("24 GB", 22.0, 70e12),
    "xl": ("80 GB", 75.0, 312e12),
    "xxl": ("141 GB", 131.0, 989e12),
}
# ASSUMED: a third of the peak in training; one decoding step of a T5 waits for the
# launch of some 40 kernels a layer, whatever the number of rows.
SHARE_OF_PEAK = 0.33
SECONDS_PER_LAYER_AND_STEP = 1e-3


def shape_of(name: str) -> T5Config | None:
    """Return the shape of a published FlanT5 or T5 v1.1 by its name, or None."""
    from cotspec import models

    flan = name.removeprefix(models.RANDOM_PREFIX).replace("t5-v1_1", "flan-t5")
    return models.flan_t5_config(flan) if flan in models.FLAN_T5_SHAPES else None


@cache
def num_parameters(name: str) -> int:
    """Return the weights of a published FlanT5 or T5 v1.1; 0 for other students."""
    import torch

    from cotspec.t5 import new_t5

    if (shape := shape_of(name)) is None:
        return 0
    with torch.device("meta"):  # shapes only
        return sum(weight.numel() for weight in new_t5(shape).parameters())


def checkpoint_bytes(stale: Stale) -> int:
    """Return how much disk the checkpoints need that these notebooks will keep.

    A student of the micro-world, or of a size known only after its download, counts as
    nothing.
    """
    kept, largest = {}, 0
    for notebook, profile, cell in trained(stale):
        weights = _weight_bytes(cell.model)
        key = cell, profile.training, "experiments" in notebook.sections
        kept[key] = profile.training.num_checkpoints * weights
        largest = max(largest, weights)
    # The newest checkpoint of a training that runs holds AdamW's two moments, too.
    return sum(kept.values()) + 2 * largest


def trained(stale: Stale) -> Iterator[tuple[Notebook, profiles.Profile, Cell]]:
    """Yield what notebooks train: the grids that their code names, or one student."""
    from cotspec import grids

    for notebook, profile in stale:
        base = grids.base_cells(profile, profile.experiments.seeds)
        named = {
            "ability_grid": grids.ability_grid(base, profile.experiments),
            "format_grid": grids.format_grid(base),
            "loss_grid": grids.loss_grid(base),
            "scaling_grid": grids.scaling_grid(base, profile.experiments),
        }
        code = "\n".join(notebook.code)
        cells = [one for name in named if name in code for one in named[name]]
        if "training" in notebook.sections:
            yield from ((notebook, profile, cell) for cell in cells or base[:1])


def _weight_bytes(name: str) -> int:
    """The size of a student's weights in float32."""
    from cotspec import models

    if name == models.SMOLLM2:
        return FLOAT32 * models.SMOLLM2_PARAMETERS
    if Path(name).is_dir():
        return sum(file.stat().st_size for file in Path(name).glob("*.safetensors"))
    return FLOAT32 * num_parameters(name)


def card_bytes(student: str, training: profiles.TrainingConfig) -> int:
    """Estimate the memory of one card that trains one student.

    Weights, gradients and optimiser state in float32, under autocast a bfloat16 copy
    of the weights, and what the backward pass needs of one micro-batch.
    """
    per_weight = 2 * FLOAT32 + (8 if training.optimizer == "adamw" else 0)
    per_weight += BFLOAT16 if training.precision != "float32" else 0
    shape = shape_of(student)
    source, target = 512, 128  # a long in-context CoT example
    rows = max(1, training.batch_tokens // (source + target))
    encoder = _layer_bytes(shape, source, [source])
    decoder = _layer_bytes(shape, target, [target, source])
    kept = shape.num_layers * (encoder + decoder)
    if training.activation_checkpointing:  # the layers' inputs, and one layer anew
        inputs = FLOAT32 * shape.d_model * (source + target)
        kept = shape.num_layers * inputs + max(encoder, decoder)
    bias = FLOAT32 * shape.num_heads * (source**2 + target**2)
    # Logits in bfloat16 and float32, and the gradient of each.
    logits = target * VOCABULARY * 2 * (BFLOAT16 + FLOAT32)
    return per_weight * num_parameters(student) + rows * (kept + bias + logits)


def _layer_bytes(shape: T5Config, length: int, attended: list[int]) -> int:
    """Bytes one layer keeps per example: `length` queries over each of `attended`."""
    # Per sublayer: residual and normalised input in float32, a cast, a dropout mask.
    norm = length * shape.d_model * (2 * FLOAT32 + 2 * BFLOAT16)
    # Gate before and after GELU and its steps, linear part, product, dropped out.
    total = norm + length * shape.d_ff * BFLOAT16 * 7
    for keys in attended:
        scores = shape.num_heads * length * keys * 3 * FLOAT32
        # q and context, k and v, each in bfloat16 and float32.
        inner = shape.d_kv * shape.num_heads
        total += norm + scores + inner * 2 * (BFLOAT16 + FLOAT32) * (length + keys)
    return total


def training_hours(student: str, profile: profiles.Profile, flops: float) -> float:
    """Estimate the hours of one training on one card."""
    questions = profile.data.num_train or 7_273
    kept = questions * profile.teacher.num_samples * RIGHT
    shots = profile.formats.num_demonstrations * (QUESTION + SOLUTION)
    tokens = 0.0
    for name in profile.formats.data_formats:
        target = SOLUTION if name.endswith("chain_of_thought") else ANSWER
        length = QUESTION + target + (shots if name.startswith("in_context") else 0)
        tokens += length * (kept if target == SOLUTION else questions)
    config = profile.training
    tokens *= config.num_epochs
    if config.max_steps is not None:  # instead of the epochs
        per_update = config.batch_tokens * config.gradient_accumulation_steps
        tokens = config.max_steps * per_update
    # A token meets the encoder or the decoder: half of the weights, thrice two FLOPs.
    work = 3 * num_parameters(student) * tokens
    work *= 4 / 3 if config.activation_checkpointing else 1
    return work / (flops * SHARE_OF_PEAK) / 3600


def decoding_hours(student: str, profile: profiles.Profile) -> float:
    """Estimate the hours to decode all test problems of one checkpoint once."""
    data, config = profile.data, profile.evaluation
    math_sets = 1 + len(data.out_of_distribution_tasks)
    rows = math_sets * (data.num_test_math or 1_256) * len(config.math_prompt_modes)
    generic = len(data.generic_tasks) * (data.num_test_generic or 241)
    rows += generic * len(config.generic_prompt_modes)
    at_once = max(1, config.batch_tokens // config.max_input_tokens)
    # Half of the prompt modes write a chain, the others a word.
    steps = rows / at_once * (SOLUTION + ANSWER) / 2
    return steps * shape_of(student).num_layers * SECONDS_PER_LAYER_AND_STEP / 3600


def hours(stale: Stale, flops: float) -> float:
    """Estimate the hours of these notebooks on one card; sampling is not in it.

    Every training is decoded at its first and last checkpoint on all test problems,
    that of notebook 07 at each.
    """
    decoding, training = 0.0, {}
    for notebook, profile, cell in trained(stale):
        if num_parameters(cell.model):
            is_tradeoff = any("ability_grid" in code for code in notebook.code)
            count = profile.training.num_checkpoints + 1 if is_tradeoff else 2
            decoding += count * decoding_hours(cell.model, profile)
            formats = replace(profile.formats, data_formats=cell.data_formats)
            narrowed = replace(profile, formats=formats)
            one = training_hours(cell.model, narrowed, flops)
            training[cell, profile.training] = one  # once, whoever else wants it
    return decoding + sum(training.values())


def needs(stale: Stale) -> tuple[str, int] | None:
    """Say in one line what a FlanT5 profile needs; bytes of a card; None for others."""
    sized = [
        (card_bytes(cell.model, profile.training), cell.model, profile.name)
        for _, profile, cell in trained(stale)
        if num_parameters(cell.model)
    ]
    if not sized:
        return None
    needed, student, name = max(sized)
    card, _, flops = CARDS.get(name.removeprefix("flan-t5-"), CARDS["base"])
    said = (
        f"largest student {num_parameters(student) / 1e6:,.0f}M parameters: "
        f"{needed / GIB:.0f} GiB of a card, {checkpoint_bytes(stale) / GIB:.0f} GiB of "
        f"disk, about {hours(stale, flops):.1f} h on one card of {card} (computed, not "
        "measured; without the teacher's sampling)"
    )
    return said, needed


def main() -> None:
    """Print what each FlanT5 profile needs, as a table in Markdown."""
    series = load_series(artifacts.repository_root())
    print("| profile | card | GiB of the card | GiB of disk | hours 00–07 | 00–11 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, (card, _, flops) in CARDS.items():
        profile = profiles.PROFILES[f"flan-t5-{size}"]
        stale = [(notebook, profile) for notebook in series]
        memory = card_bytes(profile.student.model, profile.training) / GIB
        disk, early = checkpoint_bytes(stale) / GIB, hours(stale[:8], flops)
        print(
            f"| {profile.name} | {card} | {memory:.1f} | {disk:.0f} | {early:.1f} | "
            f"{hours(stale, flops):.1f} |"
        )


if __name__ == "__main__":
    main()
