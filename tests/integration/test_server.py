"""The server with OpenAI's client: fields, streams, errors, and conversations that are sent in full."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import openai
import pytest

from tests.conftest import VIDEO, media, task
from tests.forcing import token_ids
from tests.serving import KEY, Served, data_uri, served, user
from vlroute import Router
from vlroute.engine.cache.prefix import BLOCK
from vlroute.inputs.media import Limits
from vlroute.pocket import draw_task
from vlroute.serving.settings import ServerSettings
from vlroute.types import MODES

SOME = task("math")
TASKS = [draw_task(random.Random(seed), kind, "hard", "zh") for seed, kind in enumerate(("ocr", "count", "gui", "hop"))]
SMALL = Limits(local_files=False, max_images=4, max_bytes=200_000)
HOT = {"temperature": 2.0, "seed": 5, "extra_body": {"top_k": 0}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = ServerSettings(
        api_keys=(KEY, "another key, as long"), max_num_seqs=4, max_tokens=200, limits=SMALL, max_prompt=3000
    )
    with served(settings, store=tmp_path_factory.mktemp("server") / "answers.db") as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.openai()


def ask(client: openai.OpenAI, messages: Any = None, model: str = "auto", **fields: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages or [user(SOME)], **fields)


def refused(kind: type[openai.APIStatusError], call: Any) -> Any:
    """The error body, which must be in OpenAI's shape."""
    with pytest.raises(kind) as caught:
        call()
    body = caught.value.body
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    assert isinstance(body["message"], str)
    assert "/" not in body["message"].replace("data:image/png", "").replace("http(s)", "")  # no path
    return body


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_the_answer_equals_that_of_the_router(server: Served, client: openai.OpenAI, mode: Any) -> None:
    for one in TASKS:
        said = ask(client, [user(one)], mode)
        alone = server.router.ask(one.prompt, **media(one), mode=mode)
        message = said.choices[0].message
        assert message.content == alone.text
        assert getattr(message, "reasoning", "") == getattr(message, "reasoning_content", "") == alone.thinking
        assert said.choices[0].finish_reason == alone.finish_reason
        assert said.usage.prompt_tokens == alone.usage.prompt_tokens
        assert said.usage.completion_tokens == alone.usage.completion_tokens
        assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
        assert said.usage.completion_tokens_details.reasoning_tokens == alone.usage.thinking_tokens
        assert said.usage.prompt_tokens_details.image_tokens == alone.usage.vision_tokens
        assert said.model == mode
        assert said.vlroute["decision"]["forced"] is True


def test_auto_decides_as_the_router_does(server: Served, client: openai.OpenAI) -> None:
    modes = set()
    for one in (*TASKS, SOME):
        said = ask(client, [user(one)])
        decision = server.router.decide(one.prompt, **media(one))
        assert said.model == said.vlroute["decision"]["mode"] == decision.mode
        assert said.vlroute["decision"]["gain"] == pytest.approx(decision.gain)
        assert said.vlroute["decision"]["forced"] is False
        modes.add(said.model)
    assert modes == {"instruct", "thinking"}


def test_the_decision_is_in_the_headers(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=[user(SOME)])
    said: Any = raw.parse()
    assert raw.headers["x-vlroute-mode"] == said.model
    assert float(raw.headers["x-vlroute-gain"]) == pytest.approx(said.vlroute["decision"]["gain"], abs=1e-4)
    assert said.id == f"chatcmpl-{raw.headers['x-vlroute-id']}"


