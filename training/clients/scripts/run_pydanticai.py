"""Pydantic AI's agents over OpenAI's chat completions."""

from typing import Literal

from cells import KEY, PICTURE, QUESTION, TURNS, URL, refusals, run, same, shaped
from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, ModelHTTPError, NativeOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=URL, api_key=KEY)


class Shape(BaseModel):
    sides: int = Field(ge=0, le=9)
    color: Literal["red", "green"]


def agent(name, output_type=str, **settings):
    model = OpenAIChatModel(name, provider=provider, settings=OpenAIChatModelSettings(**settings))
    return Agent(model, system_prompt="Be brief.", output_type=output_type)


def plain():
    return agent("instruct", temperature=0.0, max_tokens=64).run_sync(QUESTION).output


def stream():
    answer = agent("instruct", temperature=0.0).run_stream_sync(QUESTION)
    return same("".join(answer.stream_text(delta=True)), plain())


def picture():
    return agent("auto").run_sync([QUESTION, BinaryContent(PICTURE.read_bytes(), media_type="image/png")]).output


def turns():
    history = []
    for name, question in TURNS:
        history = agent(name).run_sync(question, message_history=history).all_messages()
    return agent("auto").run_sync(QUESTION, message_history=history).output


def reasoning():
    answer = agent("auto", openai_reasoning_effort="low").run_sync(QUESTION)
    off = agent("auto", extra_body={"chat_template_kwargs": {"enable_thinking": False}}).run_sync(QUESTION)
    thoughts = [[part.content for message in one.all_messages() for part in message.parts
                 if isinstance(part, ThinkingPart)] for one in (answer, off)]  # fmt: skip
    assert not thoughts[1]
    return "".join(thoughts[0])


def tools():  # its output tools: the answer is a call
    answer = agent("instruct", Shape, parallel_tool_calls=False).run_sync(QUESTION)
    parts = [part.part_kind for message in answer.all_messages() for part in message.parts]
    assert "tool-call" in parts
    return shaped(answer.output.model_dump_json())


def structured():
    return shaped(agent("thinking", NativeOutput(Shape)).run_sync(QUESTION).output.model_dump_json())


def errors():
    return refusals(lambda name, **body: agent(name, **body).run_sync(QUESTION), ModelHTTPError)


run("pydantic-ai-slim", globals())
