"""Batches: the contract's tensors, the token budget, the order, what is cut."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import tiny_tokenizer

from cotspec import batching

EOS, A, B, C, D = 1, 3, 4, 5, 6
TOKENIZER = tiny_tokenizer(["a", "b", "c", "d"])
EXAMPLES = Dataset.from_dict(
    {
        "problem_id": ["p", "p"],
        "sample_id": [0, -1],
        "data_format": ["zero_shot_chain_of_thought", "zero_shot_answer_only"],
        "inputs": ["a b", "a b c d a b c d a"],
        "targets": ["c d", "d"],
    }
)
ALIGNED = Dataset.from_dict(
    {
        "problem_id": ["other", "p"],
        "sample_id": [0, 0],
        "student_ids": [[A], [C, D]],
        "topk_ids": [[[A, -1, -1]], [[C, B, -1], [A, D, B]]],
        "topk_probs": [[[1.0, 0.0, 0.0]], [[0.75, 0.125, 0.0], [0.5, 0.25, 0.125]]],
    }
)


def encode(examples=EXAMPLES, aligned=ALIGNED, max_input_tokens=16, **options):
    options |= {"aligned": aligned, "max_input_tokens": max_input_tokens}
    return batching.encode(examples, TOKENIZER, **options)


def one_batch(**options):
    encoded = encode(**options)
    return batching.collate(encoded, range(len(encoded)))


def test_a_batch_holds_padded_inputs_labels_with_eos_and_the_teachers_candidates():
    batch = one_batch()
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0, :4].tolist() == [A, B, EOS, 0]
    assert batch["attention_mask"].sum(1).tolist() == [3, 10]
    labels = [[C, D, EOS, *[-100] * 5], [D, EOS, *[-100] * 6]]
    assert batch["labels"].tolist() == labels
    ids, probs = batch["teacher_ids"], batch["teacher_probs"]
    assert ids.dtype == torch.int64 and probs.dtype == torch.float32
    one_hot, empty = [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    assert ids[0, :4].tolist() == [[C, B, 0], [A, D, B], [EOS, 0, 0], [0, 0, 0]]
    of_teacher = [[0.75, 0.125, 0.0], [0.5, 0.25, 0.125]]
    assert probs[0, :4].tolist() == [*of_teacher, one_hot, empty]
    # An answer-only example is one-hot, so that matching is cross-entropy.
    assert ids[1, :2, 0].tolist() == [D, EOS]
    assert probs[1, :3].tolist() == [one_hot, one_hot, empty]


def test_without_aligned_targets_every_example_is_one_hot_with_one_candidate():
    batch = one_batch(aligned=None)
    assert batch["teacher_ids"][0, :3].tolist() == [[C], [D], [EOS]]
    assert batch["labels"][0, :3].tolist() == [C, D, EOS]


def test_a_solution_whose_alignment_was_dropped_is_left_out_and_counted(caplog):
    encoded = encode(aligned=ALIGNED.select([0]))
    assert [ids.tolist() for ids in encoded.labels] == [[D, EOS]]
    assert encoded.data_format.tolist() == ["zero_shot_answer_only"]
    assert "1 of 2 examples are left out" in caplog.text


def test_decoder_only_students_get_their_sources_padded_on_the_left():
    batch = one_batch(is_causal=True)
    assert batch["input_ids"][0].tolist() == [0] * 13 + [A, B, EOS]
    assert batch["attention_mask"][0].tolist() == [0] * 13 + [1, 1, 1]
    assert batch["labels"][0, :3].tolist() == [C, D, EOS]


def test_long_inputs_lose_their_left_end_and_are_counted_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        encode(max_input_tokens=10)
        assert not caplog.records  # every input fits
        encoded = encode(max_input_tokens=4)
    assert encoded.input_ids[1].tolist() == [C, D, A, EOS]
    assert "1 of 2 inputs over max_input_tokens=4" in caplog.text


def test_one_encoding_serves_trainings_on_some_of_the_formats():
    whole = encode(max_input_tokens=4)
    for row, data_format in enumerate(EXAMPLES["data_format"][:]):
        alone = one_batch(examples=EXAMPLES.select([row]), max_input_tokens=4)
        part = batching.collate(whole.of_formats([data_format]), [0])
        for name, tensor in alone.items():
            assert torch.equal(part[name], tensor)
    assert len(whole.of_formats(EXAMPLES["data_format"][:])) == len(EXAMPLES)


def test_aligned_targets_are_found_after_a_filter_or_shuffle():
    batch = one_batch(aligned=ALIGNED.select([1, 0]))
    assert batch["teacher_ids"][0, 1].tolist() == [A, D, B]


def changed(**columns):
    """The aligned targets with other columns."""
    return Dataset.from_dict(ALIGNED.to_dict() | columns)


UNEVEN = [[[A, -1, -1]], [[C], [A, D, B]]]


@pytest.mark.parametrize(
    ("examples", "aligned", "message"),
    [
        (EXAMPLES.select([]), None, "examples: none"),
        (EXAMPLES, changed(topk_ids=UNEVEN), "numbers of candidates differ"),
        (EXAMPLES, changed(student_ids=[[A], [D, C]]), "'c d' is not in the student"),
    ],
)
def test_what_cannot_be_encoded_is_an_error(examples, aligned, message):
    with pytest.raises(ValueError, match=message):
        encode(examples, aligned)


def test_the_entropy_of_samples_is_that_of_the_sharpened_distribution():
    encoded = encode()
    tokens = [[0.75, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125]]
    for temperature in (1.0, 0.5):
        expected = 0.0
        for token in tokens:
            p = np.array(token) ** (1 / temperature)
            p /= p.sum()
            expected -= (p * np.log(p)).sum()
        found = encoded.teacher_entropies(temperature)
        # The answer-only example is one-hot.
        assert found == pytest.approx([expected, 0.0])


PAIRS = st.tuples(st.integers(1, 90), st.integers(1, 60))
LENGTHS = st.lists(PAIRS, min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(160, 2000), seed=st.integers(0, 99))
def test_every_example_comes_once_and_no_batch_is_over_the_budget(
    lengths, budget, seed
):
    lengths = np.array(lengths)
    batches = batching.plan_epoch(lengths, budget, seed=seed, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for indices in batches:
        padded = -(-lengths[indices] // 8) * 8
        assert len(indices) * padded.max(0).sum() <= budget


def test_batches_depend_on_seed_and_epoch_only():
    lengths = np.random.default_rng(0).integers(1, 60, (200, 2))

    def plan(seed, epoch):
        plan = batching.plan_epoch(lengths, 512, seed=seed, epoch=epoch)
        return [indices.tolist() for indices in plan]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


def test_a_sixth_of_a_batch_at_most_is_padding_where_half_would_be_at_random():
    lengths = np.random.default_rng(0).integers(1, 200, (2000, 2))
    batches = batching.plan_epoch(lengths, 4096, seed=0, epoch=0)
    used = sum(len(b) * (-(-lengths[b] // 8) * 8).max(0).sum() for b in batches)
    at_random = len(lengths) * 2 * 200
    assert lengths.sum() / used > 0.85
    assert lengths.sum() / at_random < 0.55


def test_long_and_short_batches_are_mixed_within_an_epoch():
    """Two formats of different length: each quarter of the epoch has both."""
    lengths = np.array([[100, 50], [20, 10]] * 500)
    batches = batching.plan_epoch(lengths, 1024, seed=0, epoch=0)
    is_long = np.array([indices[0] % 2 == 0 for indices in batches])
    shares = [quarter.mean() for quarter in np.array_split(is_long, 4)]
    assert min(shares) > is_long.mean() - 0.15


def test_an_example_over_the_budget_is_an_error():
    with pytest.raises(ValueError, match="batch_tokens: 64 is less than the 72 tokens"):
        batching.plan_epoch(np.array([[8, 8], [60, 5]]), 64, seed=0, epoch=0)


@pytest.mark.parametrize("start", (0, 3, 11, 25))
def test_a_stream_taken_up_later_goes_on_with_the_same_batches(start):
    lengths = np.random.default_rng(0).integers(1, 60, (100, 2))
    whole = batching.batch_stream(lengths, 1024, seed=5)
    whole = [next(whole) for _ in range(start + 12)][start:]
    resumed = batching.batch_stream(lengths, 1024, seed=5, start=start)
    for (epoch, indices), (same_epoch, same) in zip(whole, resumed, strict=False):
        assert epoch == same_epoch
        assert indices.tolist() == same.tolist()


def test_epochs_in_the_stream_are_fractions_of_batches_seen():
    lengths = np.full((16, 2), 8)
    stream = batching.batch_stream(lengths, 64, seed=0)
    assert [next(stream)[0] for _ in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
