"""One POST to one of several servers, retried until it is answered.

Enters: request bodies. Leaves: what a reader made of the replies. No error, log line
or ``repr`` holds the key: it is read from the environment into a header, and replies
that are quoted in an error are cleaned of it.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import httpcore
import httpx

from cotspec.teacher.network import Lane
from cotspec.teacher.proxies import open_lane
from cotspec.teacher.replies import InvalidReply

logger = logging.getLogger(__name__)

MAX_DELAY = 60.0  # seconds between two tries, unless the server asks for more
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}
_LOOKS_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|hf|Bearer)[-_ ][\w*.-]{4,}")
_BROKEN = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
)
T = TypeVar("T")


class ServerError(RuntimeError):
    """A server that refuses, keeps failing, or lacks what sampling needs."""


@dataclass
class Connection:
    """The servers, taken in turn, and counts of what happened."""

    urls: list[httpcore.URL]
    # One per request in flight, with a connection per server: each server may need
    # another proxy, and a shared pool costs more, the larger it is.
    lanes: list[list[Lane | httpcore.AsyncConnectionPool]] = field(repr=False)
    headers: list[tuple[str, str]] = field(repr=False)
    key: str = field(repr=False)
    timeout: float  # seconds
    max_retries: int
    backoff: float
    counts: Counter = field(default_factory=Counter)
    _turn: int = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, backend) -> AsyncIterator[Connection]:
        """Open a backend's servers; the key comes from the environment."""
        key = os.environ.get(backend.key_variable, "")
        headers = [("Content-Type", "application/json")]
        headers += [("Authorization", f"Bearer {key}")] if key else []
        bases = [url.rstrip("/") + _PATHS[backend.api] for url in backend.base_urls]
        urls = [httpcore.URL(url) for url in bases]
        context = httpx.create_ssl_context()
        lanes = [
            [open_lane(url, context) for url in bases]
            for _ in range(backend.max_in_flight)
        ]
        limits = (backend.timeout, backend.max_retries, backend.backoff)
        async with AsyncExitStack() as stack:
            for lane in chain.from_iterable(lanes):
                await stack.enter_async_context(lane)
            yield cls(urls, lanes, headers, key, *limits)

    async def post(self, body: dict, read: Callable[[bytes], T]) -> T:
        """Return the reply as `read` understands it.

        408, 429, 5xx, timeouts, broken connections and replies that `read` refuses are
        tried again, at the next server, with jitter and after ``Retry-After``.

        Raises
        ------
        ServerError
            At once for any other status than 2xx; else after `max_retries`.
        """
        content = json.dumps(body).encode()
        for attempt in range(self.max_retries + 1):
            server = self._turn % len(self.urls)
            url = self.urls[server]
            self._turn += 1
            self.counts["sent"] += 1
            wait = 0.0
            try:
                response = await self._send(server, content)
                if 200 <= response.status < 300:
                    return read(response.content)
                reason = f"status {response.status}"
                if not _is_transient(response.status):
                    text = response.content.decode(errors="replace")
                    raise ServerError(
                        f"{_address(url)}: {reason}: {self._cleaned(text)}"
                    )
                wait = retry_after(_retry_after_header(response))
            except _BROKEN as error:
                reason = type(error).__name__
            except InvalidReply as error:
                reason = str(error)
            self.counts[reason] += 1
            # Full doubling, half of it at random, so that clients do not march in step.
            delay = min(MAX_DELAY, self.backoff * 2**attempt)
            if attempt < self.max_retries:
                await asyncio.sleep(max(wait, delay * random.uniform(0.5, 1)))
        raise ServerError(
            f"{_address(url)}: {self._cleaned(reason)}, {self.max_retries + 1} times. "
            "What came before is stored; the same call goes on from there"
        )

    async def _send(self, server: int, content: bytes) -> httpcore.Response:
        """Send to a server by a free lane and read the reply whole."""
        waits = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout)
        lane = self.lanes.pop()
        try:
            return await lane[server].request(
                "POST",
                self.urls[server],
                headers=[*self.headers, ("Content-Length", str(len(content)))],
                content=content,
                extensions={"timeout": waits},
            )
        finally:
            self.lanes.append(lane)

    def counts_as_text(self) -> str:
        """Return the counts, such as ``sent 12, status 429 2``."""
        return ", ".join(f"{name} {count}" for name, count in self.counts.items())

    def without_key(self, content: bytes) -> bytes:
        """Return a reply without the key, should the server have repeated it."""
        key = self.key.encode()
        return content.replace(key, b"[key]") if key else content

    def _cleaned(self, text: str) -> str:
        """Shorten a reply and take out what is, or looks like, a key."""
        text = text.replace(self.key, "[key]") if self.key else text
        return _LOOKS_LIKE_A_KEY.sub("[key]", text)[:300]


def _address(url: httpcore.URL) -> str:
    return bytes(url).decode()


def _retry_after_header(response: httpcore.Response) -> str | None:
    for name, value in response.headers:
        if name.lower() == b"retry-after":
            return value.decode("latin-1")
    return None


def _is_transient(status: int) -> bool:
    return status in (408, 429) or status >= 500


def retry_after(value: str | None) -> float:
    """Return the seconds a ``Retry-After`` header asks for: a number or an HTTP date.

    Source: RFC 9110, section 10.2.3.
    """
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(
            0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        )
    except ValueError:
        return 0.0
