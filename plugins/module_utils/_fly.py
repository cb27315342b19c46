"""Fly.io's Machines API (https://docs.machines.dev) for the modules: retries, and errors as sentences."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode

from ansible.module_utils.api import generate_jittered_backoff, retry_with_delays_and_condition
from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.urls import ConnectionError as UrlConnectionError
from ansible.module_utils.urls import open_url

Result = TypeVar("Result")

API = "https://api.machines.dev"
ARGUMENTS: dict[str, Any] = {
    "api_token": {
        "type": "str",
        "required": True,
        "no_log": True,
        "fallback": (env_fallback, ["FLY_API_TOKEN"]),
    },
    "api_url": {"type": "str", "default": API},
}
APP = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECONDS = 75  # a little more than the API may wait for a state
_LONGEST_PAUSE = 60.0
_RETRIES = 6
# What was sent again is done once: the answer is the same, or says that it was done.
_REPEATABLE = {"GET", "PUT", "DELETE"}
_HINTS = {
    401: "FLY_API_TOKEN is not valid: make one with `fly tokens create org` and put it into .env",
    403: "FLY_API_TOKEN may not do this: make one for the organisation with `fly tokens create org`",
    409: "somebody else is at work on it; wait for them to end, then run this again",
    422: "Fly.io takes no such value; correct the setting it names, then run this again",
}


class FlyError(Exception):
    """The API refused or failed. ``status`` is 0 where no answer came; ``lost``: it may have been done."""

    def __init__(self, status: int, message: str, lost: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.lost = lost

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status in (0, 429) or self.status >= 500


class Fly:
    """The API with one token. Every method raises FlyError."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/") + "/v1"
        # Macaroons carry their own scheme.
        self._authorization = token if token.startswith("FlyV1 ") else f"Bearer {token}"

    def get(self, path: str, **query: Any) -> Any:
        """The answer's content; None if there is no such thing."""
        try:
            return self.ask("GET", f"{path}?{urlencode(query)}" if query else path)
        except FlyError as error:
            if error.status == 404:
                return None
            raise

    def ask(self, method: str, path: str, body: Any = None, nonce: str | None = None, **query: Any) -> Any:
        """One request, repeated while that may help. A POST whose answer got lost is not: see ``create``."""
        target = f"{path}?{urlencode(query)}" if query else path

        def passing(error: Exception) -> bool:
            return isinstance(error, FlyError) and error.passing and (method in _REPEATABLE or not error.lost)

        return _patiently(lambda: self._once(method, target, body, nonce), passing)

    def act(self, path: str, body: Any = None, nonce: str | None = None) -> Any:
        """A POST that may be done twice: it asks for a state, or sets a value."""
        return _patiently(lambda: self._once("POST", path, body, nonce), _is_passing)

    def create(self, path: str, body: Any, find: Callable[[], Result | None]) -> Any | Result:
        """Make something once: ``find`` looks for it before a POST whose answer got lost is repeated."""
        asked = False

        def attempt() -> Any | Result:
            nonlocal asked
            if asked and (made := find()) is not None:
                return made
            asked = True
            return self._once("POST", path, body, None)

        return _patiently(attempt, _is_passing)

    def wait_until(self, found: Callable[[], bool], timeout: float) -> bool:
        """Ask every second until it is so; whether it was in ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not (so := found()) and time.monotonic() < end:
            time.sleep(1)
        return so

    def _once(self, method: str, path: str, body: Any, nonce: str | None) -> Any:
        headers = {"Authorization": self._authorization, "Content-Type": "application/json"}
        if nonce is not None:
            headers["fly-machine-lease-nonce"] = nonce
        data = None if body is None else json.dumps(body)
        try:
            with open_url(
                f"{self._url}{path}", method=method, data=data, headers=headers, timeout=_SECONDS
            ) as answer:
                raw = answer.read()
            return json.loads(raw) if raw.strip() else {}
        except HTTPError as error:
            raise _refusal(method, path, error) from None
        except (URLError, UrlConnectionError, OSError) as error:
            reason = getattr(error, "reason", error)
            kind = "its name cannot be resolved" if isinstance(reason, socket.gaierror) else str(reason)
            raise FlyError(0, f"Fly.io cannot be reached at {self._url}: {kind}", lost=True) from None
        except ValueError:
            raise FlyError(0, f"Fly.io's answer to {method} {path} is not JSON", lost=True) from None


def _is_passing(error: Exception) -> bool:
    return isinstance(error, FlyError) and error.passing


def _patiently(attempt: Callable[[], Result], passing: Callable[[Exception], bool]) -> Result:
    pauses = generate_jittered_backoff(retries=_RETRIES, delay_base=1, delay_threshold=16)
    result: Result = retry_with_delays_and_condition(pauses, passing)(attempt)()
    return result


def _refusal(method: str, path: str, error: HTTPError) -> FlyError:
    """What an error answer means; waits for as long as it asks for."""
    try:
        said = json.loads(error.read())
        reason = str(said.get("error") or said.get("message") or "")
    except (ValueError, AttributeError, OSError):
        reason = ""
    if error.code in (429, 503):
        time.sleep(_pause(error.headers.get("Retry-After", "")))
    text = f"Fly.io answered {error.code} to {method} {path.partition('?')[0]}"
    parts = [f"{text}: {reason}" if reason else text, _HINTS.get(error.code, "")]
    return FlyError(error.code, "; ".join(part for part in parts if part), lost=error.code >= 500)


def _pause(retry_after: str) -> float:
    return min(float(retry_after), _LONGEST_PAUSE) if retry_after.isdecimal() else 0.0


@contextmanager
def failing(module: AnsibleModule) -> Iterator[Fly]:
    """The API for a module; a FlyError ends it with ``msg`` and ``status``."""
    app = module.params.get("app") or module.params.get("name") or ""
    if not APP.fullmatch(app):
        module.fail_json(msg=f"{app!r} cannot be the name of a Fly.io app: use a-z, 0-9 and - inside")
    try:
        yield Fly(module.params["api_url"], module.params["api_token"])
    except FlyError as error:
        module.fail_json(msg=str(error), status=error.status)


def text(content: dict[str, Any] | None) -> str:
    """One side of a diff."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n" if content is not None else ""


def difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    """``changed`` and ``diff`` of a module's result."""
    return {"changed": before != after, "diff": {"before": text(before), "after": text(after)}}
