"""A simulator of Ollama's API that speaks like OpenAI's: `python3 ollama.py [PORT]` on 127.0.0.1.

Wire format after https://github.com/ollama/ollama/blob/main/docs/openai.md: no key is asked for, no model has
a price, no answer says what it cost. The answer to a chat is `LOCAL: <the last user message>`; it does not
stream. It needs nothing but Python, so that it runs on a machine without this project.
"""

import json
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "llama3.2:3b"
NAMES = (MODEL, f"library/{MODEL}")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """List the models."""
        if self.path != "/v1/models":
            return self.answer(HTTPStatus.NOT_FOUND, {"error": {"message": "not found"}})
        model = {"id": MODEL, "object": "model", "created": int(time.time()), "owned_by": "library"}
        return self.answer(HTTPStatus.OK, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        """Complete a chat."""
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path != "/v1/chat/completions":
            return self.answer(HTTPStatus.NOT_FOUND, {"error": {"message": "not found"}})
        if asked["model"] not in NAMES:
            error = {"message": f'model "{asked["model"]}" not found', "type": "not_found_error"}
            return self.answer(HTTPStatus.NOT_FOUND, {"error": error})
        said = next(
            message["content"] for message in reversed(asked["messages"]) if message["role"] == "user"
        )
        message = {"role": "assistant", "content": f"LOCAL: {said}"}
        usage = {"prompt_tokens": len(said) // 4, "completion_tokens": len(said) // 4}
        completion = {
            "id": "chatcmpl-731",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage | {"total_tokens": sum(usage.values())},
        }
        return self.answer(HTTPStatus.OK, completion)

    def answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        """Send JSON."""
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 11434
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
