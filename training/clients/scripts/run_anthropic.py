"""Anthropic's own client."""

from typing import Literal

from anthropic import Anthropic, BadRequestError, NotFoundError
from cells import ABOUT, BUTTON, DATA_URI, KEY, QUESTION, TOOL, TURNS, URL, refusals, run, same, shaped, tapped, user
from pydantic import BaseModel, Field

client = Anthropic(base_url=URL.removesuffix("/v1"), api_key=KEY, max_retries=0)
OFFERED = [{"name": TOOL, "description": ABOUT, "input_schema": BUTTON}]


def ask(model, messages=None, **more):
    return client.messages.create(model=model, messages=messages or [user()], **{"max_tokens": 500, **more})


def text_of(answer):
    return "".join(block.text for block in answer.content if block.type == "text")


BRIEF = {"extra_body": {"temperature": 0}, "max_tokens": 64}  # the client has no argument for the temperature


def plain():
    return text_of(ask("instruct", **BRIEF))


def stream():
    with client.messages.stream(model="instruct", messages=[user()], **BRIEF) as events:
        text = "".join(events.text_stream)
    return same(text, plain())


def picture():
    source = {"type": "base64", "media_type": "image/png", "data": DATA_URI.partition(",")[2]}
    return text_of(ask("auto", [user([{"type": "image", "source": source}, {"type": "text", "text": QUESTION}])]))


def turns():
    messages = []
    for name, question in TURNS:
        messages.append(user(question))
        messages.append({"role": "assistant", "content": ask(name, messages, system="Be brief.").content})
    return text_of(ask("auto", [*messages, user()]))


def reasoning():
    answer = ask("auto", thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=2000)
    off = ask("auto", thinking={"type": "disabled"})
    assert not any(block.type == "thinking" for block in off.content)
    return "".join(block.thinking for block in answer.content if block.type == "thinking")


def tools():
    messages = [user()]
    first = ask("instruct", messages, tools=OFFERED, tool_choice={"type": "tool", "name": TOOL})
    assert first.stop_reason == "tool_use"
    (call,) = (block for block in first.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Done."}
    messages += [{"role": "assistant", "content": first.content}, user([result])]
    assert ask("auto", messages, tools=OFFERED).stop_reason
    return tapped(call.name, call.input)


class Shape(BaseModel):
    sides: int = Field(ge=0, le=9)
    color: Literal["red", "green"]


def structured():
    parsed = client.messages.parse(model="thinking", messages=[user()], max_tokens=500, output_format=Shape)
    return shaped(parsed.parsed_output.model_dump_json())


def errors():
    return refusals(ask, NotFoundError, BadRequestError)


run("anthropic", globals())
