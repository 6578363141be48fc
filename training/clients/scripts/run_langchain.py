"""LangChain's ChatOpenAI."""

from cells import DATA_URI, KEY, PARTS, QUESTION, TURNS, URL, refusals, run, same
from langchain_core.messages import HumanMessage, SystemMessage
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
    answer = model("auto", reasoning_effort="low").invoke(QUESTION)  # LangChain drops the text of the reasoning
    assert answer.response_metadata["model_name"] == "thinking"
    off = model("auto", extra_body={"enable_thinking": False}).invoke(QUESTION)
    assert off.response_metadata["model_name"] == "instruct"
    return f"{answer.usage_metadata['output_token_details']['reasoning']} tokens"


def errors():
    return refusals(lambda name, **body: model(name, **body).invoke(QUESTION), NotFoundError, BadRequestError)


run("langchain-openai", globals())
