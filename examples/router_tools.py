"""Let the router use tools: `python examples/router_tools.py`.

The pocket pair operates the screens of a drawn app; the router decides at each step which mode writes it. `--mode`
forces a mode, `--url` asks a server through OpenAI's client instead of the models in this process, and
`--api messages` through Anthropic's.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
from collections.abc import Callable
from typing import Any

from vlroute import Router
from vlroute.pocket.screens import TOOLS, App, ScreenTask, draw_screen_task, opening

MOST_CALLS = 8
#: Returns the next message of the model, in the form of OpenAI's API.
Ask = Callable[[list[dict[str, Any]]], dict[str, Any]]


def with_router(mode: str) -> Ask:
    """Ask the pocket pair in this process."""
    router = Router.from_pretrained().load()
    return lambda messages: router.ask(messages, tools=TOOLS, mode=mode, temperature=0).message


def with_server(url: str, model: str) -> Ask:
    """Ask a server. `model`: "auto", "instruct" or "thinking"."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")

    def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        reply = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, temperature=0)
        return reply.choices[0].message.model_dump(exclude_none=True)

    return ask


def with_messages_api(url: str, model: str) -> Ask:
    """Ask a server through Anthropic's client. Messages are converted, and keep their original content."""
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key="none")
    tools = [{**tool["function"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS]
    for tool in tools:
        del tool["parameters"]

    def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        reply = client.messages.create(
            model=model, max_tokens=4000, messages=[as_blocks(message) for message in messages], tools=tools,
            extra_body={"temperature": 0},
        )  # fmt: skip
        calls = [
            {"id": block.id, "function": {"name": block.name, "arguments": json.dumps(block.input)}}
            for block in reply.content
            if block.type == "tool_use"
        ]
        text = "".join(block.text for block in reply.content if block.type == "text")
        return {"role": "assistant", "content": text, "tool_calls": calls, "blocks": reply.content}

    return ask


def as_blocks(message: dict[str, Any]) -> dict[str, Any]:
    """A message in the form of Anthropic's API."""
    if message["role"] == "assistant":
        return {"role": "assistant", "content": message["blocks"]}
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
        return {"role": "user", "content": [result]}
    blocks = [
        {"type": "image", "source": {"type": "url", "url": part["image_url"]["url"]}}
        if part["type"] == "image_url"
        else part
        for part in message["content"]
    ]
    return {"role": "user", "content": blocks}


def with_data_uris(message: dict[str, Any]) -> dict[str, Any]:
    """`message` with its pictures as data URIs."""
    parts = []
    for part in message["content"]:
        if part["type"] == "image":
            png = io.BytesIO()
            part["image"].save(png, "PNG")
            uri = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
            part = {"type": "image_url", "image_url": {"url": uri}}
        parts.append(part)
    return {**message, "content": parts}


def solve(task: ScreenTask, ask: Ask) -> str:
    """The answer of the model; empty after `MOST_CALLS` steps without an answer."""
    app, messages = App(task), [with_data_uris(message) for message in opening(task)]
    for _ in range(MOST_CALLS):
        message = ask(messages)
        if not message.get("tool_calls"):
            return str(message["content"])
        messages.append(message)
        messages += [result_of(app, call) for call in message["tool_calls"]]
    return ""


def result_of(app: App, call: dict[str, Any]) -> dict[str, Any]:
    """Run a call. The result is a message for the model, which also learns of errors."""
    function = call["function"]
    try:
        content = app.call(function["name"], json.loads(function["arguments"]))
    except (ValueError, LookupError) as error:
        content = f"error: {error}"
    return {"role": "tool", "tool_call_id": call["id"], "content": content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("auto", "instruct", "thinking"), default="auto")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a server, such as http://127.0.0.1:8000")
    parser.add_argument("--api", choices=("chat", "messages"), default="chat", help="the API of the server")
    options = parser.parse_args()
    with_api = {"chat": with_server, "messages": with_messages_api}[options.api]
    ask = with_api(options.url, options.mode) if options.url else with_router(options.mode)
    rng = random.Random(options.seed)
    tasks = [draw_screen_task(rng, steps=2 + i % 3) for i in range(options.count)]
    solved = sum(solve(task, ask) == task.answer for task in tasks)
    print(f"{options.mode}: {solved} of {len(tasks)} tasks of two to four steps solved ({solved / len(tasks):.0%})")


if __name__ == "__main__":
    main()
