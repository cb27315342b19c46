"""What the gateway says when it does not pass a call on."""

from aiohttp import web


class RefusedError(Exception):
    """A call that gets an answer of our own instead of the upstream's.

    ``status``: HTTP status; ``message``: one sentence for the agent's user; ``retry_after``: seconds or None.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    def response(self) -> web.Response:
        """The answer in OpenRouter's error shape: status = ``error.code`` (docs, "errors-and-debugging")."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        body = {"error": {"code": self.status, "message": self.message}}
        return web.json_response(body, status=self.status, headers=headers)
