"""The store: size, opening, one question, at the default's tenth of full size.

The paper's 300,000 solutions, after minutes of writing them:

    COTSPEC_BENCH_STORE_QUESTIONS=7500 \
        pytest tests/benchmarks/test_bench_store.py --benchmark-only -s
"""

import os
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from cotspec import teacher
from cotspec.prompts import Demonstration
from cotspec.teacher import compaction, segments
from cotspec.teacher.store import decode_line, encode_line
from cotspec.teacher.traces import FEATURES, STORED, Completion, sample_keys

# Forty solutions each: 750 are 30,000 solutions, 7,500 the paper's 300,000.
NUM_QUESTIONS = int(os.environ.get("COTSPEC_BENCH_STORE_QUESTIONS", "750"))
FULL = 7500
NUM_SAMPLES, LENGTH, TOP_K = 40, 60, 5
BACKEND = SimpleNamespace(
    model="m", max_new_tokens=128, top_k=TOP_K, complete=lambda *_: ()
)
OPTIONS = teacher.SamplingOptions(NUM_SAMPLES, 0.5, 0, 128, TOP_K)
# As long as the prompts are: their hashes name the samples.
SHOWN = [Demonstration("How many? " * 20, "Three and four. " * 20, "7")] * 4


def synthetic_question(number: int, rng: np.random.Generator) -> pa.Table:
    """Forty solutions of sixty tokens with five alternatives, GPT-2-sized ids."""
    count, length, k = NUM_SAMPLES, LENGTH, TOP_K
    # Zipf's law, as words have it; the sampled token is mostly the first choice.
    top = np.minimum(rng.zipf(1.3, (count * length, k)), 50_256).astype(np.int32)
    logprobs = np.log(rng.dirichlet(np.ones(k + 1), count * length)[:, :k])
    logprobs = np.sort(logprobs, axis=1)[:, ::-1].astype(np.float32)
    token_bytes = [b" t%d" % i for i in top.ravel()]
    steps = np.arange(count * length + 1, dtype=np.int32)
    solutions = pa.array(steps[::length][: count + 1])

    def per_token(values) -> pa.Array:
        return pa.ListArray.from_arrays(solutions, values)

    def per_alternative(values) -> pa.Array:
        return per_token(pa.ListArray.from_arrays(pa.array(steps * k), values))

    columns = {
        "problem_id": pa.array([f"p/{number:04d}"] * count),
        "task": pa.array(["gsm8k"] * count),
        "question": pa.array([f"How many are {number} cats? " * 8] * count),
        "answer": pa.array([str(number)] * count),
        "sample_id": pa.array(range(count), pa.int32()),
        "completion": pa.array(
            [
                b"".join(token_bytes[i * k : (i + length) * k : k]).decode()
                for i in range(0, count * length, length)
            ]
        ),
        "token_ids": per_token(pa.array(top[:, 0])),
        "token_bytes": per_token(pa.array(token_bytes[::k], pa.binary())),
        "token_logprobs": per_token(pa.array(logprobs[:, 0])),
        "topk_ids": per_alternative(pa.array(top.ravel())),
        "topk_bytes": per_alternative(pa.array(token_bytes, pa.binary())),
        "topk_logprobs": per_alternative(pa.array(logprobs.ravel())),
        "finish_reason": pa.array(["stop"] * count),
    }
    return pa.table(columns).cast(FEATURES.arrow_schema)


