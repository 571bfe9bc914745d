"""Each server by its own proxy, this machine by none, and no key to a stranger."""

import asyncio
import dataclasses
import shutil
import ssl
import subprocess
import threading
from contextlib import contextmanager, suppress

import httpx
import pytest
from teacher_server import running
from test_teacher_openai import KEY, backend, draw

from cotspec import teacher
from cotspec.teacher.proxies import choose_proxy

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxy but a test's own; the key that must not leak."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("REQUEST_METHOD", raising=False)  # urllib takes it for CGI
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://far.test/v1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://far.test/v1", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://far.test/v1", None),
        ({"HTTP_PROXY": "p:1"}, "http://far.test/v1", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "https://far.test/v1", "http://p:1"),
        (
            {"ALL_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:2"},
            "https://far.test/v1",
            "http://q:2",
        ),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://far.test/v1", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "test"}, "https://far.test/v1", None),
        (
            {"ALL_PROXY": "http://p:1", "NO_PROXY": "far.test:8000"},
            "http://far.test:8000/v1",
            None,
        ),
        (
            {"ALL_PROXY": "http://p:1", "NO_PROXY": "far.test:8000"},
            "http://far.test:9000/v1",
            "http://p:1",
        ),
        ({"ALL_PROXY": "http://p:1"}, "http://localhost:8000/v1", None),
        ({"ALL_PROXY": "http://p:1"}, "http://127.0.1.1:8000/v1", None),
        ({"ALL_PROXY": "http://p:1"}, "http://[::1]:8000/v1", None),
    ],
)
def test_the_proxy_is_chosen_by_the_environment(environment, variables, url, proxy):
    for name, value in variables.items():
        environment.setenv(name, value)
    chosen = choose_proxy(httpx.URL(url))
    assert (chosen and str(chosen.url)) == proxy


def test_a_proxy_that_is_not_http_is_refused_without_its_password(environment):
    environment.setenv("ALL_PROXY", "socks5://user:secret@p:1")
    with pytest.raises(ValueError, match="scheme 'socks5'. Allowed: http") as raised:
        choose_proxy(httpx.URL("https://far.test/v1"))
    assert "secret" not in str(raised.value)


class Proxy:
    """An HTTP proxy on 127.0.0.1 that sends everything to one port of this machine.

    `asked` are the first lines of what it was asked, `seen` all that clients sent.
    """

    def __init__(self, target: int):
        self.target = target
        self.asked: list[str] = []
        self.seen = b""

    async def handle(self, reader, writer) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen += head
            self.asked.append(head.split(b"\r\n")[0].decode())
            inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
            if head.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                outer.write(head)
            back = asyncio.ensure_future(self._pump(inner, writer))
            await self._pump(reader, outer, is_seen=True)
            await back
        writer.close()

    async def _pump(self, reader, writer, is_seen: bool = False) -> None:
        while data := await reader.read(2**16):
            self.seen += data if is_seen else b""
            writer.write(data)
            await writer.drain()
        writer.close()


@contextmanager
def proxying(target: int):
    """A `Proxy` in a thread: yields it with its `url`."""
    proxy, ready, closing = Proxy(target), threading.Event(), []

    async def serve() -> None:
        listener = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
        proxy.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        closing.extend((asyncio.get_running_loop(), asyncio.current_task()))
        ready.set()
        await asyncio.wait_for(asyncio.Event().wait(), 60)

    def work() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(serve())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        loop, task = closing
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of far.test and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=far.test"
    command += " -addext subjectAltName=DNS:far.test"
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return paths


@pytest.mark.parametrize("far_is_first", [True, False])
def test_the_far_server_is_tunnelled_to_and_the_near_one_never_proxied(
    environment, certificate, far_is_first
):
    """The proxy sees two host names and encrypted bytes, in whichever order."""
    environment.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with running(tls=context) as far, running() as near, proxying(far.port) as proxy:
        for name in VARIABLES[:3]:
            environment.setenv(name, proxy.url)
        urls = ("https://far.test/v1", near.url)
        urls = urls if far_is_first else urls[::-1]
        traces = draw(dataclasses.replace(backend(near), base_urls=urls))
    assert len(traces) == 30
    assert far.log["requests"] == near.log["requests"] == 7
    for server in (far, near):
        assert {h["authorization"] for h in server.headers} == {f"bearer {KEY}"}
    assert set(proxy.asked) == {"CONNECT far.test:443 HTTP/1.1"}
    assert KEY.encode() not in proxy.seen and b"uthorization" not in proxy.seen


@pytest.mark.parametrize("far_is_first", [True, False])
def test_a_far_server_without_tls_is_proxied_and_the_near_one_is_not(
    environment, far_is_first
):
    with running() as far, running() as near, proxying(far.port) as proxy:
        environment.setenv("HTTP_PROXY", proxy.url)
        urls = ("http://far.test/v1", near.url)
        urls = urls if far_is_first else urls[::-1]
        assert len(draw(dataclasses.replace(backend(near), base_urls=urls))) == 30
    assert far.log["requests"] == near.log["requests"] == 7
    assert set(proxy.asked) == {"POST http://far.test/v1/completions HTTP/1.1"}
    assert f"127.0.0.1:{near.port}".encode() not in proxy.seen


def test_a_proxy_that_needs_a_password_gets_it_and_no_error_shows_it(environment):
    with running(always="401") as far, proxying(far.port) as proxy:
        with_password = proxy.url.replace("http://", "http://user:secret@")
        environment.setenv("HTTP_PROXY", with_password)
        source = dataclasses.replace(backend(far), base_urls=("http://far.test/v1",))
        with pytest.raises(teacher.ServerError, match="status 401") as raised:
            draw(source)
    assert b"Proxy-Authorization: Basic " in proxy.seen
    assert "secret" not in str(raised.value) and KEY not in str(raised.value)
