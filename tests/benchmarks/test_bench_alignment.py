"""Alignment of 7,273 GSM8K rationales, GPT-2 to T5: solutions per second.

No teacher's top five exist for GSM8K: the tokens are GPT-2's, their alternatives and
probabilities are drawn with a seed from the rationales' own tokens. From text and
teacher tokens to targets; the student's tokenizing and the opening of its tokenizer
are included. Nothing is remembered from one round to the next.

    COTSPEC_DATA=... pytest tests/benchmarks/test_bench_alignment.py --benchmark-only -s
"""

import dataclasses

import pytest
from test_alignment import gpt2_traces

from cotspec.alignment import align_all
from cotspec.alignment import student as students


@pytest.fixture(scope="module")
def traces(rationales, gpt2):
    # Own bytes objects, as a Parquet file would give: nothing is shared or hashed.
    def own(rows):
        return tuple(tuple(bytes(bytearray(piece)) for piece in row) for row in rows)

    return [
        dataclasses.replace(trace, topk_bytes=own(trace.topk_bytes))
        for trace in gpt2_traces(rationales, gpt2)
    ]


@pytest.mark.parametrize(("num_proc", "bar"), [(1, 900), (2, 1_600)])
def test_solutions_aligned_a_second(benchmark, monkeypatch, traces, t5, num_proc, bar):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def align():
        students.open_student.cache_clear()  # a student that has read nothing yet
        result = align_all(traces, t5, num_proc=num_proc)
        assert result.reasons == [""] * len(traces)

    benchmark.pedantic(align, rounds=1)
    rate = len(traces) / benchmark.stats.stats.min
    benchmark.extra_info["per_second"] = rate
    print(f"\n{rate:.0f}/s; the paper's 207,619 in {207_619 / rate:.0f} s")
    assert rate >= bar
