"""Specialize a student: the loop, its schedule, checkpoints, resume and log.

Enters: a `Student`, encoded examples and the ``training`` and ``loss`` sections of a
profile. Leaves: the student with the last update's weights and, under ``work_dir``::

    metrics.csv                      one row per update, the same bytes for every run
    checkpoints/step-000020/         model.safetensors, state.json and, in the newest
                                     one, resume/, Accelerate's own state

A run that was killed goes on from its newest checkpoint and ends with the same weights
and the same ``metrics.csv``, for nothing depends on what happened before: the learning
rate follows from the step, the batches from seed and epoch, dropout from seed and
micro-batch. The number of processes changes neither: an update averages over all target
tokens of its micro-batches, whichever process computes them.
"""

import contextlib
import hashlib
import itertools
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_model, save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer
from tqdm import tqdm
from transformers import Adafactor

from cotspec import artifacts, batching, losses
from cotspec.batching import EncodedExamples
from cotspec.models import Student, in_precision, tokenizer_digest
from cotspec.profiles import LossConfig, TrainingConfig

logger = logging.getLogger(__name__)

# It says of tied weights that they are saved once.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
METRICS = (
    "step,epoch,loss,learning_rate,grad_norm,num_examples,num_target_tokens".split(",")
)
WEIGHTS, STATE, RESUME = "model.safetensors", "state.json", "resume"


@dataclass(eq=False)
class Run:
    """What stays the same during one run.

    `model` is the student's as Accelerate wrapped it; `settings` are what must be the
    same for a run to be the same.
    """

    student: Student
    encoded: EncodedExamples
    config: TrainingConfig
    loss: LossConfig
    seed: int
    work_dir: Path

    def __post_init__(self) -> None:
        student, config = self.student, self.config
        self.metrics_path = self.work_dir / "metrics.csv"
        self.num_updates = num_updates(self.encoded, config, self.seed)
        AcceleratorState._reset_state()  # an earlier run may have had another precision
        precision = "bf16" if config.precision == "bfloat16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision)
        student.model.float()
        freeze(student.model, config.num_frozen_layers)
        optimizer = make_optimizer(student.model, config)
        self.model, self.optimizer = self.accelerator.prepare(student.model, optimizer)
        self.settings = {
            # How many checkpoints there are does not change the weights.
            "training": vars(config) | {"num_checkpoints": None},
            "loss": vars(self.loss),
            "seed": self.seed,
            "student": student.name,
            "tokenizer": tokenizer_digest(student.tokenizer),
            "data": data_digest(self.encoded),
            "num_updates": self.num_updates,
        }


