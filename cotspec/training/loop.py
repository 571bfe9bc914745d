"""The loop: updates, validation, checkpoints, early stopping.

Enters: a `Student`, examples and a profile's sections. Leaves: the student with the
last update's weights, and the files that `cotspec.training` lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from tqdm import tqdm

from cotspec import batching
from cotspec.batching import EncodedExamples
from cotspec.models import Student
from cotspec.profiles import FormatsConfig, LossConfig, TrainingConfig
from cotspec.training import checkpoints, log, objective, schedule, update
from cotspec.training.run import Progress, Run, TrainResult

DEFAULT_LOSS = LossConfig()
DEFAULT_FORMATS = FormatsConfig()
Validate = Callable[[int, Student], float]


def train(
    student: Student,
    examples: Dataset | EncodedExamples,
    config: TrainingConfig,
    *,
    work_dir: Path,
    aligned: Dataset | None = None,
    loss: LossConfig = DEFAULT_LOSS,
    formats: FormatsConfig = DEFAULT_FORMATS,
    seed: int = 0,
    validate: Validate | None = None,
) -> TrainResult:
    """Train the student's weights in place, or finish a run that was interrupted.

    Parameters
    ----------
    student : Student
        Encoder-decoder, or decoder-only: then sources are padded on the left and the
        target follows them. Left in evaluation mode with the last update's weights.
    examples : Dataset or EncodedExamples
        Training examples, see `cotspec.batching`; what several trainings share can be
        encoded once, with its aligned targets; then `aligned` must be None and
        `formats` is not used.
    config : TrainingConfig
    work_dir : Path
        Where the log and the checkpoints go. If it has checkpoints of the same run,
        the newest is taken up.
    aligned : Dataset, optional
        Aligned targets; distribution matching needs them for sampled solutions.
    loss : LossConfig
    formats : FormatsConfig
        For ``max_input_tokens``.
    seed : int
        Of batches and dropout.
    validate : callable, optional
        ``(step, student) -> float``, higher is better, called at every checkpoint on
        every process. With ``config.patience`` the run stops once so many checkpoints
        in a row brought nothing better.

    Raises
    ------
    ValueError
        Missing aligned targets, a batch budget below the longest example, or a
        `work_dir` of another run.
    FloatingPointError
        Loss or gradient is not finite; the message names the step. Log and checkpoints
        up to there stay.
    """
    work_dir = Path(work_dir)
    if isinstance(examples, EncodedExamples):
        objective.check_encoded(examples, aligned, loss)
        encoded = examples
    else:
        objective.check_aligned(examples, aligned, loss)
        encoded = batching.encode(
            examples,
            student.tokenizer,
            aligned=aligned,
            max_input_tokens=formats.max_input_tokens,
        )
    precision = "bf16" if config.precision == "bfloat16" else "no"
    AcceleratorState._reset_state()  # an earlier run may have had another precision
    accelerator = Accelerator(mixed_precision=precision)
    names = tuple(name for name, _ in student.model.named_parameters())
    newest = checkpoints.newest(work_dir, accelerator)
    student.model.float()
    if newest:
        checkpoints.load_weights(student, newest)
    model, optimizer = accelerator.prepare(
        student.model, schedule.make_optimizer(student.model, config)
    )
    run = Run(
        student=student,
        model=model,
        optimizer=optimizer,
        accelerator=accelerator,
        encoded=encoded,
        config=config,
        loss=loss,
        seed=seed,
        num_updates=schedule.num_updates(
            encoded, config, accelerator.num_processes, seed
        ),
        work_dir=work_dir,
        parameter_names=names,
    )
    progress = checkpoints.resume(run, newest)
    try:
        with _train_mode(run):
            _loop(run, progress, validate)
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return TrainResult(
        checkpoints=checkpoints.list_checkpoints(work_dir),
        metrics=pd.read_csv(run.metrics_path),
        metrics_path=run.metrics_path,
        validation=progress.validation,
        num_truncated=encoded.num_truncated,
    )


def _loop(run: Run, progress: Progress, validate: Validate | None) -> None:
    stream = batching.batch_stream(
        run.encoded.lengths(),
        run.config.batch_tokens,
        seed=run.seed,
        start=progress.step * run.group_size,
    )
    bar = tqdm(
        total=run.num_updates,
        initial=progress.step,
        desc=f"training {run.student.name}",
        unit="update",
        disable=not run.accelerator.is_main_process,
    )
    clock = log.Clock(run.timing_path)
    with bar:
        while progress.step < run.num_updates and not _is_stopped(run, progress):
            row = update.take_update(run, progress.step + 1, stream)
            progress.step = row["step"]
            if run.accelerator.is_main_process:
                log.append_row(run.metrics_path, row)
            clock.count(row)
            bar.update()
            rate = f"{clock.target_tokens / clock.seconds():.0f}"
            bar.set_postfix({"loss": f"{row['loss']:.4f}", "tokens/s": rate})
            if _is_checkpoint_due(run, progress.step):
                _checkpoint(run, progress, validate, clock)


@contextlib.contextmanager
def _train_mode(run: Run) -> Iterator[None]:
    """Dropout on, and activation checkpointing if wanted; off again at the end."""
    # PAPER: train() is never called, so there is no dropout. HERE: as FlanT5 was tuned.
    run.model.train()
    run.optimizer.zero_grad()
    if run.config.activation_checkpointing:
        run.student.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        run.optimizer.zero_grad()
        if run.config.activation_checkpointing:
            run.student.model.gradient_checkpointing_disable()
        run.model.eval()


def _is_checkpoint_due(run: Run, step: int) -> bool:
    num = run.config.num_checkpoints
    return step in {round(i * run.num_updates / num) for i in range(1, num + 1)}


def _is_stopped(run: Run, progress: Progress) -> bool:
    """Whether the last `patience` validations brought nothing better."""
    patience = run.config.patience
    values = [value for _, value in progress.validation]
    if patience is None or len(values) <= patience:
        return False
    return max(values[-patience:]) <= max(values[:-patience])


def _checkpoint(
    run: Run, progress: Progress, validate: Validate | None, clock: log.Clock
) -> None:
    """Validate, then save; the value is part of the state that is saved."""
    if validate:
        run.model.eval()
        value = float(validate(progress.step, run.student))
        progress.validation.append((progress.step, value))
        run.model.train()
    if run.accelerator.is_main_process:
        clock.write(progress.step)  # before the disk is waited for
    checkpoints.save(run, progress)
