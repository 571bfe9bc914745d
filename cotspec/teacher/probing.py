"""Is a server fit to teach? Asked once, before the run.

Enters: a connection. Leaves: whether the server honours ``n``, or a `ServerError` that
says what it lacks. Servers accept ``logprobs`` and return none (``transformers serve``)
or return them after the temperature: neither shows in a status code.
"""

from __future__ import annotations

import math
from dataclasses import replace

from cotspec.teacher.connection import Connection, ServerError
from cotspec.teacher.replies import InvalidReply, read_reply
from cotspec.teacher.traces import Completion, SamplingOptions

PROMPT = "Q: What is 2 + 3?\nA: Let's think step by step.\n"
NUM_TOKENS = 8
MASS_TOLERANCE = 1e-2  # servers round; a sum above 1 by more is no distribution
TEMPERATURE_TOLERANCE = 0.2  # nats; batching changes log-probabilities by less
_ADVICE = "A server that returns them: vLLM, or llama-cpp-python with --logits_all true"


async def probe(connection: Connection, backend, options: SamplingOptions) -> bool:
    """Check the reply to a short request; return whether ``n`` choices came.

    Raises
    ------
    ServerError
        Unless every token comes with its log-probability and `top_k` alternatives that
        sum to at most 1, whatever the temperature, and the bytes join to the text.
    """
    n = min(2, backend.samples_per_request)
    options = replace(options, max_new_tokens=NUM_TOKENS)
    replies = {}
    for temperature in (1.0, 0.5):
        drawn = replace(options, temperature=temperature)
        body = backend.body(drawn, PROMPT, n=n, seed=options.seed)
        replies[temperature] = await connection.post(body, _reader(backend, options, n))
        for completion in replies[temperature].values():
            check(completion, options.top_k)
    check_temperature(*(next(iter(reply.values())) for reply in replies.values()))
    return len(replies[1.0]) == n


def _reader(backend, options: SamplingOptions, n: int):
    """Read a reply; what it lacks is final, not worth a retry."""

    def read(content: bytes) -> dict[int, Completion]:
        try:
            chat = backend.api == "chat"
            asked = {"top_k": options.top_k, "n": n}
            return read_reply(content, chat=chat, **asked).completions
        except InvalidReply as error:
            raise ServerError(f"the server returns {error}. {_ADVICE}") from None

    return read


def check(completion: Completion, top_k: int) -> None:
    """Refuse a completion that sampling could not use; see `probe`."""
    if not completion.token_bytes:
        raise ServerError(f"the server returns no tokens. {_ADVICE}")
    if b"".join(completion.token_bytes) != completion.text.encode():
        raise ServerError(
            f"the server's tokens {completion.token_bytes[:4]} … do not join to its "
            f"text {completion.text[:40]!r}. {_ADVICE}"
        )
    # Some tokens may have fewer: llama.cpp names alternatives by their text, and two
    # that are halves of characters may share it.
    most = max(map(len, completion.topk_logprobs))
    if most < top_k or not all(completion.topk_logprobs):
        raise ServerError(
            f"the server returns at most {most} alternatives a token, asked for "
            f"{top_k} (teacher.top_k). {_ADVICE}"
        )
    steps = zip(completion.token_logprobs, completion.topk_logprobs, strict=True)
    for position, (logprob, top) in enumerate(steps):
        mass = sum(map(math.exp, top))
        if mass > 1 + MASS_TOLERANCE or logprob > MASS_TOLERANCE:
            raise ServerError(
                f"the server's alternatives at token {position} sum to {mass:.3f}: "
                "they are no log-probabilities"
            )


def check_temperature(warm: Completion, cold: Completion) -> None:
    """Refuse log-probabilities that follow the temperature: ours are at 1."""
    first = dict(zip(warm.topk_bytes[0], warm.topk_logprobs[0], strict=True))
    second = dict(zip(cold.topk_bytes[0], cold.topk_logprobs[0], strict=True))
    gaps = [abs(first[piece] - second[piece]) for piece in first.keys() & second.keys()]
    if gaps and max(gaps) > TEMPERATURE_TOLERANCE:
        raise ServerError(
            f"the server's log-probabilities differ by {max(gaps):.2f} nats between "
            "temperatures 1 and 0.5; they must be those at 1 (vLLM: --logprobs-mode "
            "raw_logprobs)"
        )
