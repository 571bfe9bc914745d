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
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from itertools import cycle

import httpx
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from cotspec.alignment.records import token_bytes
from cotspec.prompts import STOP_STRINGS, find_end
from cotspec.teacher.traces import (
    NO_ID,
    Completion,
    Request,
    Sample,
    SamplingOptions,
    ServerError,
    cut_tokens,
    sample_seed,
    valid_length,
)

logger = logging.getLogger(__name__)

APIS = ("completions", "chat")
MAX_BODY = 64 * 2**20  # bytes of one reply
MAX_WAIT = 600.0  # seconds that a server may ask us to wait
MAX_DELAY = 60.0  # seconds between two tries of our own accord
MOST_LOGPROB = 1e-3  # a rounded certainty
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|hf|Bearer)[-_ ][\w*.-]{4,}")
_PROBE = "Q: What is 2 + 3?\nA: Let's think step by step.\n"
_ADVICE = "A server that returns them: vLLM, or llama-cpp-python with --logits_all true"


class InvalidReply(ValueError):
    """A reply without what was asked for; asking again may help."""


class Busy(Exception):
    """A server that cannot answer now; `after` is how long it asks us to wait."""

    def __init__(self, said: str, after: float = 0.0):
        super().__init__(said)
        self.after = after


@dataclass(frozen=True)
class OpenAIBackend:
    """One or many servers that offer the same model.

    Attributes
    ----------
    base_urls : such as ``http://127.0.0.1:8000/v1``; taken in turn
    api : "completions" (the prompt is continued) or "chat" (it is one user message)
    max_in_flight : int, concurrent requests over all servers
    samples_per_request : int, OpenAI's ``n``; 1 where the server takes no ``n``
    max_total_tokens : int, optional
        Budget of prompt and completion tokens, as the server counts them, or else
        estimated; no request begins once it is spent.
    key_variable : the environment variable with the key
    timeout : float, seconds until a request counts as lost
    max_retries : int, per request
    backoff : float, seconds before the first retry, doubled at each
    """

    model: str
    base_urls: tuple[str, ...]
    api: str = "completions"
    max_in_flight: int = 16
    samples_per_request: int = 8
    max_total_tokens: int | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 300.0
    max_retries: int = 8
    backoff: float = 0.5
    max_new_tokens: int = 256
    top_k: int = 5

    def __post_init__(self):
        if self.api not in APIS:
            raise ValueError(f"teacher.api: {self.api!r}. Allowed: {', '.join(APIS)}")
        if not self.base_urls:
            raise ValueError("teacher.base_urls: empty. Allowed: http(s)://host/v1, …")
        for url in self.base_urls:
            parts = httpx.URL(url)
            if parts.scheme not in ("http", "https") or parts.userinfo or parts.query:
                raise ValueError(
                    f"teacher.base_urls: {parts.host!r} is not a plain http(s) address;"
                    f" a key belongs in the environment, as {self.key_variable}"
                )

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
        run = _Run(self, requests, options, missing)
        worker = threading.Thread(target=run.work, daemon=True)
        worker.start()  # an event loop of its own: notebooks have one running
        try:
            yield from iter(run.results.get, None)
            if run.failure is not None:
                raise run.failure
        finally:
            run.stopped.set()
            worker.join()

    def body(
        self, options: SamplingOptions, prompt: str, *, n: int, seed: int
    ) -> dict[str, object]:
        """Return the JSON body of one request."""
        body = {
            "model": self.model,
            "n": n,
            "temperature": options.temperature,
            "max_tokens": options.max_new_tokens,
            "seed": seed % 2**31,
            "stop": list(STOP_STRINGS),
        }
        if self.api == "chat":
            message = {"role": "user", "content": prompt}
            asked = {"logprobs": True, "top_logprobs": options.top_k}
            return body | {"messages": [message]} | asked
        return body | {"prompt": prompt, "logprobs": options.top_k}


# --- requests -------------------------------------------------------------------------


