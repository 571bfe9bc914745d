"""A real server, opt-in: ``pytest -m server tests/test_teacher_server.py``.

It needs packages of its own, in this or another environment:
``pip install llama-cpp-python[server]`` (it compiles), its python in
``COTSPEC_LLAMA_PYTHON``.
"""

import os
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from test_teacher_huggingface import DEMONSTRATIONS
from test_teacher_store import problems

from cotspec import models, teacher
from cotspec.profiles import TeacherConfig
from cotspec.teacher.openai import OpenAIBackend

pytestmark = pytest.mark.server

PROBLEMS = problems(["What is 4 + 1?", "What is 9 - 4?"])


@pytest.fixture(scope="module")
def llama_cpp():
    """Start a server on a free port of 127.0.0.1, wait for it, stop it."""
    python = os.environ.get("COTSPEC_LLAMA_PYTHON", sys.executable)
    tried = [python, "-c", "import llama_cpp.server.app"]
    if subprocess.run(tried, capture_output=True).returncode:
        pytest.skip(f"{python} cannot import it; set COTSPEC_LLAMA_PYTHON")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    options = ["--model", os.path.join(*models.smollm2_gguf()), "--logits_all", "true"]
    options += ["--n_ctx", "1024", "--verbose", "false"]
    options += ["--host", "127.0.0.1", "--port", str(port)]
    command = [python, "-m", "llama_cpp.server", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120  # seconds
        while time.monotonic() < deadline and process.poll() is None:
            try:
                httpx.get(f"{url}/models", timeout=5, trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        assert process.poll() is None, f"the server ended with {process.returncode}"
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_llama_cpp_gives_tokens_that_join_with_their_top_five(llama_cpp, api):
    limits = {"max_in_flight": 2, "max_new_tokens": 24}
    server = {"base_urls": (llama_cpp,), "model": "smollm2", "api": api}
    source = OpenAIBackend(TeacherConfig(backend="openai", **server, **limits))
    options = {"num_samples": 2, "temperature": 0.5, "seed": 0}
    options["demonstrations"] = DEMONSTRATIONS
    traces = teacher.sample(PROBLEMS, source, **options)
    print(traces[0]["completion"], traces[0]["topk_bytes"][0])
    assert len(traces) == 4
    for row in traces:
        assert b"".join(row["token_bytes"]).decode() == row["completion"]
        lengths = [len(top) for top in row["topk_logprobs"]]
        # Alternatives are named by text, which two tokens may share.
        assert max(lengths) == 5 and np.mean(lengths) > 4
        masses = [np.exp(top).sum() for top in row["topk_logprobs"]]
        assert 0.1 < min(masses) and max(masses) <= 1 + 1e-3
        steps = (row["token_bytes"], row["token_logprobs"])
        tops = (row["topk_bytes"], row["topk_logprobs"])
        for piece, logprob, names, top in zip(*steps, *tops, strict=True):
            if piece in names:
                assert top[names.index(piece)] == pytest.approx(logprob, abs=1e-3)
