"""What strangers and token holders try at the edge, byte for byte, and what comes of it.

While this runs, the simulated internet has no way out.
"""

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests import lab
from tests.e2e.conftest import Bot

CRLF = "\r\n"


@pytest.fixture(scope="module", autouse=True)
def no_way_out() -> Iterator[None]:
    with lab.cut_off():
        yield


@dataclass(frozen=True)
class Answer:
    """One answer of a connection; `code` is the edge's own word for its refusal, "" if there is none."""

    status: int
    body: bytes

    @property
    def code(self) -> str:
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""


@dataclass
class Visitor:
    """A stranger on the internet with a TLS connection to the edge, who writes what they like."""

    vps: lab.Vps
    name: str
    trust: ssl.SSLContext = field(
        default_factory=lambda: ssl.create_default_context(cafile=str(lab.CA_BUNDLE))
    )

    @contextlib.contextmanager
    def connected(self, patience: float = 15) -> Iterator[ssl.SSLSocket]:
        with (
            socket.create_connection((self.vps.host.address, 443), patience) as plain,
            self.trust.wrap_socket(plain, server_hostname=self.name) as tls,
        ):
            yield tls

    def send(self, *parts: str | bytes, patience: float = 15) -> list[Answer]:
        """Write the parts to one connection; return what came back until it was closed or quiet."""
        with self.connected(patience) as tls:
            with contextlib.suppress(OSError):
                for part in parts:
                    tls.sendall(part if isinstance(part, bytes) else part.encode("latin-1"))
            return read_answers(tls)


def read_answers(tls: ssl.SSLSocket, quiet: float = 1.5) -> list[Answer]:
    """What comes until the peer closes or says nothing for `quiet` seconds after an answer."""
    received = b""
    with contextlib.suppress(OSError):
        while block := tls.recv(65536):
            received += block
            tls.settimeout(quiet)
    return list(parse(received))


def parse(received: bytes) -> Iterable[Answer]:
    while received.startswith(b"HTTP/1."):
        head, _, rest = received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        lengths = re.findall(rb"(?im)^content-length: *(\d+)", head)
        if re.search(rb"(?im)^transfer-encoding: *chunked", head):
            body, received = unchunk(rest)
        else:
            size = int(lengths[0]) if lengths else 0
            body, received = rest[:size], rest[size:]
        yield Answer(status, body)


def unchunk(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line or b"0", 16)
        body, rest = body + rest[:size], rest[size + 2 :]
        if size == 0:
            return body, rest


def name_of(bot: Bot) -> str:
    return str(urlsplit(bot.url).hostname)


@pytest.fixture
def visitor(vps: lab.Vps, bot: Bot) -> Visitor:
    return Visitor(vps, name_of(bot))


def head(target: str, host: str, *more: str, method: str = "GET", version: str = "HTTP/1.1") -> str:
    """The text of a request's head; `more` are whole header lines."""
    return CRLF.join((f"{method} {target} {version}", f"Host: {host}", *more, "", ""))


def bearer(bot: Bot) -> str:
    return f"Authorization: Bearer {bot.card['gateway_token']}"


def health(vps: lab.Vps, bot: Bot) -> float:
    """Seconds until the bot's public health page has answered a new connection, as it should."""
    began = time.monotonic()
    context = ssl.create_default_context(cafile=str(lab.CA_BUNDLE))
    connection = http.client.HTTPSConnection(name_of(bot), context=context, timeout=10)
    # The name leads to the VPS, as its DNS would say.
    connection._create_connection = lambda *_, **__: socket.create_connection((vps.host.address, 443), 10)  # type: ignore[attr-defined]
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (200, {"status": "ok"})
    return time.monotonic() - began