@pytest.mark.parametrize("mode", ["auto", "instruct", "thinking"])
def test_a_stream_equals_the_whole_answer(client: openai.OpenAI, mode: str) -> None:
    whole = ask(client, model=mode)
    chunks = list(ask(client, model=mode, stream=True, stream_options={"include_usage": True}))
    *said, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in said]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    reasoning = getattr(whole.choices[0].message, "reasoning", "")
    for name in ("reasoning", "reasoning_content"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas) == reasoning
    assert [chunk.choices[0].finish_reason for chunk in said] == [None] * (len(said) - 1) + ["stop"]
    assert len({(chunk.id, chunk.model, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert usage.choices == []
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert said[0].vlroute["decision"]["mode"] == whole.model  # before the first token
    assert said[-1].vlroute["timing"]["total"] > 0
    plain = list(ask(client, model=mode, stream=True))
    assert plain[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in plain)


def test_two_streams_at_the_same_time(client: openai.OpenAI) -> None:
    alone = [ask(client, [user(one)], "thinking").choices[0].message for one in TASKS]

    def read(one: Any) -> tuple[str, str]:
        deltas = [chunk.choices[0].delta for chunk in ask(client, [user(one)], "thinking", stream=True)]
        return "".join(d.content or "" for d in deltas), "".join(getattr(d, "reasoning", None) or "" for d in deltas)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(read, TASKS))
    assert together == [(message.content, message.reasoning) for message in alone]


def test_a_conversation_sent_in_full_uses_the_prefix_cache(server: Served, client: openai.OpenAI) -> None:
    fresh = draw_task(random.Random(77), "gui", "hard", "en")
    said = [user(fresh)]
    encodes = server.router.cache.stats().encodes
    cached = []
    for question in ("Read the text.", "How many circles?", "Read the text again."):
        answer = ask(client, said, "instruct")
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        if len(said) == 1:
            first = answer
        said += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": question},
        ]
    assert server.router.cache.stats().encodes - encodes == len(fresh.frames)
    assert cached[1] >= first.usage.prompt_tokens // BLOCK * BLOCK  # all tokens of the first turn, in whole blocks
    assert cached[2] > cached[1]
    # the answer equals that of a router without cached prefixes
    alone = Router.from_pretrained().ask(said[:-2], mode="instruct")
    assert answer.choices[0].message.content == alone.text


def test_keys_do_not_share_caches(server: Served) -> None:
    fresh = [user(draw_task(random.Random(78), "ocr", "hard", "en"))]
    seen = [ask(server.openai(key), fresh, "instruct") for key in (KEY, KEY, "another key, as long")]
    reused = [one.usage.prompt_tokens_details.cached_tokens / one.usage.prompt_tokens for one in seen]
    assert [share > 0.5 for share in reused] == [False, True, False], reused
    assert len({answer.choices[0].message.content for answer in seen}) == 1
    before = server.router.cache.stats().encodes
    ask(server.openai(), [user(draw_task(random.Random(79), "ocr", "hard", "en"))])
    ask(server.openai("another key, as long"), [user(draw_task(random.Random(79), "ocr", "hard", "en"))])
    assert server.router.cache.stats().encodes - before == 2


@pytest.mark.parametrize(("effort", "mode"), [("none", "instruct"), ("low", "thinking"), ("high", "thinking")])
def test_reasoning_effort(client: openai.OpenAI, effort: Any, mode: str) -> None:
    assert ask(client, reasoning_effort=effort).model == mode


def test_thinking_budget(client: openai.OpenAI) -> None:
    said = ask(client, model="thinking", extra_body={"thinking_budget": 4})
    whole = ask(client, model="thinking")
    assert (
        said.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens_details.reasoning_tokens
    )
    assert said.choices[0].message.content


def test_seeds_make_sampling_reproducible(client: openai.OpenAI) -> None:
    def draw(seed: int) -> str:
        return str(ask(client, model="thinking", max_tokens=40, **{**HOT, "seed": seed}).choices[0].message.reasoning)

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(8)}) > 1
    assert ask(client, model="thinking", temperature=0).choices[0].message.reasoning == ask(
        client, model="thinking"
    ).choices[0].message.reasoning  # fmt: skip


def test_sampling_fields_reach_the_sampler(client: openai.OpenAI) -> None:
    greedy = ask(client, model="thinking", max_tokens=60).choices[0].message.reasoning

    def drawn(**fields: Any) -> str:
        said = ask(client, model="thinking", max_tokens=60, **{**HOT, **fields})
        return str(said.choices[0].message.reasoning)

    # each of these leaves only the most likely token, at any temperature
    assert drawn(top_p=1e-9) == drawn(extra_body={"top_k": 1}) == drawn(extra_body={"top_k": 0, "min_p": 1.0}) == greedy
    for penalty in ("presence_penalty", "frequency_penalty"):
        assert drawn(**{penalty: 2.0}) != drawn(**{penalty: -2.0})
    damped = ask(client, model="thinking", max_tokens=60, extra_body={"repetition_penalty": 5.0})
    assert damped.choices[0].message.reasoning != greedy


