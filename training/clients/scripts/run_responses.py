"""OpenAI's own client, with the Responses API."""

from typing import Literal

from cells import DATA_URI, KEY, QUESTION, TOOLS, TURNS, URL, refusals, run, same, shaped, tapped
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
OFFERED = [{"type": "function", **TOOLS[0]["function"]}]


def ask(model, asked=QUESTION, **more):
    return client.responses.create(model=model, input=asked, **more)


def plain():
    return ask("instruct", temperature=0, max_output_tokens=64).output_text


def stream():
    with client.responses.stream(model="instruct", input=QUESTION, temperature=0) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return same(text, plain())


def picture():
    parts = [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": DATA_URI, "detail": "auto"}]
    return ask("auto", [{"role": "user", "content": parts}]).output_text


def turns():
    items = []
    for name, question in TURNS:
        items.append({"role": "user", "content": question})
        items += ask(name, items, instructions="Be brief.").output
    return ask("auto", [*items, {"role": "user", "content": QUESTION}]).output_text


def reasoning():
    answer = ask("auto", reasoning={"effort": "low"})
    assert answer.usage.output_tokens_details.reasoning_tokens
    assert not ask("auto", reasoning={"effort": "none"}).usage.output_tokens_details.reasoning_tokens
    return "".join(part.text for item in answer.output if item.type == "reasoning" for part in item.content)


def tools():
    first = ask("instruct", tools=OFFERED, tool_choice="required", parallel_tool_calls=False)
    (call,) = (item for item in first.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Done."}
    assert ask("auto", [{"role": "user", "content": QUESTION}, *first.output, result], tools=OFFERED).status
    return tapped(call.name, call.arguments)


class Shape(BaseModel):
    sides: int = Field(ge=0, le=9)
    color: Literal["red", "green"]


def structured():
    parsed = client.responses.parse(model="thinking", input=QUESTION, text_format=Shape)
    return shaped(parsed.output_parsed.model_dump_json())


def errors():
    return refusals(ask, NotFoundError, BadRequestError)


run("openai", globals())