def train(
    student: Student,
    encoded: EncodedExamples,
    config: TrainingConfig,
    *,
    work_dir: Path,
    loss: LossConfig | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Train the student's weights in place, or finish a run that was interrupted.

    Parameters
    ----------
    student : Student
        Encoder-decoder, or decoder-only: then sources are padded on the left and the
        target follows them. Left in evaluation mode with the last update's weights.
    encoded : EncodedExamples
        From `batching.encode`, with the student's tokenizer; distribution matching
        needs their aligned targets.
    config : TrainingConfig
    work_dir : Path
        Where the log and the checkpoints go. If it has checkpoints of the same run,
        the newest is taken up.
    loss : LossConfig, optional
    seed : int
        Of batches and dropout.

    Returns
    -------
    DataFrame
        The content of ``metrics.csv``.

    Raises
    ------
    ValueError
        Missing aligned targets, examples encoded for the other architecture, a batch
        budget below the longest example, or a `work_dir` of another run.
    FloatingPointError
        Loss or gradient is not finite; the message names the step. Log and checkpoints
        up to there stay.
    """
    loss, config = loss or LossConfig(), in_precision(config)
    if loss.name == "distribution_matching" and encoded.aligned is None:
        said = f"encoded.aligned: None. loss.name {loss.name!r} needs aligned targets"
        raise ValueError(f"{said}, given to batching.encode")
    if encoded.is_causal == student.model.config.is_encoder_decoder:
        said = f"encoded.is_causal: {encoded.is_causal}. Allowed for {student.name!r}"
        raise ValueError(f"{said}: {not encoded.is_causal}")
    run = Run(student, encoded, config, loss, seed, Path(work_dir))
    try:
        _loop(run, resume(run))
    finally:
        run.optimizer.zero_grad()
        if config.activation_checkpointing:
            student.model.gradient_checkpointing_disable()
        run.model.eval()
        run.accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
        student.model.requires_grad_(True)
    return pd.read_csv(run.metrics_path)


def data_digest(encoded: EncodedExamples) -> str:
    """Return the SHA-256 of all that is learned from: inputs, labels, distributions."""
    digest = hashlib.sha256()
    tables = vars(encoded.aligned).values() if encoded.aligned else ()
    for array in (*encoded.input_ids, *encoded.labels, encoded.teacher_row, *tables):
        digest.update(b"|" + array.tobytes())
    return digest.hexdigest()


def _loop(run: Run, done: int) -> None:
    """Take the updates after the first `done`."""
    config = run.config
    # PAPER: train() is never called, so there is no dropout. HERE: as FlanT5 was tuned.
    run.model.train()
    run.optimizer.zero_grad()
    if config.activation_checkpointing:
        run.student.model.gradient_checkpointing_enable({"use_reentrant": False})
    lengths, budget = run.encoded.lengths(), config.batch_tokens
    start = done * config.gradient_accumulation_steps
    stream = batching.batch_stream(lengths, budget, seed=run.seed, start=start)
    parts, total = config.num_checkpoints, run.num_updates
    due = {round(i * total / parts) for i in range(1, parts + 1)}
    is_main = run.accelerator.is_main_process
    bar = {"desc": f"training {run.student.name}", "unit": "update"}
    bar |= {"initial": done, "total": total, "disable": not is_main}
    steps = tqdm(range(done + 1, total + 1), **bar)
    for step in steps:
        row = take_update(run, step, stream)
        if is_main:
            _append_row(run.metrics_path, row)
        steps.set_postfix({"loss": f"{row['loss']:.4f}"})
        if step in due:
            save(run, step)


def take_update(
    run: Run, step: int, stream: Iterator[tuple[float, np.ndarray]]
) -> dict[str, float]:
    """Take one optimiser step; return its row of the log."""
    group = list(itertools.islice(stream, run.config.gradient_accumulation_steps))
    num_targets = sum(int(run.encoded.lengths(rows)[:, 1].sum()) for _, rows in group)
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    # All compute as many micro-batches, the last ones for nothing where they do not
    # divide: the others wait for gradients, with sharded weights for each pass.
    mine = range(rank, math.ceil(len(group) / world) * world, world)
    device = run.accelerator.device

    def loss_of(i: int) -> Tensor:
        """A micro-batch's share; its activations take memory from here on."""
        batch = batching.collate(run.encoded, group[i % len(group)][1])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        # Dropout is a function of the seed and the micro-batch's number in the run; the
        # global random state is left alone.
        entropy = np.random.SeedSequence([run.seed, (step - 1) * len(group) + i])
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
            loss = batch_loss(run.student, run.model, batch, run.loss)
        num_own = (batch["labels"] != batching.IGNORED).sum()
        # An update averages over all its target tokens, whichever micro-batch holds
        # them; processes are averaged by Accelerate, hence times world.
        return loss * (num_own / num_targets) * (world if i < len(group) else 0)

    rate = learning_rate_at(step, run.num_updates, run.config)
    limits = {"rate": rate, "max_grad_norm": run.config.max_grad_norm}
    parts, functions = (run.model, run.optimizer), [partial(loss_of, i) for i in mine]
    try:
        total, norm = step_optimizer(run.accelerator, *parts, functions, **limits)
    except FloatingPointError as error:
        said = f"training: {error} at step {step} (learning rate {rate:.3g})"
        kept = f"log and checkpoints up to there stay in {run.work_dir}"
        raise FloatingPointError(f"{said}; {kept}") from None
    num_examples = sum(len(rows) for _, rows in group)
    values = step, group[0][0], total / world, rate, norm, num_examples, num_targets
    return dict(zip(METRICS, values, strict=True))


def step_optimizer(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Optimizer,
    loss_functions: Sequence[Callable[[], Tensor]],
    *,
    rate: float,
    max_grad_norm: float,
) -> tuple[float, float]:
    """Back-propagate losses one after the other, clip, and take a step.

    Parameters
    ----------
    loss_functions : sequence of callable
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
    ids, mask, labels = (batch[n] for n in ("input_ids", "attention_mask", "labels"))
    if student.model.config.is_encoder_decoder:
        inputs = {"input_ids": ids, "attention_mask": mask}
        shifted = student.model.prepare_decoder_input_ids_from_labels(labels)
        output = model(**inputs, decoder_input_ids=shifted, use_cache=False)
        logits = output.logits  # (B, T, V)
    else:  # sources end where targets begin; of the logits, only the targets'
        mask = torch.cat([mask, (labels != batching.IGNORED).long()], 1)  # (B, S + T)
        inputs = {"input_ids": torch.cat([ids, labels.clamp_min(0)], 1)}
        inputs |= {"attention_mask": mask, "logits_to_keep": labels.shape[1] + 1}
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = model(**inputs, position_ids=positions, use_cache=False)
        logits = output.logits[:, :-1]
    if loss.name == "sample_matching":
        return losses.sample_matching(logits, labels)
    teacher = batch["teacher_ids"], batch["teacher_probs"]
    options = {name: value for name, value in vars(loss).items() if name != "name"}
    return losses.distribution_matching(logits, labels, *teacher, **options)


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
    lengths, budget = encoded.lengths(), config.batch_tokens
    batches = batching.plan_epoch(lengths, budget, seed=seed, epoch=0)
    per_update = config.gradient_accumulation_steps
    return max(1, round(config.num_epochs * len(batches) / per_update))


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
        said = f"training.num_frozen_layers: {num_layers}. Allowed for this student"
        raise ValueError(f"{said}: 0 to {len(layers)} (0 with an encoder)")
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


# --- checkpoints and the log ----------------------------------------------------------


def load_checkpoint(student: Student, path: Path) -> Student:
    """Give the student a checkpoint's weights; return it, in evaluation mode.

    No second copy of the weights is made: who needs both takes `models.copy_of` before.

    Raises
    ------
    ValueError
        The weights are of another model, or were trained with another tokenizer. Only
        weights without their ``state.json`` come without a word on the tokenizer.
    """
    if (path / STATE).exists():
        settings = artifacts.read_json(path / STATE)["settings"]
        if settings["tokenizer"] != tokenizer_digest(student.tokenizer):
            said = f"trained with the vocabulary of {settings['student']!r}"
            raise ValueError(f"checkpoint {path}: {said}, which {student.name!r} lacks")
    try:
        load_model(student.model, path / WEIGHTS)
    except (RuntimeError, OSError, SafetensorError) as error:
        said = f"its weights do not fit student {student.name!r}"
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint {path}: {said} ({why})") from error
    student.model.eval()
    return student


def list_checkpoints(work_dir: Path) -> list[tuple[int, Path]]:
    """Return ``(step, folder)`` of a run's complete checkpoints, in order."""
    folders = (Path(work_dir) / "checkpoints").glob("step-*")
    return sorted((int(path.name.removeprefix("step-")), path) for path in folders)


def export_weights(work_dir: Path, folder: Path) -> Path:
    """Link every checkpoint's weights and ``state.json`` into a new folder.

    What a resume needs is left out; ``state.json`` tells what was trained, and with
    which tokenizer.

    Returns
    -------
    Path
        `folder`, readable with `list_checkpoints`.
    """
    for step, source in list_checkpoints(work_dir):
        target = Path(folder) / "checkpoints" / f"step-{step}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in (WEIGHTS, STATE):
            artifacts.link_or_copy(source / name, target / name)
    return Path(folder)


def save(run: Run, step: int) -> None:
    """Gather the weights from all processes and write a checkpoint.

    It is written beside its place, then renamed: whole or absent.
    """
    accelerator = run.accelerator
    folder = run.work_dir / "checkpoints" / f"step-{step:06d}"
    temporary = folder.with_name(f".{folder.name}")
    accelerator.save_state(str(temporary / RESUME))
    weights = accelerator.get_state_dict(run.model)
    if accelerator.is_main_process:
        model = run.student.model
        names = {n for n, _ in (*model.named_parameters(), *model.named_buffers())}
        kept = {n: t.cpu().contiguous() for n, t in weights.items() if n in names}
        save_file(kept, temporary / WEIGHTS, {"format": "pt"})
        artifacts.write_json(temporary / STATE, {"settings": run.settings})
        for path in (*temporary.rglob("*.*"), run.metrics_path):  # a power cut
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, folder)
        for _, older in list_checkpoints(run.work_dir)[:-1]:
            shutil.rmtree(older / RESUME, ignore_errors=True)
    accelerator.wait_for_everyone()


