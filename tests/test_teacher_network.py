"""A lane to a server that answers, dawdles, hangs up and speaks TLS."""

import asyncio
import shutil
import ssl
import subprocess

import httpcore
import pytest

from cotspec.teacher.network import Lane, Network, PlainNetwork

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
TIMEOUT = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), 0.2)}


class Server:
    """Answers each request of a connection by `script`, in turn, on loopback."""

    def __init__(self, *script, tls=None):
        self.script, self.tls, self.num_connections = list(script), tls, 0

    async def __aenter__(self):
        start = asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.server = await start
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        self.num_connections += 1
        while True:
            head = await reader.read(65536)
            if not head:
                break
            answer = self.script.pop(0) if self.script else "reply"
            if answer == "hang":
                await asyncio.sleep(0.6)
                break
            writer.write(REPLY)
            if answer == "last":
                break
        writer.close()


def asked(*script, num=2, tls=None, network=None, scheme="http", context=None):
    """What `num` requests over one lane give: replies and errors; and the server."""

    async def ask():
        found = []
        async with Server(*script, tls=tls) as server:
            url = f"{scheme}://127.0.0.1:{server.port}/v1"
            options = {"network_backend": network or PlainNetwork()}
            async with Lane(url, ssl_context=context, **options) as lane:
                for _ in range(num):
                    try:
                        response = await lane.request(
                            "POST", url, content=b"{}", extensions=TIMEOUT
                        )
                        found.append(response.content)
                    except Exception as error:
                        found.append(type(error))
                    await asyncio.sleep(0.01)  # a server that hangs up is seen
            return found, server.num_connections

    return asyncio.run(ask())


@pytest.mark.parametrize("network", (PlainNetwork(), Network()))
def test_requests_share_a_connection_until_the_server_closes_it(network):
    assert asked(num=3, network=network) == ([b"hi"] * 3, 1)
    assert asked("reply", "last", num=3, network=network) == ([b"hi"] * 3, 2)


@pytest.mark.parametrize("network", (PlainNetwork(), Network()))
def test_a_reply_that_does_not_come_is_a_timeout_and_the_lane_goes_on(network):
    assert asked("hang", network=network) == ([httpcore.ReadTimeout, b"hi"], 2)


def test_a_refused_connection_is_said_and_the_lane_goes_on():
    async def ask():
        lane = Lane("http://127.0.0.1:9", network_backend=PlainNetwork())
        for _ in range(2):
            with pytest.raises(httpcore.ConnectError):
                await lane.request("POST", "http://127.0.0.1:9/v1", content=b"{}")

    asyncio.run(ask())


def test_a_connection_that_takes_too_long_is_a_timeout(monkeypatch):
    async def dawdle(*_):
        await asyncio.sleep(5)

    monkeypatch.setattr(asyncio, "open_connection", dawdle)
    assert asked(num=1) == ([httpcore.ConnectTimeout], 0)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate")
def test_an_encrypted_lane_checks_the_certificate(tmp_path):
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"]
    subject = ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    subprocess.run([*command, *files, *subject], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    options = {"tls": tls, "network": Network(), "scheme": "https"}
    assert asked(**options, context=trusting) == ([b"hi"] * 2, 1)
    wary, _ = asked(**options, context=ssl.create_default_context())
    assert wary == [httpcore.ConnectError] * 2
