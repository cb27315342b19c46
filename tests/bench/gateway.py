"""What the LLM gateway costs, beside its neighbours: all on loopback, in one run, in alternating rounds.

Ways to a simulated OpenRouter (20 ms to the first byte; streams of 20 chunks 2 ms apart; 1 KB prompts):
  direct       nothing in between
  passthrough  the least that aiohttp and uvloop can do (tests/bench/passthrough.py)
  gateway      ours as it is deployed: keys, accounts, limits, and each call in a ledger on a real disk, with
               full durability; the ledger has 1,000 bots and 1,000,000 entries
  litellm      LiteLLM's proxy with one key and no database, so without accounts, in a locked environment of
               its own (requirements/litellm.txt)

Each way has one core (the first of ours) for its one process; upstream and load share another one. Bots call
in turn with keys of their own, all from 127.0.0.1, and the limits per bot (calls a minute, calls at once) are
out of reach: they are checked for every call, but are not what is measured. A round measures all ways, the
next one in the opposite order; figures are medians of the rounds, differences those of the same round.

Figures:
  rps1_*, rps32_*, rps128_*     answers/s with so many connections
  p50_1_*, p50_32_*, p50_128_*  median latency of the same (ms)
  streams1_*, ...               whole streams/s; first1_*, ...: median time to a stream's first byte (ms)
  added_p50_ms, added_ttfb_ms   gateway - direct: an answer's median latency, a stream's first byte
                                (1 connection, durable commit included)
  cpu_ms_per_call_*, cpu_ms_per_stream_*   CPU of the process (32 connections)
  rss_idle_mb, rss_load_mb      memory of the gateway before its first call, and the most until the end;
                                litellm_rss_mb (idle), litellm_rss_load_mb
  start_s, litellm_start_s      from the start of the process until it serves
  growth_pct                    CPU of a call with 1,000 bots and 1,000,000 entries, more than with 10 bots
                                and 1,000 entries; growth_p50_pct: the same for median latency, 1 connection
  passthrough_pct, litellm_times   rps32_gateway as a part of rps32_passthrough, as multiple of rps32_litellm
  calls_metered                 calls in the gateway's ledger at the end: as many as were answered, and its
                                books are in order (else the benchmark fails)
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clawdeploy.store import LedgerStore, migrate_ledger
from tests.bench.figures import BENCH, progress, report
from tests.bench.openrouter import MODEL
from tests.playbooks import ROOT
from tests.ports import free_port

ROUNDS = 3
GROWTH_ROUNDS = 5
SECONDS = 2
CONNECTIONS = (1, 32, 128)
LARGE = (1000, 1_000_000)  # bots, entries
SMALL = (10, 1000)

HOME = BENCH / "gateway"
LITELLM = BENCH / "litellm"
LITELLM_LOCK = ROOT / "requirements" / "litellm.txt"
UV = str(Path(sys.executable).with_name("uv"))
TICKS = os.sysconf("SC_CLK_TCK")

_CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE, LOAD_CORE = str(_CORES[0]), str(_CORES[-1])

BODY = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant. " * 10},
        {"role": "user", "content": "Tell me something that I do not know yet. " * 15},
    ],
    "max_tokens": 500,
}

LITELLM_CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{model: "openrouter/{model}", api_base: "{url}", api_key: "{key}"}}
general_settings: {{master_key: "{key}"}}
"""

_FILL = """
INSERT INTO call
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :calls)
SELECT i, printf('bot%09d', i % :bots), :now - :calls + i, 'vendor/model', 'balance', 'settled', 600000,
       'usage', 12300, 12300, 250, 20, printf('gen-%016x', i), :now - :calls + i + 1 FROM n;
"""
_ENTER = """
INSERT INTO entry (bot, at, kind, amount, key)
SELECT bot, settled_at, 'charge', -charged, printf('call:%012d', id) FROM call ORDER BY id;
"""
_ADD_UP = """
UPDATE account SET spent = total, calls = number, balance = balance - total
FROM (SELECT bot AS of_bot, sum(charged) AS total, count(*) AS number FROM call GROUP BY bot)
WHERE of_bot = bot
"""


