"""Requests as Open WebUI 0.12.4 sends them to an OpenAI connection (its routers/openai.py and utils/middleware.py).

Open WebUI is an application with databases and models of its own, so its requests are replayed, not made by it.
"""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cells import DATA_URI, KEY, QUESTION, TURNS, URL, run, same

HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
#: A model's "advanced parameters", all of those that its OpenAI mapping knows and that have a number.
PARAMETERS = {"temperature": 0.8, "top_p": 0.9, "min_p": 0.0, "max_tokens": 128, "frequency_penalty": 0.0,
              "presence_penalty": 0.0, "seed": 0, "stop": ["###"]}  # fmt: skip


def post(body):
    with urlopen(Request(f"{URL}/chat/completions", json.dumps(body).encode(), HEADERS), timeout=120) as reply:
        return reply.read().decode()


def ask(model, messages, **more):
    return json.loads(post({"stream": False, "model": model, "messages": messages, **more}))["choices"][0]["message"]


def streamed(model, messages, name="content", **more):
    body = {"stream": True, "model": model, "messages": messages, "stream_options": {"include_usage": True}, **more}
    chunks = [json.loads(line[6:]) for line in post(body).splitlines() if line.startswith("data: {")]
    assert chunks[-1]["usage"]
    return "".join(one["choices"][0]["delta"].get(name) or "" for one in chunks if one["choices"])


def user(content=QUESTION):
    return {"role": "user", "content": content}


def plain():
    title = "### Task:\nGenerate a concise title for the chat history:\nUSER: hello"  # its background task
    ask("auto", [user(title)], max_tokens=1000)
    ask("auto", [user()], user={"name": "A", "id": "1", "email": "a@b.example", "role": "user"}, **PARAMETERS)
    return ask("instruct", [user()])["content"]


def stream():
    return same(streamed("instruct", [user()]), plain())


def picture():
    return streamed("auto", [user([
        {"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": DATA_URI}},
    ])])  # fmt: skip


def turns():
    messages = [{"role": "system", "content": "Be brief."}]
    for model, question in TURNS:
        messages.append(user(question))
        said = ask(model, messages)
        # the three ways in which it sends past reasoning: not at all, as a field, in the content
        messages.append([
            {"role": "assistant", "content": said["content"]},
            {"role": "assistant", "content": said["content"], "reasoning_content": said.get("reasoning_content", "")},
            {"role": "assistant", "content": f"<think>{said.get('reasoning', '')}</think>\n{said['content']}"},
        ][len(messages) // 2 - 1])  # fmt: skip
    return streamed("auto", [*messages, user()])


def reasoning():
    thought = streamed("auto", [user()], "reasoning_content", reasoning_effort="low")
    assert not streamed("auto", [user()], "reasoning_content", reasoning_effort="none")
    assert not streamed("auto", [user()], "reasoning_content", chat_template_kwargs={"enable_thinking": False})
    return thought


def errors():
    told = {}
    for model, more in (("no-such-model", {}), ("auto", {"never_heard_of": 1})):
        try:
            streamed(model, [user()], **more)
        except HTTPError as error:
            told[error.code] = json.load(error)["error"]["message"]
    assert set(told) == {404, 400}
    return "; ".join(told.values())


run("0.12.4, replayed", plain=plain, stream=stream, picture=picture, turns=turns, reasoning=reasoning, errors=errors)
