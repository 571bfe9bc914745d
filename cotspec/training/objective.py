"""What a batch costs: the student's logits, and the loss over them.

Enters: a student and a batch of `cotspec.batching`. Leaves: one scalar, nats per target
token. An encoder-decoder student and a decoder-only one take the same batches through
the same losses.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from cotspec import losses
from cotspec.batching import EncodedExamples
from cotspec.models import Student
from cotspec.profiles import LossConfig


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


def check_aligned(examples: Dataset, aligned: Dataset | None, loss: LossConfig) -> None:
    """Refuse distribution matching on sampled solutions without aligned targets.

    Raises
    ------
    ValueError
        Saying how many examples lack them.
    """
    if loss.name == "distribution_matching" and aligned is None:
        sampled = sum(sample_id >= 0 for sample_id in examples["sample_id"][:])
        if sampled:
            raise ValueError(
                f"aligned: None, but {sampled} examples are sampled solutions and "
                "loss.name is 'distribution_matching'. Allowed: their aligned "
                "targets, or loss.name 'sample_matching'"
            )


def check_encoded(
    encoded: EncodedExamples, aligned: Dataset | None, loss: LossConfig
) -> None:
    """Refuse targets beside encoded examples, and matching without any targets.

    Raises
    ------
    ValueError
        Naming what is allowed.
    """
    if aligned is not None:
        raise ValueError(
            "aligned: given, but examples are encoded already. Allowed: None; give "
            "the targets to batching.encode"
        )
    if loss.name == "distribution_matching" and encoded.aligned is None:
        raise ValueError(
            "examples: encoded without aligned targets, but loss.name is "
            "'distribution_matching'. Allowed: batching.encode with aligned targets, "
            "or loss.name 'sample_matching'"
        )
