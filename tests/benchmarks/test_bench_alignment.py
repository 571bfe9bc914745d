"""Alignment of the 7,473 GSM8K rationales, GPT-2 to T5: solutions per second.

No teacher's top five exist for GSM8K: the tokens are GPT-2's, their alternatives and
probabilities are drawn with a seed from the rationales' own tokens. Times are CPU
seconds of one core, from text and teacher tokens to targets; the student's tokenizing
and the opening of its tokenizer are included. Nothing is remembered from one round to
the next; the best counts. The naive dynamic program runs on every 75th rationale.

    COTSPEC_DATA=... pytest tests/benchmarks/test_bench_alignment.py --benchmark-only -s
"""

import os
import time

import numpy as np
import pytest

from cotspec import alignment
from cotspec.alignment import SOFT_RULES, TeacherTrace, align_all
from cotspec.alignment import student as students
from cotspec.alignment.student import vocabulary_bytes

PAPER_SOLUTIONS = 207_619
NAIVE_STRIDE = 75
ROUNDS = {"offsets": 3, "dtw": 1}


@pytest.fixture(scope="module")
def traces(rationales, gpt2):
    names, encoded = vocabulary_bytes(gpt2), gpt2(rationales, add_special_tokens=False)
    ids = [np.array(row) for row in encoded.input_ids]
    pool, rng = np.concatenate(ids), np.random.default_rng(0)
    rows = zip(rationales, ids, strict=True)
    return [trace_of(text, row, pool, names, rng) for text, row in rows]


def trace_of(text, ids, pool, names, rng):
    picks = pool[rng.integers(0, len(pool), (len(ids), 5))]
    picks[:, 0] = ids
    probs = np.sort(rng.dirichlet(np.ones(6), len(ids)), axis=1)[:, :0:-1]
    # Own bytes objects, as a Parquet file would give: nothing is shared or hashed.
    rows = [[bytes(bytearray(names[i])) for i in row] for row in picks.tolist()]
    return TeacherTrace(
        text=text,
        token_bytes=tuple(row[0] for row in rows),
        token_logprobs=np.log(probs[:, 0]),
        topk_bytes=tuple(map(tuple, rows)),
        topk_logprobs=np.log(probs),
    )


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(last + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def naive_dtw(trace, tokenizer):
    """The reference's way: tokenise, fill the table cell by cell, trace back."""
    left = [t.decode("utf-8", "replace").replace(" ", "") for t in trace.token_bytes]
    right = [token.replace("▁", "") for token in tokenizer.tokenize(trace.text)]
    total = np.full((len(left) + 1, len(right) + 1), np.inf)
    total[0, 0] = 0
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            best = min(total[i, j], total[i, j + 1], total[i + 1, j])
            total[i + 1, j + 1] = edit_distance(a, b) + best
    i, j, path = len(left), len(right), []
    while i and j:
        path.append((i - 1, j - 1))
        steps = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min(steps, key=lambda cell: total[cell])
    return path


def cpu_seconds(function, *args, **kwargs):
    begin = time.process_time()
    result = function(*args, **kwargs)
    return time.process_time() - begin, result


def best_of(rounds, traces, tokenizer, method):
    """CPU seconds of one process."""
    tries = []
    for _ in range(rounds):
        students.open_student.cache_clear()  # a student that has read nothing yet
        tries.append(
            cpu_seconds(align_all, traces, tokenizer, method=method, num_proc=1)
        )
    return min(tries, key=lambda attempt: attempt[0])


@pytest.fixture
def one_core(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def test_alignment_against_the_naive_program(benchmark, traces, t5, one_core):
    def one_round():
        rates, shares = {}, {}
        for method in alignment.METHODS:
            seconds, result = best_of(ROUNDS[method], traces, t5, method)
            assert result.reasons == [""] * len(traces)
            rates[method] = len(traces) / seconds
            rules = np.concatenate([target.rule for target in result.targets])
            shares[method] = float(np.isin(rules, SOFT_RULES).mean())
        began = time.perf_counter()
        align_all(traces, t5, num_proc=2)
        rates["two processes"] = len(traces) / (time.perf_counter() - began)
        sample = traces[::NAIVE_STRIDE]
        seconds, _ = cpu_seconds(lambda: [naive_dtw(trace, t5) for trace in sample])
        rates["naive"] = len(sample) / seconds
        return rates, shares

    rates, shares = benchmark.pedantic(one_round, rounds=1, iterations=1)
    for name, rate in rates.items():
        print(
            f"\n{name:8} {rate:8.0f} solutions/s  {rate / rates['naive']:6.1f} x naive"
            f"  {PAPER_SOLUTIONS / rate:8.0f} s for {PAPER_SOLUTIONS:,} solutions"
            + (f"  {shares[name]:.1%} of tokens softened" if name in shares else ""),
            end="",
        )
    print(f"\n(CPU seconds of one core; load average {os.getloadavg()[0]:.1f})")
    benchmark.extra_info |= {f"{name}_per_second": rate for name, rate in rates.items()}
    benchmark.extra_info |= {f"{name}_softened": s for name, s in shares.items()}
    assert rates["offsets"] >= 900
    assert rates["offsets"] >= 4 * rates["naive"]
    assert rates["two processes"] >= 1.5 * rates["offsets"]
    assert shares["dtw"] < shares["offsets"]
