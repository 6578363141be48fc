"""Open WebUI itself, started with an empty database, and asked through its own API."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cells import KEY, MADE_UP, PARTS, URL, conversation, run, same, user

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    PORT = free.getsockname()[1]
SETTINGS = {
    "WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": "only for one run",
    "ENABLE_PERSISTENT_CONFIG": "False", "ENABLE_OLLAMA_API": "False",
    "OPENAI_API_BASE_URLS": URL, "OPENAI_API_KEYS": KEY,
    "OFFLINE_MODE": "True", "HF_HUB_OFFLINE": "1", "RAG_EMBEDDING_ENGINE": "openai",  # downloads no models
}  # fmt: skip
START_SECONDS = 180.0
token = ""


def call(path, body=None):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"http://127.0.0.1:{PORT}{path}", data, headers), timeout=120) as reply:
        return reply.read().decode()


def ask(model, messages, stream=False, **params):
    return call("/api/chat/completions", {"model": model, "messages": messages, "stream": stream, "params": params})


def message(model, messages, **params):
    return json.loads(ask(model, messages, **params))["choices"][0]["message"]


def plain():
    for task in ("title", "tags", "follow_up"):  # its background tasks
        past = [user(), {"role": "assistant", "content": "0"}]
        json.loads(call(f"/api/v1/tasks/{task}/completions", {"model": "auto", "messages": past}))
    message("auto", [user()], temperature=0.8, top_p=0.9, top_k=20, min_p=0.0, max_tokens=64, seed=0, stop=["###"],
            frequency_penalty=0.0, presence_penalty=0.0, repeat_penalty=1.0)  # fmt: skip
    return message("instruct", [user()])["content"]


def stream():
    lines = ask("instruct", [user()], stream=True).splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return same("".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"]), plain())


def picture():
    return message("auto", [user(PARTS)])["content"]


def turns():
    return message("auto", [*conversation(message), user()])["content"]


def reasoning():
    for off in (
        {"reasoning_effort": "none"},
        {"custom_params": {"chat_template_kwargs": '{"enable_thinking": false}'}},
    ):
        assert "reasoning" not in message("auto", [user()], **off)
    return message("auto", [user()], reasoning_effort="low")["reasoning"]


def errors():
    try:
        ask("auto", [user()], custom_params={MADE_UP: "1"})
    except HTTPError as error:
        answer = error.read().decode()
        assert MADE_UP in answer
        return f"{error.code}: {answer}"
    raise AssertionError(f"{MADE_UP} was not refused")


with tempfile.TemporaryDirectory() as data:
    command = [sys.executable, "-c", "from open_webui import app; app()", "serve", "--host", "127.0.0.1"]
    log = Path(data) / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(PORT)], env={**os.environ, **SETTINGS, "DATA_DIR": data},
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until = time.monotonic() + START_SECONDS
        while not token:
            try:
                token = json.loads(call("/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
            except URLError:
                if process.poll() is not None or time.monotonic() > until:
                    print(log.read_text()[-3000:], file=sys.stderr)
                    raise
                time.sleep(1)
        json.loads(call("/api/models"))
        run("open-webui", globals())
    finally:
        process.terminate()
        process.wait()
