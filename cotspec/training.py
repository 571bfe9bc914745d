"""The loop: updates, validation, checkpoints, early stopping.

Enters: a `Student`, examples and a profile's sections. Leaves: the student with the
last update's weights, and the files that `cotspec.training` lists.

Nothing may depend on what happened before, so that a killed run ends like an unbroken
one: the learning rate follows from the step, the batches from seed and epoch, dropout
from seed and micro-batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import Tensor
from torch.optim import AdamW, Optimizer
from tqdm import tqdm
from transformers import Adafactor

from cotspec import artifacts, batching, losses
from cotspec.batching import EncodedExamples
from cotspec.models import Student, in_precision, tokenizer_digest
from cotspec.profiles import FormatsConfig, LossConfig, TrainingConfig
from cotspec.training import checkpoints

METRICS = (
    "step,epoch,loss,learning_rate,grad_norm,num_examples,num_target_tokens".split(",")
)
Validate = Callable[[int, Student], float]


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


@dataclass(frozen=True)
class Run:
    """What stays the same during one run, and (`progress`) what changes."""

    student: Student
    model: torch.nn.Module  # the student's, as Accelerate wrapped it
    optimizer: Optimizer
    accelerator: Accelerator
    encoded: EncodedExamples
    config: TrainingConfig
    loss: LossConfig
    seed: int
    num_updates: int
    work_dir: Path
    progress: Progress

    @property
    def metrics_path(self) -> Path:
        """The log: the same bytes for every run."""
        return self.work_dir / "metrics.csv"

    @functools.cached_property
    def settings(self) -> dict[str, object]:
        """What must be the same for a run to be the same."""
        training = dataclasses.asdict(self.config)
        # It changes the number of checkpoints, not the weights.
        training.pop("num_checkpoints")
        return {
            "training": training,
            "loss": dataclasses.asdict(self.loss),
            "seed": self.seed,
            "student": self.student.name,
            "tokenizer": tokenizer_digest(self.student.tokenizer),
            "data": data_digest(self.encoded),
            "num_updates": self.num_updates,
        }


@dataclass
class Progress:
    """What is saved with every checkpoint beside the weights."""

    step: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)


def data_digest(encoded: EncodedExamples) -> str:
    """Return the SHA-256 of all that is learned from: inputs, labels, distributions."""
    digest = hashlib.sha256()
    for array in itertools.chain(encoded.input_ids, encoded.labels):
        digest.update(b"|" + array.tobytes())
    digest.update(encoded.teacher_row.tobytes())
    if encoded.aligned is not None:
        for array in dataclasses.astuple(encoded.aligned):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def train(
    student: Student,
    examples: Dataset | EncodedExamples,
    config: TrainingConfig,
    *,
    work_dir: Path,
    aligned: Dataset | None = None,
    loss: LossConfig | None = None,
    formats: FormatsConfig | None = None,
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
    loss : LossConfig, optional
    formats : FormatsConfig, optional
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
    work_dir, loss = Path(work_dir), loss or LossConfig()
    config = in_precision(config)
    encoded = _encoded(examples, aligned, loss, formats or FormatsConfig(), student)
    precision = "bf16" if config.precision == "bfloat16" else "no"
    AcceleratorState._reset_state()  # an earlier run may have had another precision
    accelerator = Accelerator(mixed_precision=precision)
    student.model.float()
    freeze(student.model, config.num_frozen_layers)
    model, optimizer = accelerator.prepare(
        student.model, make_optimizer(student.model, config)
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
        num_updates=num_updates(encoded, config, seed),
        work_dir=work_dir,
        progress=Progress(),
    )
    checkpoints.resume(run)
    _begin_log(run)
    try:
        with _train_mode(run):
            _loop(run, validate)
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        student.model.requires_grad_(True)
    return TrainResult(
        checkpoints=checkpoints.list_checkpoints(work_dir),
        metrics=pd.read_csv(run.metrics_path),
        metrics_path=run.metrics_path,
        validation=run.progress.validation,
        num_truncated=encoded.num_truncated,
    )


def _encoded(
    examples: Dataset | EncodedExamples,
    aligned: Dataset | None,
    loss: LossConfig,
    formats: FormatsConfig,
    student: Student,
) -> EncodedExamples:
    """Encode what is not yet; refuse distribution matching without distributions."""
    is_encoded = isinstance(examples, EncodedExamples)
    if is_encoded and aligned is not None:
        raise ValueError(
            "aligned: given, but examples are encoded already. Allowed: None; give "
            "the targets to batching.encode"
        )
    has_targets = (examples.aligned if is_encoded else aligned) is not None
    if loss.name == "distribution_matching" and not has_targets:
        ids = [0] if is_encoded else examples["sample_id"][:]
        if sampled := sum(sample_id >= 0 for sample_id in ids):
            raise ValueError(
                f"aligned: None, but {'the' if is_encoded else sampled} examples are "
                "sampled solutions and loss.name is 'distribution_matching'. Allowed: "
                "their aligned targets, or loss.name 'sample_matching'"
            )
    if is_encoded:
        return examples
    return batching.encode(
        examples,
        student.tokenizer,
        aligned=aligned,
        max_input_tokens=formats.max_input_tokens,
        is_causal=not student.model.config.is_encoder_decoder,
    )


def _loop(run: Run, validate: Validate | None) -> None:
    progress, config = run.progress, run.config
    stream = batching.batch_stream(
        run.encoded.lengths(),
        config.batch_tokens,
        seed=run.seed,
        start=progress.step * config.gradient_accumulation_steps,
    )
    due = checkpoint_steps(run.num_updates, config.num_checkpoints)
    is_main = run.accelerator.is_main_process
    bar = tqdm(
        total=run.num_updates,
        initial=progress.step,
        desc=f"training {run.student.name}",
        unit="update",
        disable=not is_main,
    )
    began, num_tokens = time.perf_counter(), 0
    with bar:
        while progress.step < run.num_updates and not _is_stopped(run):
            row = take_update(run, progress.step + 1, stream)
            progress.step = row["step"]
            if is_main:
                _append_row(run.metrics_path, row)
            num_tokens += row["num_target_tokens"]
            bar.update()
            rate = num_tokens / (time.perf_counter() - began)
            bar.set_postfix({"loss": f"{row['loss']:.4f}", "tokens/s": f"{rate:.0f}"})
            if progress.step in due:
                _checkpoint(run, validate)


def take_update(
    run: Run, step: int, stream: Iterator[tuple[float, np.ndarray]]
) -> dict[str, float]:
    """Take one optimiser step; return its row of the log."""
    group = list(itertools.islice(stream, run.config.gradient_accumulation_steps))
    num_targets = sum(int(run.encoded.lengths(rows)[:, 1].sum()) for _, rows in group)
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    # A process without a micro-batch of its own computes the first for nothing: the
    # others wait for its gradients.
    mine = range(rank, len(group), world) or [0]
    weight = world if rank < len(group) else 0
    rate = learning_rate_at(step, run.num_updates, run.config)

    def loss_of(i: int) -> Tensor:
        batch = _to_device(run, group[i][1])
        with _seeded(run, (step - 1) * len(group) + i):
            loss = batch_loss(run.student, run.model, batch, run.loss)
        # An update averages over all its target tokens, whichever micro-batch holds
        # them; processes are averaged by Accelerate, hence times world.
        return loss * ((batch["labels"] != losses.IGNORED).sum() / num_targets) * weight

    row = {
        "step": step,
        "epoch": group[0][0],
        "learning_rate": rate,
        "num_examples": sum(len(rows) for _, rows in group),
        "num_target_tokens": num_targets,
    }
    try:
        total, norm = step_optimizer(
            run.accelerator,
            run.model,
            run.optimizer,
            [functools.partial(loss_of, i) for i in mine],
            rate=rate,
            max_grad_norm=run.config.max_grad_norm,
        )
    except FloatingPointError as error:
        newest = checkpoints.list_checkpoints(run.work_dir)[-1:]
        raise FloatingPointError(
            f"training: {error} at step {step} (learning rate {rate:.3g}); the weights "
            f"are those of step {step - 1}; newest checkpoint: "
            f"{newest[0][1] if newest else 'none yet'}"
        ) from None
    return row | {"loss": total / world, "grad_norm": norm}


def step_optimizer(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Optimizer,
    loss_functions: Iterable[Callable[[], Tensor]],
    *,
    rate: float,
    max_grad_norm: float,
) -> tuple[float, float]:
    """Back-propagate losses one after the other, clip, and take a step.

    Parameters
    ----------
    loss_functions : iterable of callable
        Each makes one micro-batch's loss; only then its activations take memory.

    Returns
    -------
    tuple of float
        The sum of the losses over all processes, and the norm before clipping.

    Raises
    ------
    FloatingPointError
        Loss or norm is not finite; nothing was changed.
    """
    loss_functions = list(loss_functions)
    total = torch.zeros((), device=accelerator.device)
    for i, loss_of in enumerate(loss_functions):
        # Gradients are exchanged between processes once, with the last of them.
        is_last = i == len(loss_functions) - 1
        sync = contextlib.nullcontext() if is_last else accelerator.no_sync(model)
        with sync:
            loss = loss_of()
            accelerator.backward(loss)
        total += loss.detach()
    loss = accelerator.reduce(total, reduction="sum").item()
    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    for name, value in (("loss", loss), ("grad_norm", norm)):
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm


def batch_loss(
    student: Student, model: torch.nn.Module, batch: dict[str, Tensor], loss: LossConfig
) -> Tensor:
    """Return a batch's loss, nats per target token.

    Parameters
    ----------
    student : Student
        Tells the architecture.
    model : Module
        The student's model, or a wrapper of it.
    batch : dict of Tensor
        See `cotspec.batching`.
    loss : LossConfig
    """
    forward = _seq2seq if student.model.config.is_encoder_decoder else _causal
    logits = forward(student, model, batch)  # (B, T, V)
    if loss.name == "sample_matching":
        return losses.sample_matching(logits, batch["labels"])
    return losses.distribution_matching(
        logits,
        batch["labels"],
        batch["teacher_ids"],
        batch["teacher_probs"],
        tail=loss.tail,
        divergence=loss.divergence,
        cross_entropy_weight=loss.cross_entropy_weight,
    )


def _seq2seq(
    student: Student, model: torch.nn.Module, batch: dict[str, Tensor]
) -> Tensor:
    shifted = student.model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=shifted,
        use_cache=False,
    ).logits


def _causal(
    student: Student, model: torch.nn.Module, batch: dict[str, Tensor]
) -> Tensor:
    """Logits of the target tokens; sources end where targets begin."""
    is_target = batch["labels"] != losses.IGNORED
    mask = torch.cat([batch["attention_mask"], is_target.long()], 1)  # (B, S + T)
    num_targets = batch["labels"].shape[1]
    logits = model(
        input_ids=torch.cat([batch["input_ids"], batch["labels"].clamp_min(0)], 1),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        use_cache=False,
        logits_to_keep=num_targets + 1,
    ).logits
    return logits[:, :-1]


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


def _checkpoint(run: Run, validate: Validate | None) -> None:
    """Validate, then save; the value is part of the state that is saved."""
    if validate:
        run.model.eval()
        value = float(validate(run.progress.step, run.student))
        run.progress.validation.append((run.progress.step, value))
        run.model.train()
    checkpoints.save(run)


def _is_stopped(run: Run) -> bool:
    """Whether the last `patience` validations brought nothing better."""
    patience = run.config.patience
    values = [value for _, value in run.progress.validation]
    if patience is None or len(values) <= patience:
        return False
    return max(values[-patience:]) <= max(values[:-patience])


# --- the schedule ---------------------------------------------------------------------


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


def num_updates(encoded: EncodedExamples, config: TrainingConfig, seed: int) -> int:
    """Return the updates of a run: ``max_steps``, or ``num_epochs`` in updates."""
    if config.max_steps is not None:
        return config.max_steps
    batches = batching.plan_epoch(
        encoded.lengths(), config.batch_tokens, seed=seed, epoch=0
    )
    per_update = config.gradient_accumulation_steps
    return max(1, round(config.num_epochs * len(batches) / per_update))


def checkpoint_steps(num_updates: int, num_checkpoints: int) -> list[int]:
    """Return after which updates a checkpoint is saved: evenly, and at the end."""
    steps = {
        round(i * num_updates / num_checkpoints) for i in range(num_checkpoints + 1)
    }
    return sorted(steps - {0})


def freeze(model: torch.nn.Module, num_layers: int) -> None:
    """Let embeddings and the first layers of a decoder-only model learn nothing.

    Raises
    ------
    ValueError
        More layers than there are, or a model with an encoder.
    """
    if not num_layers:
        return
    layers = () if model.config.is_encoder_decoder else model.get_decoder().layers
    if num_layers > len(layers):
        raise ValueError(
            f"training.num_frozen_layers: {num_layers}. Allowed for this student: 0"
            + (f" to {len(layers)}" if layers else " (it has an encoder)")
        )
    for module in (model.get_input_embeddings(), *layers[:num_layers]):
        module.requires_grad_(False)


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> Optimizer:
    """Return AdamW, or Adafactor with the rate of the schedule, over what learns.

    Adafactor's rate is relative to the size of a parameter, as T5 was pretrained and
    FlanT5 was tuned (Raffel et al. 2020, Chung et al. 2022).
    """
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    learned = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adafactor":
        return Adafactor(learned, scale_parameter=True, relative_step=False, **options)
    return AdamW(learned, **options)


# --- the log --------------------------------------------------------------------------


def _begin_log(run: Run) -> None:
    """Cut the log back to the checkpoint that is taken up; a torn row goes too."""
    path = run.metrics_path
    if run.accelerator.is_main_process:
        lines = path.read_text("utf-8").splitlines()[1:] if path.exists() else []
        whole = [line for line in lines if line.count(",") == len(METRICS) - 1]
        kept = [line for line in whole if int(line.split(",")[0]) <= run.progress.step]
        text = "\n".join([",".join(METRICS), *kept[: run.progress.step]]) + "\n"
        artifacts.write_bytes(path, text.encode())
    run.accelerator.wait_for_everyone()


def _append_row(path: Path, row: dict[str, float]) -> None:
    """Add one update, nine significant digits each."""
    values = [f"{row[name]:.9g}" for name in METRICS]
    with open(path, "a", encoding="utf-8") as file:
        file.write(",".join(values) + "\n")
