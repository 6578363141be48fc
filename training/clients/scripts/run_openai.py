"""OpenAI's own client."""

from typing import Literal

from cells import KEY, PARTS, TOOLS, URL, conversation, refusals, run, same, shaped, tapped, user
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)


def ask(model, messages=None, **more):
    return client.chat.completions.create(model=model, messages=messages or [user()], **more)


def plain():
    return ask("instruct", temperature=0, max_tokens=64, n=1, user="me").choices[0].message.content


def stream():
    chunks = list(ask("instruct", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens
    return same("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), plain())


def picture():
    PARTS[1]["image_url"]["detail"] = "auto"
    return ask("auto", [user(PARTS)]).choices[0].message.content


def turns():
    messages = conversation(lambda *asked: ask(*asked).choices[0].message)  # objects, as in OpenAI's examples
    messages[-1] = messages[-1].model_dump()  # and a dict, nulls included
    return ask("auto", [*messages, user()]).choices[0].message.content


def reasoning():
    answer = ask("auto", reasoning_effort="low")
    assert answer.model == "thinking"
    assert answer.usage.completion_tokens_details.reasoning_tokens
    assert ask("auto", reasoning_effort="none").model == "instruct"
    assert ask("auto", extra_body={"enable_thinking": False}).model == "instruct"
    streamed = ask("auto", reasoning_effort="low", stream=True)
    text = "".join(getattr(one.choices[0].delta, "reasoning_content", None) or "" for one in streamed)
    return same(text, answer.choices[0].message.reasoning_content)


class Shape(BaseModel):
    sides: int = Field(ge=0, le=9)
    color: Literal["red", "green"]


def tools():
    messages = [user()]
    first = ask("instruct", messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    streamed = ask("instruct", messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, stream=True)
    deltas = [delta for one in streamed for delta in one.choices[0].delta.tool_calls or ()]
    same("".join(delta.function.arguments or "" for delta in deltas), call.function.arguments)
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "Done."}]
    assert ask("auto", messages, tools=TOOLS).choices[0].finish_reason
    return tapped(call.function.name, call.function.arguments)


def structured():
    parsed = client.chat.completions.parse(model="thinking", messages=[user()], response_format=Shape)
    return shaped(parsed.choices[0].message.parsed.model_dump_json())


def errors():
    return refusals(ask, NotFoundError, BadRequestError)


run("openai", globals())
