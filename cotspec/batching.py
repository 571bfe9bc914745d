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
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cotspec.prompts import separate

logger = logging.getLogger(__name__)

MULTIPLE = 8  # padded lengths are multiples of this
IGNORED = -100
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


@dataclass(frozen=True)
class EncodedExamples:
    """Token ids of all examples, and which aligned target belongs to each.

    ``teacher_row[i]`` is -1 for a one-hot example; ``is_cut[i]`` says that its input
    was too long.
    """

    input_ids: list[np.ndarray]
    labels: list[np.ndarray]
    teacher_row: np.ndarray
    aligned: AlignedTable | None
    data_format: np.ndarray
    is_cut: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_truncated(self) -> dict[str, int]:
        """How many inputs were cut, per data format."""
        return dict(Counter(self.data_format[self.is_cut].tolist()))

    def of_formats(self, data_formats: Sequence[str]) -> EncodedExamples:
        """Return the examples in some formats, in the same order."""
        rows = np.flatnonzero(np.isin(self.data_format, data_formats))
        return EncodedExamples(
            input_ids=[self.input_ids[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            teacher_row=self.teacher_row[rows],
            aligned=self.aligned,
            data_format=self.data_format[rows],
            is_cut=self.is_cut[rows],
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
        Aligned targets by ``problem_id`` and ``sample_id``. Without it, every example
        is one-hot.
    max_input_tokens : int
        Longer inputs lose tokens on their left, where the first demonstration is; how
        many did is logged and kept in ``num_truncated``.
    is_causal : bool
        A decoder-only student continues its input: between the two stands what stands
        there in the demonstrations, see `prompts.separate`.

    Raises
    ------
    ValueError
        No examples, a sampled solution (``sample_id >= 0``) without aligned target,
        aligned targets with an uneven number of candidates, or of another vocabulary.
    """
    if len(examples) == 0:
        raise ValueError("examples: none to encode. Allowed: at least one")
    table = None if aligned is None else _aligned_table(aligned)
    rows = _teacher_rows(examples, aligned)
    inputs, targets = examples["inputs"][:], examples["targets"][:]
    if is_causal:
        pairs = [separate(*pair) for pair in zip(inputs, targets, strict=True)]
        inputs, targets = (list(side) for side in zip(*pairs, strict=True))
    if table is not None:
        _check_vocabulary(examples, tokenizer, rows, table)
    # Cut copies: a view would keep the whole.
    inputs = list(_token_ids(tokenizer, inputs))
    encoded = EncodedExamples(
        input_ids=[ids[-max_input_tokens:].copy() for ids in inputs],
        labels=_labels(targets, tokenizer, rows, table),
        teacher_row=rows,
        aligned=table,
        data_format=np.array(examples["data_format"][:]),
        is_cut=np.array([len(ids) > max_input_tokens for ids in inputs]),
    )
    if cut := encoded.num_truncated:
        logger.warning(
            "inputs over max_input_tokens=%d cut on the left: %d of %d (%s)",
            max_input_tokens,
            sum(cut.values()),
            len(encoded),
            ", ".join(f"{name} {n}" for name, n in sorted(cut.items())),
        )
    return encoded


def _check_vocabulary(
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    rows: np.ndarray,
    table: AlignedTable,
) -> None:
    """Refuse targets that were aligned to another tokenizer: their ids say nothing."""
    matched = np.flatnonzero(rows >= 0)
    for i in matched[:: max(1, len(matched) // 16)]:
        text = examples[int(i)]["targets"]
        (own,) = _token_ids(tokenizer, [text], add_special_tokens=False)
        given = table.student_ids[table.starts[rows[i]] : table.starts[rows[i] + 1]]
        if not np.array_equal(own, given):
            raise ValueError(
                f"aligned: the target of {text[:40]!r} is not in the student's tokens "
                f"({len(given)} ids, its tokenizer gives {len(own)} or others). "
                "Allowed: targets that were aligned to this student's vocabulary"
            )


def _labels(
    targets: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    rows: np.ndarray,
    table: AlignedTable | None,
) -> list[np.ndarray]:
    """Aligned student ids where there are any, else the tokenised target; then EOS."""
    texts = [targets[row] for row in np.flatnonzero(rows < 0)]
    tokenised = _token_ids(tokenizer, texts, add_special_tokens=False)
    end_of_sequence = tokenizer.eos_token_id
    labels = []
    for row in rows:
        if row < 0:
            ids = next(tokenised)
        else:
            ids = table.student_ids[table.starts[row] : table.starts[row + 1]]
        labels.append(np.append(ids, end_of_sequence).astype(np.int32))
    return labels


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool
) -> Iterator[np.ndarray]:
    """Tokenise some texts at a time: Python's lists take 190 bytes a token."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chunk = list(texts[start : start + _TEXTS_AT_ONCE])
        found = tokenizer(chunk, return_attention_mask=False, verbose=False, **options)
        yield from (np.array(ids, np.int32) for ids in found["input_ids"])


def _teacher_rows(examples: Dataset, aligned: Dataset | None) -> np.ndarray:
    """Row of each example in the aligned targets, -1 for one-hot, shape (N,)."""
    rows = np.full(len(examples), -1, dtype=np.int64)
    if aligned is None:
        return rows
    keys = zip(aligned["problem_id"][:], aligned["sample_id"][:], strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    wanted = zip(examples["problem_id"][:], examples["sample_id"][:], strict=True)
    for i, key in enumerate(wanted):
        if key[1] < 0:
            continue
        if key not in row_of:
            raise ValueError(
                f"aligned: no target for problem_id {key[0]!r}, sample_id {key[1]}. "
                "Allowed: one for every example with sample_id >= 0"
            )
        rows[i] = row_of[key]
    return rows


def _aligned_table(aligned: Dataset) -> AlignedTable:
    columns = ["student_ids", "topk_ids", "topk_probs"]
    table = aligned.select_columns(columns).with_format("arrow")[:]
    sizes = pc.list_value_length(table["student_ids"]).to_numpy()
    num_tokens = int(sizes.sum())
    flat = {
        name: pc.list_flatten(pc.list_flatten(table[name])).to_numpy()
        for name in columns[1:]
    }
    num_candidates = pc.list_value_length(pc.list_flatten(table["topk_ids"]))
    if pc.count_distinct(num_candidates).as_py() > 1:
        raise ValueError(
            "aligned.topk_ids: numbers of candidates differ between tokens. "
            "Allowed: the same k everywhere, empty slots with id -1"
        )
    return AlignedTable(
        starts=np.append(0, sizes.cumsum()),
        student_ids=pc.list_flatten(table["student_ids"]).to_numpy(),
        topk_ids=flat["topk_ids"].reshape(num_tokens, -1),
        topk_probs=flat["topk_probs"].reshape(num_tokens, -1),
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
    if padded[longest].sum() > batch_tokens:
        raise ValueError(
            f"training.batch_tokens: {batch_tokens} is less than the "
            f"{padded[longest].sum()} tokens of example {longest}"
        )
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
    epoch = 0
    while True:
        batches = plan_epoch(lengths, batch_tokens, seed=seed, epoch=epoch)
        for i in range(start, len(batches)):
            yield epoch + i / len(batches), batches[i]
        start = max(0, start - len(batches))
        epoch += 1


def collate(
    encoded: EncodedExamples, indices: np.ndarray, *, pad_id: int, pad_left: bool
) -> dict[str, Tensor]:
    """Pad examples to one batch.

    Parameters
    ----------
    encoded : EncodedExamples
    indices : int array, shape (B,)
    pad_id : int
        Fills ``input_ids`` where ``attention_mask`` is 0.
    pad_left : bool
        Pad sources on the left: a decoder-only student continues them.

    Returns
    -------
    dict of Tensor
        The batch of the module's docstring.
    """
    size = len(indices)
    source, target = _padded(encoded.lengths(indices)).max(0)
    table = encoded.aligned
    k = 1 if table is None else table.topk_ids.shape[1]
    input_ids = np.full((size, source), pad_id, np.int64)
    attention_mask = np.zeros((size, source), np.int64)
    labels = np.full((size, target), IGNORED, np.int64)
    teacher_ids = np.zeros((size, target, k), np.int64)
    teacher_probs = np.zeros((size, target, k), np.float32)
    for row, index in enumerate(indices):
        ids = encoded.input_ids[index]
        place = slice(source - len(ids), None) if pad_left else slice(len(ids))
        input_ids[row, place], attention_mask[row, place] = ids, 1
        length = len(encoded.labels[index])
        labels[row, :length] = teacher_ids[row, :length, 0] = encoded.labels[index]
        teacher_probs[row, :length, 0] = 1.0
        if (aligned := encoded.teacher_row[index]) >= 0:
            start, end = table.starts[aligned : aligned + 2]
            teacher_ids[row, : length - 1] = table.topk_ids[start:end].clip(0)
            teacher_probs[row, : length - 1] = table.topk_probs[start:end]
    arrays = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "teacher_ids": teacher_ids,
        "teacher_probs": teacher_probs,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _padded(lengths: np.ndarray) -> np.ndarray:
    return -(-lengths // MULTIPLE) * MULTIPLE
