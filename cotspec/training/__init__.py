"""Specialize a student: the loop, its schedule, checkpoints, resume and log.

Enters: a `Student`, training examples, aligned targets and the ``training`` and
``loss`` sections of a profile. Leaves, under ``work_dir``::

    metrics.csv                      one row per update, the same bytes for every run
    checkpoints/step-000020/         model.safetensors, state.json and, in the newest
                                     one, resume/

A run that was killed goes on from its newest checkpoint and ends with the same weights
and the same ``metrics.csv``. The number of processes changes neither: an update
averages over all target tokens of its micro-batches, whichever process computes them.
"""

from cotspec.training.checkpoints import (
    export_weights,
    list_checkpoints,
    load_checkpoint,
)
from cotspec.training.loop import TrainResult, batch_loss, learning_rate_at, train

__all__ = [
    "TrainResult",
    "batch_loss",
    "export_weights",
    "learning_rate_at",
    "list_checkpoints",
    "load_checkpoint",
    "train",
]