# --- paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/telegram", "//telegram", "/./telegram", "/webhook/../telegram", "/webhook/..%2ftelegram",
        "/webhook%2f..%2ftelegram", "/webhook/%2e%2e/telegram", "/webhook/%252e%252e/telegram", "/%74elegram",
        "/%2574elegram", "/telegram%00", "/webhook%00/telegram", "/telegram/", "/telegram;x", "/TELEGRAM",
        "/health\\..\\telegram", "/health/%5c../telegram", "/webhook/..;/telegram", "/telegram?",
        "/telegram#x", "/ready", "/pair", "/metrics", "/%c0%ae%c0%ae/telegram", "/health%0d%0aX:%20y",
        "/health/../../etc/passwd",
    ],
)  # fmt: skip
def test_no_disguise_opens_a_closed_path_not_even_for_the_holder(
    visitor: Visitor, bot: Bot, target: str
) -> None:
    (answer,) = visitor.send(head(target, visitor.name, bearer(bot), "Connection: close"))
    assert answer.status in (400, 404)
    assert answer.code in ("unknown_path", "bad_request", "")
    assert b"status" not in answer.body


@pytest.mark.parametrize(
    "target", ["https://{own}/telegram", "http://{own}/telegram", "https://{own}//telegram"]
)
def test_a_target_with_scheme_and_host_is_judged_by_its_path(visitor: Visitor, bot: Bot, target: str) -> None:
    (answer,) = visitor.send(
        head(target.format(own=visitor.name), visitor.name, bearer(bot), "Connection: close")
    )
    assert answer.status in (400, 404)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("CONNECT", "127.0.0.1:22"),
        ("CONNECT", "10.200.0.2:3000"),
        ("TRACE", "/health"),
        ("PRI", "*"),
        ("OPTIONS", "*"),
    ],
)
def test_no_method_makes_the_edge_a_proxy_or_a_mirror(visitor: Visitor, method: str, target: str) -> None:
    answers = visitor.send(head(target, visitor.name, "X-Mark: mirrored", "Connection: close", method=method))
    for answer in answers:
        assert b"mirrored" not in answer.body
        assert b"SSH-" not in answer.body
        assert answer.status >= 400 or (method, answer.status) == ("OPTIONS", 200)


# --- hosts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "127.0.0.1:3000", "10.200.0.2", "10.201.255.1:8788", "169.254.169.254",
        "bots.example.test", "www.evil.test", "{own}.evil.test", "x.{own}", "{own}@www.evil.test", "{own}.",
        "{own}/telegram", "{own}%00.evil.test", "{own},www.evil.test", "", "[::1]", "{own}:99999999",
        "../{own}",
    ],
)  # fmt: skip
def test_any_other_host_is_nobody(visitor: Visitor, bot: Bot, host: str) -> None:
    answers = visitor.send(head("/health", host.format(own=visitor.name), bearer(bot), "Connection: close"))
    assert [answer.status for answer in answers] in ([400], [404], [421])
    assert answers[0].code in ("unknown_bot", "bad_request", "")
    assert b"status" not in answers[0].body


def test_two_hosts_are_none(visitor: Visitor, bots: list[Bot]) -> None:
    for first, second in ((0, 1), (1, 0)):
        hosts = [name_of(bots[first]), name_of(bots[second])]
        answers = visitor.send(head("/health", hosts[0], f"Host: {hosts[1]}", "Connection: close"))
        assert [answer.status for answer in answers] == [400]


@pytest.mark.parametrize(
    "lie",
    [
        "X-Forwarded-Host: {other}",
        "X-Host: {other}",
        "X-Original-URL: /telegram",
        "X-Rewrite-URL: /telegram",
        "Forwarded: host={other}",
        "X-HTTP-Method-Override: DELETE",
    ],
)
def test_no_header_changes_which_bot_or_path_is_meant(visitor: Visitor, bots: list[Bot], lie: str) -> None:
    lie = lie.format(other=name_of(bots[1]))
    (card,) = visitor.send(head("/.well-known/agent-card.json", visitor.name, lie, "Connection: close"))
    assert card.status == 200
    assert json.loads(card.body)["url"].startswith(bots[0].url.rstrip("/"))


def test_anothers_host_behind_ones_own_certificate_needs_the_others_token(
    vps: lab.Vps, bots: list[Bot]
) -> None:
    own, other = bots
    visitor = Visitor(vps, name_of(own))
    message = '{"message": "hello"}'
    request = head(
        "/webhook",
        name_of(other),
        bearer(own),
        f"Content-Length: {len(message)}",
        "Connection: close",
        method="POST",
    )
    (answer,) = visitor.send(request + message)
    assert (answer.status, answer.code) == (401, "unauthorized")


