"""Solutions from OpenAI-compatible servers: vLLM, llama.cpp, OpenAI and the like.

Enters: base URLs and the run's prompts; a key, if any, from the environment alone.
Leaves: completions as they arrive. A bounded number of requests is in flight; transient
faults are retried, missing samples asked for again, a sample whose reply is malformed
each time is left out and counted, anything else stops the run. No error, log line or
``repr`` holds the key.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from itertools import cycle, islice, takewhile

import httpx
from anyio.from_thread import start_blocking_portal

from cotspec.alignment.records import token_bytes
from cotspec.profiles import TeacherConfig
from cotspec.prompts import STOP_STRINGS, find_end
from cotspec.teacher.traces import (
    Completion,
    Request,
    Sample,
    SamplingOptions,
    cut_tokens,
    sample_seed,
)

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"  # where no base URL is configured
PATHS = {"completions": "/completions", "chat": "/chat/completions"}
MAX_BODY = 64 * 2**20  # bytes of one reply
MAX_WAIT = 600.0  # seconds that a server may ask us to wait
MAX_DELAY = 60.0  # seconds between two tries of our own accord
MOST_LOGPROB = 1e-3  # a rounded certainty
_NEAR = ("localhost", "127.0.0.1", "::1")  # this machine
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|hf|Bearer)[-_ ][\w*.-]{4,}")
_PROBE = "Q: What is 2 + 3?\nA: Let's think step by step.\n"
_ADVICE = "A server that returns them: vLLM, or llama-cpp-python with --logits_all true"
_STORED = "What came before is stored; the same call goes on from there"


class ServerError(RuntimeError):
    """A server that refuses, keeps failing, or lacks what sampling needs."""


class InvalidReply(ValueError):
    """A reply without what was asked for; asking again may help."""


class Busy(Exception):
    """A server that cannot answer now; `after` is how long it asks us to wait."""

    def __init__(self, said: str, after: float = 0.0):
        super().__init__(said)
        self.after = after


_TRANSIENT = (Busy, httpx.TransportError, asyncio.TimeoutError)
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


class OpenAIBackend:
    """One or many servers that offer the same model.

    Parameters
    ----------
    config : TeacherConfig
    timeout : float, seconds until a request counts as lost
    max_retries : int, per request
    backoff : float, seconds before the first retry, doubled at each
    """

    def __init__(
        self,
        config: TeacherConfig,
        *,
        timeout: float = 300.0,
        max_retries: int = 8,
        backoff: float = 0.5,
    ):
        self.config, self.model = config, config.model
        self.max_new_tokens, self.top_k = config.max_new_tokens, config.top_k
        self.timeout, self.max_retries, self.backoff = timeout, max_retries, backoff

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
    ) -> Iterator[list[Sample]]:
        """Probe the servers, then yield the missing samples as they arrive.

        Raises
        ------
        ServerError
            A server that fails the probe, refuses a request, or keeps failing.
        """
        client = Client(self, options)
        with (
            # An event loop in a thread of its own: notebooks have one running.
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(client.http),
        ):
            jobs = plan_jobs(missing, options, portal.call(client.probe))
            jobs = takewhile(client.has_budget, jobs)
            running: set[futures.Future] = set()
            while True:
                # What came is stored first: a slow disk holds up the requests.
                num_free = self.config.max_in_flight - len(running)
                for index, *job in islice(jobs, num_free):
                    call = client.ask, index, requests[index], *job
                    running.add(portal.start_task_soon(*call))
                if not running:
                    break
                done, running = futures.wait(running, return_when="FIRST_COMPLETED")
                for future in sorted(done, key=lambda f: f.exception() is not None):
                    yield future.result()
        counts = client.counts
        logger.info("requests: %s", ", ".join(f"{k} {n}" for k, n in counts.items()))
        if left_out := counts["left out"]:
            logger.warning(
                "%d samples left out: their replies were malformed each time. The same "
                "call asks for them again",
                left_out,
            )


def plan_jobs(
    missing: Mapping[int, set[int]], options: SamplingOptions, size: int
) -> Iterator[tuple[int, range, set[int]]]:
    """Yield a question's index, consecutive samples of it, and the wanted ones of them.

    One is wanted at least; the borders do not depend on `missing`.
    """
    for index, wanted in missing.items():
        for first in range(0, options.num_samples, size):
            chunk = range(first, min(first + size, options.num_samples))
            if here := wanted.intersection(chunk):
                yield index, chunk, here


class Client:
    """The servers, taken in turn, and counts of what happened, for one run."""

    def __init__(self, backend: OpenAIBackend, options: SamplingOptions):
        self.backend, self.config, self.options = backend, backend.config, options
        self.counts, self.spent = Counter(), 0  # tokens
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()  # a file ends in "\n"
        bases = self.config.base_urls or (OPENAI_URL,)
        urls = [url.rstrip("/") + PATHS[self.config.api] for url in bases]
        self.urls = cycle(urls)
        # This machine is never reached by a proxy: requests to it hold the key.
        near = [str(httpx.URL(scheme="all", host=host)) for host in _NEAR]
        self.http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=backend.timeout,
            limits=httpx.Limits(max_connections=self.config.max_in_flight),
            mounts=dict.fromkeys(near),
        )
        for url in map(httpx.URL, urls):
            if self.key and url.scheme == "http" and url.host not in _NEAR:
                logger.warning(
                    "teacher.base_urls: the key goes to %s unencrypted", url.host
                )

    def has_budget(self, job: object) -> bool:
        """Tell whether the job may begin; say so if it may not."""
        limit = self.config.max_total_tokens
        if limit is None or self.spent < limit:
            return True
        said = "teacher.max_total_tokens: %d of %d spent; the rest is left out"
        logger.warning(said, self.spent, limit)
        return False

    async def ask(
        self, index: int, request: Request, sample_ids: range, wanted: set[int]
    ) -> list[Sample]:
        """Ask for a job's samples; ask singly for those that did not come."""
        found = await self._request(request, sample_ids)
        if len(sample_ids) > 1:
            singly = sorted(wanted - found.keys())
            self.counts["topped up"] += len(singly)
            for sample_id in singly:
                found |= await self._request(request, range(sample_id, sample_id + 1))
        kept = sorted(wanted & found.keys())
        self.counts["left out"] += len(wanted) - len(kept)
        return [(index, sample_id, found[sample_id]) for sample_id in kept]

    async def _request(
        self, request: Request, sample_ids: range
    ) -> dict[int, Completion]:
        """Return what came of the samples; nothing if each reply was malformed."""
        seed = sample_seed(self.options.seed, request.problem_id, sample_ids[0])
        body = self._body(request.prompt, n=len(sample_ids), seed=seed)
        try:
            found, num_tokens = await self.post(body)
        except InvalidReply as error:
            logger.warning("%s", error)
            return {}
        if num_tokens is None:  # a guess: a token has about four bytes
            num_tokens = len(request.prompt) // 4
            num_tokens += sum(len(done.token_bytes) for done in found.values())
        self.spent += num_tokens
        return {sample_ids[i]: done for i, done in found.items()}

    def _body(self, prompt: str, *, n: int, seed: int) -> dict[str, object]:
        """Return the JSON body of one request."""
        options = self.options
        asked = {"prompt": prompt, "logprobs": options.top_k}
        if self.config.api == "chat":
            asked = {"messages": [{"role": "user", "content": prompt}]}
            asked |= {"logprobs": True, "top_logprobs": options.top_k}
        return {
            "model": self.config.model,
            "n": n,
            "temperature": options.temperature,
            "max_tokens": options.max_new_tokens,
            "seed": seed % 2**31,
            "stop": list(STOP_STRINGS),
        } | asked

    async def post(
        self, body: dict, *, retried: tuple = (*_TRANSIENT, InvalidReply)
    ) -> tuple[dict[int, Completion], int | None]:
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
        backend = self.backend
        for tried in range(backend.max_retries + 1):
            url = next(self.urls)
            self.counts["sent"] += 1
            try:
                sent = asyncio.wait_for(self._fetch(url, body), backend.timeout)
                return read_reply(await sent, top_k=self.options.top_k, n=body["n"])
            except retried as error:
                said = self.cleaned(str(error) or type(error).__name__)
                self.counts[said] += 1
                if tried < backend.max_retries:
                    asked = getattr(error, "after", 0.0)
                    if asked > 5:
                        logger.warning("waiting %.0f s, as asked by the server", asked)
                    # Some of it at random: clients shall not march in step.
                    own = backend.backoff * (2**tried + random.uniform(0, 0.5))
                    await asyncio.sleep(max(min(own, MAX_DELAY), asked))
                elif isinstance(error, InvalidReply):
                    raise
                else:
                    said = f"{url}: {said}, {tried + 1} times. {_STORED}"
                    raise ServerError(said) from None

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
        said = self.cleaned(content[:1000].decode(errors="replace"))
        reason = f"status {response.status_code}: {said}"
        is_busy = response.status_code in (408, 429) or response.status_code >= 500
        if not is_busy or "insufficient_quota" in said:
            raise ServerError(f"{url}: {reason}")
        after = retry_after(response.headers.get("retry-after"))
        if after > MAX_WAIT:
            said = f"{url}: {reason}; it asks to wait {after:.0f} s. {_STORED}"
            raise ServerError(said)
        raise Busy(reason, after)

    def cleaned(self, text: str) -> str:
        """Shorten a reply and take out what is, or looks like, a key."""
        text = text.replace(self.key, "[key]") if self.key else text
        return _LOOKS_LIKE_A_KEY.sub("[key]", text)[:300]

    async def probe(self) -> int:
        """Check the replies to a short request; return how many samples one may ask.

        Servers accept ``logprobs`` and return none (``transformers serve``) or return
        them after the temperature: neither shows in a status code.

        Raises
        ------
        ServerError
            Unless every token comes with its log-probability and `top_k` alternatives
            that sum to at most 1, whatever the temperature, and the bytes join to the
            text.
        """
        n, first = min(2, self.config.samples_per_request), []
        for temperature in (1.0, 0.5):
            body = self._body(_PROBE, n=n, seed=self.options.seed)
            body |= {"temperature": temperature, "max_tokens": 8}
            try:
                found, _ = await self.post(body, retried=_TRANSIENT)
            except InvalidReply as error:  # what it lacks will not come
                raise ServerError(f"the server returns {error}. {_ADVICE}") from None
            for completion in found.values():
                check(completion, self.options.top_k)
            first.append(next(iter(found.values())))
        check_temperature(*first)
        # Some servers return one choice, whatever `n` asks for.
        return self.config.samples_per_request if len(found) == n else 1


