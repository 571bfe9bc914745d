"""Solutions from OpenAI-compatible servers: vLLM, llama.cpp, OpenAI and the like.

Enters: base URLs and the run's prompts; a key, if any, from the environment alone.
Leaves: completions as they arrive. A bounded number of requests is in flight; transient
faults are retried, missing samples asked for again, anything else stops the run.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from cotspec.prompts import STOP_STRINGS
from cotspec.teacher.archive import ReplyArchive
from cotspec.teacher.connection import Connection
from cotspec.teacher.probing import probe
from cotspec.teacher.replies import Reply, read_reply
from cotspec.teacher.traces import (
    Completion,
    Request,
    Sample,
    SamplingOptions,
    sample_seed,
)

logger = logging.getLogger(__name__)

APIS = ("completions", "chat")
LINGER = 0.01  # seconds; waking the reader for every reply would cost more than reading


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
    timeout : float, seconds without an answer until a request counts as lost
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
        folder: Path | None = None,
    ) -> Iterator[list[Sample]]:
        """Probe the servers, then yield the missing samples as they arrive.

        The replies they were read from are kept in `folder`, see `archive`.

        Raises
        ------
        ServerError
            A server that fails the probe, refuses a request, or keeps failing.
        """
        run = _Run(self, requests, options, missing, folder)
        worker = threading.Thread(target=run.work, daemon=True)
        worker.start()  # an event loop of its own: notebooks have one running
        try:
            yield from run.batches()
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
    folder: Path | None
    stopped: threading.Event = field(default_factory=threading.Event)
    spent: int = 0

    def __post_init__(self):
        # Bounded: a slow disk holds up the requests, not the memory.
        self.results: queue.Queue = queue.Queue(4 * self.backend.max_in_flight)

    def batches(self) -> Iterator[list[Sample]]:
        """Yield what has arrived; raise what the thread could not handle."""
        while True:
            arrived = [self.results.get()]
            time.sleep(LINGER)
            while not self.results.empty():
                arrived.append(self.results.get())
            yield [s for item in arrived if isinstance(item, list) for s in item]
            if isinstance(arrived[-1], BaseException):
                raise arrived[-1]
            if arrived[-1] is None:
                return

    def work(self) -> None:
        """Run the event loop to the end and leave the result in the queue."""
        outcome: BaseException | None = None
        try:
            with ReplyArchive(self.folder) if self.folder else nullcontext() as archive:
                asyncio.run(self._run(archive))
        except BaseException as error:
            outcome = error
        while not self.stopped.is_set():
            try:
                return self.results.put(outcome, timeout=0.1)
            except queue.Full:
                continue

    async def _run(self, archive: ReplyArchive | None) -> None:
        backend, self.archive = self.backend, archive
        async with Connection.open(backend) as connection:
            takes_n = await probe(connection, backend, self.options)
            size = backend.samples_per_request if takes_n else 1
            jobs = plan_jobs(self.missing, self.options, size)
            workers = [
                asyncio.ensure_future(self._serve(connection, jobs))
                for _ in range(backend.max_in_flight)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        logger.info("requests: %s", connection.counts_as_text())

    async def _serve(self, connection: Connection, jobs: Iterator[Job]) -> None:
        """Take one job after the other."""
        limit = self.backend.max_total_tokens
        for job in jobs:
            if self.stopped.is_set():
                return
            if limit is not None and self.spent >= limit:
                logger.warning(
                    "teacher.max_total_tokens: %d of %d spent; the rest is left out",
                    self.spent,
                    limit,
                )
                return
            found = await self._ask(connection, job)
            await self._put([(job.index, s, found[s]) for s in sorted(job.wanted)])

    async def _put(self, samples: list[Sample]) -> None:
        while not self.stopped.is_set():
            try:
                return self.results.put_nowait(samples)
            except queue.Full:
                await asyncio.sleep(0.005)

    async def _ask(self, connection: Connection, job: Job) -> dict[int, Completion]:
        """Ask for a job's samples; ask singly for those that did not come."""
        found = await self._request(connection, job.index, job.sample_ids)
        for sample_id in sorted(job.wanted - set(found)):
            connection.counts["topped up"] += 1
            found |= await self._request(connection, job.index, (sample_id,))
        return found

    async def _request(
        self, connection: Connection, index: int, sample_ids: tuple[int, ...]
    ) -> dict[int, Completion]:
        request = self.requests[index]
        seed = sample_seed(self.options.seed, request.problem_id, sample_ids[0])
        body = self.backend.body(
            self.options, request.prompt, n=len(sample_ids), seed=seed
        )
        expected = {"chat": self.backend.api == "chat", "n": len(sample_ids)}

        def read(content: bytes) -> Reply:
            if self.archive:
                kept = connection.without_key(content)
                self.archive.append(request.problem_id, sample_ids, kept)
            return read_reply(content, top_k=self.options.top_k, **expected)

        found, num_tokens = await connection.post(body, read)
        if num_tokens is None:  # a guess: a token has about four bytes
            num_tokens = len(request.prompt) // 4
            num_tokens += sum(len(c.token_bytes) for c in found.values())
        self.spent += num_tokens
        return {sample_ids[i]: completion for i, completion in found.items()}
