"""LangChain's ChatOpenAI."""

import json

from cells import DATA_URI, KEY, PARTS, QUESTION, SHAPE, TOOLS, TURNS, URL, refusals, run, same, shaped, tapped
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import BadRequestError, NotFoundError


def model(name, **more):
    return ChatOpenAI(model=name, base_url=URL, api_key=KEY, max_retries=0, **more)


def plain():
    return model("instruct", temperature=0, max_tokens=64).invoke(QUESTION).content


def stream():
    return same("".join(one.content for one in model("instruct", stream_usage=True).stream(QUESTION)), plain())


def picture():
    own = [PARTS[0], {"type": "image", "base64": DATA_URI.partition(",")[2], "mime_type": "image/png"}]
    answer = [model("instruct").invoke([HumanMessage(content=content)]).content for content in (PARTS, own)]
    return same(*answer)


def turns():
    messages = [SystemMessage("Be brief.")]
    for name, question in TURNS:
        messages.append(HumanMessage(question, name="someone"))
        messages.append(model(name).invoke(messages))
    messages.append(HumanMessage(QUESTION))
    return model("auto").invoke(messages).content


def reasoning():
    # chat completions have no text of the reasoning in LangChain; its own mechanism for it is the Responses API
    answer = model("auto", use_responses_api=True, reasoning={"effort": "low", "summary": "auto"}).invoke(QUESTION)
    assert answer.response_metadata["model_name"] == "thinking"
    assert answer.usage_metadata["output_token_details"]["reasoning"]
    off = model("auto", extra_body={"enable_thinking": False}).invoke(QUESTION)
    assert off.response_metadata["model_name"] == "instruct"
    return "".join(block["reasoning"] for block in answer.content_blocks if block["type"] == "reasoning")


def tools():
    offered = model("instruct").bind_tools(TOOLS, tool_choice="required", parallel_tool_calls=False)
    messages = [HumanMessage(QUESTION)]
    messages.append(offered.invoke(messages))
    (call,) = messages[-1].tool_calls
    messages.append(ToolMessage("Done.", tool_call_id=call["id"]))
    model("auto").bind_tools(TOOLS).invoke(messages)
    return tapped(call["name"], call["args"])


def structured():
    schema = {"title": "shape", "description": "A shape.", **SHAPE}
    answers = [
        model("thinking").with_structured_output(schema, method=method, include_raw=True).invoke(QUESTION)
        for method in ("json_schema", "function_calling")
    ]
    assert not any(answer["parsing_error"] for answer in answers)
    shaped(json.dumps(answers[1]["parsed"]))
    return shaped(json.dumps(answers[0]["parsed"]))


def errors():
    return refusals(lambda name, **body: model(name, **body).invoke(QUESTION), NotFoundError, BadRequestError)


run("langchain-openai", globals())