def resume(run: Run) -> int:
    """Take up the newest checkpoint of the run's folder; return its step, or 0.

    The log is cut back to it.

    Raises
    ------
    ValueError
        The folder is of another run; the message names the first difference.
    """
    step, folder = [(0, None), *list_checkpoints(run.work_dir)][-1]
    if folder:
        found = artifacts.read_json(folder / STATE)["settings"]
        for name, value in run.settings.items():
            if found.get(name) != value:
                where = f"work_dir: {folder} is of another run"
                said = f"its {name} is {found.get(name)!r}, this run's {value!r}"
                raise ValueError(f"{where}: {said}. Allowed: a new folder")
        # Optimiser, weights, and nothing random: dropout follows from the micro-batch.
        run.accelerator.load_state(str(folder / RESUME))
        logger.info("resuming after step %d from %s", step, folder)
    if run.accelerator.is_main_process:
        for torn in (run.work_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(torn)
        log = run.metrics_path
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        rows = [",".join(METRICS), *lines[1 : step + 1]]
        artifacts.write_bytes(log, ("\n".join(rows) + "\n").encode())
    run.accelerator.wait_for_everyone()
    return step


def _append_row(path: Path, row: dict[str, float]) -> None:
    """Add one update, nine significant digits each."""
    values = [f"{row[name]:.9g}" for name in METRICS]
    with open(path, "a", encoding="utf-8") as file:
        file.write(",".join(values) + "\n")
