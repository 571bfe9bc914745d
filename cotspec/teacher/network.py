"""How bytes travel to a server and back: httpcore's network, at a lower cost.

Enters: what httpcore writes and the times it allows. Leaves: connections of its kind.
With hundreds of thousands of small requests, the way of a request costs more than what
it holds: a head and a body sent apart, and a scope of cancellation for each read.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import httpcore


class Lane:
    """One connection to one server, opened again when it has closed.

    As a pool of httpcore's with one connection, without what a pool looks after at
    every request.
    """

    def __init__(self, url: str, **options: object):
        self._origin = httpcore.URL(url).origin
        self._options = options
        self._connection: httpcore.AsyncHTTPConnection | None = None

    async def __aenter__(self) -> Lane:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()

    async def request(self, *args: object, **kwargs: object) -> httpcore.Response:
        """Send one request and read its reply whole; one at a time."""
        current = self._connection
        if current is None or current.is_closed() or current.has_expired():
            await self._close()
            self._connection = httpcore.AsyncHTTPConnection(
                self._origin, **self._options
            )
        return await self._connection.request(*args, **kwargs)


class Network(httpcore.AnyIOBackend):
    """Connections that send a request's head and body together."""

    async def connect_tcp(self, *args, **kwargs) -> httpcore.AsyncNetworkStream:
        return _Together(await super().connect_tcp(*args, **kwargs))


class PlainNetwork(httpcore.AsyncNetworkBackend):
    """The same without encryption, on asyncio's own streams."""

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **_: object
    ) -> httpcore.AsyncNetworkStream:
        opening = asyncio.open_connection(host, port)
        try:
            return _Together(_Plain(*await asyncio.wait_for(opening, timeout)))
        except asyncio.TimeoutError as error:  # before OSError, of which it is one
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Together(httpcore.AsyncNetworkStream):
    """What is written leaves before the next read."""

    def __init__(self, inner: httpcore.AsyncNetworkStream):
        self._inner = inner
        self._written = b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._written += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._written:
            written, self._written = self._written, b""
            await self._inner.write(written, timeout)
        return await self._inner.read(max_bytes, timeout)

    async def start_tls(self, *args, **kwargs) -> httpcore.AsyncNetworkStream:
        return _Together(await self._inner.start_tls(*args, **kwargs))

    async def aclose(self) -> None:
        await self._inner.aclose()

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


class _Plain(httpcore.AsyncNetworkStream):
    """A connection whose reads are ended by a timer that closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._is_late = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._writer.write(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        timer = None
        if timeout is not None:
            timer = asyncio.get_running_loop().call_later(timeout, self._end)
        try:
            received = await self._reader.read(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        finally:
            if timer:
                timer.cancel()
        if self._is_late:
            raise httpcore.ReadTimeout(f"no byte in {timeout} s")
        return received

    def _end(self) -> None:
        self._is_late = True
        self._writer.transport.abort()  # the read ends as if the server had closed

    async def aclose(self) -> None:
        # Not `close`, which first sends what is left: a server that does not read it
        # would hold up the end of the run.
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable":  # asked of an idle connection: did the server close?
            return self._reader.at_eof() or self._writer.is_closing()
        return None
