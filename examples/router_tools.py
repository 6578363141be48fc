"""Let the router use tools: `python examples/router_tools.py`.

The pocket pair operates the screens of a drawn app; the router decides at each step which mode writes it. `--mode`
forces a mode, and `--model pocket-hybrid` takes another model. `--url` asks a server instead, through OpenAI's client,
or with `--api messages` through Anthropic's.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlroute import Router
from vlroute.pocket.screens import TOOLS, App, ScreenTask, draw_screen_task

MOST_STEPS = 8
MOST_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool. `arguments`: JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Step:
    """A reply of the model, and the results of its calls.

    Attributes:
        mode: The mode that wrote it.
        text: Its text.
        calls: Its calls.
        reply: The reply as its API takes it in the next request.
        results: The result of each call.
    """

    mode: str
    text: str
    calls: Sequence[Call]
    reply: Any
    results: list[str] = field(default_factory=list)


#: Asks for the next step of a task.
Ask = Callable[[ScreenTask, Sequence[Step]], Step]


def with_router(router: Router, mode: Any) -> Ask:
    """Ask the models in this process."""

    def ask(task: ScreenTask, steps: Sequence[Step]) -> Step:
        question = [{"type": "image", "image": task.picture}, {"type": "text", "text": task.prompt}]
        messages = as_messages(question, steps)
        answer = router.ask(messages, tools=TOOLS, mode=mode, temperature=0, max_new_tokens=MOST_TOKENS)
        calls = [Call(call.id, call.name, call.text) for call in answer.tool_calls]
        return Step(answer.decision.mode, answer.text, calls, answer.message)

    return ask


def with_chat_completions(url: str, model: str) -> Ask:
    """Ask a server through `/v1/chat/completions`. `model`: "auto", "instruct" or "thinking"."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")

    def ask(task: ScreenTask, steps: Sequence[Step]) -> Step:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{as_base64(task.picture)}"}}
        messages: Any = as_messages([picture, {"type": "text", "text": task.prompt}], steps)
        reply = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, temperature=0, max_completion_tokens=MOST_TOKENS
        )
        message = reply.choices[0].message
        calls = [Call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []]
        return Step(reply.model, message.content or "", calls, message.model_dump(exclude_none=True))

    return ask


def with_responses(url: str, model: str, stored: bool = False) -> Ask:
    """Ask a server through `/v1/responses`. `stored`: the server keeps the conversation, which needs its `--store`."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    tools: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]

    def ask(task: ScreenTask, steps: Sequence[Step]) -> Step:
        picture = {"type": "input_image", "image_url": f"data:image/png;base64,{as_base64(task.picture)}"}
        items: list[Any] = [{"role": "user", "content": [picture, {"type": "input_text", "text": task.prompt}]}]
        for step in steps:
            results = [
                {"type": "function_call_output", "call_id": call.id, "output": result}
                for call, result in zip(step.calls, step.results, strict=True)
            ]
            items = results if stored else [*items, *step.reply.output, *results]
        before = {"previous_response_id": steps[-1].reply.id} if stored and steps else {}
        reply: Any = client.responses.create(
            model=model, input=items, tools=tools, temperature=0, max_output_tokens=MOST_TOKENS, store=stored, **before
        )
        calls = [Call(item.call_id, item.name, item.arguments) for item in reply.output if item.type == "function_call"]
        return Step(reply.model, reply.output_text, calls, reply)

    return ask


def with_stored_responses(url: str, model: str) -> Ask:
    """Ask a server through `/v1/responses`, and send only what is new in each request."""
    return with_responses(url, model, stored=True)


def with_messages(url: str, model: str) -> Ask:
    """Ask a server through `/v1/messages`."""
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key="none")
    functions = [tool["function"] for tool in TOOLS]
    tools: Any = [
        {"name": one["name"], "description": one["description"], "input_schema": one["parameters"]}
        for one in functions
    ]  # fmt: skip

    def ask(task: ScreenTask, steps: Sequence[Step]) -> Step:
        source = {"type": "base64", "media_type": "image/png", "data": as_base64(task.picture)}
        question = [{"type": "image", "source": source}, {"type": "text", "text": task.prompt}]
        messages: list[Any] = [{"role": "user", "content": question}]
        for step in steps:
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": result}
                for call, result in zip(step.calls, step.results, strict=True)
            ]
            messages += [{"role": "assistant", "content": step.reply}, {"role": "user", "content": results}]
        reply = client.messages.create(
            model=model, max_tokens=MOST_TOKENS, messages=messages, tools=tools, extra_body={"temperature": 0}
        )  # the client has no parameter for the temperature
        text = "".join(block.text for block in reply.content if block.type == "text")
        calls = [
            Call(block.id, block.name, json.dumps(block.input)) for block in reply.content if block.type == "tool_use"
        ]
        return Step(reply.model, text, calls, reply.content)

    return ask


APIS = {
    "chat": with_chat_completions, "responses": with_responses, "stored-responses": with_stored_responses,
    "messages": with_messages,
}  # fmt: skip


def as_messages(question: list[dict[str, Any]], steps: Sequence[Step]) -> list[dict[str, Any]]:
    """A conversation in the form of OpenAI's chat API."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for step in steps:
        messages.append(step.reply)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": result}
            for call, result in zip(step.calls, step.results, strict=True)
        ]
    return messages


def as_base64(picture: Image.Image) -> str:
    """A picture as PNG in base64."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def solve(task: ScreenTask, ask: Ask) -> list[Step]:
    """The steps of the model: until one without calls, at most `MOST_STEPS`."""
    app, steps = App(task), list[Step]()
    while len(steps) < MOST_STEPS and (not steps or steps[-1].calls):
        step = ask(task, steps)
        step.results.extend(result_of(app, call) for call in step.calls)
        steps.append(step)
    return steps


def result_of(app: App, call: Call) -> str:
    """Run a call. An error is returned as the result, so that the model can correct the call."""
    try:
        return app.call(call.name, json.loads(call.arguments))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"error: {error}"


def is_solved(task: ScreenTask, steps: Sequence[Step]) -> bool:
    """Whether the last step is the answer of the task."""
    return not steps[-1].calls and steps[-1].text == task.answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("auto", "instruct", "thinking"), default="auto")
    parser.add_argument("--model", help="a model for this process; the pocket pair by default")
    parser.add_argument("--url", help="a server, such as http://127.0.0.1:8000")
    parser.add_argument("--api", choices=APIS, help='the API of the server, "chat" by default')
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.url and options.model:
        parser.error("--model is for this process; a server has its own model")
    if options.api and not options.url:
        parser.error("--api is for a server; pass --url")
    if options.url:
        ask = APIS[options.api or "chat"](options.url, options.mode)
    else:
        ask = with_router(Router.from_pretrained(options.model).load(), options.mode)
    rng = random.Random(options.seed)
    tasks = [draw_screen_task(rng, steps=2 + i % 3) for i in range(options.count)]
    solved = sum(is_solved(task, solve(task, ask)) for task in tasks)
    print(f"{options.mode}: {solved} of {len(tasks)} tasks of two to four steps solved ({solved / len(tasks):.0%})")


if __name__ == "__main__":
    main()
