"""Instructor in plain use, without a response model."""

import instructor
from cells import DATA_URI, KEY, MADE_UP, QUESTION, TURNS, URL, refusals, run, same
from openai import BadRequestError, NotFoundError, OpenAI

client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY, max_retries=0))
ASKED = [{"role": "user", "content": QUESTION}]


def ask(model, messages=ASKED, **more):
    return client.chat.completions.create(
        model=model, messages=list(messages), response_model=None, max_retries=1, **more
    )


def plain():
    return ask("instruct", temperature=0, max_tokens=64).choices[0].message.content


def stream():
    return same("".join(one.choices[0].delta.content or "" for one in ask("instruct", stream=True)), plain())


def picture():
    parts = [QUESTION, instructor.Image.from_base64(DATA_URI)]
    return ask("auto", [{"role": "user", "content": parts}]).choices[0].message.content


def turns():
    messages = [{"role": "system", "content": "Be brief."}]
    for model, question in TURNS:
        messages.append({"role": "user", "content": question})
        said = ask(model, messages).choices[0].message
        messages.append(said.model_dump())
    messages.append({"role": "user", "content": QUESTION})
    return ask("auto", messages).choices[0].message.content


def reasoning():
    said = ask("auto", reasoning_effort="low")
    assert said.model == "thinking"
    return said.choices[0].message.reasoning_content


def errors():
    return refusals(
        lambda model, field: ask(model, **({"extra_body": {MADE_UP: 1}} if field else {})),
        (NotFoundError, BadRequestError),
    )


run("instructor", plain=plain, stream=stream, picture=picture, turns=turns, reasoning=reasoning, errors=errors)