class Connection:
    """The servers, taken in turn, and counts of what happened."""

    def __init__(self, backend: OpenAIBackend) -> None:
        self.backend, self.counts = backend, Counter()
        self.key = os.environ.get(backend.key_variable, "")
        path = {"completions": "/completions", "chat": "/chat/completions"}[backend.api]
        urls = [url.rstrip("/") + path for url in backend.base_urls]
        self._urls = cycle(urls)
        # This machine is never reached by a proxy: requests to it hold the key.
        near = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
        self.client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=backend.timeout,
            limits=httpx.Limits(max_connections=backend.max_in_flight),
            mounts=near,
        )
        for url in map(httpx.URL, urls):
            if self.key and url.scheme == "http" and not _is_near(url.host):
                logger.warning(
                    "teacher.base_urls: the key goes to %s unencrypted", url.host
                )

    async def post(self, body: dict, read: Callable[[bytes], object]):
        """Return the reply as `read` understands it.

        408, 429, 5xx, timeouts, broken connections and replies that `read` refuses are
        tried again, at the next server, with jitter and after ``Retry-After``.

        Raises
        ------
        ServerError
            At once for any other status than 2xx; else after `max_retries`.
        InvalidReply
            Malformed each time.
        """
        backend = self.backend
        transient = (Busy, InvalidReply, httpx.TransportError, asyncio.TimeoutError)
        tries = AsyncRetrying(
            stop=stop_after_attempt(backend.max_retries + 1),
            retry=retry_if_exception_type(transient),
            wait=self._wait(),
            reraise=True,
        )
        url = ""
        try:
            async for attempt in tries:
                with attempt:
                    url = next(self._urls)
                    self.counts["sent"] += 1
                    content = await asyncio.wait_for(
                        self._fetch(url, body), backend.timeout
                    )
                    return read(content)
        except InvalidReply:
            raise
        except transient as error:
            said = self.cleaned(str(error) or type(error).__name__)
            raise ServerError(
                f"{url}: {said}, {backend.max_retries + 1} times. What came before is "
                "stored; the same call goes on from there"
            ) from None

    def _wait(self):
        # Half at random, so that clients do not march in step.
        first = self.backend.backoff
        own = wait_exponential_jitter(initial=first, max=MAX_DELAY, jitter=first / 2)

        def wait(state) -> float:
            error = state.outcome.exception()
            reason = self.cleaned(str(error) or type(error).__name__)
            self.counts[reason] += 1
            asked = getattr(error, "after", 0.0)
            if asked > 5:
                logger.warning("waiting %.0f s, as asked by the server", asked)
            return max(own(state), asked)

        return wait

    async def _fetch(self, url: str, body: dict) -> bytes:
        """Send one request; return the body of a 2xx reply."""
        content = bytearray()
        async with self.client.stream("POST", url, json=body) as response:
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
            raise ServerError(
                f"{url}: {reason}; it asks to wait {after:.0f} s. What came before is "
                "stored; the same call goes on from there"
            )
        raise Busy(reason, after)

    def cleaned(self, text: str) -> str:
        """Shorten a reply and take out what is, or looks like, a key."""
        text = text.replace(self.key, "[key]") if self.key else text
        return _LOOKS_LIKE_A_KEY.sub("[key]", text)[:300]


