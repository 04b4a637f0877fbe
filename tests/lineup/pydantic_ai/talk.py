"""pydantic-ai: one act a line on stdin, what pydantic-ai saw of it a line on stdout."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterable
from typing import Any

from pydantic_ai import Agent, Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


async def conversation(act: dict[str, Any], provider: OpenAIProvider) -> dict[str, Any]:
    """Both turns, streamed: the agent calls the tool itself. It always asks for usage."""
    kind = OpenAIResponsesModel if act["act"] == "responses" else OpenAIChatModel
    settings = {"openai_user": act["user"], "extra_headers": {"x-farebox-session": act["session"]}}
    agent = Agent(kind(act["model"], provider=provider), model_settings=settings)

    def get_weather(city: str, unit: str) -> str:
        return act["result"]

    assert get_weather.__name__ == act["tool"]
    agent.tool_plain(get_weather)
    done = await agent.run(act["question"], event_stream_handler=_watch)
    answers = [message for message in done.all_messages() if isinstance(message, ModelResponse)]
    return {"turns": [_seen(answer) for answer in answers]}


async def _watch(_: Any, events: AsyncIterable[Any]) -> None:
    """Nothing is done with the events, but with a handler for them the agent streams."""
    async for _event in events:
        pass


def _seen(answer: ModelResponse) -> dict[str, Any]:
    usage = answer.usage
    return {
        "text": "".join(part.content for part in answer.parts if isinstance(part, TextPart)),
        "tool_calls": [
            {"name": part.tool_name, "arguments": part.args_as_dict()}
            for part in answer.parts
            if isinstance(part, ToolCallPart)
        ],
        "usage": {
            "input": usage.input_tokens,
            "cached": usage.cache_read_tokens,
            "output": usage.output_tokens,
            "reasoning": usage.details.get("reasoning_tokens"),
        },
    }


async def embeddings(act: dict[str, Any], provider: OpenAIProvider) -> dict[str, Any]:
    """One text."""
    settings = {"extra_headers": {"x-farebox-session": act["session"]}, "extra_body": {"user": act["user"]}}
    model = OpenAIEmbeddingModel(act["model"], provider=provider)
    answer = await Embedder(model).embed_query(act["question"], settings=settings)
    return {"vector": list(answer.embeddings[0]), "tokens": answer.usage.input_tokens}


ACTS = {"chat": conversation, "responses": conversation, "embeddings": embeddings}


async def main() -> None:
    """Until stdin ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        act = json.loads(line)
        provider = OpenAIProvider(base_url=act["url"], api_key=act["key"])
        try:
            saw = await ACTS[act["act"]](act, provider)
        except Exception as error:
            saw = {
                "error": [kind.__name__ for kind in type(error).__mro__],
                "status": getattr(error, "status_code", None),
                "message": str(error),
            }
        print(json.dumps(saw), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