def retry_after(value: str | None) -> float:
    """Return the seconds a ``Retry-After`` header asks for: a number or an HTTP date.

    Source: RFC 9110, section 10.2.3.
    """
    try:
        if date := email.utils.parsedate_tz(value):
            return max(0.0, email.utils.mktime_tz(date) - time.time())
        return max(0.0, float(value or 0))
    except (ValueError, OverflowError):
        return 0.0


# --- replies --------------------------------------------------------------------------


def read_reply(
    content: bytes, *, top_k: int, n: int
) -> tuple[dict[int, Completion], int | None]:
    """Read a reply's choices of index 0 to `n` - 1, and how many tokens were counted.

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
        if "choices" not in reply and (said := next(filter(None, given), None)):
            is_final = "insufficient_quota" in str(said)
            raise (ServerError if is_final else Busy)(f"the server says {said}")
        found = {}
        for position, choice in enumerate(reply["choices"]):
            index = choice.get("index", position)
            if index in range(n) and index not in found:
                found[int(index)] = read_choice(choice, top_k=top_k)
        num_tokens = (reply.get("usage") or {}).get("total_tokens")
    except InvalidReply:
        raise
    except _MALFORMED as error:
        raise InvalidReply(f"malformed reply ({type(error).__name__})") from None
    if not found:
        raise InvalidReply(f"no choices of index 0 to {n - 1}")
    is_count = isinstance(num_tokens, int) and num_tokens > 0  # a budget counts it
    return found, num_tokens if is_count else None


def read_choice(choice: Mapping, *, top_k: int) -> Completion:
    """Return one choice, cut behind its answer sentence.

    Where the tokens' bytes do not begin with the text (a server that replaces split
    characters), the tokens are kept as they came: stage two counts the solution as
    unaligned.
    """
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    text = text or ""
    logprobs = choice.get("logprobs") or {}
    entries = logprobs.get("content")  # chat, and llama-server's completions
    if entries is None:
        entries = _as_entries(logprobs)
    if text and not entries:
        raise InvalidReply("no logprobs")
    steps = [_read_entry(entry, top_k) for entry in entries or ()]
    pieces = [piece for piece, _, _ in steps]
    encoded = text.encode()
    end = find_end(encoded + b"\n")
    # Only "stop" is an end: "abort", "content_filter" and the like tear a text.
    reason = "stop" if choice.get("finish_reason") == "stop" or end else "length"
    end = len(encoded) if end is None else min(end, len(encoded))
    if b"".join(pieces).startswith(encoded):
        pieces, text = cut_tokens(pieces, end), encoded[:end].decode()
    steps = steps[: len(pieces)]
    logprobs, tops = [step[1] for step in steps], [step[2] for step in steps]
    return Completion.without_ids(text, pieces, logprobs, tops, reason)


def _as_entries(logprobs: Mapping) -> list[dict]:
    """Turn the parallel lists of ``/completions`` into chat's entries."""
    names = ("tokens", "token_logprobs", "top_logprobs")
    tokens, values, tops = columns = [logprobs.get(name) or [] for name in names]
    if not tokens:
        return []
    if not tops:
        raise InvalidReply("no top_logprobs")
    lengths = list(map(len, columns))
    if len(set(lengths)) > 1:
        raise InvalidReply(
            "{} tokens, {} log-probabilities, {} lists of alternatives".format(*lengths)
        )
    alternatives = [
        [{"token": name, "logprob": value} for name, value in (top or {}).items()]
        for top in tops
    ]
    return [
        {"token": token, "logprob": logprob, "top_logprobs": top}
        for token, logprob, top in zip(tokens, values, alternatives, strict=True)
    ]


