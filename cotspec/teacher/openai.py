"""Solutions from OpenAI-compatible servers: vLLM, llama.cpp, OpenAI and the like.

Enters: base URLs and the run's prompts; a key, if any, from the environment alone.
Leaves: completions as they arrive. A bounded number of requests is in flight; transient
faults are retried, missing samples asked for again, a sample whose reply is malformed
each time is left out, anything else stops the run. No error, log line or ``repr`` holds
the key.
"""

import asyncio
import json
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from itertools import cycle, islice, product

import httpx
from anyio.from_thread import start_blocking_portal

from cotspec.alignment.records import token_bytes
from cotspec.profiles import TeacherConfig
from cotspec.prompts import STOP_STRINGS, find_end
from cotspec.teacher import traces
from cotspec.teacher.traces import Completion, Missing, Request, Sample, SamplingOptions

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"  # where no base URL is configured
PATHS = {"completions": "/completions", "chat": "/chat/completions"}
MAX_BODY = 64 * 2**20  # bytes of one reply
MAX_WAIT = 600.0  # seconds that a server may ask us to wait
MAX_DELAY = 60.0  # seconds between two tries of our own accord
MOST_LOGPROB = 1e-3  # a rounded certainty
_NEAR = ("localhost", "127.0.0.1", "::1")  # this machine
_PROBE = "Q: What is 2 + 3?\nA: Let's think step by step.\n"
_ADVICE = "A server that returns them: vLLM, or llama-cpp-python with --logits_all true"
_STORED = "What came before is stored; the same call goes on from there"


class ServerError(RuntimeError):
    """A server that refuses, keeps failing, or lacks what sampling needs."""


class InvalidReply(Exception):
    """A reply without what was asked for; asking again may help."""


class Busy(Exception):
    """A server that cannot answer now; `after` is how long it asks us to wait."""

    def __init__(self, said: str, after: float = 0.0):
        super().__init__(said)
        self.after = after


def failure(said: str, after: float = 0.0) -> Busy | ServerError:
    """Return what a server's words amount to: try again, or give up."""
    if "insufficient_quota" in said or after > MAX_WAIT:
        return ServerError(said)
    return Busy(said, after)