def test_a_picture_without_text(client: openai.OpenAI, server: Served) -> None:
    content = [part for part in user(SOME)["content"] if part["type"] != "text"]
    for mode in MODES:
        said = ask(client, model=mode, messages=[{"role": "user", "content": content}])
        assert said.choices[0].message.content == server.router.ask("", SOME.frames[0], mode=mode).text
    assert ask(client, messages=[{"role": "user", "content": content}]).choices[0].message.content


def test_fields_about_single_tokens(client: openai.OpenAI, server: Served) -> None:
    def said(**fields: Any) -> Any:
        return ask(client, model="instruct", messages=[user(TASKS[0])], temperature=0, max_tokens=12, **fields)

    whole = said().choices[0].message.content
    assert len(set(whole)) > 1
    tokens = [token_ids(server.router, one, "instruct")[0] for one in whole]
    banned = said(logit_bias={str(tokens[0]): -100}).choices[0].message.content
    assert whole[0] != banned[0]
    assert said(logit_bias={str(tokens[0]): 0.5}).choices[0].message.content == whole
    other = next(one for one in whole if one != whole[0])
    ended = said(extra_body={"stop_token_ids": [tokens[whole.index(other)]]})
    assert ended.choices[0].message.content == whole.partition(other)[0]
    assert other not in said(extra_body={"bad_words": [other]}).choices[0].message.content
    endless = said(extra_body={"ignore_eos": True})
    assert (endless.usage.completion_tokens, endless.choices[0].finish_reason) == (12, "length")
    assert said(extra_body={"ignore_eos": False}).choices[0].message.content == whole
    assert said(extra_body={"min_tokens": 9}).usage.completion_tokens >= 9


