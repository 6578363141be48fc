"""LiteLLM: as an OpenAI-compatible server, and as a vLLM server, which has thinking switches."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # not fetched from GitHub

import litellm
from cells import KEY, PARTS, SHAPE, TOOLS, URL, conversation, refusals, run, same, shaped, tapped, user

litellm.suppress_debug_info = True


def ask(model, messages=None, provider="openai", **more):
    model, messages = f"{provider}/{model}", messages or [user()]
    return litellm.completion(model=model, messages=messages, api_base=URL, api_key=KEY, num_retries=0, **more)


def plain():
    return ask("instruct", temperature=0, max_tokens=64, user="me").choices[0].message.content


def stream():
    chunks = ask("instruct", stream=True, stream_options={"include_usage": True})
    return same("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), plain())


def picture():
    return ask("auto", [user(PARTS)]).choices[0].message.content


def turns():
    messages = conversation(lambda *asked: ask(*asked).choices[0].message)
    messages[-1] = messages[-1].model_dump()
    return ask("auto", [*messages, user()], "hosted_vllm").choices[0].message.content


def reasoning():
    answer = ask("auto", provider="hosted_vllm", reasoning_effort="low")
    assert answer.usage.completion_tokens_details.reasoning_tokens
    ask("auto", provider="hosted_vllm", thinking={"type": "enabled", "budget_tokens": 1024})
    ask("auto", reasoning_effort="low", allowed_openai_params=["reasoning_effort"])
    off = ask("auto", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert not off.usage.completion_tokens_details.reasoning_tokens
    return answer.choices[0].message.reasoning_content


def tools():
    messages = [user()]
    first = ask("instruct", messages, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    (call,) = first.tool_calls
    messages += [first, {"role": "tool", "tool_call_id": call.id, "content": "Done."}]
    assert ask("auto", messages, tools=TOOLS).choices[0].finish_reason
    return tapped(call.function.name, call.function.arguments)


def structured():
    form = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SHAPE, "strict": True}}
    return shaped(ask("thinking", response_format=form).choices[0].message.content)


def errors():
    return refusals(ask, litellm.NotFoundError, litellm.BadRequestError)


run("litellm", globals())