_TRANSIENT = (Busy, httpx.RequestError, asyncio.TimeoutError)
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class OpenAIBackend:
    """One or many servers that offer the same model, taken in turn."""

    timeout = 300.0  # seconds until a request counts as lost
    max_retries = 8  # per request
    backoff = 0.5  # seconds before the first retry, doubled at each

    def __init__(self, config: TeacherConfig):
        self.config, self.model, self.api = config, config.model, config.api
        self.max_new_tokens, self.top_k = config.max_new_tokens, config.top_k
        bases = config.base_urls or (OPENAI_URL,)
        urls = [url.rstrip("/") + PATHS[config.api] for url in bases]
        self.urls = cycle(urls)
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()  # a file ends in "\n"
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("OPENAI_API_KEY. Allowed: one line of plain ASCII")
        for url in map(httpx.URL, urls):
            if self.key and url.scheme == "http" and url.host not in _NEAR:
                said = "teacher.base_urls: the key goes to %s unencrypted"
                logger.warning(said, url.host)

    def complete(
        self, requests: Sequence[Request], options: SamplingOptions, missing: Missing
    ) -> Iterator[list[Sample]]:
        """Probe the servers, then yield the missing samples as they arrive.

        Raises
        ------
        ServerError
            A server that fails the probe, refuses a request, or keeps failing.
        """
        most, size = self.config.max_in_flight, self.config.samples_per_request
        # One request asks for so many samples; the borders do not depend on `missing`.
        every = range(options.num_samples)
        chunks = [every[start : start + size] for start in every[::size]]
        due = ((i, ids, missing[i] & set(ids)) for i, ids in product(missing, chunks))
        jobs = ((i, requests[i], ids, wanted) for i, ids, wanted in due if wanted)
        known = {"headers": {"Authorization": f"Bearer {self.key}"}} if self.key else {}
        known["limits"] = httpx.Limits(max_connections=most)
        # This machine is never reached by a proxy: requests to it hold the key.
        near = [str(httpx.URL(scheme="all", host=host)) for host in _NEAR]
        known["mounts"] = dict.fromkeys(near)
        self.options = options
        self.http = httpx.AsyncClient(timeout=self.timeout, **known)
        with (
            # An event loop in a thread of its own: notebooks have one running.
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(self.http),
        ):
            portal.call(self.probe)
            running: set[futures.Future] = set()
            while True:
                # What came is stored first: a slow disk holds up the requests.
                for job in islice(jobs, most - len(running)):
                    running.add(portal.start_task_soon(self.ask, *job))
                if not running:
                    break
                done, running = futures.wait(running, return_when="FIRST_COMPLETED")
                for future in sorted(done, key=lambda f: f.exception() is not None):
                    yield future.result()

    async def ask(
        self, index: int, request: Request, chunk: range, wanted: set[int]
    ) -> list[Sample]:
        """Ask for consecutive samples; ask singly for those that did not come.

        What is malformed each time is left out.
        """
        found: dict[int, Completion] = {}
        singly = [(s,) for s in chunk] if len(chunk) > 1 else []
        for ids in (chunk, *singly):
            if found.keys() >= wanted.intersection(ids):
                continue
            seed = traces.sample_seed(self.options.seed, request.problem_id, ids[0])
            body = self._body(request.prompt, self.options.temperature, seed)
            try:
                came = await self.post(body | {"n": len(ids)})
                found |= {ids[i]: done for i, done in came.items()}
            except InvalidReply as error:
                logger.warning("%s", error)
        return [(index, s, found[s]) for s in sorted(wanted & found.keys())]

    def _body(self, prompt: str, temperature: float, seed: int) -> dict[str, object]:
        """Return the JSON body of one request."""
        body = {"model": self.model, "n": 1, "temperature": temperature}
        body |= {"seed": seed % 2**31, "max_tokens": self.max_new_tokens}
        body["stop"] = list(STOP_STRINGS)
        if self.config.api == "chat":
            body |= {"messages": [{"role": "user", "content": prompt}]}
            return body | {"logprobs": True, "top_logprobs": self.top_k}
        return body | {"prompt": prompt, "logprobs": self.top_k}

    async def post(
        self, body: dict, *, retried: tuple = (*_TRANSIENT, InvalidReply)
    ) -> dict[int, Completion]:
        """Return what `read_reply` reads in the reply.

        408, 429, 5xx, timeouts, broken connections and malformed replies are tried
        again, at the next server, with jitter and after ``Retry-After``.

        Raises
        ------
        ServerError
            At once for any other status than 2xx; else after `max_retries`.
        InvalidReply
            Malformed each time, or not `retried`.
        """
        for tried in range(self.max_retries + 1):
            url = next(self.urls)
            try:
                sent = asyncio.wait_for(self._fetch(url, body), self.timeout)
                return read_reply(await sent, top_k=self.top_k, n=body["n"])
            except ServerError as error:
                said = f"{url}: {self.cleaned(error)}. {_STORED}"
                raise ServerError(said) from None
            except retried as error:
                if tried == self.max_retries:
                    if isinstance(error, InvalidReply):
                        raise
                    said = f"{url}: {self.cleaned(error)}, {tried + 1} times. {_STORED}"
                    raise ServerError(said) from None
                asked = getattr(error, "after", 0.0)
                if asked > 5:
                    logger.warning("waiting %.0f s, as asked by the server", asked)
                # Some of it at random: clients shall not march in step.
                own = self.backoff * (2**tried + random.uniform(0, 0.5))
                await asyncio.sleep(max(min(own, MAX_DELAY), asked))

    def cleaned(self, error: Exception) -> str:
        """Return the beginning of an error's words, without the key."""
        said = str(error) or type(error).__name__
        return (said.replace(self.key, "[key]") if self.key else said)[:300]

    async def _fetch(self, url: str, body: dict) -> bytes:
        """Send one request; return the body of a 2xx reply."""
        content = bytearray()
        async with self.http.stream("POST", url, json=body) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MAX_BODY:
                    raise InvalidReply(f"a reply of more than {MAX_BODY >> 20} MiB")
        if response.is_success:
            return bytes(content)
        status, asked = response.status_code, response.headers.get("retry-after", "")
        after = float(asked) if asked.replace(".", "", 1).isdecimal() else 0.0
        wait = f" (asks to wait {after:.0f} s)" if after else ""
        said = f"status {status}{wait}: {content[:9999].decode(errors='replace')}"
        if status not in (408, 429) and status < 500:
            raise ServerError(said)
        raise failure(said, after)

    async def probe(self) -> None:
        """Check the replies to a short request.

        Servers accept ``logprobs`` and return none (``transformers serve``) or return
        them after the temperature: neither shows in a status code.

        Raises
        ------
        ServerError
            Unless every token comes with its log-probability and `top_k` alternatives
            that sum to at most 1, whatever the temperature, and the bytes join to the
            text.
        """
        found = []
        for temperature in (1.0, 0.5):
            body = self._body(_PROBE, temperature, seed=0) | {"max_tokens": 8}
            try:
                found += (await self.post(body, retried=_TRANSIENT)).values()
            except InvalidReply as error:  # what it lacks will not come
                raise ServerError(f"the server returns {error}. {_ADVICE}") from None
            check(found[-1], self.top_k)
        check_temperature(*found)


# --- replies --------------------------------------------------------------------------


def read_reply(content: bytes, *, top_k: int, n: int) -> dict[int, Completion]:
    """Read a reply's choices of index 0 to `n` - 1.

    A repeated index counts once; choices of any other index were not asked for.

    Raises
    ------
    InvalidReply
        Torn JSON, no choice that was asked for, or one without tokens,
        log-probabilities or alternatives.
    Busy, ServerError
        An error in the server's own words instead of choices.
    """
    try:
        reply = json.loads(content)
        given = map(reply.get, ("error", "message", "detail"))
        if not reply.get("choices") and (said := next(filter(None, given), None)):
            raise failure(f"the server says {said}")
        found = {}
        for position, choice in enumerate(reply["choices"]):
            if choice.get("error"):  # some put it here, beside an empty text
                raise failure(f"the server says {choice['error']}")
            index = choice.get("index", position)
            if index in range(n) and index not in found:
                found[int(index)] = read_choice(choice, top_k=top_k)
    except _MALFORMED as error:
        raise InvalidReply(f"malformed reply ({type(error).__name__})") from None
    if not found:
        raise InvalidReply(f"no choices of index 0 to {n - 1}")
    return found


