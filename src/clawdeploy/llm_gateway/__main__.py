"""Run the gateway: ``python -m clawdeploy.llm_gateway serve --config FILE`` (a systemd unit of Type=notify).

``migrate`` brings the ledger's schema up to date; the unit runs it before, so that the service need not.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import click
import uvloop
from aiohttp import web
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from clawdeploy.errors import ClawError
from clawdeploy.llm_gateway.admin import Admin
from clawdeploy.llm_gateway.app import Gateway
from clawdeploy.llm_gateway.config import Config, ConfigError, read_api_key
from clawdeploy.llm_gateway.copies import Copies
from clawdeploy.llm_gateway.events import Events
from clawdeploy.llm_gateway.ledger import Ledger
from clawdeploy.llm_gateway.meter import Meter
from clawdeploy.llm_gateway.metrics import Metrics
from clawdeploy.llm_gateway.prices import Prices, operators_price
from clawdeploy.llm_gateway.upstream import Upstream
from clawdeploy.money import ceil_nano
from clawdeploy.sd_notify import notify
from clawdeploy.store import LedgerStore, migrate_ledger

_config = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), required=True, help="Settings (JSON)."
)


@click.group()
def main() -> None:
    """The bots' gateway to OpenRouter."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    # What no line shows is not worked out for each (the logging HOWTO's "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the documented switch of findCaller
    # aiohttp's own lines quote malformed requests, keys included; the gateway logs its errors itself.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    logging.getLogger("yoyo").setLevel(logging.WARNING)


@main.command()
@_config
def migrate(config_file: Path) -> None:
    """Create the ledger or bring it up to date."""
    try:
        applied = migrate_ledger(Config.load(config_file).ledger_file)
    except (ConfigError, OSError) as error:
        logging.error("%s", error)
        sys.exit(1)
    logging.info("ledger: %s", f"applied {', '.join(applied)}" if applied else "up to date")


@main.command()
@_config
def serve(config_file: Path) -> None:
    """Serve the bots' LLM calls until SIGTERM; running calls are finished first."""
    try:
        config = Config.load(config_file)
        uvloop.run(run(config, read_api_key(config.api_key_file)))
    except (ConfigError, ClawError, OSError) as error:
        logging.error("%s", error)
        sys.exit(1)


async def run(config: Config, api_key: str) -> None:
    """Listen, tell systemd, run until SIGTERM or SIGINT. Raises OSError when an address cannot be bound."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(config, api_key) as port:
        notify("READY=1")
        logging.info("listening on %s:%d, model %s", config.address, port, config.model)
        await stop.wait()
        notify("STOPPING=1")


@asynccontextmanager
async def serving(config: Config, api_key: str) -> AsyncIterator[int]:
    """The gateway while it runs; the port that bots reach it on."""
    async with AsyncExitStack() as stack:
        low_balance = ceil_nano(Decimal(config.low_balance))
        ledger = Ledger(lambda: LedgerStore(config.ledger_file, low_balance))
        stack.push_async_callback(ledger.close)
        await ledger.start()
        upstream = Upstream(config, api_key)
        stack.push_async_callback(upstream.close)
        prices = Prices(config.prices_file, config.model, operators_price(config.price))
        events, metrics = Events(config.event_command), Metrics()
        meter = Meter(ledger, events, metrics, upstream.generation, config.lookup_delays)
        stack.push_async_callback(meter.close)
        await meter.recover()
        for work in (events.run(), refresh_prices(prices, upstream, config.price_refresh)):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))

        gateway = Gateway(config, upstream, prices, meter, events, metrics)
        monitor = web.Application()
        monitor.router.add_get("/metrics", metrics.handle)
        copies = Copies(ledger, config.ledger_file)
        admin = Admin(ledger, prices, config.model, lambda: check_books(config.ledger_file), copies)
        monitoring = await _runner(stack, monitor, 1)
        await web.TCPSite(monitoring, "127.0.0.1", config.metrics_port).start()
        tools = await _runner(stack, admin.app(), 1)
        await web.UnixSite(tools, str(config.admin_socket)).start()
        config.admin_socket.chmod(0o600)
        # Last, so that at the end it is closed first: no new call comes in while the rest is taken down.
        bots = await _runner(stack, gateway.app(), config.stop_timeout)
        await web.TCPSite(bots, config.address, config.port).start()
        yield bots.addresses[0][1]


async def _runner(stack: AsyncExitStack, app: web.Application, patience: float) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=patience)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    return runner


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def refresh_prices(prices: Prices, upstream: Upstream, seconds: float) -> None:
    """Keep the table of prices young, for ever; while it cannot be fetched the last one counts."""
    while True:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((aiohttp.ClientError, TimeoutError, ValueError, OSError)),
            wait=wait_exponential(1, max=300),
        ):
            with attempt:
                await prices.refresh(upstream.session, upstream.models_url)
        await asyncio.sleep(seconds)


def check_books(ledger_file: Path) -> dict[str, Any]:
    """The answer of ``/v1/verify``, from one unchanging view of the books."""
    store = LedgerStore(ledger_file)
    try:
        with store.reading():
            problems = store.verify()
            return {"ok": not problems, "problems": problems, **store.counts()}
    finally:
        store.close()


if __name__ == "__main__":
    main()
