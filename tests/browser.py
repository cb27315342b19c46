"""A headless Chromium on the simulated internet, spoken to over its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

# Root may not use Chromium's own sandbox; certificates are checked by the other tests.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--ignore-certificate-errors",
    "--window-size=1280,900",
    "--remote-debugging-port=0",
)
START_SECONDS = 30


class NetworkChangedError(Exception):
    """A network interface of this machine came or went, such as a container's: Chromium then drops whatever
    it is loading, and all that is left to do is to begin again.
    """


class Page:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._calls = socket, 0
        self.responses: list[tuple[int, str]] = []
        """Status and URL of every answer the page got."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; returns its result, RuntimeError with the browser's words if it fails."""
        self._calls += 1
        number = self._calls
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("method") == "Network.responseReceived":
                response = message["params"]["response"]
                self.responses.append((response["status"], response["url"]))
            elif message.get("params", {}).get("errorText") == "net::ERR_NETWORK_CHANGED":
                raise NetworkChangedError
            if message.get("id") != number:
                continue
            if "error" in message:
                raise RuntimeError(f"{method}: {message['error']['message']}")
            result: dict[str, Any] = message["result"]
            return result

    async def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def wait_for(self, expression: str, seconds: float) -> Any:
        """The expression's first true value; TimeoutError with the page's text if there is none in time."""
        try:
            async with asyncio.timeout(seconds):
                while not (value := await self.evaluate(expression)):  # noqa: ASYNC110 # see below
                    await asyncio.sleep(0.1)  # a page does not tell when what it shows has changed
        except TimeoutError:
            text = await self.evaluate("document.body ? document.body.innerText : ''")
            raise TimeoutError(f"not within {seconds} s: {expression}; the page says:\n{text}") from None
        return value

    async def open(self, url: str) -> None:
        """Go to `url`; returns when the document has begun to load."""
        await self.call("Network.enable")
        await self.call("Page.enable")
        await self.call("Page.navigate", url=url)

    async def type(self, text: str) -> None:
        """Write into what has the focus and press Enter."""
        await self.call("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    async def screenshot(self) -> bytes:
        """What is to be seen, as a PNG file."""
        answer = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])


@asynccontextmanager
async def browser(address: str) -> AsyncIterator[Page]:
    """A browser with a profile of its own, in which every name is at `address`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            "chromium",
            *OPTIONS,
            f"--user-data-dir={profile}",
            f"--host-resolver-rules=MAP * {address}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with aiohttp.ClientSession() as session:
                url = await _page_url(session, Path(profile) / "DevToolsActivePort")
                async with session.ws_connect(url, max_msg_size=64 << 20) as socket:
                    yield Page(socket)
        finally:
            process.kill()
            await process.wait()


def _first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0] if path.exists() else ""


async def _page_url(session: aiohttp.ClientSession, port_file: Path) -> str:
    """Address of the first page's socket, as soon as Chromium has written down where it listens."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            if port := await asyncio.to_thread(_first_line, port_file):
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    pages = json.loads(await answer.text())
                if found := [page for page in pages if page["type"] == "page"]:
                    return str(found[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.05)
