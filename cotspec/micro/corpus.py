"""What the micro-world's models are pretrained on, as text and as batches.

Enters: a `MicroConfig`, a tokenizer and a seed. Leaves: an endless stream of batches
that depends on the seed alone. Wording comes from `prompts`, questions from the
training split.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from cotspec import prompts
from cotspec.micro import generic, tokenizers, world
from cotspec.micro.shipped import (
    MicroConfig,
)

IGNORE = -100
_POOL_BATCHES = 16  # drawn at once and sorted by length, so that padding is rare
_CORRUPTED_SHARE = 0.15  # T5's, with spans of three tokens on average
_MEAN_SPAN = 3

Items = dict[str, list[dict]]
Example = tuple[list[int], list[int]]  # input ids, label ids


def training_items(config: MicroConfig, *, seed: int) -> Items:
    """Return ``{family: items}`` of the pretraining split, `config.pool_size` each."""
    size = config.pool_size
    items = {
        family: world.generate(family, "pretraining", size, seed=seed)
        for family in world.FAMILIES
    }
    return items | {
        family: generic.generate(family, "pretraining", size // 4, seed=seed)
        for family in generic.FAMILIES
    }


def tokenizer_texts() -> list[str]:
    """Return the solved problems that the shipped tokenizers were made from."""
    items = []
    for family in world.FAMILIES:
        items += world.generate(family, "train", 4000, seed=11)
    for family in generic.FAMILIES:
        items += generic.generate(family, "train", 1000, seed=11)
    return [_solved(item) for item in items]


def _solved(item: dict) -> str:
    return prompts.demonstration_block(_demonstration(item), chain_of_thought=True)


def _demonstration(item: dict) -> prompts.Demonstration:
    return prompts.Demonstration(item["question"], item["rationale"], item["answer"])


def _solution(item: dict) -> str:
    return prompts.solution(item["rationale"], item["answer"])


def teacher_example(
    rng: Random, items: Items, config: MicroConfig, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Draw a few-shot CoT document; the solutions and the end are the labels.

    Learning to write questions would take most of a small model's capacity.
    """
    family = _draw_family(rng, config, config.teacher_out_of_distribution_share)
    num = rng.randint(0, config.teacher_demonstrations)
    *shown, asked = rng.sample(items[family], num + 1)
    prompt = prompts.teacher_prompt(
        asked["question"], [_demonstration(item) for item in shown]
    )
    text = prompt + _solution(asked)
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids, labels, is_solution = encoded["input_ids"], [], False
    for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        labels.append(token if is_solution else IGNORE)
        if "\n" in text[start:end]:
            is_solution = text[:start].endswith(prompts.COT_TRIGGER)
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def _draw_family(rng: Random, config: MicroConfig, other_share: float) -> str:
    """Draw the training family, or one of the other three with `other_share`."""
    first, *others = world.FAMILIES
    return rng.choice(others) if rng.random() < other_share else first


def instruction_example(
    rng: Random, items: Items, config: MicroConfig, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Draw a problem of any family in one of the four data formats."""
    if rng.random() < config.generic_share:
        family = rng.choice(generic.FAMILIES)
    else:
        family = _draw_family(rng, config, config.out_of_distribution_share)
    is_in_context = rng.random() < config.in_context_share
    is_chain_of_thought = rng.random() < config.chain_of_thought_share
    shown_as = "in_context" if is_in_context else "zero_shot"
    mode = f"{shown_as}_{'chain_of_thought' if is_chain_of_thought else 'answer_only'}"
    num = rng.randint(1, config.num_demonstrations) if is_in_context else 0
    *shown, asked = rng.sample(items[family], num + 1)
    inputs = prompts.build_inputs(
        asked["question"], mode, [_demonstration(item) for item in shown]
    )
    targets = prompts.build_target(
        mode, completion=_solution(asked), answer=asked["answer"]
    )
    encode = tokenizer(inputs, verbose=False), tokenizer(targets, verbose=False)
    return encode[0]["input_ids"], encode[1]["input_ids"]


def span_corruption_example(
    rng: Random, items: Items, config: MicroConfig, tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Draw a solved problem with spans replaced by sentinels (Raffel et al. 2020)."""
    family = rng.choice([*generic.FAMILIES, *world.FAMILIES * 2])
    text = _solved(rng.choice(items[family]))
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    marks = tokenizer.convert_tokens_to_ids(list(tokenizers.sentinels()))
    return corrupt_spans(rng, ids, marks, tokenizer.eos_token_id)


def corrupt_spans(
    rng: Random, ids: Sequence[int], sentinel_ids: Sequence[int], eos_id: int
) -> Example:
    """Replace random spans by sentinels; the labels are the sentinels and the spans.

    Parameters
    ----------
    rng : random.Random
    ids : sequence of int
        A text without its end token.
    sentinel_ids : sequence of int
        At most this many spans are cut, less one: the last mark closes the labels.
    eos_id : int
        Appended to both.

    Returns
    -------
    tuple of list of int
        Input ids, label ids.
    """
    wanted = round(len(ids) * _CORRUPTED_SHARE / _MEAN_SPAN)
    num_spans = max(1, min(wanted, len(sentinel_ids) - 1, len(ids) // 4))
    starts = sorted(rng.sample(range(len(ids)), num_spans))
    inputs, labels, end = [], [], 0
    for mark, start in zip(sentinel_ids, starts, strict=False):
        start = max(start, end)
        inputs += [*ids[end:start], mark]
        end = min(start + rng.randint(1, 2 * _MEAN_SPAN - 1), len(ids))
        labels += [mark, *ids[start:end]]
    closing = sentinel_ids[num_spans]
    return [*inputs, *ids[end:], eos_id], [*labels, closing, eos_id]


def batches(
    draw: Callable[[Random], Example],
    collate: Callable[[list[Example]], dict[str, torch.Tensor]],
    *,
    batch_size: int,
    seed: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches for ever; each depends on the seed and its number.

    Examples are drawn a pool at a time and sorted by length within it.
    """
    for pool in itertools.count():
        rng = Random(f"{seed}/{pool}")
        drawn = [draw(rng) for _ in range(_POOL_BATCHES * batch_size)]
        drawn.sort(key=lambda example: len(example[0]) + len(example[1]))
        order = rng.sample(range(_POOL_BATCHES), _POOL_BATCHES)
        for position in order:
            start = position * batch_size
            yield collate(drawn[start : start + batch_size])


def collate(examples: list[Example], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pad to ``input_ids, attention_mask`` (B, S) and ``labels`` (B, T).

    A causal model's labels are as long as its inputs, T = S; -100 is ignored.
    """
    ids = [torch.tensor(inputs) for inputs, _ in examples]
    labels = [torch.tensor(targets) for _, targets in examples]
    padded = torch.nn.utils.rnn.pad_sequence(ids, True, pad_id)
    lengths = torch.tensor([len(row) for row in ids])
    mask = torch.arange(padded.shape[1])[None] < lengths[:, None]  # (B, S)
    return {
        "input_ids": padded,
        "attention_mask": mask.long(),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, True, IGNORE),
    }
