"""LangChain's OpenAI package: one act a line on stdin, what LangChain saw of it a line on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

PROPERTIES = {"city": {"type": "string"}, "unit": {"type": "string"}}


def conversation(act: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Both turns, streamed. Given a base URL, LangChain asks for usage only when told to."""
    parameters = {"type": "object", "properties": PROPERTIES}
    tool = {"type": "function", "function": {"name": act["tool"], "parameters": parameters}}
    chat = ChatOpenAI(
        model=act["model"],
        model_kwargs={"user": act["user"]},
        use_responses_api=act["act"] == "responses",
        **({"stream_usage": True} if act["usage"] else {}),
        **options,
    )
    messages: list[Any] = [HumanMessage(act["question"])]
    turns = []
    for _ in range(2):
        pieces = list(chat.bind_tools([tool]).stream(messages))
        said = pieces[0]
        for piece in pieces[1:]:
            said += piece
        turns.append(_seen(said))
        messages.append(said)
        messages += [ToolMessage(act["result"], tool_call_id=call["id"]) for call in said.tool_calls]
    return {"turns": turns}


def _seen(said: AIMessageChunk) -> dict[str, Any]:
    usage = said.usage_metadata
    return {
        "text": said.text,
        "tool_calls": [{"name": call["name"], "arguments": call["args"]} for call in said.tool_calls],
        "usage": usage
        and {
            "input": usage["input_tokens"],
            "cached": usage["input_token_details"]["cache_read"],
            "output": usage["output_tokens"],
            "reasoning": usage["output_token_details"]["reasoning"],
        },
    }


def embeddings(act: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """One text. Its length is not looked up, which would need a tokenizer's tables."""
    embedder = OpenAIEmbeddings(
        model=act["model"], check_embedding_ctx_length=False, model_kwargs={"user": act["user"]}, **options
    )
    return {"vector": embedder.embed_query(act["question"])}


ACTS = {"chat": conversation, "responses": conversation, "embeddings": embeddings}


def main() -> None:
    """Until stdin ends."""
    for line in sys.stdin:
        act = json.loads(line)
        options = {
            "base_url": act["url"],
            "api_key": act["key"],
            "default_headers": {"x-farebox-session": act["session"]},
        }
        try:
            saw = ACTS[act["act"]](act, options)
        except Exception as error:
            saw = {
                "error": [kind.__name__ for kind in type(error).__mro__],
                "status": getattr(error, "status_code", None),
                "message": str(error),
            }
        print(json.dumps(saw), flush=True)


if __name__ == "__main__":
    main()
