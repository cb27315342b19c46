"""A model on the operator's own machine: no table of prices, no cost in its answers, and nothing to pay."""

from tests.unit.llm_gateway.harness import CHAT, Start, Upstream, chat

FREE = {"prompt": "0", "completion": "0"}


async def test_calls_of_a_model_that_costs_nothing_leave_the_balance_alone(
    start: Start, upstream: Upstream
) -> None:
    upstream.models = {"object": "list", "data": [{"id": "llama3.2:3b", "object": "model"}]}
    upstream.answers(
        200,
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}],
            "usage": {"prompt_tokens": 26, "completion_tokens": 3, "total_tokens": 29},
        },
    )
    bots = await start(balance="1", price=FREE)
    async with bots.session() as bot:
        for _ in range(3):
            async with bot.post(CHAT, json=chat()) as response:
                assert response.status == 200
                assert (await response.json())["choices"][0]["message"]["content"] == "hello"
    assert [call["charged"] for call in await bots.settled(3)] == [0, 0, 0]
    assert (await bots.account())["balance"] == 1_000_000_000
    await bots.verify()