@pytest.fixture(scope="module")
def problems() -> Dataset:
    numbers = range(NUM_QUESTIONS)
    return Dataset.from_dict(
        {
            "problem_id": [f"p/{number:04d}" for number in numbers],
            "task": ["gsm8k"] * NUM_QUESTIONS,
            "question": [f"How many are {number} cats? " * 8 for number in numbers],
            "answer": [str(number) for number in numbers],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, problems):
    """A store after its run: the compacted samples, and the traces made of them."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    requests = teacher.build_requests(problems, SHOWN)
    keys = [sample_keys("m", r, OPTIONS, range(NUM_SAMPLES)) for r in requests]
    with (
        segments.open_writer(folder / "samples-00000.parquet", segments.SCHEMA) as kept,
        segments.open_writer(folder / "traces.parquet", STORED) as traces,
    ):
        for first in range(0, NUM_QUESTIONS, 16):  # whole row groups
            numbers = range(NUM_QUESTIONS)[first : first + 16]
            table = pa.concat_tables(synthetic_question(i, rng) for i in numbers)
            traces.write_table(table.cast(STORED), row_group_size=segments.ROWS)
            table = table.rename_columns({"completion": "text"})
            table = table.append_column(
                "key", pa.array(sum((keys[i] for i in numbers), []))
            )
            samples = table.select(segments.SCHEMA.names).cast(segments.SCHEMA)
            kept.write_table(samples, row_group_size=segments.ROWS)
    identity = teacher._identity(problems, sum(keys, []))
    (folder / "traces.identity").write_text(identity)
    return folder


def test_bench_store(benchmark, problems, folder):
    """What notebook 01 calls again: nothing is missing, so the call opens the store.

    It makes the prompts and the samples' names, reads the names that are there, and
    maps the traces. All of that grows with the number of solutions; one question is a
    row group or two, whatever their number. All in processor time: one thread does it,
    the files are in the page cache, and what waits for its turn on a shared machine is
    left out.
    """
    positions = NUM_QUESTIONS * NUM_SAMPLES * LENGTH
    files = folder.glob("*.parquet")
    sizes = {path.name: path.stat().st_size / positions for path in files}
    options = {"num_samples": NUM_SAMPLES, "temperature": 0.5, "seed": 0}
    options |= {"demonstrations": SHOWN, "store": folder}
    started = time.process_time()
    traces = benchmark.pedantic(
        teacher.sample, (problems, BACKEND), options, rounds=1, iterations=1
    )
    opened = time.process_time() - started
    started = time.process_time()
    compaction.map_once(
        iter(()),
        folder / "traces.parquet",
        identity=(folder / "traces.identity").read_text(),
    )
    mapped = time.process_time() - started
    milliseconds = []
    for number in np.random.default_rng(1).integers(0, NUM_QUESTIONS, 50):
        started = time.process_time()
        solutions = traces[number * NUM_SAMPLES : (number + 1) * NUM_SAMPLES]
        milliseconds.append(1000 * (time.process_time() - started))
        assert set(solutions["problem_id"]) == {f"p/{number:04d}"}
    benchmark.extra_info |= {
        "solutions": len(traces),
        "bytes_per_position": sizes,
        "bytes_per_position_together": sum(sizes.values()),
        "seconds_to_open": opened,
        "seconds_to_map": mapped,
        "seconds_to_open_300_000": opened * FULL / NUM_QUESTIONS,
        "ms_per_question_median": float(np.median(milliseconds)),
        "ms_per_question_slowest": max(milliseconds),
    }
    print(benchmark.extra_info)
    assert len(traces) == NUM_QUESTIONS * NUM_SAMPLES
    assert sum(sizes.values()) <= 70
    assert opened * FULL / NUM_QUESTIONS < 2
    assert np.median(milliseconds) < 10


def test_bench_trace_file(benchmark, tmp_path, monkeypatch):
    """Size, opening, one question; the tables are made as they are written.

    One question is a row group: its reading does not depend on the others. Opening
    does, by a row group's metadata; full size needs ten times the default's.
    """
    rng, num_questions = np.random.default_rng(0), NUM_QUESTIONS

    def tables(rows):
        for number in rows:
            yield f"p/{number:04d}", synthetic_question(number, rng)

    monkeypatch.setattr(compaction, "_by_question", tables)
    path = compaction.compact(range(num_questions), tmp_path / "traces.parquet")
    started = time.monotonic()
    file = benchmark.pedantic(compaction.TraceFile, (path,), rounds=1, iterations=1)
    opened = time.monotonic() - started
    times = []
    for number in rng.integers(0, num_questions, 50):
        started = time.monotonic()
        assert len(file.solutions(f"p/{number:04d}")) == 40
        times.append(1000 * (time.monotonic() - started))
    positions = num_questions * 40 * 60
    benchmark.extra_info |= {
        "solutions": len(file),
        "bytes_per_position": path.stat().st_size / positions,
        "seconds_to_open": opened,
        "ms_per_question_median": float(np.median(times)),
        "ms_per_question_slowest": max(times),
        "seconds_to_open_300_000": opened * 7500 / num_questions,
    }
    print(benchmark.extra_info)
    assert len(file) == 40 * num_questions
    assert path.stat().st_size / positions <= 70
    assert opened * 7500 / num_questions < 2
    assert np.median(times) < 10


def test_bench_shard_lines(benchmark):
    """One solution of sixty tokens to a JSON line and back."""
    steps = [[i, 7, 8, 9, 10] for i in range(60)]
    completion = Completion(
        text="x" * 60,
        token_ids=list(range(60)),
        token_bytes=[b"x"] * 60,
        token_logprobs=[-0.123456789] * 60,
        topk_ids=steps,
        topk_bytes=[[b" token"] * 5] * 60,
        topk_logprobs=[[-0.123456789] * 5] * 60,
        finish_reason="stop",
    )
    line = benchmark(encode_line, "k" * 32, completion)
    assert decode_line(line) == ("k" * 32, completion)