# --- smuggling --------------------------------------------------------------------------------------

# A second request hidden in the first one's body: whoever reads the lengths in another way would see it.
HIDDEN = "GET /telegram HTTP/1.1\r\nHost: {own}\r\nX: "


@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param("Content-Length: {size}\r\nTransfer-Encoding: chunked", id="both lengths"),
        pytest.param("Transfer-Encoding: chunked\r\nContent-Length: 4", id="both, the other way round"),
        pytest.param("Content-Length: {size}\r\nTransfer-Encoding : chunked", id="space before the colon"),
        pytest.param("Content-Length: {size}\r\nTransfer-Encoding: xchunked", id="an unknown coding"),
        pytest.param("Content-Length: {size}\r\nTransfer-Encoding: chunked, identity", id="two codings"),
        pytest.param("Content-Length: {size}\r\nTransfer-Encoding:\x0bchunked", id="a vertical tab"),
        pytest.param("Content-Length: {size}\r\nX: y\nTransfer-Encoding: chunked", id="a bare line feed"),
        pytest.param("Content-Length: {size}\r\n Transfer-Encoding: chunked", id="a folded line"),
        pytest.param("Content-Length: 5\r\nContent-Length: {size}", id="two lengths"),
        pytest.param("Content-Length: 5, {size}", id="two lengths in one line"),
        pytest.param("Content-Length: +{size}", id="a signed length"),
        pytest.param("Content-Length: 0x{size}", id="a hexadecimal length"),
        pytest.param("Content-Length: -1", id="a negative length"),
        pytest.param("Content-Length: 99999999999999999999", id="a length that overflows"),
        pytest.param("Content_Length: {size}\r\nContent-Length: 5", id="an underscore"),
    ],
)
def test_no_request_is_smuggled_inside_another(
    vps: lab.Vps, visitor: Visitor, bots: list[Bot], lengths: str
) -> None:
    body = "0\r\n\r\n" + HIDDEN.format(own=visitor.name)
    lengths = lengths.format(size=len(body))
    answers = visitor.send(head("/webhook", visitor.name, lengths, method="POST") + body)
    # As a stranger: the first is refused, and what follows is at most a request of its own, refused as well.
    assert all(answer.status in (400, 401, 404, 408, 411, 413, 431, 501) for answer in answers), answers
    # Had the hidden request been left over between Caddy and HAProxy, the next visitor would get its answer.
    for bot in bots * 3:
        health(vps, bot)


def test_an_upgrade_that_the_bot_does_not_take_opens_no_tunnel(visitor: Visitor, bot: Bot) -> None:
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: aGVsbG9oZWxsb2hlbGxvMQ==",
    )
    answers = visitor.send(
        head("/health", visitor.name, *upgrade), head("/telegram", visitor.name, "Connection: close")
    )
    assert answers[0].status == 200
    assert all(answer.code == "unknown_path" for answer in answers[1:])


def test_an_upgrade_to_http2_in_the_clear_is_not_passed_on(visitor: Visitor) -> None:
    upgrade = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )
    answers = visitor.send(head("/health", visitor.name, *upgrade))
    assert [answer.status for answer in answers] == [200]


# --- floods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([f"X-{number}: y" for number in range(2000)], id="many headers"),
        pytest.param(["X: " + "y" * 20_000], id="one long header"),
        pytest.param(["X: " + "y" * 2_000_000], id="one endless header"),
        pytest.param(["Cookie: " + "; ".join(f"c{number}=x" for number in range(3000))], id="many cookies"),
        pytest.param(["X" * 20_000 + ": y"], id="a long name"),
    ],
)
def test_a_flood_of_headers_is_refused(
    vps: lab.Vps, visitor: Visitor, bots: list[Bot], lines: list[str]
) -> None:
    answers = visitor.send(head("/health", visitor.name, *lines, "Connection: close"))
    assert all(answer.status in (400, 431) for answer in answers)
    assert health(vps, bots[1]) < 1


def test_a_long_url_is_refused(vps: lab.Vps, visitor: Visitor, bots: list[Bot]) -> None:
    answers = visitor.send(head("/health?" + "x" * 30_000, visitor.name, "Connection: close"))
    assert [answer.status for answer in answers] in ([414], [431], [400])
    assert health(vps, bots[1]) < 1