@pytest.mark.parametrize("fields", [
    {"logit_bias": {"1": 101}}, {"logit_bias": {"-1": 1}}, {"logit_bias": {"x": 1}}, {"min_tokens": -1},
    {"min_tokens": 13}, {"ignore_eos": 1}, {"stop_token_ids": [-1]}, {"stop_token_ids": ["5"]}, {"bad_words": [""]},
    {"bad_words": "x"}, {"stop_token_ids": [0] * 301},
])  # fmt: skip
def test_fields_about_single_tokens_are_checked(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    (name,) = fields
    said = refused(openai.APIStatusError, lambda: ask(client, model="instruct", max_tokens=12, extra_body=fields))
    assert said["param"].partition(".")[0] == name


def test_max_tokens_and_stop(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        said = ask(client, model="instruct", messages=[user(TASKS[0])], **{name: 1})
        assert (said.usage.completion_tokens, said.choices[0].finish_reason) == (1, "length")
    whole = ask(client, model="instruct", messages=[user(TASKS[0])]).choices[0].message.content
    assert len(set(whole)) > 1
    last = next(char for char in whole if char != whole[0])
    for stop in (last, [last, "never"]):
        said = ask(client, model="instruct", messages=[user(TASKS[0])], stop=stop)
        assert said.choices[0].message.content == whole.partition(last)[0]
        assert said.choices[0].finish_reason == "stop"
    cut = ask(client, model="thinking", max_completion_tokens=3, extra_body={"vlroute": {"answer_reserve": 0}})
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")  # only reasoning
    answered = ask(client, model="thinking", max_completion_tokens=3)
    assert answered.choices[0].message.content
    assert answered.usage.completion_tokens <= 3


def test_options_of_vlroute(client: openai.OpenAI) -> None:
    dear = ask(client, extra_body={"vlroute": {"price": 1000, "caption": "three numbers"}})
    assert dear.model == "instruct"
    assert dear.vlroute["decision"]["caption"] == "three numbers"
    assert ask(client, extra_body={"vlroute": {"price": 0}}).model == "thinking"


def test_videos(client: openai.OpenAI) -> None:

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = *VIDEO[0].size, "yuv444p"
        for frame in VIDEO:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    uri = "data:video/mp4;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "video_url", "video_url": {"url": uri}}, {"type": "text", "text": "Which letters?"}]
    said = ask(client, [{"role": "user", "content": content}])
    assert said.usage.prompt_tokens_details.image_tokens > 0


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "auto", "instruct", "thinking", "pocket-instruct", "pocket-thinking",
    ]  # fmt: skip
    assert client.models.retrieve("auto").owned_by == "vlroute"
    refused(openai.NotFoundError, lambda: client.models.retrieve("gpt-4"))
    assert ask(client, model="Qwen/Qwen3-VL-2B-Instruct").model == "instruct"  # a checkpoint


def test_feedback_reaches_the_store(server: Served, client: openai.OpenAI) -> None:
    said = ask(client)
    stored, judged = server.router.store.count()  # type: ignore[union-attr]
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for id in (said.id, said.vlroute["id"]):
            assert http.post("/v1/feedback", json={"id": id, "correct": True}).json()["stored"] is True
        assert server.router.store.count() == (stored, judged + 1)  # type: ignore[union-attr]
        assert http.post("/v1/feedback", json={"id": "0" * 32, "correct": 0.5}).status_code == 404
        for wrong in (2, -0.1, "yes", None):
            assert http.post("/v1/feedback", json={"id": said.id, "correct": wrong}).status_code == 422


def test_route_decides_as_the_router(server: Served) -> None:
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        asked = {"messages": [{"role": "user", "content": SOME.prompt}], "vlroute": {"caption": "three numbers"}}
        said = http.post("/v1/route", json=asked).json()
        decision = server.router.decide(SOME.prompt, caption="three numbers")
        assert said["model"] == decision.mode
        assert said["decision"]["p_thinking"] == pytest.approx(decision.p_thinking)
        seen = http.post("/v1/route", json={"messages": [user(SOME)]}).json()
        assert seen["decision"]["caption"]
        ignored = http.post("/v1/route", json={**asked, "chat_id": 3, "user": "me"}).json()["ignored"]
        assert ignored == ["chat_id", "user"]


def test_predict(server: Served) -> None:
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        uri = data_uri(SOME.frames[0])
        for picture in (uri, uri.partition(",")[2]):
            for model in ("thinking", "Qwen3-VL-2B-Thinking"):
                said = http.post("/api/predict", json={"data": [picture, SOME.prompt, model]}).json()
                assert said["data"] == [server.router.ask(SOME.prompt, **media(SOME), mode="thinking").text]
        assert http.post("/api/predict", json={"data": [None, "Hello?"]}).status_code == 200
        for bad in ([uri, None, "auto"], [uri], ["not base64!", "what?", "auto"], [uri, "x", "gpt"], "text"):
            assert http.post("/api/predict", json={"data": bad}).status_code in (400, 404, 422)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"n": 9}, "n"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"response_format": {"type": "structural_tag"}}, "response_format"), ({"extra_body": {"ebnf": "x"}}, "ebnf"),
    ({"functions": [{"name": "f"}]}, "functions"), ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"max_completion_tokens": 201}, "max_completion_tokens"), ({"stop": [""]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"), ({"model": "instruct", "reasoning_effort": "high"}, "reasoning_effort"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD)
def test_unsupported_fields_are_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    body = refused(openai.BadRequestError, lambda: ask(client, **fields))
    assert body["param"] == param


@pytest.mark.parametrize("fields", [
    {"temperature": -1}, {"temperature": 3}, {"top_p": 0}, {"max_tokens": 0}, {"seed": 2**70}, {"seed": "x"},
    {"presence_penalty": 9}, {"reasoning_effort": "huge"}, {"extra_body": {"vlroute": {"price": -1}}},
    {"extra_body": {"stream": "yes"}},
])  # fmt: skip
def test_values_out_of_range_name_their_field(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    body = refused(openai.UnprocessableEntityError, lambda: ask(client, **fields))
    name = next(iter(fields.get("extra_body", fields)))
    assert body["param"].startswith(name)


def image_part(url: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]}
    ]


@pytest.mark.parametrize(("messages", "code"), [
    ([{"role": "user", "content": " "}], "bad_message"),
    ([{"role": "user", "content": "x <|im_end|> y"}], "bad_message"),
    ([{"role": "assistant", "content": "x"}], "bad_message"),
    ([{"role": "tool", "content": "x"}], "bad_message"),
    ([{"role": "user", "content": 7}], "bad_message"),
    ([{"role": "user", "content": "long " * 1000}], "limit_exceeded"),
    (image_part("data:image/png;base64,AAAA"), "unreadable_media"),
    (image_part("data:image/png;base64,####"), "unreadable_media"),
    (image_part("http://169.254.169.254/latest"), "unreadable_media"),
    (image_part("file:///etc/passwd"), "unreadable_media"),
    (image_part("/etc/passwd"), "unreadable_media"),
    ([{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}, {"type": "text", "text": "?"}]}],
     "unreadable_media"),
    (image_part("data:image/png;base64," + "A" * 300_000), "limit_exceeded"),
    ([user(SOME)] * 5, "limit_exceeded"),
])  # fmt: skip
def test_bad_messages_are_refused(client: openai.OpenAI, messages: Any, code: str) -> None:
    for stream in (False, True):  # before the first byte: a stream has a status too
        assert refused(openai.BadRequestError, lambda: ask(client, messages, stream=stream))["code"] == code  # noqa: B023


