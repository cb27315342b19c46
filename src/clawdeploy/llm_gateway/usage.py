"""What an answer of OpenRouter says about its own cost.

``usage.cost`` is what OpenRouter charged, in dollars; on a stream it comes once, in the last chunk before
``[DONE]`` (https://openrouter.ai/docs/use-cases/usage-accounting). It may be missing or null.
"""

from decimal import Decimal
from typing import Annotated

import msgspec

from clawdeploy.money import ceil_nano

# Only lines up to this size are looked at: the chunk with the usage is short, and memory stays bounded.
_LONGEST_LINE = 64 * 1024
# An answer in one piece is kept up to this size to be read; a longer one is looked up by its id.
_LONGEST_ANSWER = 1024 * 1024
# Money that nobody would believe is no report of a cost.
_MOST_DOLLARS = 1_000_000


Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class _Usage(msgspec.Struct):
    cost: Decimal | None = None
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None


class _Chunk(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Chunk)


def cost_of(dollars: Decimal | None) -> int | None:
    """Reported dollars in nano-dollars, rounded up; None for what is no amount of money."""
    if dollars is None or not dollars.is_finite() or not 0 <= dollars <= _MOST_DOLLARS:
        return None
    return ceil_nano(dollars)


class UsageReader:
    """Watches an answer go by, stream or not, and remembers the generation's id and usage."""

    def __init__(self, generation: str | None, *, stream: bool) -> None:
        """``generation``: the id from the answer's headers, if they had it."""
        self.generation = generation
        self.cost: int | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self._stream = stream
        self._rest = b""
        self._too_long = False

    def feed(self, piece: bytes) -> None:
        """Look at the next bytes of the answer."""
        if self._stream:
            *lines, rest = (self._rest + piece).split(b"\n")
            if self._too_long and lines:
                lines, self._too_long = lines[1:], False
            for line in lines:
                self._read_line(line)
            self._keep(rest, _LONGEST_LINE)
        elif not self._too_long:
            self._keep(self._rest + piece, _LONGEST_ANSWER)

    def _keep(self, rest: bytes, most: int) -> None:
        self._too_long = self._too_long or len(rest) > most
        self._rest = b"" if self._too_long else rest

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b"data:") and (b'"usage"' in line or self.generation is None):
            self._read(line[5:])

    def end(self) -> None:
        """The answer is complete."""
        if not self._stream:
            self._read(self._rest)

    def _read(self, text: bytes) -> None:
        try:
            chunk = _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        self.generation = self.generation or chunk.id
        if chunk.usage is not None:
            self.cost = cost_of(chunk.usage.cost)
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.completion_tokens = chunk.usage.completion_tokens