class Process:
    """A running program of the benchmark, on one core."""

    def __init__(
        self, name: str, core: str, arguments: list[str], stack: ExitStack, **environment: str
    ) -> None:
        """Starts it; ``stack`` ends it. What it says goes to build/bench/gateway/<name>.log."""
        self._log = HOME / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", core, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
        stack.callback(self.stop)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raises RuntimeError with the end of its log if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended by itself: {self._log}:\n{self._log.read_text()[-2000:]}")

    def reachable(self, port: int, path: str = "/") -> None:
        """Wait until it answers HTTP. Raises RuntimeError when it ends instead, or after two minutes."""
        request = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            self.check()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(request)
                    if connection.recv(1):
                        return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"nothing answers: {self._log}:\n{self._log.read_text()[-2000:]}")

    def cpu_ms(self) -> float:
        """CPU of all its threads since its start."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / TICKS

    def memory_mb(self, what: str) -> float:
        """``VmRSS``: resident now; ``VmHWM``: the most it ever was (MB of 2**20 bytes)."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


class Way:
    """One way to the upstream, and everything measured on it."""

    def __init__(
        self, name: str, port: int, keys: Path, process: Process | None, api: str = "/api/v1"
    ) -> None:
        """``keys``: a file with the LLM keys that are used in turn; ``process``: None where there is none."""
        self.name = name
        self.process = process
        self.answered = 0
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._url = f"http://127.0.0.1:{port}{api}/chat/completions"
        self._keys = str(keys)

    def answers(self, connections: int, seconds: int = SECONDS) -> dict[str, float]:
        """wrk's figures. Raises RuntimeError if one call failed."""
        load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "30s"]
        script = ["-s", "tests/bench/chat.lua", self._url, "--", self._keys, str(HOME / "body.json")]
        figures = self._run([*load, *script])
        if figures["failed"]:
            raise RuntimeError(f"calls through {self.name} failed: {figures}")
        self.answered += int(figures["requests"])
        return figures

    def streams(self, connections: int, seconds: int = SECONDS) -> dict[str, float]:
        """The figures of tests/bench/streams.py. Raises RuntimeError if one call failed."""
        arguments = [sys.executable, "-m", "tests.bench.streams", self._url, str(connections)]
        figures = self._run([*arguments, str(seconds), self._keys, str(HOME / "stream.json")])
        self.answered += int(figures["streams"])
        return figures

    def _run(self, arguments: list[str]) -> dict[str, float]:
        load = subprocess.run(
            ["taskset", "--cpu-list", LOAD_CORE, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        if load.returncode:
            raise RuntimeError(f"the load through {self.name} failed:\n{load.stdout}{load.stderr}")
        figures: dict[str, float] = json.loads(load.stdout.splitlines()[-1])
        return figures

    def cpu_ms(self) -> float:
        return 0 if self.process is None else self.process.cpu_ms()

    def round(self) -> None:
        """Measure once."""
        for connections in CONNECTIONS:
            before = self.cpu_ms()
            calls = self.answers(connections)
            between = self.cpu_ms()
            streams = self.streams(connections)
            after = self.cpu_ms()
            sample = {
                f"rps{connections}": calls["rate"],
                f"p50_{connections}": calls["p50_ms"],
                f"streams{connections}": streams["rate"],
                f"first{connections}": streams["first_ms"],
            }
            if connections == 32 and self.process is not None:
                sample |= {
                    "cpu_ms_per_call": (between - before) / calls["requests"],
                    "cpu_ms_per_stream": (after - between) / streams["streams"],
                }
            for key, value in sample.items():
                self.samples[key].append(value)
        progress(
            f"  {self.name}: {self.samples['rps32'][-1]:.0f} answers/s and "
            f"{self.samples['streams32'][-1]:.0f} streams/s with 32 connections"
        )

    def figures(self) -> dict[str, float]:
        return {f"{key}_{self.name}": statistics.median(values) for key, values in self.samples.items()}


class Books:
    """A ledger with bots, and the files that the gateway needs besides."""

    def __init__(self, name: str, bots: int, entries: int) -> None:
        self.name = name
        self.home = HOME / name
        self.home.mkdir()
        self.ledger = self.home / "ledger.db"
        self.keys = self.home / "keys.txt"
        self._calls = entries - bots
        names = [f"bot{number:09d}" for number in range(bots)]
        keys = [f"sk-claw-{secrets.token_urlsafe(32)}" for _ in names]
        self.keys.write_text("\n".join(keys))
        known = {
            hashlib.sha256(key.encode()).hexdigest(): {
                "bot": bot, "subnet": "127.0.0.1/32", "suspended": False, "refusal": "error"
            }
            for bot, key in zip(names, keys, strict=True)
        }  # fmt: skip
        (self.home / "keys.json").write_text(json.dumps({"keys": known}))
        self._fill(names, entries)

    def _fill(self, names: list[str], entries: int) -> None:
        """Accounts with 1,000 dollars each and a past of calls, as the gateway leaves them."""
        migrate_ledger(self.ledger)
        now, opening = time.time(), 10**12
        db = sqlite3.connect(self.ledger)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # only while it is filled
        with db:
            db.executemany(
                "INSERT INTO account VALUES (?, ?, 'prepaid', 0, ?, 0, 0, 0, 0, 0, 0, 'nothing')",
                [(name, now, opening) for name in names],
            )
            db.executemany(
                "INSERT INTO entry (bot, at, kind, amount, key) VALUES (?, ?, 'opening', ?, ?)",
                [(name, now, opening, f"opening:{name}") for name in names],
            )
            db.execute(_FILL, {"calls": entries - len(names), "bots": len(names), "now": now})
            db.execute(_ENTER)
            db.execute(_ADD_UP)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        os.sync()

    def metered(self) -> int:
        """Settled calls since it was filled. Raises RuntimeError if the books are not in order."""
        store = LedgerStore(self.ledger)
        if problems := store.verify():
            raise RuntimeError(f"the books of {self.name} are not in order: {problems[:5]}")
        if left := store.unsettled():
            raise RuntimeError(f"{len(left)} calls of {self.name} were never settled")
        number = store.counts()["calls"]
        store.close()
        return number - self._calls


@contextmanager
def gateway(books: Books, url: str, tools: Path) -> Iterator[tuple[Way, float]]:
    """Our gateway, serving from these books, and the seconds that it took to start."""
    port = free_port()
    config = {
        "address": "127.0.0.1",
        "port": port,
        "base_url": url,
        "api_key_file": str(HOME / "api_key"),
        "model": MODEL,
        "keys_file": str(books.home / "keys.json"),
        "remote_keys_file": str(books.home / "remote_keys.json"),
        "bot_pool": "127.0.0.0/8",
        "max_body_bytes": 4 * 1024 * 1024,
        "calls_per_bot": 1000,
        "calls_per_minute": 1_000_000,
        "max_tokens": 8192,
        "connect_timeout": 10,
        "read_timeout": 300,
        "drain_timeout": 60,
        "call_timeout": 600,
        "stop_timeout": 20,
        "attempts": 3,
        "lookup_delays": [1, 3, 10],
        "ledger_file": str(books.ledger),
        "prices_file": str(books.home / "prices.json"),
        "price": {"prompt": "1", "completion": "2"},
        "price_refresh": 3600,
        "low_balance": "0.50",
        "top_up_hint": "",
        "event_command": [],
        "admin_socket": str(tools / f"{books.name}.sock"),
        "metrics_port": free_port(),
    }
    file = books.home / "config.json"
    file.write_text(json.dumps(config))
    channel = tools / "notify"
    with ExitStack() as stack, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        channel.unlink(missing_ok=True)
        notified.bind(str(channel))
        notified.settimeout(60)
        command = [sys.executable, "-m", "clawdeploy.llm_gateway", "serve", "--config", str(file)]
        start = time.monotonic()
        process = Process(books.name, PROXY_CORE, command, stack, NOTIFY_SOCKET=str(channel))
        while notified.recv(100) != b"READY=1":
            process.check()
        yield Way("gateway", port, books.keys, process), time.monotonic() - start


def install_litellm() -> None:
    """Make LiteLLM's environment, unless it is there as locked."""
    stamp, wanted = LITELLM / "locked", LITELLM_LOCK.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    progress("install LiteLLM into build/bench/litellm (half a gigabyte)")
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(LITELLM)], check=True)
    command = [UV, "pip", "sync", "--quiet", "--require-hashes", "--python", str(LITELLM / "bin/python")]
    subprocess.run([*command, str(LITELLM_LOCK)], check=True)
    stamp.write_text(wanted)


