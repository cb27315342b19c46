"""All that a deploy to Fly.io meets, on loopback: Telegram and Fly.io as simulators behind a proxy, and a
VPS with the real clawctl, LLM gateway, HAProxy and Caddy.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
import yaml

from clawdeploy.store import migrate, migrate_ledger
from tests.ports import free_port
from tests.unit.edge.harness import (
    BASE,
    Caddy,
    Edge,
    await_condition,
    caddy_binaries,
    connects,
    edge_settings,
)

ROOT = Path(__file__).resolve().parents[3]
API_TOKEN = "fo1_" + "k" * 40
BOT = 123456789
TELEGRAM_TOKEN = f"{BOT}:AA{'x' * 33}"
MODEL = "openai/gpt-4o-mini"
LLM_HOST = f"llm.{BASE}"

CLAWCTL = """#!{python}
# The real clawctl on a host that lives in one directory.
import sys
from pathlib import Path
sys.path.insert(0, {source!r})
from clawdeploy.cli import Machine, main
from clawdeploy.host import Paths
here = Path({here!r})
main(obj=Machine(paths=Paths(
    host_file=here / "host.json", state=here / "state", maps=here / "edge/maps",
    haproxy_socket=here / "edge/admin.sock", units=here, lock=here / "lock",
    upgrade_lock=here / "upgrade_lock", ledger_socket=here / "ledger.sock",
    watchdog_file=here / "watchdog.json", maps_group="root", llm_group="root",
)))
"""


class Internet(socketserver.ThreadingTCPServer):
    """A proxy that leads a few names to loopback ports, and all others nowhere."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.ports: dict[str, int] = {}
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Tunnel(socketserver.StreamRequestHandler):
    server: Internet

    def handle(self) -> None:
        name = self.rfile.readline().decode().split(" ")[1].partition(":")[0]
        while self.rfile.readline().strip():
            pass
        if name not in self.server.ports:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self.server.ports[name])) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {there: self.connection, self.connection: there}
            while True:
                ready, _, _ = select.select(ends, [], [])
                for end in ready:
                    try:
                        piece = end.recv(65536)
                        ends[end].sendall(piece)
                    except ConnectionError:
                        return
                    if not piece:
                        return


@dataclass
class Outcome:
    """What a playbook printed, and how many changes it made on all hosts."""

    code: int
    output: str
    changed: int

    def __contains__(self, text: str) -> bool:
        return text in " ".join(self.output.split())


