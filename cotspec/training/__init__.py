"""Specialize a student: the loop, its schedule, checkpoints, resume and log.

Enters: a `Student`, training examples, aligned targets and the ``training`` and
``loss`` sections of a profile. Leaves, under ``work_dir``::

    metrics.csv                      one row per update, the same bytes for every run
    timing.csv                       rates between checkpoints; differs between runs
    checkpoints/step-000020/         model.safetensors, state.json and, in the newest
                                     one, optimizer.safetensors

A run that was killed goes on from its newest checkpoint and ends with the same weights
and the same ``metrics.csv``. For this nothing may depend on what happened before: the
learning rate follows from the step, the batches from seed and epoch, and dropout from
seed and micro-batch. The same holds for the number of processes: an update averages
over all target tokens of its micro-batches, whichever process computes them.

Modules, top down: `loop` runs `update` after update; `objective` is what a batch costs,
`schedule` how long and how fast a run is; `checkpoints` and `log` are what it leaves;
`run` is what they share. ``python -m cotspec.commands train`` starts it.
"""

from cotspec.training.checkpoints import (
    export_weights,
    list_checkpoints,
    load_checkpoint,
)
from cotspec.training.loop import Validate, train
from cotspec.training.objective import batch_loss
from cotspec.training.run import TrainResult
from cotspec.training.schedule import learning_rate_at

__all__ = [
    "TrainResult",
    "Validate",
    "batch_loss",
    "export_weights",
    "learning_rate_at",
    "list_checkpoints",
    "load_checkpoint",
    "train",
]