def litellm(url: str, stack: ExitStack) -> tuple[Way, float]:
    """LiteLLM's proxy, serving, and the seconds that it took to start."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    keys, config, port = HOME / "litellm-keys.txt", HOME / "litellm.yml", free_port()
    keys.write_text(key)
    config.write_text(LITELLM_CONFIG.format(model=MODEL, url=url, key=key))
    command = [str(LITELLM / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1"]
    start = time.monotonic()
    # Its table of models' costs comes with it: nothing is fetched.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    process = Process("litellm", PROXY_CORE, command, stack, **quiet)
    process.reachable(port, "/health/liveliness")
    return Way("litellm", port, keys, process, "/v1"), time.monotonic() - start


def compare(ways: list[Way]) -> dict[str, float]:
    """Everything that is measured side by side."""
    progress("warm up")
    for way in ways:
        way.answers(32, 1)
        way.streams(32, 1)
    for number in range(ROUNDS):
        progress(f"all ways, round {number + 1} of {ROUNDS}")
        for way in ways if number % 2 == 0 else reversed(ways):
            way.round()
    figures: dict[str, float] = {}
    for way in ways:
        figures |= way.figures()
    samples = {way.name: way.samples for way in ways}
    for name, key in (("added_p50_ms", "p50_1"), ("added_ttfb_ms", "first1")):
        pairs = zip(samples["gateway"][key], samples["direct"][key], strict=True)
        figures[name] = statistics.median(ours - direct for ours, direct in pairs)
    figures["passthrough_pct"] = 100 * figures["rps32_gateway"] / figures["rps32_passthrough"]
    figures["litellm_times"] = figures["rps32_gateway"] / figures["rps32_litellm"]
    return figures


def growth(small: Books, large: Books, url: str, tools: Path) -> dict[str, float]:
    """What a call costs with few bots and a young ledger, and with many and an old one, alternating.

    The young ledger is young again in each round; the old one grows on by what little is measured.
    """
    young = small.home / "young.db"
    shutil.copy(small.ledger, young)
    cpu: list[float] = []
    latency: list[float] = []
    starts: list[float] = []
    for number in range(GROWTH_ROUNDS):
        progress(f"a call's cost with few and with many entries, round {number + 1} of {GROWTH_ROUNDS}")
        costs: dict[str, tuple[float, float]] = {}
        for books in (small, large) if number % 2 == 0 else (large, small):
            shutil.copy(young, small.ledger)
            with gateway(books, url, tools) as (way, start):
                way.answers(32, 1)
                before = way.cpu_ms()
                calls = way.answers(32)
                costs[books.name] = ((way.cpu_ms() - before) / calls["requests"], way.answers(1, 1)["p50_ms"])
                if books is large:
                    starts.append(start)
        cpu.append(costs["large"][0] / costs["small"][0])
        latency.append(costs["large"][1] / costs["small"][1])
    return {
        "start_s": statistics.median(starts),
        "growth_pct": (statistics.median(cpu) - 1) * 100,
        "growth_p50_pct": (statistics.median(latency) - 1) * 100,
    }


def measure(stack: ExitStack) -> dict[str, float]:
    """Start everything, measure, and check the books."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    tools = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clawdeploy-bench-")))
    (HOME / "api_key").write_text("sk-or-v1-server-key")
    (HOME / "body.json").write_text(json.dumps(BODY))
    (HOME / "stream.json").write_text(json.dumps(BODY | {"stream": True}))
    install_litellm()
    progress(f"fill a ledger with {SMALL[1]:,} entries and one with {LARGE[1]:,}")
    small, large = Books("small", *SMALL), Books("large", *LARGE)

    port, relay_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}/api/v1"
    programs = [sys.executable, "-m"]
    upstream = Process("upstream", LOAD_CORE, [*programs, "tests.bench.openrouter", str(port)], stack)
    upstream.reachable(port)
    command = [*programs, "tests.bench.passthrough", str(relay_port), url]
    relay = Process("passthrough", PROXY_CORE, command, stack)
    relay.reachable(relay_port)
    progress("start LiteLLM")
    rival, rival_start = litellm(url, stack)
    assert rival.process is not None
    figures = {"litellm_start_s": rival_start, "litellm_rss_mb": rival.process.memory_mb("VmRSS")}

    with gateway(large, url, tools) as (ours, _start):
        assert ours.process is not None
        time.sleep(1)
        figures["rss_idle_mb"] = ours.process.memory_mb("VmRSS")
        direct = Way("direct", port, large.keys, None)
        passthrough = Way("passthrough", relay_port, large.keys, relay)
        figures |= compare([direct, passthrough, ours, rival])
        figures["rss_load_mb"] = ours.process.memory_mb("VmHWM")
        time.sleep(1)  # calls that wrk left under way come to their end
        figures["litellm_rss_load_mb"] = rival.process.memory_mb("VmHWM")
    figures["calls_metered"] = large.metered()
    # wrk drops the calls that are under way when its time is over: they are metered, but not counted there.
    dropped = figures["calls_metered"] - ours.answered
    if not 0 <= dropped <= (ROUNDS + 1) * sum(CONNECTIONS):
        raise RuntimeError(f"{ours.answered} calls were answered, but {figures['calls_metered']} metered")
    rival.process.stop()
    figures |= growth(small, large, url, tools)
    return figures


def main() -> None:
    """Measure and report."""
    with ExitStack() as stack:
        figures = measure(stack)
    report("gateway", {key: round(value, 3) for key, value in figures.items()})


if __name__ == "__main__":
    main()
