"""Instructor, with and without a response model."""

from typing import Literal

import instructor
from cells import DATA_URI, KEY, QUESTION, URL, conversation, refusals, run, same, shaped, user
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY, max_retries=0))


def ask(model, messages=None, **more):
    messages = list(messages or [user()])
    return client.chat.completions.create(model=model, messages=messages, response_model=None, max_retries=1, **more)


def plain():
    return ask("instruct", temperature=0, max_tokens=64).choices[0].message.content


def stream():
    return same("".join(one.choices[0].delta.content or "" for one in ask("instruct", stream=True)), plain())


def picture():
    return ask("auto", [user([QUESTION, instructor.Image.from_base64(DATA_URI)])]).choices[0].message.content


def turns():
    messages = conversation(lambda *asked: ask(*asked).choices[0].message.model_dump())
    return ask("auto", [*messages, user()]).choices[0].message.content


def reasoning():
    answer = ask("auto", reasoning_effort="low")
    assert answer.model == "thinking"
    return answer.choices[0].message.reasoning_content


class Shape(BaseModel):
    sides: int = Field(ge=0, le=9)
    color: Literal["red", "green"]


def formed(mode):
    own = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY, max_retries=0), mode=mode)
    answer = own.chat.completions.create(
        model="instruct", messages=[user()], response_model=Shape, max_retries=1, max_tokens=200
    )
    return shaped(answer.model_dump_json())


def tools():  # a call of the tool that stands for the model
    return formed(instructor.Mode.TOOLS)


def structured():
    return formed(instructor.Mode.JSON_SCHEMA)


def errors():
    return refusals(ask, NotFoundError, BadRequestError)


run("instructor", globals())