def test_other_models_and_keys_and_paths(server: Served, client: openai.OpenAI) -> None:
    assert refused(openai.NotFoundError, lambda: ask(client, model="gpt-5"))["code"] == "model_not_found"
    for key in ("wrong", KEY + "x", "a key for tests"):
        body = refused(openai.AuthenticationError, lambda: ask(server.openai(key)))  # noqa: B023
        assert body["code"] == "invalid_api_key"
    with server.http() as http:
        for path in ("/v1/models", "/metrics"):
            assert http.get(path).status_code == 401
        for path in ("/health", "/ready"):
            assert http.get(path).status_code == 200
        assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
        assert http.get("/v1/route").json()["error"]["code"] == "method_not_allowed"


def test_metrics_of_reasoning_that_was_closed(server: Served, client: openai.OpenAI) -> None:
    def counts() -> dict[str, float]:
        with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
            lines = [line.rpartition(" ") for line in http.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, _, value in lines}

    before = counts()
    for why in ("budget", "reserve", "loop", "end"):
        assert f'vlroute_reasoning_closed_total{{reason="{why}"}}' in before
    closed = ask(client, model="thinking", extra_body={"thinking_budget": 1})
    rescued = ask(client, model="thinking", max_tokens=3)
    assert (closed.vlroute["closed"], closed.vlroute["decision"]["rescued"]) == ("budget", False)
    assert (rescued.vlroute["closed"], rescued.vlroute["decision"]["rescued"]) == (None, True)
    assert (rescued.model, rescued.choices[0].message.content) == ("instruct", ask(
        client, model="instruct", max_tokens=3).choices[0].message.content)  # fmt: skip
    *_, last = ask(client, model="thinking", stream=True, extra_body={"thinking_budget": 1})
    assert last.vlroute["closed"] == "budget"
    after = counts()
    gains = {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)}
    assert gains['vlroute_reasoning_closed_total{reason="budget"}'] == 2
    assert gains["vlroute_rescued_total"] == 1
    # the seconds of the rescued answer are those of Thinking
    assert gains['vlroute_answer_seconds_count{mode="thinking"}'] == 3
    assert gains['vlroute_answer_seconds_count{mode="instruct"}'] == 1


def test_metrics(server: Served, client: openai.OpenAI) -> None:
    ask(client, model="thinking")
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        text = http.get("/metrics").text
    for line in (
        'vlroute_answers_total{finish_reason="stop",forced="true",mode="thinking",stage="prompt"}',
        'vlroute_answer_seconds_bucket{le="0.5",mode="thinking"}',
        'vlroute_first_token_seconds_count{mode="thinking"}',
        'vlroute_step_seconds_count{mode="thinking",step="decode"}',
        'vlroute_tokens_total{kind="thinking",mode="thinking"}',
        'vlroute_cache_hits_total{cache="vision"}', 'vlroute_cache_bytes{cache="prefix"}',
        "vlroute_requests_running 0.0", 'vlroute_requests_waiting{mode="instruct"} 0.0',
        'vlroute_errors_total{code="model_not_found",status="404"}',
    ):  # fmt: skip
        assert line in text, line
