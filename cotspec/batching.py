"""Tokenise examples, bucket them by length, collate batches.

Enters: training examples (``example_id, problem_id, sample_id, data_format, inputs,
targets``) and aligned targets (``problem_id, sample_id, student_ids, topk_ids,
topk_probs``). Leaves: dictionaries of tensors, with B batch, S source, T target, k
candidates::

    input_ids (B, S)  attention_mask (B, S)
    labels (B, T), -100 ignored
    teacher_ids (B, T, k) int64  teacher_probs (B, T, k) float32

An example without aligned target, such as every answer-only one, is one-hot: the label
itself with probability 1, so distribution matching is cross-entropy there. So is the
end-of-sequence token that is appended to every target.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cotspec.prompts import separate

logger = logging.getLogger(__name__)

IGNORED = -100  # a label without a loss
MULTIPLE = 8  # padded lengths are multiples of this
# Examples shuffled together before they are sorted by length: every stretch of batches
# of this size has the formats in the proportion of the data.
_WINDOW = 4096
# Targets are sorted by multiples of this, sources within: a target token costs most.
_TARGET_STEP = 16
_TEXTS_AT_ONCE = 1_000


@dataclass(frozen=True)
class AlignedTable:
    """Candidates of all aligned targets, end to end.

    Row i is ``topk_ids[starts[i] : starts[i + 1]]``, shape (T, k), and likewise its
    probabilities and ``student_ids``, shape (T,).
    """

    starts: np.ndarray
    student_ids: np.ndarray
    topk_ids: np.ndarray
    topk_probs: np.ndarray

    def tokens(self, row: int) -> slice:
        """Where a row's tokens stand."""
        return slice(self.starts[row], self.starts[row + 1])


