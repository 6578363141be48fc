"""OpenAI's own client."""

from cells import DATA_URI, KEY, MADE_UP, QUESTION, TURNS, URL, refusals, run, same
from openai import BadRequestError, NotFoundError, OpenAI

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
ASKED = [{"role": "user", "content": QUESTION}]


def ask(model, messages=ASKED, **more):
    return client.chat.completions.create(model=model, messages=messages, **more)


def plain():
    return ask("instruct", temperature=0, max_tokens=64, n=1, user="me").choices[0].message.content


def stream():
    chunks = list(ask("instruct", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.total_tokens
    return same("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), plain())


def picture():
    parts = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": DATA_URI, "detail": "auto"}},
    ]
    return ask("auto", [{"role": "user", "content": parts}]).choices[0].message.content


def turns():
    messages = [{"role": "system", "content": "Be brief."}]
    for model, question in TURNS:
        messages.append({"role": "user", "content": question})
        said = ask(model, messages).choices[0].message
        messages += [said]  # the object itself, as OpenAI's examples do
    messages[-1] = said.model_dump()  # and as a dict, nulls included
    messages.append({"role": "user", "content": QUESTION})
    return ask("auto", messages).choices[0].message.content


def reasoning():
    said = ask("auto", reasoning_effort="low")
    assert said.model == "thinking"
    assert said.usage.completion_tokens_details.reasoning_tokens
    assert ask("auto", reasoning_effort="none").model == "instruct"
    assert ask("auto", extra_body={"enable_thinking": False}).model == "instruct"
    streamed = ask("auto", reasoning_effort="low", stream=True)
    text = "".join(getattr(one.choices[0].delta, "reasoning_content", None) or "" for one in streamed)
    return same(text, said.choices[0].message.reasoning_content)


def errors():
    return refusals(
        lambda model, field: ask(model, extra_body={MADE_UP: 1} if field else {}), (NotFoundError, BadRequestError)
    )


run("openai", plain=plain, stream=stream, picture=picture, turns=turns, reasoning=reasoning, errors=errors)
