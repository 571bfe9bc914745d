"""The table of aligned targets, and the spans that notebook 04 draws."""

import dataclasses

import numpy as np
import pytest
from datasets import Dataset
from test_alignment import gpt2_traces

from cotspec.alignment import align_all
from cotspec.alignment import table as targets

TEXT = "Natalia sold 48/2 = 24 clips. The answer is 24."
KEPT = Dataset.from_dict({"problem_id": ["a", "b"], "sample_id": [3, 4]})


@pytest.fixture
def traces(gpt2):
    """One that aligns, and an empty one."""
    return gpt2_traces([TEXT, " "], gpt2)


def test_the_table_has_one_row_per_aligned_trace(t5, traces):
    table = targets.targets_table(KEPT, align_all(traces, t5))
    assert table["problem_id"][:] == ["a"] and table["sample_id"][:] == [3]
    assert t5.decode(table[0]["student_ids"]) == TEXT


def test_traces_with_fewer_alternatives_are_padded_to_the_tables_k(t5, traces):
    trace = traces[0]
    fewer = dataclasses.replace(
        trace,
        topk_bytes=tuple(row[:1] for row in trace.topk_bytes),
        topk_logprobs=trace.topk_logprobs[:, :1],
    )
    found = align_all([trace, fewer], t5)
    table = targets.targets_table(KEPT, found)
    for row, target in zip(table, found.targets, strict=True):
        k = target.topk_ids.shape[1]
        assert np.array_equal(np.array(row["topk_ids"])[:, :k], target.topk_ids)
        assert (np.array(row["topk_ids"])[:, k:] == -1).all()
        assert (np.array(row["topk_probs"])[:, k:] == 0).all()


def test_nothing_aligned_is_an_error_that_counts_reasons(t5, traces):
    with pytest.raises(ValueError, match="0 of 1 solutions.*'empty': 1"):
        targets.targets_table(KEPT.select([1]), align_all(traces[1:], t5))


def test_shares_add_up_to_one_per_method(t5, traces):
    results = {m: align_all(traces[:1], t5, method=m) for m in ("offsets", "dtw")}
    shares = targets.rule_shares(results)
    assert np.allclose(shares.groupby("method")["share"].sum(), 1)


def test_numbers_are_the_tokens_with_a_digit_and_are_counted_apart(t5, traces):
    results = {"offsets": align_all(traces[:1], t5)}
    shares = targets.number_shares(results, t5)
    num_tokens = shares.groupby("kind")["num_tokens"].sum()
    written = t5.tokenize(TEXT)
    digits = [token for token in written if any(c in "0123456789" for c in token)]
    assert num_tokens["numbers"] == len(digits) > 0
    assert num_tokens["other tokens"] == len(written) - len(digits)
    assert np.allclose(shares.groupby("kind")["share"].sum(), 1)


@pytest.mark.parametrize("method", ["offsets", "dtw"])
def test_spans_of_both_sides_spell_the_text(t5, traces, method):
    spans = targets.token_spans(traces[0], t5, method=method)
    teacher = spans[spans["side"] == "teacher"]
    assert "".join(TEXT[s:e] for s, e in teacher[["start", "end"]].to_numpy()) == TEXT
    written = spans[spans["side"] == "student"]
    for token, start, end in written[["token", "start", "end"]].to_numpy():
        assert token.replace("▁", "") == TEXT[start:end].strip()
    assert (written["rule"] != "").all() and (teacher["rule"] == "").all()
