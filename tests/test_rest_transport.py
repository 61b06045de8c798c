"""The transport on real sockets: connections, deadlines, TLS, and what is provably never sent."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kisfeed.errors import ConfigError, KisUnreachable, LocalRefusal, NotSent
from kisfeed.rest import transport
from kisfeed.rest.transport import open_rest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path


class Server:
    """Counts connections and requests; answers with JSON, or as *behave* does."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.behave: Callable[[trio.abc.Stream], Awaitable[None]] | None = None
        self.url = ""

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        async with stream:
            while True:
                request = await self._request(stream)
                if request is None:
                    return
                self.requests.append(request)
                if self.behave is not None:
                    await self.behave(stream)
                    return
                body = json.dumps({"rt_cd": "0"}).encode()
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                await stream.send_all(head + body)

    async def _request(self, stream: trio.abc.Stream) -> bytes | None:
        got = bytearray()
        while b"\r\n\r\n" not in got:
            chunk = await stream.receive_some()
            if not chunk:
                return None
            got += chunk
        head, _, body = bytes(got).partition(b"\r\n\r\n")
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += await stream.receive_some()
        return head + b"\r\n\r\n" + body


@asynccontextmanager
async def open_server(context: ssl.SSLContext | None = None) -> AsyncGenerator[Server]:
    server = Server()
    listeners: Any = (
        await trio.open_tcp_listeners(0, host="127.0.0.1")
        if context is None
        else await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
    )

    async def handle(stream: trio.abc.Stream) -> None:
        with suppress(OSError, trio.BrokenResourceError):  # some tests' clients go away
            await server.serve(stream)

    tcp = listeners[0] if context is None else listeners[0].transport_listener
    server.url = (
        f"{'http' if context is None else 'https'}://127.0.0.1:{tcp.socket.getsockname()[1]}"
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def test_reads_share_connections_and_each_order_has_its_own() -> None:
    async with open_server() as server, open_rest(server.url) as rest:
        for _ in range(5):
            await rest.send("GET", "/a?b=", {}, b"")
        assert server.connections == 1
        for number in range(3):
            await rest.send("POST", "/order", {"tr_id": "T"}, b"{}", fresh=True)
            assert server.connections == 2 + number
        assert b"content-length: 2" in server.requests[-1].lower()
        assert b"transfer-encoding" not in server.requests[-1].lower()
        assert b"GET /a?b= HTTP/1.1" in server.requests[0]


async def test_without_a_connection_nothing_was_sent() -> None:
    async with open_server() as server:
        url = server.url
    async with open_rest(url) as rest:
        with pytest.raises(NotSent):
            await rest.send("POST", "/order", {}, b"{}", fresh=True)
    async with open_rest("http://nowhere.invalid:1") as rest:
        with pytest.raises(NotSent):
            await rest.send("POST", "/order", {}, b"{}", fresh=True)


async def test_what_the_last_check_raises_stops_the_request_before_its_first_byte() -> None:
    def stop() -> None:
        raise LocalRefusal("halted")

    async with open_server() as server, open_rest(server.url) as rest:
        with pytest.raises(LocalRefusal):
            await rest.send("POST", "/order", {}, b"{}", fresh=True, sending=stop)
        await trio.sleep(0.02)
        assert (server.connections, server.requests) == (1, [])


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"junk"])
async def test_an_answer_cut_off_is_no_answer(answer: bytes) -> None:
    async def cut(stream: trio.abc.Stream) -> None:
        if answer:
            await stream.send_all(answer)

    async with open_server() as server, open_rest(server.url) as rest:
        server.behave = cut
        with pytest.raises(KisUnreachable) as caught:
            await rest.send("POST", "/order?secret=1", {}, b"{}", fresh=True)
        assert not isinstance(caught.value, NotSent)
        assert "secret" not in str(caught.value)
        assert len(server.requests) == 1


async def test_a_body_without_end_is_left() -> None:
    async def endless(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"10000\r\n" + b"x" * 65_536 + b"\r\n")

    async with open_server() as server, open_rest(server.url) as rest:
        server.behave = endless
        for fresh in (False, True):
            with pytest.raises(KisUnreachable, match="more than"):
                await rest.send("GET", "/", {}, b"", fresh=fresh)


async def test_silence_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(transport, "TOTAL_TIMEOUT_S", 0.2)
    async with open_server() as server, open_rest(server.url) as rest:
        server.behave = silent
        with trio.fail_after(5), pytest.raises(KisUnreachable):
            await rest.send("GET", "/", {}, b"")


async def test_redirects_are_not_followed_and_proxies_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def elsewhere(stream: trio.abc.Stream) -> None:
        await stream.send_all(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\n{}"
        )

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with open_server() as server, open_rest(server.url) as rest:
        server.behave = elsewhere
        assert (await rest.send("GET", "/", {}, b"")).status == 302
        assert server.connections == 1


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate for 127.0.0.1, and the file to trust it by."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    trusted = folder / "ca.pem"
    trusted.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(trusted, private)
    return context, trusted


async def test_tls_is_verified_and_a_ca_file_can_be_named(tmp_path: Path) -> None:
    context, trusted = certificate(tmp_path)
    async with open_server(context) as server:
        async with open_rest(server.url, ca_file=str(trusted)) as rest:
            assert (await rest.send("POST", "/", {}, b"{}", fresh=True)).status == 200
        async with open_rest(server.url) as rest:
            with pytest.raises(NotSent):
                await rest.send("POST", "/", {}, b"{}", fresh=True)
        other = server.url.replace("127.0.0.1", "localhost")
        async with open_rest(other, ca_file=str(trusted)) as rest:
            with pytest.raises(NotSent):
                await rest.send("GET", "/", {}, b"")
        assert len(server.requests) == 1


@pytest.mark.parametrize("content", [None, "", "not a certificate"])
async def test_a_ca_file_that_cannot_be_used_is_a_configuration_error(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"endpoints\.ca_file"):
        async with open_rest("https://kis", ca_file=str(file)):
            pass
