"""How long a run is, how fast it learns, and with which optimiser.

Enters: the ``training`` section of a profile. Leaves: the number of updates, the rate
of each, and an optimiser. Nothing here depends on what happened before.
"""

from __future__ import annotations

import math

import torch
from torch.optim import AdamW, Optimizer
from transformers import Adafactor

from cotspec import batching
from cotspec.profiles import TrainingConfig


def learning_rate_at(step: int, num_updates: int, config: TrainingConfig) -> float:
    """Return the rate of update `step` (1 to `num_updates`).

    Linear warm-up over ``warmup_steps`` updates below the peak, then half a cosine to
    zero, which it would reach one update after the last.
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return config.learning_rate * step / (warmup + 1)
    # PAPER: sized in micro-batches, stepped per update, so that it hardly falls.
    # HERE: sized in updates.
    share = (step - 1 - warmup) / (num_updates - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2


def num_updates(
    encoded: batching.EncodedExamples, config: TrainingConfig, world: int, seed: int
) -> int:
    """Return the updates of a run: ``max_steps``, or ``num_epochs`` in updates.

    Parameters
    ----------
    encoded : EncodedExamples
    config : TrainingConfig
    world : int
        Processes; together they take ``world * gradient_accumulation_steps``
        micro-batches per update.
    seed : int
        Of the batches.
    """
    if config.max_steps is not None:
        return config.max_steps
    batches = batching.plan_epoch(
        encoded.lengths(), config.batch_tokens, seed=seed, epoch=0
    )
    per_update = world * config.gradient_accumulation_steps
    return max(1, round(config.num_epochs * len(batches) / per_update))


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> Optimizer:
    """Return AdamW, or Adafactor with the rate of the schedule, over all weights.

    Adafactor's rate is relative to the size of a parameter, as T5 was pretrained and
    FlanT5 was tuned (Raffel et al. 2020, Chung et al. 2022).
    """
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adafactor":
        return Adafactor(
            model.parameters(), scale_parameter=True, relative_step=False, **options
        )
    return AdamW(model.parameters(), **options)
