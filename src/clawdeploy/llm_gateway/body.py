"""The body sent upstream: built anew from what an agent may say, so that nothing else can get through.

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

from clawdeploy.llm_gateway.refusal import RefusedError


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
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
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


_decoder = msgspec.json.Decoder(_Chat)
_encoder = msgspec.json.Encoder()


def upstream_body(raw: bytes, model: str) -> bytes:
    """The JSON to send for an agent's ``raw`` JSON: its allowed fields and the fixed ``model``.

    Raises RefusedError 400, naming the field, when the body is not a chat completion request.
    """
    try:
        chat = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"The request body is not a chat completion request: {error}.") from None
    chat.model = model
    chat.tools = [tool for tool in chat.tools or [] if tool.type == "function" and tool.function] or None
    if chat.tools is None:
        chat.tool_choice = None
    return _encoder.encode(chat)
