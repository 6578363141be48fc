"""LlamaIndex's OpenAILike."""

from cells import KEY, PICTURE, QUESTION, TURNS, URL, refusals, run, same
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError, NotFoundError

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


def errors():
    return refusals(
        lambda name, **body: model(name, additional_kwargs=body).chat(ASKED), NotFoundError, BadRequestError
    )


run("llama-index-llms-openai-like", globals())
