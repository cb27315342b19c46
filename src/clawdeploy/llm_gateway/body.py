"""The body sent upstream: built anew from what an agent may say, so that nothing else can get through.

From the same structs comes what the call can cost at most (``Chat.bound``).

The structs below are the allow-list (fields and their dangers are from OpenRouter's ChatRequest schema). Left
out on purpose: ``model`` (fixed), ``models``, ``route``, ``preset``, ``provider`` (other models and prices),
``plugins``, ``web_search_options``, tools of type ``openrouter:*``, ``stop_server_tools_when`` (paid extras,
other models), ``service_tier``, ``modalities``, ``audio``, ``image_config``, ``n``, ``cache_control``,
``prompt_cache_*`` (dearer output or input), ``user``, ``session_id``, ``metadata``, ``trace`` (the operator's
bookkeeping). They are dropped without an error, because agents send harmless ones as a habit
(``usage``, ``stream_options``).
"""

from typing import Annotated, Any, Literal

import msgspec

from clawdeploy.ledger import Bound
from clawdeploy.llm_gateway.prices import Price
from clawdeploy.llm_gateway.refusal import RefusedError

# What a prompt can have beyond its bytes. A token of a byte-level tokenizer covers one byte at least, so
# bytes bound tokens; chat templates add marks around each message, a preamble, and another one with tools.
_TOKENS_PER_MESSAGE = 16
_TOKENS_OF_PREAMBLE = 64
_TOKENS_OF_TOOLS = 1000
# The most that we know for one picture: 2833 + 8 tiles of 5667 (OpenAI's table for gpt-4o-mini).
_TOKENS_PER_IMAGE = 50_000

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class _Part(msgspec.Struct, omit_defaults=True):
    """Anything of the wire: members that are missing or null in the request are missing upstream."""


class _Text(_Part, tag_field="type", tag="text"):
    text: str


class _ImageUrl(_Part):
    url: Annotated[str, msgspec.Meta(pattern="^data:image/")]
    detail: str | None = None


class _Image(_Part, tag_field="type", tag="image_url"):
    """Only a picture inside the body: one by address, or a file, costs what the body's size does not show."""

    image_url: _ImageUrl


class _CalledFunction(_Part):
    name: str
    arguments: str


class _ToolCall(_Part, tag_field="type", tag="function"):
    function: _CalledFunction
    id: str | None = None
    index: int | None = None


class _Message(_Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Text | _Image] | None = None
    name: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None


class _Function(_Part):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Part):
    type: str
    function: _Function | None = None


class _NamedFunction(_Part):
    name: str


class _ToolChoice(_Part, tag_field="type", tag="function"):
    function: _NamedFunction


class _Reasoning(_Part):
    effort: str | None = None
    max_tokens: int | None = None
    exclude: bool | None = None
    enabled: bool | None = None


class _ResponseFormat(_Part):
    type: str
    json_schema: dict[str, Any] | None = None


class _Chat(_Part):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    top_a: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: _ResponseFormat | None = None
    reasoning: _Reasoning | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    verbosity: str | None = None


class _Sent(_Chat):
    """What goes upstream: the agent's part, and what only the gateway says."""

    user: str | None = None
    provider: dict[str, Any] | None = None
    usage: dict[str, bool] | None = None
    stream_options: dict[str, bool] | None = None


_decoder = msgspec.json.Decoder(_Chat)
_encoder = msgspec.json.Encoder()


class Chat:
    """A chat completion request of an agent, reduced to what it may say."""

    def __init__(self, raw: bytes) -> None:
        """``raw``: the agent's JSON. Raises RefusedError 400, naming the field, if it is no such request."""
        try:
            chat = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedError(400, f"The request body is not a chat completion request: {error}.") from None
        chat.tools = [tool for tool in chat.tools or [] if tool.type == "function" and tool.function] or None
        if chat.tools is None:
            chat.tool_choice = None
        self._chat = chat
        self._messages = msgspec.Raw(_encoder.encode(chat.messages))

    @property
    def stream(self) -> bool:
        return self._chat.stream is True

    def tokens(self, most: int) -> int:
        """How long the answer may become: what was asked for, ``most`` at most."""
        asked = (self._chat.max_tokens, self._chat.max_completion_tokens, most)
        return min(tokens for tokens in asked if tokens is not None)

    def bound(self, price: Price) -> Bound:
        """What the call can cost at most, whatever tokenizer the model has."""
        chat = self._chat
        images = [
            len(part.image_url.url)
            for message in chat.messages
            if isinstance(message.content, list)
            for part in message.content
            if isinstance(part, _Image)
        ]
        tokens = (
            len(self._messages)
            - sum(images)
            + len(images) * _TOKENS_PER_IMAGE
            + len(chat.messages) * _TOKENS_PER_MESSAGE
            + _TOKENS_OF_PREAMBLE
        )
        if chat.tools:
            tokens += len(_encoder.encode(chat.tools)) + _TOKENS_OF_TOOLS
        if chat.response_format:
            tokens += len(_encoder.encode(chat.response_format))
        return Bound(price.prompt * tokens + price.image * len(images) + price.request, price.completion)

    def upstream(self, model: str, bot: str, tokens: int, price: Price) -> bytes:
        """The JSON to send: the agent's part, the fixed model, and the limits that make ``bound`` true.

        Usage is asked for although OpenRouter always reports it: others that speak its API may not.
        """
        chat = msgspec.structs.asdict(self._chat)
        if (reasoning := self._chat.reasoning) and reasoning.max_tokens:
            reasoning.max_tokens = min(reasoning.max_tokens, tokens)
        ours = {
            "model": model,
            "messages": self._messages,
            "max_tokens": tokens,
            "max_completion_tokens": None,
            "user": bot,
            "provider": {"max_price": price.max_price()},
            "usage": {"include": True},
            "stream_options": {"include_usage": True} if self.stream else None,
        }
        return _encoder.encode(_Sent(**chat | ours))