def _is_near(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def retry_after(value: str | None) -> float:
    """Return the seconds a ``Retry-After`` header asks for: a number or an HTTP date.

    Source: RFC 9110, section 10.2.3.
    """
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


@dataclass(frozen=True)
class Job:
    """One request: consecutive samples of a question, of which some are wanted."""

    index: int
    sample_ids: tuple[int, ...]
    wanted: frozenset[int]


def plan_jobs(missing: Mapping[int, set[int]], options, size: int) -> Iterator[Job]:
    """Yield the jobs with a wanted sample; their borders do not depend on `missing`."""
    for index, wanted in missing.items():
        for first in range(0, options.num_samples, size):
            chunk = range(first, min(first + size, options.num_samples))
            if not wanted.isdisjoint(chunk):
                yield Job(index, tuple(chunk), frozenset(wanted.intersection(chunk)))


@dataclass
class _Run:
    """The asynchronous side of one call of `complete`, in its own thread."""

    backend: OpenAIBackend
    requests: Sequence[Request]
    options: SamplingOptions
    missing: Mapping[int, set[int]]
    stopped: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None
    spent: int = 0

    def __post_init__(self):
        # Bounded: a slow disk holds up the requests, not the memory.
        self.results: queue.Queue = queue.Queue(4 * self.backend.max_in_flight)

    def work(self) -> None:
        """Run the event loop to the end; None in the queue says that it is over."""
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self.failure = error
        while not self.stopped.is_set():
            try:
                return self.results.put(None, timeout=0.1)
            except queue.Full:
                continue

    async def _run(self) -> None:
        self.connection = Connection(self.backend)
        async with self.connection.client:
            takes_n = await probe(self.connection, self.backend, self.options)
            size = self.backend.samples_per_request if takes_n else 1
            jobs = plan_jobs(self.missing, self.options, size)
            lanes = [self._serve(jobs) for _ in range(self.backend.max_in_flight)]
            tasks = [asyncio.ensure_future(lane) for lane in lanes]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        counts = self.connection.counts
        logger.info("requests: %s", ", ".join(f"{k} {n}" for k, n in counts.items()))
        if left_out := counts["left out"]:
            logger.warning(
                "%d samples left out: their replies were malformed each time. The same "
                "call asks for them again",
                left_out,
            )

    async def _serve(self, jobs: Iterator[Job]) -> None:
        """Take one job after the other."""
        limit = self.backend.max_total_tokens
        for job in jobs:
            if limit is not None and self.spent >= limit:
                logger.warning(
                    "teacher.max_total_tokens: %d of %d spent; the rest is left out",
                    self.spent,
                    limit,
                )
                return
            found = await self._ask(job)
            kept = sorted(job.wanted & found.keys())
            while kept and not self.stopped.is_set():
                try:
                    self.results.put_nowait([(job.index, s, found[s]) for s in kept])
                    break
                except queue.Full:
                    await asyncio.sleep(0.005)
            if self.stopped.is_set():
                return

    async def _ask(self, job: Job) -> dict[int, Completion]:
        """Ask for a job's samples; ask singly for those that did not come."""
        counts, found = self.connection.counts, {}
        chunks = [job.sample_ids]
        while chunks:
            sample_ids = chunks.pop()
            try:
                found |= await self._request(job.index, sample_ids)
            except InvalidReply as error:
                logger.warning("%s", error)
                counts["left out"] += len(sample_ids) == 1
            if len(sample_ids) > 1 or sample_ids is job.sample_ids:
                singly = sorted(job.wanted - found.keys())
                chunks = [] if len(sample_ids) == 1 else [(s,) for s in singly]
                counts["topped up"] += len(chunks)
        return found

    async def _request(
        self, index: int, sample_ids: tuple[int, ...]
    ) -> dict[int, Completion]:
        request, backend = self.requests[index], self.backend
        seed = sample_seed(self.options.seed, request.problem_id, sample_ids[0])
        n = len(sample_ids)
        body = backend.body(self.options, request.prompt, n=n, seed=seed)
        found, num_tokens = await self.connection.post(
            body, lambda content: read_reply(content, top_k=self.options.top_k, n=n)
        )
        if num_tokens is None:  # a guess: a token has about four bytes
            num_tokens = len(request.prompt) // 4
            num_tokens += sum(len(done.token_bytes) for done in found.values())
        self.spent += num_tokens
        return {sample_ids[i]: done for i, done in found.items()}


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
        if "choices" not in reply and (said := reply.get("error")):
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
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise InvalidReply(f"malformed reply ({type(error).__name__})") from None
    if not found:
        raise InvalidReply(f"no choices of index 0 to {n - 1}")
    return found, num_tokens if isinstance(num_tokens, int) else None


def read_choice(choice: Mapping, *, top_k: int) -> Completion:
    """Return one choice, cut behind its answer sentence.

    Where the tokens' bytes do not begin with the text (a server that replaces split
    characters), the tokens are kept as they came: stage two counts the solution as
    unaligned.
    """
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    text = text or ""
    steps = list(_steps(choice, text))
    pieces = [piece for piece, _, _ in steps]
    encoded = text.encode()
    end = find_end(encoded + b"\n")
    # Only "stop" is an end: "abort", "content_filter" and the like tear a text.
    reason = "stop" if choice.get("finish_reason") == "stop" or end else "length"
    end = valid_length(encoded, len(encoded)) if end is None else min(end, len(encoded))
    if b"".join(pieces).startswith(encoded):
        pieces, text = cut_tokens(pieces, end), encoded[:end].decode()
    steps = steps[: len(pieces)]
    tops = [sorted(top.items(), key=lambda a: -a[1])[:top_k] for _, _, top in steps]
    return Completion(
        text=text,
        token_ids=[NO_ID] * len(pieces),
        token_bytes=pieces,
        token_logprobs=[logprob for _, logprob, _ in steps],
        topk_ids=[[NO_ID] * len(top) for top in tops],
        topk_bytes=[[piece for piece, _ in top] for top in tops],
        topk_logprobs=[[logprob for _, logprob in top] for top in tops],
        finish_reason=reason,
    )


Step = tuple[bytes, float, dict[bytes, float]]  # token, log-probability, alternatives


def _steps(choice: Mapping, text: str) -> Iterator[Step]:
    """Yield a choice's tokens, from either form of ``logprobs``."""
    logprobs = choice.get("logprobs") or {}
    entries = logprobs.get("content")  # chat, and llama-server's completions
    if entries is None:
        entries = _as_entries(logprobs)
    if text and not entries:
        raise InvalidReply("no logprobs")
    for entry in entries or ():
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
        yield _entry_bytes(entry), logprob, top


def _as_entries(logprobs: Mapping) -> list[dict]:
    """Turn the parallel lists of ``/completions`` into chat's entries."""
    names = ("tokens", "token_logprobs", "top_logprobs")
    columns = [logprobs.get(name) or [] for name in names]
    if not columns[0]:
        return []
    if not columns[2]:
        raise InvalidReply("no top_logprobs")
    lengths = list(map(len, columns))
    if len(set(lengths)) > 1:
        raise InvalidReply(
            "{} tokens, {} log-probabilities, {} lists of alternatives".format(*lengths)
        )
    return [
        {
            "token": token,
            "logprob": logprob,
            "top_logprobs": [
                {"token": name, "logprob": value} for name, value in (top or {}).items()
            ],
        }
        for token, logprob, top in zip(*columns, strict=True)
    ]


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


async def probe(
    connection: Connection, backend: OpenAIBackend, options: SamplingOptions
) -> bool:
    """Check the replies to a short request; return whether ``n`` choices came.

    Servers accept ``logprobs`` and return none (``transformers serve``) or return them
    after the temperature: neither shows in a status code.

    Raises
    ------
    ServerError
        Unless every token comes with its log-probability and `top_k` alternatives that
        sum to at most 1, whatever the temperature, and the bytes join to the text.
    """
    n = min(2, backend.samples_per_request)
    options = replace(options, max_new_tokens=8)

    def read(content: bytes) -> dict[int, Completion]:
        try:
            return read_reply(content, top_k=options.top_k, n=n)[0]
        except InvalidReply as error:  # final: what it lacks will not come
            raise ServerError(f"the server returns {error}. {_ADVICE}") from None

    replies = []
    for temperature in (1.0, 0.5):
        drawn = replace(options, temperature=temperature)
        body = backend.body(drawn, _PROBE, n=n, seed=options.seed)
        try:
            replies.append(await connection.post(body, read))
        except InvalidReply as error:
            raise ServerError(f"the server returns {error}") from None
        for completion in replies[-1].values():
            check(completion, options.top_k)
    check_temperature(*(next(iter(reply.values())) for reply in replies))
    return len(replies[0]) == n


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
