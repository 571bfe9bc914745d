"""One update: the gradients of its micro-batches, clipping, a step of the optimiser.

Enters: a `Run` and the stream of batches. Leaves: changed weights and a row of the log.
An update averages over all target tokens of its micro-batches, whichever process
computes them, and its dropout follows from seed and micro-batch alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cotspec import batching, losses
from cotspec.training import checkpoints, objective, schedule
from cotspec.training.run import Run


def take_update(
    run: Run, step: int, stream: Iterator[tuple[float, np.ndarray]]
) -> dict[str, float]:
    """Take one optimiser step; return its row of the log."""
    group = list(itertools.islice(stream, run.group_size))
    targets = [int(run.encoded.lengths(indices)[:, 1].sum()) for _, indices in group]
    rate = schedule.learning_rate_at(step, run.num_updates, run.config)
    for parameters in run.optimizer.param_groups:
        parameters["lr"] = rate
    loss = _accumulate(run, step, [indices for _, indices in group], sum(targets))
    norm = run.accelerator.clip_grad_norm_(
        run.model.parameters(), run.config.max_grad_norm
    )
    row = {
        "step": step,
        "epoch": group[0][0],
        "loss": loss,
        "learning_rate": rate,
        "grad_norm": float(norm),
        "num_examples": sum(len(indices) for _, indices in group),
        "num_target_tokens": sum(targets),
    }
    _check_finite(run, row)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return row


def _accumulate(
    run: Run, step: int, group: list[np.ndarray], num_targets: int
) -> float:
    """Add up this process's gradients; return the loss over all processes."""
    accelerator = run.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    total = torch.zeros((), device=accelerator.device)
    for i in range(rank, len(group), world):
        batch = _to_device(run, group[i])
        is_last = i + world >= len(group)
        sync = contextlib.nullcontext() if is_last else accelerator.no_sync(run.model)
        with sync, _seeded(run, (step - 1) * len(group) + i):
            # Processes are averaged, tokens are to be: hence times world.
            share = (batch["labels"] != losses.IGNORED).sum() / num_targets
            loss = objective.batch_loss(run.student, run.model, batch, run.loss) * share
            accelerator.backward(loss * world)
        total += loss.detach()
    return accelerator.reduce(total, reduction="sum").item()


def _to_device(run: Run, indices: np.ndarray) -> dict[str, Tensor]:
    tokenizer, model_config = run.student.tokenizer, run.student.model.config
    pad = tokenizer.pad_token_id
    batch = batching.collate(
        run.encoded,
        indices,
        pad_id=tokenizer.eos_token_id if pad is None else pad,
        pad_left=not model_config.is_encoder_decoder,
    )
    device = run.accelerator.device
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextlib.contextmanager
def _seeded(run: Run, micro_batch: int) -> Iterator[None]:
    """Make dropout a function of seed and micro-batch; leave the global state alone."""
    entropy = np.random.SeedSequence([run.seed, micro_batch])
    device = run.accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        yield


def _check_finite(run: Run, row: dict[str, float]) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(row[name]):
            newest = checkpoints.list_checkpoints(run.work_dir)[-1:]
            raise FloatingPointError(
                f"training: {name} is {row[name]} at step {row['step']} (learning rate "
                f"{row['learning_rate']:.3g}); the weights are those of step "
                f"{row['step'] - 1}; newest checkpoint: "
                f"{newest[0][1] if newest else 'none yet'}"
            )