@dataclass(frozen=True)
class EncodedExamples:
    """Token ids of all examples, and which aligned target belongs to each.

    ``teacher_row[i]`` is -1 for a one-hot example. `is_causal` says that a target
    follows its input, in a decoder-only student.
    """

    input_ids: list[np.ndarray]
    labels: list[np.ndarray]
    teacher_row: np.ndarray
    aligned: AlignedTable | None
    data_format: np.ndarray
    is_causal: bool

    def __len__(self) -> int:
        return len(self.labels)

    def of_formats(self, data_formats: Sequence[str]) -> EncodedExamples:
        """Return the examples in some formats, in the same order."""
        rows = np.flatnonzero(np.isin(self.data_format, data_formats))
        return replace(
            self,
            input_ids=[self.input_ids[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            teacher_row=self.teacher_row[rows],
            data_format=self.data_format[rows],
        )

    def teacher_entropies(self, temperature: float) -> np.ndarray:
        """Entropy of what the teacher samples, over each target; nats, shape (N,).

        Of its candidates and the rest as one more outcome, sharpened as sampling at
        `temperature` does; 0 for a one-hot example.
        """
        if self.aligned is None:
            return np.zeros(len(self))
        known = np.asarray(self.aligned.topk_probs, dtype=np.float64)
        rest = np.clip(1 - known.sum(axis=1, keepdims=True), 0, 1)
        outcomes = np.concatenate([known, rest], axis=1) ** (1 / max(temperature, 1e-3))
        outcomes /= outcomes.sum(axis=1, keepdims=True)
        of_token = -(outcomes * np.log(np.maximum(outcomes, 1e-30))).sum(axis=1)
        ends = np.concatenate([[0.0], np.cumsum(of_token)])
        starts = np.asarray(self.aligned.starts)
        of_row = ends[starts[1:]] - ends[starts[:-1]]
        return np.where(self.teacher_row >= 0, of_row[self.teacher_row], 0.0)

    def lengths(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Source and target lengths in tokens of all or some examples, (N, 2)."""
        chosen = range(len(self)) if indices is None else indices
        sizes = [(len(self.input_ids[i]), len(self.labels[i])) for i in chosen]
        return np.array(sizes, dtype=np.int64)


def encode(
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    aligned: Dataset | None = None,
    max_input_tokens: int,
    is_causal: bool = False,
) -> EncodedExamples:
    """Tokenise examples and attach the teacher's distributions to the sampled ones.

    Parameters
    ----------
    examples : Dataset
        With ``inputs``, ``targets``, ``data_format``, ``problem_id``, ``sample_id``.
    tokenizer : PreTrainedTokenizerBase
        The student's; its end-of-sequence token ends every target.
    aligned : Dataset, optional
        Aligned targets by ``problem_id`` and ``sample_id``. A sampled solution
        (``sample_id >= 0``) that has none is left out, which is logged. Without the
        table, every example is one-hot.
    max_input_tokens : int
        Longer inputs lose tokens on their left, where the first demonstration is; how
        many did is logged.
    is_causal : bool
        A decoder-only student continues its input: between the two stands what stands
        there in the demonstrations, see `prompts.separate`.

    Raises
    ------
    ValueError
        No examples, aligned targets with an uneven number of candidates, or of another
        vocabulary.
    """
    rows = _teacher_rows(examples, aligned)
    if (is_lost := rows == -2).any():  # notebook 04 counts why
        said = "%d of %d examples are left out: they have no aligned target"
        logger.warning(said, is_lost.sum(), len(rows))
        examples, rows = examples.select(np.flatnonzero(~is_lost)), rows[~is_lost]
    if len(examples) == 0:
        raise ValueError("examples: none to encode. Allowed: at least one")
    inputs, targets = examples["inputs"], examples["targets"][:]  # not all inputs
    if is_causal:
        pairs = [separate(*pair) for pair in zip(inputs, targets, strict=True)]
        inputs, targets = zip(*pairs, strict=True)
    table = None
    if aligned is not None:
        table = _aligned_table(aligned)
        _check_vocabulary(examples, tokenizer, rows, table)
    input_ids, num_long = [], 0
    for ids in _token_ids(tokenizer, inputs):
        num_long += len(ids) > max_input_tokens
        input_ids.append(ids[-max_input_tokens:].copy())  # a view would keep the whole
    texts = [targets[i] for i in np.flatnonzero(rows < 0)]
    ids_of_targets = _token_ids(tokenizer, texts, add_special_tokens=False)
    labels = []
    for row in rows:  # aligned student ids where there are any
        ids = next(ids_of_targets) if row < 0 else table.student_ids[table.tokens(row)]
        labels.append(np.append(ids, tokenizer.eos_token_id).astype(np.int32))
    if num_long:
        said = "%d of %d inputs over max_input_tokens=%d cut on the left"
        logger.warning(said, num_long, len(examples), max_input_tokens)
    return EncodedExamples(
        input_ids=input_ids,
        labels=labels,
        teacher_row=rows,
        aligned=table,
        data_format=np.array(examples["data_format"][:]),
        is_causal=is_causal,
    )


def _check_vocabulary(
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    rows: np.ndarray,
    table: AlignedTable,
) -> None:
    """Refuse targets that were aligned to another tokenizer: their ids say nothing."""
    matched = np.flatnonzero(rows >= 0)
    some = matched[:: max(1, len(matched) // 16)]
    texts = examples.select(some)["targets"][:]
    own = _token_ids(tokenizer, texts, add_special_tokens=False)
    for text, row, ids in zip(texts, rows[some], own, strict=True):
        if not np.array_equal(ids, table.student_ids[table.tokens(row)]):
            said = f"aligned: {text[:40]!r} is not in the student's tokens"
            raise ValueError(f"{said}. Allowed: targets aligned to its vocabulary")


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool
) -> Iterator[np.ndarray]:
    """Tokenise some texts at a time: Python's lists take 190 bytes a token."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chunk = list(texts[start : start + _TEXTS_AT_ONCE])
        found = tokenizer(chunk, return_attention_mask=False, verbose=False, **options)
        yield from (np.array(ids, np.int32) for ids in found["input_ids"])


def _teacher_rows(examples: Dataset, aligned: Dataset | None) -> np.ndarray:
    """Row of each example in the aligned targets, shape (N,).

    -1 for one-hot, -2 for a solution whose alignment was dropped.
    """
    if aligned is None:
        return np.full(len(examples), -1)
    keys, known = (
        list(zip(table["problem_id"][:], table["sample_id"][:], strict=True))
        for table in (examples, aligned)
    )
    row_of = {key: row for row, key in enumerate(known)}
    return np.array([row_of.get(key, -2) if key[1] >= 0 else -1 for key in keys])


def _aligned_table(aligned: Dataset) -> AlignedTable:
    columns = ["student_ids", "topk_ids", "topk_probs"]
    table = aligned.select_columns(columns).with_format("arrow")[:]
    # A list a row, and in it a number or a list of k candidates a token.
    student_ids, topk_ids, topk_probs = (pc.list_flatten(table[n]) for n in columns)
    if pc.count_distinct(pc.list_value_length(topk_ids)).as_py() > 1:
        said = "aligned.topk_ids: numbers of candidates differ between tokens"
        raise ValueError(f"{said}. Allowed: the same everywhere, empty slots with -1")
    shape = len(student_ids), -1
    sizes = pc.list_value_length(table["student_ids"]).to_numpy()
    return AlignedTable(
        starts=np.append(0, sizes.cumsum()),
        student_ids=student_ids.to_numpy(),
        topk_ids=pc.list_flatten(topk_ids).to_numpy().reshape(shape),
        topk_probs=pc.list_flatten(topk_probs).to_numpy().reshape(shape),
    )


def plan_epoch(
    lengths: np.ndarray, batch_tokens: int, *, seed: int, epoch: int
) -> list[np.ndarray]:
    """Cut one epoch into batches of similar length under a token budget.

    Parameters
    ----------
    lengths : int array, shape (N, 2)
        Source and target lengths.
    batch_tokens : int
        Upper bound of B * (S + T), padding included.
    seed, epoch : int
        The plan depends on these two and the lengths only.

    Returns
    -------
    list of int arrays
        Example indices; every index once.

    Raises
    ------
    ValueError
        If one example alone is over the budget.
    """
    padded = _padded(lengths)
    longest = int(padded.sum(1).argmax())
    if (most := padded[longest].sum()) > batch_tokens:
        said = f"training.batch_tokens: {batch_tokens} is less than the {most} tokens"
        raise ValueError(f"{said} of example {longest}")
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), _WINDOW):
        window = order[start : start + _WINDOW]
        source, target = padded[window].T
        by_length = window[np.lexsort((source, target // _TARGET_STEP))]
        cut = _cut(by_length, padded, batch_tokens)
        batches += [cut[i] for i in generator.permutation(len(cut))]
    return batches


def _cut(order: np.ndarray, padded: np.ndarray, budget: int) -> list[np.ndarray]:
    """Fill batches greedily in the given order."""
    batches, start = [], 0
    longest = np.zeros(2, dtype=np.int64)
    for end, index in enumerate(order):
        grown = np.maximum(longest, padded[index])
        if (end - start + 1) * grown.sum() > budget:
            batches.append(order[start:end])
            start, grown = end, padded[index]
        longest = grown
    return [*batches, order[start:]]


def batch_stream(
    lengths: np.ndarray, batch_tokens: int, *, seed: int, start: int = 0
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield ``(epochs completed, example indices)`` without end, epoch after epoch.

    Parameters
    ----------
    start : int
        Number of batches to skip: where a resumed run goes on.
    """
    for epoch in count():
        batches = plan_epoch(lengths, batch_tokens, seed=seed, epoch=epoch)
        for i in range(start, len(batches)):
            yield epoch + i / len(batches), batches[i]
        start = max(0, start - len(batches))


def collate(encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, Tensor]:
    """Pad examples to one batch, the sources of a decoder-only student on the left.

    Padding is token 0, whatever it means: nothing attends to it.

    Parameters
    ----------
    encoded : EncodedExamples
    indices : sequence of int, shape (B,)

    Returns
    -------
    dict of Tensor
        The batch of the module's docstring.
    """
    size = len(indices)
    source, target = _padded(encoded.lengths(indices)).max(0)
    table = encoded.aligned
    k = 1 if table is None else table.topk_ids.shape[1]
    batch = {
        "input_ids": np.zeros((size, source), np.int64),
        "attention_mask": np.zeros((size, source), np.int64),
        "labels": np.full((size, target), IGNORED, np.int64),
        "teacher_ids": np.zeros((size, target, k), np.int64),
        "teacher_probs": np.zeros((size, target, k), np.float32),
    }
    for row, index in enumerate(indices):
        ids, labels = encoded.input_ids[index], encoded.labels[index]
        start = source - len(ids) if encoded.is_causal else 0
        place = row, slice(start, start + len(ids))
        batch["input_ids"][place] = ids
        batch["attention_mask"][place] = 1
        batch["labels"][row, : len(labels)] = labels
        batch["teacher_ids"][row, : len(labels), 0] = labels
        batch["teacher_probs"][row, : len(labels), 0] = 1.0
        if (aligned := encoded.teacher_row[index]) >= 0:
            place = row, slice(len(labels) - 1)
            tokens = table.tokens(aligned)
            batch["teacher_ids"][place] = table.topk_ids[tokens].clip(0)
            batch["teacher_probs"][place] = table.topk_probs[tokens]
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _padded(lengths: np.ndarray) -> np.ndarray:
    return -(-lengths // MULTIPLE) * MULTIPLE
