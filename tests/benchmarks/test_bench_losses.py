"""Time and peak memory of the losses against torch's cross-entropy, forward + backward.

Batch 8, target 128, vocabulary 32,128 and k 5. Times are the best of interleaved
repetitions, on one thread and on two. Two need an idle machine: where others use it,
the threads wait for each other, which is not the losses' doing. Peak memory is the
growth of the resident set of a process that does nothing else, logits included.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cotspec import losses, profiles

B, T, V, K = 8, 128, 32128, 5
TIME_BOUND, MEMORY_BOUND = 1.25, 1.15
REPETITIONS = 7
OURS = ["sample_matching", *profiles.Tail.__args__]


def make_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, T, V, generator=generator).requires_grad_()
    labels = torch.randint(0, V, (B, T), generator=generator)
    ids = torch.randint(0, V, (B, T, K), generator=generator)
    probs = 0.95 * torch.rand(B, T, K, generator=generator).softmax(-1)
    return logits, labels, ids, probs


def one_step(name, batch):
    logits, labels, ids, probs = batch
    logits.grad = None
    if name == "cross_entropy":
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    elif name == "sample_matching":
        loss = losses.sample_matching(logits, labels)
    else:
        loss = losses.distribution_matching(logits, labels, ids, probs, tail=name)
    loss.backward()


@pytest.fixture(params=(1, 2), ids=("1-thread", "2-threads"))
def num_threads(request, one_thread):  # which sets back what was before
    if request.param > os.cpu_count():
        pytest.skip("one core only")
    torch.set_num_threads(request.param)


def resident_bytes():
    """This process's peak (Linux; `ru_maxrss` would begin with the parent's)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def peak_bytes(name):
    """Peak resident memory of one step in a fresh process, without the libraries."""
    command = [sys.executable, __file__, name]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def check(benchmark, name, measured, bound):
    ratio = measured[name] / measured["cross_entropy"]
    benchmark.extra_info["ratio_to_cross_entropy"] = ratio
    print(f"\n{name}: {ratio:.2f} x cross-entropy; {measured}")
    assert ratio <= bound


@pytest.mark.parametrize("name", OURS)
def test_bench_time_beside_cross_entropy(benchmark, num_threads, name):
    batch = make_batch()
    seconds = {"cross_entropy": [], name: []}

    def one_round():
        for each, times in seconds.items():
            start = time.perf_counter()
            one_step(each, batch)
            times.append(time.perf_counter() - start)

    benchmark.pedantic(one_round, rounds=REPETITIONS)
    best = {each: min(times) for each, times in seconds.items()}
    check(benchmark, name, best, TIME_BOUND)


@pytest.mark.parametrize("name", OURS)
def test_bench_peak_memory_beside_cross_entropy(benchmark, name):
    peaks = {"cross_entropy": peak_bytes("cross_entropy")}
    peaks[name] = benchmark.pedantic(peak_bytes, args=(name,), rounds=1)
    check(benchmark, name, peaks, MEMORY_BOUND)


if __name__ == "__main__":
    libraries = resident_bytes()
    one_step(sys.argv[1], make_batch())
    print(resident_bytes() - libraries)
