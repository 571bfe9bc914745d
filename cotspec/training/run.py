"""One run: what stays the same during it, what changes, and what it leaves behind.

Enters: what `train` was given, made ready by Accelerate. Leaves: `Run` and `Progress`,
which the loop and the checkpoints share, and `TrainResult`, which `train` returns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from cotspec import batching
from cotspec.models import Student
from cotspec.profiles import LossConfig, TrainingConfig


@dataclass(frozen=True)
class Run:
    """What stays the same during one run."""

    student: Student
    model: torch.nn.Module  # the student's, as Accelerate wrapped it
    optimizer: Optimizer
    accelerator: Accelerator
    encoded: batching.EncodedExamples
    config: TrainingConfig
    loss: LossConfig
    seed: int
    num_updates: int
    work_dir: Path
    parameter_names: tuple[str, ...]

    @property
    def group_size(self) -> int:
        """Micro-batches per update, over all processes."""
        accelerator = self.accelerator
        return accelerator.num_processes * self.config.gradient_accumulation_steps

    @property
    def metrics_path(self) -> Path:
        """The log that is the same for every run."""
        return self.work_dir / "metrics.csv"

    @property
    def timing_path(self) -> Path:
        """The log of how fast this one was."""
        return self.work_dir / "timing.csv"


@dataclass
class Progress:
    """What changes, and is saved with every checkpoint."""

    step: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    `checkpoints` are ``(step, folder)`` in order, `metrics` the content of
    ``metrics.csv``, `validation` the ``(step, value)`` pairs if there was a callback,
    `num_truncated` the inputs cut to ``max_input_tokens`` per data format.
    """

    checkpoints: list[tuple[int, Path]]
    metrics: pd.DataFrame
    metrics_path: Path
    validation: list[tuple[int, float]]
    num_truncated: dict[str, int]
