"""LiteLLM: as an OpenAI-compatible server, and as a vLLM server, which has thinking switches."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # not fetched from GitHub

import litellm
from cells import DATA_URI, KEY, MADE_UP, QUESTION, TURNS, URL, refusals, run, same

litellm.suppress_debug_info = True
ASKED = [{"role": "user", "content": QUESTION}]


def ask(model, messages=ASKED, provider="openai", **more):
    return litellm.completion(
        model=f"{provider}/{model}", messages=messages, api_base=URL, api_key=KEY, num_retries=0, **more
    )


def plain():
    return ask("instruct", temperature=0, max_tokens=64, user="me").choices[0].message.content


def stream():
    chunks = ask("instruct", stream=True, stream_options={"include_usage": True})
    return same("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), plain())


def picture():
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": DATA_URI}}]
    return ask("auto", [{"role": "user", "content": parts}]).choices[0].message.content


def turns():
    messages = [{"role": "system", "content": "Be brief."}]
    for model, question in TURNS:
        messages.append({"role": "user", "content": question})
        said = ask(model, messages).choices[0].message
        messages.append(said)
    messages[-1] = said.model_dump()
    messages.append({"role": "user", "content": QUESTION})
    return ask("auto", messages, "hosted_vllm").choices[0].message.content


def reasoning():
    said = ask("auto", provider="hosted_vllm", reasoning_effort="low")
    assert said.usage.completion_tokens_details.reasoning_tokens
    ask("auto", provider="hosted_vllm", thinking={"type": "enabled", "budget_tokens": 1024})
    ask("auto", reasoning_effort="low", allowed_openai_params=["reasoning_effort"])
    off = ask("auto", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert not off.usage.completion_tokens_details.reasoning_tokens
    return said.choices[0].message.reasoning_content


def errors():
    return refusals(
        lambda model, field: ask(model, extra_body={MADE_UP: 1} if field else {}),
        (litellm.NotFoundError, litellm.BadRequestError),
    )


run("litellm", plain=plain, stream=stream, picture=picture, turns=turns, reasoning=reasoning, errors=errors)
