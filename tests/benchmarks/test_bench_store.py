"""The store of samples: what opening costs once a run has finished.

20,000 solutions of 60 tokens with five alternatives, random, so that nothing repeats by
accident; seconds of processor time. At the paper's 323,810 solutions multiply by 16.

    pytest tests/benchmarks/test_bench_store.py --benchmark-only -s
"""

import time

import numpy as np
from test_teacher_store import problems

from cotspec import teacher
from cotspec.teacher.traces import Completion

NUM_QUESTIONS, NUM_SAMPLES, LENGTH, TOP_K = 500, 40, 60, 5


class Invented:
    """A teacher that costs nothing."""

    model, max_new_tokens, top_k = "invented", LENGTH, TOP_K

    def complete(self, requests, options, missing):
        rng = np.random.default_rng(0)
        for index, wanted in missing.items():
            yield [(index, sample_id, invent(rng)) for sample_id in sorted(wanted)]


def invent(rng) -> Completion:
    ids = np.minimum(rng.zipf(1.3, (LENGTH, TOP_K)), 50_256)
    logprobs = np.log(rng.dirichlet(np.ones(TOP_K + 1), LENGTH)[:, :TOP_K])
    pieces = [[b" t%d" % i for i in step] for step in ids]
    topk = {"topk_ids": ids.tolist(), "topk_bytes": pieces}
    topk["topk_logprobs"] = logprobs.tolist()
    sampled = {f"token_{name[5:]}": [row[0] for row in topk[name]] for name in topk}
    text = b"".join(sampled["token_bytes"]).decode()
    return Completion(text=text, **sampled, **topk, finish_reason="stop")


def test_bench_a_finished_store_opens_at_once(benchmark, tmp_path):
    questions = problems(f"{i}?" for i in range(NUM_QUESTIONS))
    options = {"num_samples": NUM_SAMPLES, "temperature": 0.5, "seed": 0}
    options["store"] = tmp_path
    marks = [time.process_time()]
    teacher.sample(questions, Invented(), **options)
    marks.append(time.process_time())
    traces = benchmark.pedantic(
        teacher.sample, (questions, Invented()), options, rounds=1
    )
    marks.append(time.process_time())
    first, again = np.diff(marks).tolist()
    print({"first_seconds": first, "again_seconds": again})
    assert len(traces) == NUM_QUESTIONS * NUM_SAMPLES
    assert again < 2 and again < first / 10
