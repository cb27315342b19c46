"""Run the gateway: ``python -m clawdeploy.llm_gateway --config FILE`` (a systemd unit of Type=notify)."""

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import click
import uvloop
from aiohttp import web

from clawdeploy.llm_gateway.app import Gateway
from clawdeploy.llm_gateway.config import Config, ConfigError, read_api_key


@click.command()
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), required=True, help="Settings (JSON)."
)
def main(config_file: Path) -> None:
    """Serve the bots' LLM calls until SIGTERM; running calls are finished first."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    # aiohttp's own lines quote malformed requests, keys included; the gateway logs its errors itself.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    try:
        config = Config.load(config_file)
        gateway = Gateway(config, read_api_key(config.api_key_file))
        uvloop.run(serve(config, gateway))
    except (ConfigError, OSError) as error:
        logging.error("%s", error)
        sys.exit(1)


async def serve(config: Config, gateway: Gateway) -> None:
    """Listen, tell systemd, run until SIGTERM or SIGINT. Raises OSError when the address cannot be bound."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        gateway.app(),
        access_log=None,
        handler_cancellation=True,  # a bot that hangs up ends its upstream call
        auto_decompress=False,
        shutdown_timeout=config.stop_timeout,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, config.address, config.port).start()
        notify("READY=1")
        logging.info("listening on %s:%d, model %s", config.address, config.port, config.model)
        await stop.wait()
        notify("STOPPING=1")
    finally:
        await runner.cleanup()


def notify(state: str) -> None:
    """Tell systemd our state (sd_notify(3): one datagram to $NOTIFY_SOCKET); elsewhere do nothing."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())


if __name__ == "__main__":
    main()
