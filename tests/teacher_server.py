"""A small OpenAI-compatible server on 127.0.0.1 that can misbehave.

``python tests/teacher_server.py`` prints its port, serves, and exits when its standard
input closes or after `LIFETIME` seconds, whichever is first. A reply depends on prompt,
seed and choice index alone; a fault is drawn at random per request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress

LIFETIME = 600  # seconds
FAULTS = (
    "429",
    "500",
    "hang",
    "drop",
    "torn",
    "no_logprobs",
    "duplicate",
    "short",
    "other_index",
)  # none of them changes a sample, as "nan" does, which costs a slot
WORDS = " If we add 3 and 4 cats is = + 7 then so many legs".split(" ")[1:]


def tokens_of(prompt: str, seed: int, index: int, num_tokens: int) -> list[str]:
    """A few words and an answer sentence, always the same for the same key."""
    rng = random.Random(f"{prompt}|{seed}|{index}")
    words = [" " + rng.choice(WORDS) for _ in range(rng.randrange(8, 20))]
    return [*words, ".", " The", " answer", " is", f" {rng.randrange(99)}", "."][
        :num_tokens
    ]


def logprobs_of(tokens: list[str], k: int) -> dict:
    """The ``logprobs`` object of /completions; each token is its own first choice."""
    top = [
        {token: -0.1} | {f" other{i}": -4.0 - i for i in range(k - 1)}
        for token in tokens
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [-0.1] * len(tokens),
        "top_logprobs": top,
    }


def as_chat(logprobs: dict) -> dict:
    """The same as /chat/completions has it."""

    def entry(token: str, value: float) -> dict:
        return {"token": token, "bytes": list(token.encode()), "logprob": value}

    steps = zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    return {
        "content": [
            entry(token, -0.1) | {"top_logprobs": [entry(t, v) for t, v in top.items()]}
            for token, top in steps
        ]
    }


def spoil(logprobs: dict) -> None:
    """Make one alternative's log-probability NaN, in either form."""
    if "content" in logprobs:
        logprobs["content"][1]["top_logprobs"][0]["logprob"] = float("nan")
    else:
        logprobs["top_logprobs"][1][" other0"] = float("nan")


def choices_for(body: dict, fault: str) -> list[dict]:
    """The choices of one reply, spoilt where the fault says so."""
    chat = "messages" in body
    prompt = body["messages"][0]["content"] if chat else body["prompt"]
    k = body["top_logprobs"] if chat else body["logprobs"]
    choices = []
    for index in range(body["n"]):
        tokens = tokens_of(prompt, body["seed"], index, body["max_tokens"])
        logprobs = logprobs_of(tokens, k)
        text = "".join(tokens)
        is_cut = len(tokens) == body["max_tokens"]
        choice = {
            "index": index,
            "finish_reason": "length" if is_cut else "stop",
            "logprobs": as_chat(logprobs) if chat else logprobs,
        }
        choice |= {"message": {"content": text}} if chat else {"text": text}
        choices.append(choice)
    if fault == "no_logprobs":
        choices[-1]["logprobs"] = None
    if fault == "duplicate":
        choices = [choices[0]] * len(choices)
    if fault == "other_index":
        choices = [c | {"index": c["index"] + len(choices)} for c in choices]
    if fault == "nan":
        spoil(choices[-1]["logprobs"])
    if fault == "short":
        choices = choices[:-1] or choices
    return choices


class FaultServer:
    """Serves until closed; `log` counts requests and faults, `bodies` keeps some."""

    def __init__(
        self, fault_rate: float = 0.0, faults=FAULTS, always: str = "", tls=None
    ):
        self.fault_rate, self.faults, self.always = fault_rate, faults, always
        self.tls = tls  # an SSLContext
        self.more: dict = {}  # beside the choices of every reply
        self.said, self.retry_after = "no", "0.2"  # by a 429
        self.log: Counter = Counter()
        self.headers: list[dict] = []
        self.bodies: list[dict] = []
        self.rng = random.Random(0)
        self.in_flight = self.most_in_flight = 0

    async def handle(self, reader, writer) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(writer, headers, body)
        finally:
            self.in_flight -= 1

    async def _answer(self, writer, headers: dict, body: dict) -> bool:
        self.log["requests"] += 1
        if len(self.bodies) < 100:
            self.headers.append(headers)
            self.bodies.append(body)
        fault = self.always
        # The probe is short: faults are for the run.
        if not fault and body["max_tokens"] > 8 and self.rng.random() < self.fault_rate:
            fault = self.rng.choice(self.faults)
        self.log[fault] += bool(fault)
        if fault == "drop":
            return False
        if fault == "hang":
            await asyncio.sleep(1.5)
            return False
        if fault == "slow":
            await asyncio.sleep(0.02)
        if fault == "drip":  # a header without end, bit by bit
            writer.write(b"HTTP/1.1 200 X\r\nX-Wait: ")
            for _ in range(60):
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        status, extra, content = self._reply(fault, headers, body)
        if fault == "torn":
            content = content[: len(content) // 2]
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        return True

    def _reply(self, fault: str, headers: dict, body: dict) -> tuple[str, str, bytes]:
        if fault.isdigit():
            error = {"error": f"{self.said}, " + headers.get("authorization", "")}
            extra = f"Retry-After: {self.retry_after}\r\n" if fault == "429" else ""
            return fault, extra, json.dumps(error).encode()
        choices = choices_for(body, fault)
        if self.always == "ignores_n":
            choices = choices[:1]
        return "200", "", json.dumps({"choices": choices} | self.more).encode()


async def serve(server: FaultServer, announce) -> None:
    """Announce the port, then serve for at most `LIFETIME` seconds."""
    listener = await asyncio.start_server(
        server.handle, "127.0.0.1", 0, limit=2**22, backlog=512, ssl=server.tls
    )
    announce(listener.sockets[0].getsockname()[1])
    async with listener:
        await asyncio.wait_for(asyncio.Event().wait(), LIFETIME)


@contextmanager
def running(*args, **kwargs):
    """A server in a thread: yields it with its `url`."""
    server, ready = FaultServer(*args, **kwargs), threading.Event()
    closing: list = []

    def announce(port: int) -> None:
        server.port, server.url = port, f"http://127.0.0.1:{port}/v1"
        closing.append((asyncio.get_running_loop(), asyncio.current_task()))
        ready.set()

    def work() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(serve(server, announce))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        [(loop, task)] = closing
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault-rate", type=float, default=0.0)
    server = FaultServer(parser.parse_args().fault_rate)

    async def run() -> None:
        closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        serving = asyncio.ensure_future(
            serve(server, lambda port: print(port, flush=True))
        )
        await asyncio.wait({closed, serving}, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        await asyncio.wait({serving})
        print(json.dumps(server.log), flush=True)

    asyncio.run(run())


if __name__ == "__main__":
    main()