@dataclass
class Stage:
    """The whole of it. ``fly``: the simulator's address; ``ordinary``: its bot is as deploy() makes it."""

    directory: Path
    internet: Internet
    fly: str
    ordinary: bool = False

    def control(self, what: str, **order: Any) -> Any:
        data = json.dumps(order).encode() if order or what == "reset" else None
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        request = urllib.request.Request(f"{self.fly}/_sim/{what}", data=data)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request) as answer:
            return json.load(answer)

    @property
    def apps(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control("state")["apps"]
        return found

    @property
    def calls(self) -> list[tuple[str, str, Any]]:
        return [(method, path, body) for method, path, body in self.control("calls")["calls"]]

    def environment(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name in ("HOME", "LANG")},
            "PATH": f"{self.directory}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "https_proxy": f"http://127.0.0.1:{self.internet.port}",
            "SSL_CERT_FILE": str(self.directory / "ca.pem"),
            "PWD": str(self.directory),
        }

    def play(self, name: str, *flags: str, **variables: Any) -> Outcome:
        """Run a playbook as an operator does; secrets in a file."""
        (self.directory / "vars.json").write_text(json.dumps(variables))
        command = [
            "ansible-playbook",
            str(ROOT / f"playbooks/{name}.yml"),
            "-i",
            str(self.directory / "hosts.yml"),
        ]
        done = subprocess.run(
            [*command, "-e", "@vars.json", *flags],
            cwd=self.directory,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        recap = done.stdout.rpartition("PLAY RECAP")[2]
        changed = sum(int(word.partition("=")[2]) for word in recap.split() if word.startswith("changed="))
        return Outcome(done.returncode, done.stdout + done.stderr, changed)

    def deploy(self, *flags: str, **variables: Any) -> Outcome:
        return self.play("deploy_fly", *flags, **{"token": TELEGRAM_TOKEN, "owner": "4242", **variables})

    def clawctl(self, *arguments: str) -> Any:
        """The answer of the VPS's clawctl."""
        done = subprocess.run(
            [self.directory / "clawctl", *arguments, "--json"], capture_output=True, text=True, check=False
        )
        return json.loads(done.stdout)

    def remotes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.clawctl("remote", "list")["bots"]
        return found


def _process(
    stack: contextlib.ExitStack, *command: str, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    )

    def stop() -> None:
        process.terminate()
        process.communicate(timeout=20)

    stack.callback(stop)
    return process


def _simulator(stack: contextlib.ExitStack, name: str, chain: Path, key: Path) -> str:
    files = ("--cert", str(chain), "--key", str(key))
    process = _process(stack, sys.executable, "-m", f"tests.simulators.{name}", "--port", "0", *files)
    assert process.stdout is not None
    return process.stdout.readline().strip().rpartition(" ")[2]


def _prepare_host(directory: Path, gateway_port: int) -> None:
    """What prepare_host leaves behind, as far as bots elsewhere need it."""
    from tests.unit.package.conftest import HOST

    for name in ("state", "state/llm_gateway", "edge"):
        (directory / name).mkdir()
        (directory / name).chmod(0o755)
    host = {
        **HOST,
        "base_domain": BASE,
        "llm_public_url": f"https://{LLM_HOST}/api/v1",
        "openrouter_model": MODEL,
    }
    (directory / "host.json").write_text(json.dumps(host))
    migrate(directory / "state/registry.db")
    migrate_ledger(directory / "state/ledger.db")
    for name in ("keys.json", "remote_keys.json"):
        (directory / "state/llm_gateway" / name).write_text('{"keys": {}}')
    (directory / "openrouter_api_key").write_text("sk-or-v1-of-the-operator")
    config = {
        **{
            "address": "127.0.0.1",
            "port": gateway_port,
            "base_url": "http://127.0.0.1:1/api/v1",
            "model": MODEL,
        },
        "api_key_file": str(directory / "openrouter_api_key"),
        "keys_file": str(directory / "state/llm_gateway/keys.json"),
        "remote_keys_file": str(directory / "state/llm_gateway/remote_keys.json"),
        **{"bot_pool": "10.200.0.0/16", "max_body_bytes": 65536, "calls_per_bot": 2, "calls_per_minute": 600},
        **{
            "max_tokens": 1000,
            "connect_timeout": 10,
            "read_timeout": 10,
            "drain_timeout": 1,
            "call_timeout": 20,
        },
        **{"stop_timeout": 1, "attempts": 1, "lookup_delays": [1], "price_refresh": 3600},
        "ledger_file": str(directory / "state/ledger.db"),
        "prices_file": str(directory / "prices.json"),
        **{
            "price": {"prompt": "1", "completion": "2"},
            "low_balance": "0.50",
            "top_up_hint": "",
            "event_command": [],
        },
        **{"admin_socket": str(directory / "ledger.sock"), "metrics_port": free_port()},
    }
    (directory / "llm_gateway.json").write_text(json.dumps(config))
    program = directory / "clawctl"
    program.write_text(CLAWCTL.format(python=sys.executable, source=str(ROOT / "src"), here=str(directory)))
    program.chmod(0o755)


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Stage]:
    """Bring everything up in ``directory``, which HAProxy's user must be able to reach."""
    with contextlib.ExitStack() as stack:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "api.telegram.org", "api.machines.dev")
        chain, key = directory / "chain.pem", directory / "key.pem"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key.write_bytes(certificate.private_key_pem.bytes())
        internet = Internet()
        stack.callback(internet.server_close)
        stack.callback(internet.shutdown)
        urls = {name: _simulator(stack, name, chain, key) for name in ("fly", "telegram")}
        internet.ports["api.machines.dev"] = int(urls["fly"].rpartition(":")[2])
        internet.ports["api.telegram.org"] = int(urls["telegram"].rpartition(":")[2])

        gateway_port = free_port()
        _prepare_host(directory, gateway_port)
        serve = (sys.executable, "-m", "clawdeploy.llm_gateway", "serve")
        _process(
            stack,
            *(*serve, f"--config={directory / 'llm_gateway.json'}"),
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")},
        )
        await_condition(lambda: connects(("127.0.0.1", gateway_port)), "start of the LLM gateway")

        settings = edge_settings(
            directory / "edge",
            edge_llm_gateway=f"127.0.0.1:{gateway_port}",
            __edge_caddy_run_directory=str(directory),
            edge_remote_rate_limit_rps=100,
            edge_remote_rate_limit_burst=1000,
        )
        edge = Edge(directory / "edge", settings)
        edge.start()
        stack.callback(edge.stop)
        caddy = Caddy(edge, caddy_binaries()[0])
        stack.callback(caddy.stop)
        caddy.start()
        internet.ports[LLM_HOST] = caddy.https_port
        root = directory / "edge/caddy/pki/authorities/local/root.crt"
        await_condition(root.exists, "Caddy's own authority")
        (directory / "ca.pem").write_bytes(authority.cert_pem.bytes() + root.read_bytes())

        (directory / ".env").write_text(
            f"BASE_DOMAIN={BASE}\nOPENROUTER_MODEL={MODEL}\nFLY_API_TOKEN={API_TOKEN}\nDEFAULT_BALANCE=2.00\n"
        )
        host = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
        }
        inventory = {"vps": {"hosts": {"vps1": host}}}
        (directory / "hosts.yml").write_text(yaml.safe_dump(inventory))
        yield Stage(directory, internet, urls["fly"])


def fresh(stage: Stage) -> Stage:
    """The same stage with nothing on it."""
    stage.ordinary = False
    stage.control("reset")
    for bot in stage.remotes():
        stage.clawctl("remote", "forget", bot["id"])
    shutil.rmtree(stage.directory / "build", ignore_errors=True)
    stage.internet.ports.setdefault(LLM_HOST, 0)
    return stage
