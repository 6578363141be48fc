"""LlamaIndex's OpenAILike."""

from typing import Literal

from cells import ABOUT, KEY, PICTURE, QUESTION, TOOL, TURNS, URL, refusals, run, same, shaped, tapped
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError, NotFoundError
from pydantic import BaseModel, Field

ASKED = [ChatMessage(role="user", content=QUESTION)]


def model(name, **more):
    return OpenAILike(model=name, api_base=URL, api_key=KEY, is_chat_model=True, max_retries=0, **more)


def plain():
    return model("instruct", temperature=0, max_tokens=64).chat(ASKED).message.content


def stream():
    answer = model("instruct", temperature=0).stream_chat(ASKED)
    same("".join(one.delta or "" for one in answer), plain())
    return model("instruct", temperature=0).complete(QUESTION).text


def picture():
    blocks = [TextBlock(text=QUESTION), ImageBlock(path=PICTURE)]
    return model("auto").chat([ChatMessage(role="user", blocks=blocks)]).message.content


def turns():
    messages = [ChatMessage(role="system", content="Be brief.")]
    for name, question in TURNS:
        messages.append(ChatMessage(role="user", content=question))
        messages.append(model(name).chat(messages).message)
    messages.append(ChatMessage(role="user", content=QUESTION))
    return model("auto").chat(messages).message.content


def reasoning():
    answer = model("auto", additional_kwargs={"reasoning_effort": "low"}).chat(ASKED)
    assert answer.raw.model == "thinking"
    off = model("auto", additional_kwargs={"extra_body": {"think": False}}).chat(ASKED)
    assert off.raw.model == "instruct"
    return answer.raw.choices[0].message.reasoning_content


class Shape(BaseModel):
    sides: int = Field(ge=0, le=9)
    color: Literal["red", "green"]


class Button(BaseModel):
    button: str = Field(max_length=8)


def tools():
    tap = FunctionTool.from_defaults(lambda button: "Done.", name=TOOL, description=ABOUT, fn_schema=Button)
    caller = model("instruct", is_function_calling_model=True)
    answer = caller.chat_with_tools([tap], QUESTION, tool_required=True)
    call = caller.get_tool_calls_from_response(answer)[0]
    return tapped(call.tool_name, call.tool_kwargs)


def structured():
    caller = model("instruct", is_function_calling_model=True, should_use_structured_outputs=True)
    return shaped(caller.as_structured_llm(Shape).chat(ASKED).raw.model_dump_json())


def errors():
    return refusals(
        lambda name, **body: model(name, additional_kwargs=body).chat(ASKED), NotFoundError, BadRequestError
    )


run("llama-index-llms-openai-like", globals())