@pytest.mark.parametrize("who", ["stranger", "holder"])
def test_a_huge_body_is_refused_before_it_is_taken_in(
    vps: lab.Vps, visitor: Visitor, bots: list[Bot], who: str
) -> None:
    def memory() -> int:
        return sum(map(int, vps.exec("ps", "-C", "haproxy,caddy", "-o", "rss=").split())) << 10

    lines = [bearer(bots[0])] if who == "holder" else []
    request = head("/webhook", visitor.name, *lines, "Content-Length: 10000000000", method="POST")
    before = memory()
    answers = visitor.send(request, *[b"x" * 1_000_000] * 50)
    assert [answer.status for answer in answers] in ([413], [401], []), "or the connection is simply closed"
    assert memory() - before < 20_000_000
    assert health(vps, bots[1]) < 1


def test_an_endless_chunked_body_is_refused(vps: lab.Vps, visitor: Visitor, bots: list[Bot]) -> None:
    request = head("/webhook", visitor.name, bearer(bots[0]), "Transfer-Encoding: chunked", method="POST")
    answers = visitor.send(request, *["fffff\r\n" + "x" * 0xFFFFF + CRLF] * 20)
    assert [answer.status for answer in answers] in ([411], [413], [])
    assert health(vps, bots[1]) < 1


def test_slow_loris_is_hung_up_on_and_troubles_nobody(
    vps: lab.Vps, visitor: Visitor, bots: list[Bot]
) -> None:
    """150 connections that send a header one byte a second, 50 that never finish the TLS handshake."""
    with contextlib.ExitStack() as held:
        slow = [held.enter_context(visitor.connected()) for _ in range(150)]
        mute = [held.enter_context(socket.create_connection((vps.host.address, 443), 15)) for _ in range(50)]
        for connection in slow:
            connection.sendall(head("/health", visitor.name)[:-2].encode())
        began, open_ones = time.monotonic(), set(slow)
        while open_ones and time.monotonic() - began < 20:
            for connection in list(open_ones):
                try:
                    connection.sendall(b"X")
                    connection.setblocking(False)
                    with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
                        if not connection.recv(4096):
                            open_ones.discard(connection)
                    connection.settimeout(15)
                except OSError:
                    open_ones.discard(connection)
            assert health(vps, bots[0]) < 1
            assert health(vps, bots[1]) < 1
            time.sleep(0.5)
        assert not open_ones, f"{len(open_ones)} of 150 were still let in after 20 s"
        for plain in mute:
            plain.settimeout(10)
            assert plain.recv(100) == b"", "a TLS handshake may not wait for ever"


def test_a_slow_body_is_given_up_and_never_troubles_the_bot(
    vps: lab.Vps, visitor: Visitor, bots: list[Bot]
) -> None:
    request = head("/webhook", visitor.name, bearer(bots[0]), "Content-Length: 2000", method="POST")
    with contextlib.ExitStack() as held:
        slow = [held.enter_context(visitor.connected(30)) for _ in range(5)]
        for connection in slow:
            connection.sendall(request.encode() + b'{"message": "')
        assert health(vps, bots[0]) < 1
        assert health(vps, bots[1]) < 1
        began = time.monotonic()
        for connection in slow:
            assert [answer.status for answer in read_answers(connection)] in ([408], [])
        assert time.monotonic() - began < 20


def test_idle_connections_of_one_visitor_are_bounded_and_others_get_in(
    vps: lab.Vps, visitor: Visitor, bots: list[Bot]
) -> None:
    with contextlib.ExitStack() as held:
        opened = 0
        with contextlib.suppress(TimeoutError):
            while opened < 600:
                held.enter_context(socket.create_connection((vps.host.address, 443), 1))
                opened += 1
                if opened > 250:
                    time.sleep(0.011)  # below the rate that would be refused anyway
        assert 450 < opened <= 512
        resolve = f"--resolve {name_of(bots[1])}:443:{vps.host.address}"
        fetch = f"curl --silent --insecure --max-time 5 {resolve} {bots[1].url}health"
        assert json.loads(lab.website(fetch)) == {"status": "ok"}
