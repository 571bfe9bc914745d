"""Replies of OpenAI-compatible servers.

Enters: a reply's JSON, of ``/completions`` or ``/chat/completions``. Leaves: its
completions by choice index, or an `InvalidReply` that says what is missing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cotspec.prompts import find_end
from cotspec.teacher.traces import NO_ID, Completion, cut_tokens, valid_length

MOST_LOGPROB = 1e-3  # a rounded certainty
Alternatives = list[tuple[bytes, float]]


class InvalidReply(ValueError):
    """A reply without what was asked for; asking again may help."""


class Reply(NamedTuple):
    """What one request brought.

    Attributes
    ----------
    completions : dict of int to Completion, by choice index
    num_tokens : int, of prompt and completions; None where the server does not say
    """

    completions: dict[int, Completion]
    num_tokens: int | None


def read_reply(content: bytes, *, chat: bool, top_k: int, n: int) -> Reply:
    """Read a reply's choices of index 0 to `n` - 1.

    A repeated index counts once; choices of any other index were not asked for.

    Raises
    ------
    InvalidReply
        Torn JSON, no choice that was asked for, or one without tokens,
        log-probabilities or alternatives.
    """
    try:
        reply = json.loads(content)
        found = {}
        for position, choice in enumerate(reply["choices"]):
            index = choice.get("index", position)
            if index in range(n) and index not in found:
                found[int(index)] = read_choice(choice, chat=chat, top_k=top_k)
        num_tokens = (reply.get("usage") or {}).get("total_tokens")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, InvalidReply):
            raise
        raise InvalidReply(f"malformed reply ({type(error).__name__})") from None
    if not found:
        raise InvalidReply(f"no choices of index 0 to {n - 1}")
    return Reply(found, num_tokens if isinstance(num_tokens, int) else None)


def read_choice(choice: Mapping, *, chat: bool, top_k: int) -> Completion:
    """Return one choice, cut behind its answer sentence.

    Where the tokens' bytes do not begin with the text (a server that replaces split
    characters), the tokens are kept as they came, for stage two to count the solution
    as unaligned.
    """
    text = choice["message"]["content"] if chat else choice["text"]
    text = text or ""
    pieces, logprobs, alternatives = (_chat_tokens if chat else _tokens)(choice)
    _check_numbers(pieces, logprobs, alternatives)
    end, finish_reason = _end_of(text, choice.get("finish_reason"))
    if b"".join(pieces).startswith(text.encode()):
        pieces = cut_tokens(pieces, end)
        text = text.encode()[:end].decode()
    length = len(pieces)
    tops = [sorted(step, key=lambda a: -a[1])[:top_k] for step in alternatives[:length]]
    return Completion(
        text=text,
        token_ids=[NO_ID] * length,
        token_bytes=pieces,
        token_logprobs=logprobs[:length],
        topk_ids=[[NO_ID] * len(step) for step in tops],
        topk_bytes=[[piece for piece, _ in step] for step in tops],
        topk_logprobs=[[logprob for _, logprob in step] for step in tops],
        finish_reason=finish_reason,
    )


def _end_of(text: str, reason: str | None) -> tuple[int, str]:
    """Return where the text ends, in bytes, and why."""
    encoded = text.encode()
    has_ended = reason != "length"
    end = find_end(encoded + b"\n")
    if end is not None:
        return min(end, len(encoded)), "stop"
    return valid_length(encoded, len(encoded)), "stop" if has_ended else "length"


def _tokens(
    choice: Mapping,
) -> tuple[list[bytes], list[float], list[Alternatives]]:
    """Read the ``logprobs`` object of ``/completions``."""
    logprobs = choice.get("logprobs")
    if not logprobs or not logprobs.get("tokens"):
        _refuse_unless_empty(choice.get("text"), "logprobs")
        return [], [], []
    if not logprobs.get("top_logprobs"):
        raise InvalidReply("no top_logprobs")
    return (
        [token_bytes(token) for token in logprobs["tokens"]],
        logprobs["token_logprobs"],
        [
            [(token_bytes(token), value) for token, value in (step or {}).items()]
            for step in logprobs["top_logprobs"]
        ],
    )


def _chat_tokens(
    choice: Mapping,
) -> tuple[list[bytes], list[float], list[Alternatives]]:
    """Read the ``logprobs.content`` list of ``/chat/completions``."""
    steps = (choice.get("logprobs") or {}).get("content")
    if not steps:
        _refuse_unless_empty(choice["message"].get("content"), "logprobs.content")
        return [], [], []
    return (
        [_entry_bytes(step) for step in steps],
        [step["logprob"] for step in steps],
        [
            [(_entry_bytes(entry), entry["logprob"]) for entry in step["top_logprobs"]]
            for step in steps
        ],
    )


def _refuse_unless_empty(text: str | None, name: str) -> None:
    if text:
        raise InvalidReply(f"no {name}")


def _entry_bytes(entry: Mapping) -> bytes:
    given = entry.get("bytes")
    return bytes(given) if given is not None else token_bytes(entry["token"])


@functools.lru_cache(maxsize=2**16)  # a vocabulary, which comes in every reply again
def token_bytes(token: str) -> bytes:
    r"""Return the bytes of a token's text; OpenAI writes split ones as ``bytes:\xNN``.

    Examples
    --------
    >>> token_bytes(" é"), token_bytes("bytes:\\xf0\\x9f")
    (b' \xc3\xa9', b'\xf0\x9f')
    """
    if token.startswith("bytes:"):
        spelled = token.removeprefix("bytes:")
        return spelled.encode("latin-1").decode("unicode_escape").encode("latin-1")
    return token.encode()


def _check_numbers(
    pieces: Sequence[bytes],
    logprobs: Sequence[float],
    alternatives: Sequence[Alternatives],
) -> None:
    """Refuse steps of unequal number and log-probabilities that are none."""
    if not len(pieces) == len(logprobs) == len(alternatives):
        raise InvalidReply(
            f"{len(pieces)} tokens, {len(logprobs)} log-probabilities, "
            f"{len(alternatives)} lists of alternatives"
        )
    named = {
        "token_logprobs": logprobs,
        "top_logprobs": [value for step in alternatives for _, value in step],
    }
    for name, values in named.items():
        for value in values:
            if not isinstance(value, (int, float)) or not value <= MOST_LOGPROB:
                raise InvalidReply(f"{name} holds {value!r}")