def read_choice(choice: Mapping, *, top_k: int) -> Completion:
    """Return one choice, cut behind its answer sentence.

    Where the tokens' bytes do not begin with the text (a server that replaces split
    characters), the tokens are kept as they came: stage two counts the solution as
    unaligned.
    """
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    logprobs = choice.get("logprobs") or {}
    # Chat, and llama-server's completions; else parallel lists.
    entries = logprobs.get("content") or _as_entries(logprobs)
    if text and not entries:
        raise InvalidReply("no logprobs")
    steps = [_read_entry(entry, top_k) for entry in entries]
    encoded = (text or "").encode()
    end = find_end(encoded + b"\n")
    # Only "stop" is an end: "abort", "content_filter" and the like tear a text, perhaps
    # in its last number.
    has_ended = choice.get("finish_reason") == "stop" or find_end(encoded + b" ")
    reason = "stop" if has_ended else "length"
    pieces = [piece for piece, *_ in steps]
    if b"".join(pieces).startswith(encoded):
        encoded = encoded[:end]
        pieces = traces.cut_tokens(pieces, len(encoded))
        rest = [known for _, *known in steps]
        steps = [(piece, *known) for piece, known in zip(pieces, rest, strict=False)]
    return Completion.without_ids(encoded.decode(), steps, reason)


def _as_entries(logprobs: Mapping) -> list[dict]:
    """Turn the parallel lists of ``/completions`` into chat's entries."""
    tokens = logprobs.get("tokens") or []
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    columns = tokens, logprobs.get("token_logprobs") or [], tops
    entries = []
    for token, value, top in zip(*columns, strict=True):
        named = [{"token": name, "logprob": v} for name, v in (top or {}).items()]
        entries.append({"token": token, "logprob": value, "top_logprobs": named})
    return entries


def _read_entry(entry: Mapping, top_k: int) -> traces.Step:
    """Return a token, its log-probability, and its alternatives, the best first."""
    if not entry.get("top_logprobs"):
        raise InvalidReply("no top_logprobs")
    logprob = _number(entry["logprob"])
    if logprob is None:
        raise InvalidReply(f"token_logprobs holds {entry['logprob']!r:.40}")
    named = entry["top_logprobs"]
    tops = [(_entry_bytes(one), _number(one["logprob"])) for one in named]
    # An impossible one leaves its slot to the tail.
    best = traces.ranked((piece, value) for piece, value in tops if value is not None)
    return _entry_bytes(entry), logprob, best[:top_k]


def _number(value: object) -> float | None:
    """Return a log-probability, or None for what is none."""
    is_number = isinstance(value, (int, float)) and value <= MOST_LOGPROB  # not NaN
    return float(max(value, -1e4)) if is_number else None


def _entry_bytes(entry: Mapping) -> bytes:
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) else token_bytes(entry["token"])


# --- is a server fit to teach? --------------------------------------------------------


def check(completion: Completion, top_k: int) -> None:
    """Refuse a completion that sampling could not use; see `probe`."""
    pieces, tops = completion.token_bytes, completion.topk_logprobs
    # Some tokens may have fewer: llama.cpp names alternatives by their text, and two
    # that are halves of characters may share it.
    most = max(map(len, tops), default=0)
    mass = max((sum(map(math.exp, top)) for top in tops), default=0.0)
    joins = b"".join(pieces) == completion.text.encode()
    has_all = most >= top_k and all(tops)
    for is_sound, fault in (
        (pieces, "no tokens"),
        (joins, f"tokens {pieces[:4]} … that do not join to {completion.text[:40]!r}"),
        (has_all, f"at most {most} alternatives a token, of {top_k} (teacher.top_k)"),
        (mass <= 1.01, f"alternatives that sum to {mass:.3f}"),  # servers round
    ):
        if not is_sound:
            raise ServerError(f"the server returns {fault}. {_ADVICE}")


def check_temperature(warm: Completion, cold: Completion) -> None:
    """Refuse log-probabilities that follow the temperature: ours are at 1."""
    first = dict(zip(warm.topk_bytes[0], warm.topk_logprobs[0], strict=True))
    second = dict(zip(cold.topk_bytes[0], cold.topk_logprobs[0], strict=True))
    gaps = [abs(first[piece] - second[piece]) for piece in first.keys() & second.keys()]
    if gaps and max(gaps) > 0.2:  # nats; batching changes them by less
        said = f"differ by {max(gaps):.2f} nats between temperatures 1 and 0.5; they"
        remedy = "must be those at 1 (vLLM: --logprobs-mode raw_logprobs)"
        raise ServerError(f"the server's log-probabilities {said} {remedy}")