def _read_entry(
    entry: Mapping, top_k: int
) -> tuple[bytes, float, list[tuple[bytes, float]]]:
    """Return a token, its log-probability, and its alternatives, the best first."""
    if not entry.get("top_logprobs"):
        raise InvalidReply("no top_logprobs")
    logprob = _number(entry["logprob"])
    if logprob is None:
        raise InvalidReply(f"token_logprobs holds {entry['logprob']!r:.40}")
    top: dict[bytes, float] = {}
    for named in entry["top_logprobs"]:
        value = _number(named["logprob"])
        if value is not None:  # an impossible one leaves its slot to the tail
            piece = _entry_bytes(named)
            top[piece] = max(value, top.get(piece, -math.inf))
    best = sorted(top.items(), key=lambda alternative: -alternative[1])
    return _entry_bytes(entry), logprob, best[:top_k]


def _number(value: object) -> float | None:
    """Return a log-probability, or None for what is none."""
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return None
    return max(number, -1e4) if number <= MOST_LOGPROB else None


def _entry_bytes(entry: Mapping) -> bytes:
    given = entry.get("bytes")
    return bytes(given) if isinstance(given, list) else token_bytes(entry["token"])


# --- is a server fit to teach? --------------------------------------------------------


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
    for position, top in enumerate(completion.topk_logprobs):
        mass = sum(map(math.exp, top))
        if mass > 1.01:  # servers round; more is no distribution
            raise ServerError(
                f"the server's alternatives at token {position} sum to {mass:.3f}: "
                "they are no log-probabilities"
            )


def check_temperature(warm: Completion, cold: Completion) -> None:
    """Refuse log-probabilities that follow the temperature: ours are at 1."""
    first = dict(zip(warm.topk_bytes[0], warm.topk_logprobs[0], strict=True))
    second = dict(zip(cold.topk_bytes[0], cold.topk_logprobs[0], strict=True))
    gaps = [abs(first[piece] - second[piece]) for piece in first.keys() & second.keys()]
    if gaps and max(gaps) > 0.2:  # nats; batching changes them by less
        raise ServerError(
            f"the server's log-probabilities differ by {max(gaps):.2f} nats between "
            "temperatures 1 and 0.5; they must be those at 1 (vLLM: --logprobs-mode "
            "raw_logprobs)"
        )
