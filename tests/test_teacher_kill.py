"""kill -9 at twenty random moments: the same traces after the next run."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import teacher_server
from datasets import Dataset
from test_teacher_huggingface import DEMONSTRATIONS, tiny_teacher
from test_teacher_openai import backend as backend_of
from test_teacher_store import problems

from cotspec import teacher
from cotspec.teacher.huggingface import HuggingFaceBackend

NUM_KILLS = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes"),
]


def killed_after(seconds: float, work) -> bool:
    """Run `work` in a child and kill it; tell whether it was still at it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            status = 0
        finally:
            os._exit(status)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_and_resume(backend, num_problems: int, num_samples: int, folder: Path) -> None:
    """Kill one run per folder, resume it, compare keys and compacted bytes."""

    def sample_into(store: Path) -> Dataset:
        options = {"num_samples": num_samples, "temperature": 1.0, "seed": 3}
        options |= {"demonstrations": DEMONSTRATIONS, "store": store}
        asked = problems(f"{i} cats?" for i in range(num_problems))
        return teacher.sample(asked, backend, **options)

    started, rng, num_cut = time.monotonic(), random.Random(0), 0
    expected = sample_into(folder / "plain").to_dict()
    duration = time.monotonic() - started
    for number in range(NUM_KILLS):
        moment = rng.uniform(0, duration)
        store = folder / f"killed{number}"
        num_cut += killed_after(moment, lambda store=store: sample_into(store))
        assert sample_into(store).to_dict() == expected
    assert num_cut >= NUM_KILLS // 2


def test_a_local_model(tmp_path):
    backend = HuggingFaceBackend(tiny_teacher(), 5, max_new_tokens=16)
    kill_and_resume(backend, 8, 4, tmp_path)


def test_a_server_with_faults(tmp_path):
    options = {"samples_per_request": 1, "max_in_flight": 4, "timeout": 0.5}
    with teacher_server.process(0.1) as server:
        kill_and_resume(backend_of(server, **options), 20, 8, tmp_path)
