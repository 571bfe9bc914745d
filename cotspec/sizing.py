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
from typing import TYPE_CHECKING, NamedTuple

from cotspec import artifacts, grids, profiles
from cotspec.grids import Cell
from cotspec.stages import Notebook, load_series

if TYPE_CHECKING:
    from transformers import T5Config

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2
VOCABULARY = 32_128
# T5 tokens, measured on 1,500 GSM8K training problems: 59 a question, 97 a rationale.
QUESTION, SOLUTION, ANSWER = 60, 110, 8
# Of 207,619 in 323,810 sampled solutions (Codex; the authors' release).
RIGHT = 0.64


class Card(NamedTuple):
    """The card that a size is meant for: GiB that fit, dense bfloat16 FLOP/s."""

    name: str
    room: float
    flops: float


CARDS = {
    "small": Card("16 GB", 14.5, 65e12),
    "base": Card("24 GB", 22.0, 70e12),
    "large": Card("24 GB", 22.0, 70e12),
    "xl": Card("80 GB", 75.0, 312e12),
    "xxl": Card("141 GB", 131.0, 989e12),
}
# ASSUMED: a third of the peak in training; one decoding step of a T5 waits for the
# launch of some 40 kernels a layer, whatever the number of rows.
SHARE_OF_PEAK = 0.33
SECONDS_PER_LAYER_AND_STEP = 1e-3


def card_of(profile: profiles.Profile) -> Card:
    """Return the card that a profile is meant for."""
    return CARDS.get(profile.name.removeprefix("flan-t5-"), CARDS["base"])


def shape_of(name: str) -> T5Config | None:
    """Return the shape of a published FlanT5 or T5 v1.1 by its name, or None."""
    from cotspec import models

    flan = name.replace("t5-v1_1", "flan-t5")
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


class Needs(NamedTuple):
    """What notebooks need; of a student of unknown size only the disk may be known."""

    disk: int  # bytes of the checkpoints that are kept
    card: int  # bytes of the largest student's training
    student: str  # the largest
    hours: float  # on one card, without the teacher's sampling


def needs(stale: Sequence[Notebook]) -> Needs:
    """Compute what these notebooks need on one card.

    Every training is decoded at its first and last checkpoint on all test problems,
    that of notebook 07 at each. A student of the micro-world, or of a size known only
    after its download, counts as nothing.
    """
    kept, training, decoding, largest = {}, {}, 0.0, [(0, "")]
    for notebook, cell in trained(stale):
        profile, count = notebook.profile, notebook.profile.training.num_checkpoints
        once = cell, profile.training  # whoever else wants it
        weights = _weight_bytes(cell.model)
        kept[(*once, "experiments" in notebook.sections)] = count, weights
        if num_parameters(cell.model):
            is_tradeoff = any("ability_grid" in code for code in notebook.code)
            measured = count + 1 if is_tradeoff else 2
            decoding += measured * decoding_hours(cell.model, profile)
            training[once] = training_hours(cell, profile)
            # What has a checkpoint has fitted, on this card or sharded over several.
            begun = notebook.run.glob(f"work/{notebook.name}-*/training/checkpoints/*")
            if not any(begun):
                largest.append((card_bytes(cell.model, profile.training), cell.model))
    # The newest checkpoint of a training that runs holds AdamW's two moments, too.
    newest = 2 * max((weights for _, weights in kept.values()), default=0)
    disk = sum(count * weights for count, weights in kept.values()) + newest
    return Needs(disk, *max(largest), decoding + sum(training.values()))


def trained(stale: Sequence[Notebook]) -> Iterator[tuple[Notebook, Cell]]:
    """Yield what notebooks train: the grids that their code names, or one student."""
    for notebook in (one for one in stale if "training" in one.sections):
        experiments = notebook.profile.experiments
        base = grids.base_cells(notebook.profile, experiments.seeds)
        named = {
            "ability_grid": grids.ability_grid(base, experiments),
            "format_grid": grids.format_grid(base),
            "loss_grid": grids.loss_grid(base),
            "scaling_grid": grids.scaling_grid(base, experiments),
        }
        code = "\n".join(notebook.code)
        cells = [one for name in named if name in code for one in named[name]]
        yield from ((notebook, cell) for cell in cells or base[:1])


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
    source, target = 1_024, 128  # the longest that FlanT5 profiles let in
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
        scores = shape.num_heads * length * keys * (FLOAT32 + BFLOAT16)  # with the bias
        # q and context, k and v, each in bfloat16 and float32.
        inner = shape.d_kv * shape.num_heads
        total += norm + scores + inner * 2 * (BFLOAT16 + FLOAT32) * (length + keys)
    return total


def training_hours(cell: Cell, profile: profiles.Profile) -> float:
    """Estimate the hours of one training on the profile's card."""
    questions = profile.data.num_train or 7_273
    kept = questions * profile.teacher.num_samples * RIGHT
    shots = profile.formats.num_demonstrations * (QUESTION + SOLUTION)
    tokens = 0.0
    for name in cell.data_formats:
        target = SOLUTION if name.endswith("chain_of_thought") else ANSWER
        length = QUESTION + target + (shots if name.startswith("in_context") else 0)
        tokens += length * (kept if target == SOLUTION else questions)
    config = profile.training
    tokens *= config.num_epochs
    if config.max_steps is not None:  # instead of the epochs
        per_update = config.batch_tokens * config.gradient_accumulation_steps
        tokens = config.max_steps * per_update
    # A token meets the encoder or the decoder: half of the weights, thrice two FLOPs.
    work = 3 * num_parameters(cell.model) * tokens
    work *= 4 / 3 if config.activation_checkpointing else 1
    return work / (card_of(profile).flops * SHARE_OF_PEAK) / 3600


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


def main() -> None:
    """Print what each FlanT5 profile needs, as a table in Markdown."""
    series = load_series(artifacts.repository_root())
    print("| profile | card | GiB of the card | GiB of disk | hours 00–07 | 00–11 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size, card in CARDS.items():
        given = {"PROFILE": f"flan-t5-{size}", "OVERRIDES": {}}
        stale = [replace(notebook, parameters=given) for notebook in series]
        one, early, whole = (needs(some) for some in (stale[5:6], stale[:8], stale))
        print(
            f"| flan-t5-{size} | {card.name} | {one.card / GIB:.1f} | "
            f"{whole.disk / GIB:.0f} | {early.hours:.1f} | {whole.hours:.1f} |"
        )


if __name__ == "__main__":
    main()
