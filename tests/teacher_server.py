"""A small OpenAI-compatible server on 127.0.0.1 that can misbehave.

``python tests/teacher_server.py RATE`` prints its port, serves with this share of
faults, and exits when its standard input closes or after `LIFETIME` seconds, whichever
is first. A reply depends on prompt, seed and choice index alone; a fault is drawn at
random per request.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

LIFETIME = 600  # seconds
FAULTS = "429 500 hang drop torn no_logprobs duplicate short other_index".split()
WORDS = " If we add 3 and 4 cats is = + 7 then so many legs".split(" ")[1:]


def tokens_of(prompt: str, seed: int, index: int, num_tokens: int) -> list[str]:
    """A few words and an answer sentence, always the same for the same key."""
    rng = random.Random(f"{prompt}|{seed}|{index}")
    words = [" " + rng.choice(WORDS) for _ in range(rng.randrange(8, 20))]
    words += [".", " The", " answer", " is", f" {rng.randrange(99)}", "."]
    return words[:num_tokens]


def logprobs_of(tokens: list[str], k: int, is_chat: bool) -> dict:
    """A choice's ``logprobs``; each token is its own first choice."""
    others = {f" other{i}": -4.0 - i for i in range(k - 1)}
    tops = [{token: -0.1} | others for token in tokens]
    if not is_chat:
        values = [-0.1] * len(tokens)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}

    def entry(token: str, value: float) -> dict:
        return {"token": token, "bytes": list(token.encode()), "logprob": value}

    named = [[entry(*one) for one in top.items()] for top in tops]
    return {"content": [top[0] | {"top_logprobs": top} for top in named]}


def choices_for(body: dict, fault: str) -> list[dict]:
    """The choices of one reply, spoilt where the fault says so."""
    chat = "messages" in body
    prompt = body["messages"][0]["content"] if chat else body["prompt"]
    k = body["top_logprobs"] if chat else body["logprobs"]
    choices = []
    for index in range(body["n"]):
        tokens = tokens_of(prompt, body["seed"], index, body["max_tokens"])
        text, is_cut = "".join(tokens), len(tokens) == body["max_tokens"]
        choice = {"message": {"content": text}} if chat else {"text": text}
        choice |= {"index": index, "finish_reason": "length" if is_cut else "stop"}
        choices.append(choice | {"logprobs": logprobs_of(tokens, k, chat)})
    if fault == "no_logprobs":
        choices[-1]["logprobs"] = None
    if fault == "duplicate":
        choices = [choices[0]] * len(choices)
    if fault == "other_index":
        choices = [c | {"index": c["index"] + len(choices)} for c in choices]
    if fault == "short":
        choices = choices[:-1] or choices
    return choices[:1] if fault == "ignores_n" else choices


class FaultServer(ThreadingHTTPServer):
    """Serves until closed; `log` counts requests and faults."""

    daemon_threads, request_queue_size = True, 512

    def __init__(self, fault_rate: float = 0.0, faults=FAULTS, always: str = ""):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.fault_rate, self.faults, self.always = fault_rate, faults, always
        self.said, self.retry_after = "no", "0.2"  # by a 429
        self.log: Counter = Counter()
        self.headers = None  # of the latest request
        self.rng, self.lock = random.Random(0), threading.Lock()
        self.in_flight = self.most_in_flight = 0

    def begin(self, headers, body: dict) -> str:
        """Count a request; return its fault, if any."""
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.log["requests"] += 1
            self.headers = headers
            fault = self.always
            # The probe is short: faults are for the run.
            is_probe = body["max_tokens"] <= 8
            if not fault and not is_probe and self.rng.random() < self.fault_rate:
                fault = self.rng.choice(self.faults)
            self.log[fault] += bool(fault)
            return fault

    def handle_error(self, *_) -> None:
        """A client that goes away is none."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.begin(self.headers, body)
        try:
            self.answer(fault, body)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def answer(self, fault: str, body: dict) -> None:
        if fault in ("hang", "slow"):
            time.sleep({"hang": 1.5, "slow": 0.02}[fault])
        if fault == "drip":  # a header without end, bit by bit
            self.wfile.write(b"HTTP/1.1 200 X\r\nX-Wait: ")
            for _ in range(60):
                self.wfile.write(b".")
                time.sleep(0.05)
        if fault in ("hang", "drop", "drip"):
            self.close_connection = True
            return
        if fault.isdigit():
            said = f"{self.server.said}, {self.headers.get('Authorization', '')}"
            content = {"error": said}
        else:
            content = {"choices": choices_for(body, fault)}
        content = json.dumps(content).encode()
        if fault == "torn":
            content = content[: len(content) // 2]
        self.send_response(int(fault) if fault.isdigit() else 200)
        if fault == "429":
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running(*args, **kwargs):
    """Serve in a thread."""
    with FaultServer(*args, **kwargs) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextmanager
def process(fault_rate: float):
    """Serve in a process of its own; yield its `url` and its `log`, full at the end."""
    command = [sys.executable, __file__, str(fault_rate)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as server:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        known = SimpleNamespace(url=url, log={})
        try:
            yield known
        finally:
            printed, _ = server.communicate("", timeout=30)
            known.log |= json.loads(printed.splitlines()[-1])


def main() -> None:
    lifetime = threading.Timer(LIFETIME, os._exit, [1])
    lifetime.daemon = True
    lifetime.start()
    with running(float(sys.argv[1])) as server:
        print(server.server_port, flush=True)
        sys.stdin.read()
        print(json.dumps(server.log), flush=True)


if __name__ == "__main__":
    main()
