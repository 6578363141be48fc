"""Request fields of the server: each one has an effect or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.conftest import media, task
from tests.serving import Served, served, user
from vlroute import Router
from vlroute.errors import SettingsError
from vlroute.pipeline import Pipeline
from vlroute.store import UnknownAnswerError

SOME = task("math")
ASKED = {"messages": [{"role": "user", "content": SOME.prompt}]}
ROUTE, CHAT = "/v1/route", "/v1/chat/completions"
#: Forms of "do not think" and "think" of public servers: OpenAI, Qwen, vLLM, SGLang, Anthropic, OpenRouter, Ollama.
OFF: list[dict[str, Any]] = [
    {"model": "instruct"}, {"model": "Qwen/Qwen3-VL-2B-Instruct"}, {"reasoning_effort": "none"},
    {"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}}, {"chat_template_kwargs": {"reasoning_effort": "none"}},
    {"thinking": {"type": "disabled"}}, {"thinking": False}, {"reasoning": {"effort": "none"}},
    {"reasoning": {"enabled": False}}, {"think": False}, {"think": "none"},
]  # fmt: skip
ON: list[dict[str, Any]] = [
    {"model": "thinking"}, {"model": "Qwen/Qwen3-VL-2B-Thinking"}, {"reasoning_effort": "high"},
    {"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"thinking": True}}, {"thinking": {"type": "enabled"}}, {"thinking": True},
    {"thinking": {"type": "enabled", "budget_tokens": 5}}, {"reasoning": {"effort": "high"}},
    {"reasoning": {"enabled": True}}, {"reasoning": {"max_tokens": 5}}, {"think": True}, {"think": "high"},
]  # fmt: skip
NEITHER: list[dict[str, Any]] = [
    {}, {"model": "auto"}, {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "auto"}}, {"reasoning": {}},
    {"chat_template_kwargs": {}}, {"thinking_budget": 5}, {"reasoning": {"exclude": True}},
    {"chat_template_kwargs": {"enable_thinking": None}}, {"reasoning": {"effort": None}},
]  # fmt: skip
BUDGETS: list[Any] = [
    lambda n: {"thinking_budget": n}, lambda n: {"thinking_token_budget": n}, lambda n: {"thinking_budget_tokens": n},
    lambda n: {"custom_params": {"thinking_budget": n}}, lambda n: {"chat_template_kwargs": {"thinking_budget": n}},
    lambda n: {"thinking": {"type": "enabled", "budget_tokens": n}}, lambda n: {"reasoning": {"max_tokens": n}},
    lambda n: {"thinking": {"type": "adaptive", "budget_tokens": n}}, lambda n: {"reasoning_budget": n},
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def post(http: httpx.Client, fields: dict[str, Any], path: str = ROUTE) -> httpx.Response:
    return http.post(path, content=json.dumps({**ASKED, **fields}), headers={"Content-Type": "application/json"})


def error(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error, which names its field and is in OpenAI's shape."""
    assert response.status_code == status, response.text
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return dict(body)


def forced(http: httpx.Client, fields: dict[str, Any]) -> str | None:
    response = post(http, fields)
    assert response.status_code == 200, (fields, response.text)
    decision = response.json()["decision"]
    return decision["mode"] if decision["forced"] else None


def test_every_form_of_a_thinking_switch_chooses_the_mode(http: httpx.Client) -> None:
    for fields in OFF:
        assert forced(http, fields) == "instruct", fields
    for fields in ON:
        assert forced(http, fields) == "thinking", fields
    for fields in NEITHER:
        assert forced(http, fields) is None, fields


@pytest.mark.parametrize("effort", ["minimal", "low", "medium", "high", "xhigh", "max"])
def test_every_effort_is_thinking(http: httpx.Client, effort: str) -> None:
    for fields in ({"reasoning_effort": effort}, {"reasoning": {"effort": effort}}, {"think": effort}):
        assert forced(http, fields) == "thinking"


@settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(one=st.sampled_from(OFF + ON + NEITHER), two=st.sampled_from(OFF + ON + NEITHER))
def test_two_switches_agree_or_are_refused(http: httpx.Client, one: dict[str, Any], two: dict[str, Any]) -> None:
    assume(not set(one) & set(two))
    wanted = {mode for mode in (forced(http, one), forced(http, two)) if mode}
    if len(wanted) == 2:
        assert error(post(http, {**one, **two}))["code"] == "contradiction"
    else:
        assert {forced(http, {**one, **two})} - {None} == wanted


@pytest.mark.parametrize(("fields", "param"), [
    ({"model": "Qwen3-VL-2B-Thinking", "enable_thinking": False}, "enable_thinking"),
    ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
     "chat_template_kwargs.enable_thinking"),
    ({"reasoning_effort": "high", "thinking": {"type": "disabled"}}, "thinking.type"),
    ({"reasoning_effort": "high", "reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"think": True, "reasoning": {"enabled": False}}, "reasoning.enabled"),
    ({"thinking_budget": 3, "thinking_token_budget": 4}, "thinking_token_budget"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"repetition_penalty": 1.1, "repeat_penalty": 1.2}, "repeat_penalty"),
])  # fmt: skip
@pytest.mark.parametrize("path", [ROUTE, CHAT])
def test_contradictions_are_named(http: httpx.Client, path: str, fields: dict[str, Any], param: str) -> None:
    body = error(post(http, fields, path))
    assert (body["code"], body["param"]) == ("contradiction", param)


def test_every_form_of_a_budget_has_an_effect(server: Served, http: httpx.Client) -> None:
    for tokens in (0, 4):
        alone = server.router.ask(SOME.prompt, **media(SOME), mode="thinking", thinking_budget=tokens)
        for budget in BUDGETS:
            asked = {"messages": [user(SOME)], "model": "thinking", **budget(tokens)}
            said = http.post(CHAT, json=asked).json()
            assert said["choices"][0]["message"]["reasoning"] == alone.thinking
            used = said["usage"]["completion_tokens_details"]["reasoning_tokens"]
            assert used == alone.usage.thinking_tokens


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("value", [-1, -(2**70), 2**70, True, "many", 1.5, [], {}])
def test_impossible_budgets_are_refused(http: httpx.Client, budget: Any, value: Any) -> None:
    fields = budget(value)
    for path in (ROUTE, CHAT):
        assert error(post(http, fields, path), 422)["param"].startswith(next(iter(fields)))


@pytest.mark.parametrize("hide", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_reasoning_can_be_omitted(http: httpx.Client, hide: dict[str, Any]) -> None:
    body = {"messages": [user(SOME)], "model": "thinking"}
    shown = http.post(CHAT, json=body).json()
    hidden = http.post(CHAT, json={**body, **hide}).json()
    assert shown["choices"][0]["message"]["reasoning"]
    assert "reasoning" not in hidden["choices"][0]["message"]
    assert hidden["choices"][0]["message"]["content"] == shown["choices"][0]["message"]["content"]
    assert hidden["usage"]["completion_tokens"] == shown["usage"]["completion_tokens"]
    with http.stream("POST", CHAT, json={**body, **hide, "stream": True}) as streamed:
        text = "".join(streamed.iter_text())
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert not any("reasoning" in delta for delta in deltas)
    assert "".join(delta.get("content", "") for delta in deltas) == shown["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def known(server: Served) -> dict[str, Any]:
    """Fields of a chat request in the schema of the server."""
    with server.http() as http:
        schemas = http.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["ChatRequest"]["additionalProperties"] is False
    return dict(schemas["ChatRequest"]["properties"])


@settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_unknown_fields_are_refused_by_name(http: httpx.Client, known: dict[str, Any], data: st.DataObject) -> None:
    typo = st.sampled_from(sorted(known)).map(lambda name: name[:-1] + "q")
    name = data.draw(st.one_of(st.text(min_size=1, max_size=200), typo).filter(lambda name: name not in known))
    value = data.draw(st.one_of(st.integers(), st.text(), st.booleans(), st.just({}), st.just([])))
    inside = data.draw(st.sampled_from((
        "", "vlroute", "thinking", "reasoning", "chat_template_kwargs", "custom_params", "stream_options",
    )))  # fmt: skip
    fields = {inside: {"type": "enabled", name: value}} if inside == "thinking" else {name: value}
    fields = {inside: {name: value}} if inside and inside != "thinking" else fields
    for path in (ROUTE, CHAT):
        response = post(http, fields, path)
        if inside and response.status_code != 400:
            continue  # a known field of this object
        body = error(response)
        assert body["code"] in ("unknown_parameter", "unsupported_parameter")
        written = name[:80].encode("utf-8", "replace").decode()
        assert body["param"] == (f"{inside}.{written}" if inside else written)


@pytest.mark.parametrize(("typo", "meant"), [
    ("temprature", "temperature"), ("max_token", "max_tokens"), ("Top_P", "top_p"), ("messsages", "messages"),
    ("enableThinking", "enable_thinking"), ("presence-penalty", "presence_penalty"),
    ("reasoning_efort", "reasoning_effort"),
])  # fmt: skip
def test_a_typo_gets_the_most_similar_name(http: httpx.Client, typo: str, meant: str) -> None:
    for path in (ROUTE, CHAT):
        body = error(post(http, {typo: 1}, path))
        assert body["param"] == typo
        assert repr(meant) in body["message"]


def test_thousands_of_unknown_fields_get_a_short_error(http: httpx.Client) -> None:
    body = error(post(http, {f"{'x' * 500}{number}": number for number in range(5000)}))
    assert len(body["message"]) < 2000
    assert "4990" in body["message"]
    assert "x" * 80 not in http.get("/metrics").text


def test_fields_with_a_neutral_value_are_accepted(http: httpx.Client, known: dict[str, Any]) -> None:
    neutral = {name: field["enum"] for name, field in known.items() if "enum" in field}
    assert neutral
    for name, values in neutral.items():
        for value in values:
            assert post(http, {name: value}).status_code == 200, (name, value)
        assert error(post(http, {name: {"made": "up"}}))["param"] == name
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k",
                "safety_identifier": "s", "chat_id": 3}  # fmt: skip
    said = post(http, {**harmless, "stream_options": {"include_usage": True, "include_obfuscation": False}})
    assert said.json()["ignored"] == sorted([*harmless, "stream_options"])


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(("fields", "ignored"), [
    *[({"model": model, **budget}, names if model == "instruct" else [])
      for model in ("instruct", "thinking")
      for budget, names in (
          ({"thinking_budget": 5}, ["thinking_budget"]), ({"reasoning_budget": 5}, ["reasoning_budget"]),
          ({"custom_params": {"thinking_budget": 5}}, ["custom_params.thinking_budget"]),
          ({"vlroute": {"close_loops": True, "early_exit": 0.9, "answer_reserve": 4, "price": 1}},
           ["vlroute.answer_reserve", "vlroute.close_loops", "vlroute.early_exit"]),
      )],
    ({"thinking": {"type": "disabled", "budget_tokens": 5}}, ["thinking.budget_tokens"]),
    ({"reasoning": {"enabled": False, "max_tokens": 5}}, ["reasoning.max_tokens"]),
    ({"thinking_budget": 5}, []),  # the router decides
    ({"thinking_budget": 5, "messages": [*ASKED["messages"], {"role": "assistant", "content": "It"}]},
     ["thinking_budget"]),
    ({"stream_options": {"include_usage": True}}, ["stream_options"]),
    ({"parallel_tool_calls": True, "tool_choice": "auto"}, ["parallel_tool_calls", "tool_choice"]),
    ({"parallel_tool_calls": True, "tool_choice": "none", "tools": []}, ["parallel_tool_calls", "tool_choice"]),
    ({"parallel_tool_calls": True, "tool_choice": "none", "tools": [TOOL]}, ["parallel_tool_calls"]),
    ({"parallel_tool_calls": False, "tool_choice": "auto", "tools": [TOOL]}, []),
    ({"ignore_eos": True, "guided_choice": ["a", "b"]}, ["ignore_eos"]),
    ({"ignore_eos": True, "response_format": {"type": "text"}}, []),
])  # fmt: skip
def test_fields_without_effect_because_of_others_are_listed(
    http: httpx.Client, fields: dict[str, Any], ignored: list[str]
) -> None:
    said = post(http, {"max_tokens": 30, **fields}, CHAT)
    assert said.status_code == 200, said.text
    assert said.json()["vlroute"]["ignored"] == ignored


def test_fields_without_effect_of_a_stream_are_listed(http: httpx.Client) -> None:
    fields = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    said = post(http, {"model": "instruct", "max_tokens": 2, "thinking_budget": 5, **fields}, CHAT)
    first = json.loads(said.text.split("\n\n")[0].removeprefix("data: "))
    assert first["vlroute"]["ignored"] == ["stream_options.include_obfuscation", "thinking_budget"]


def test_fields_of_an_answer_have_no_effect_on_a_decision(http: httpx.Client) -> None:
    fields = {"stream": True, "n": 3, "stop": ["a"], "temperature": 0.5, "response_format": {"type": "json_object"}}
    decided = {"reasoning_effort": "low", "vlroute": {"caption": "c"}, "tools": [TOOL], "tool_choice": "auto"}
    assert post(http, {**fields, **decided}).json()["ignored"] == sorted(fields)
    assert post(http, decided).json()["ignored"] == []


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_null_means_absent(http: httpx.Client, known: dict[str, Any], data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(set(known) - {"messages"}))))
    path = data.draw(st.sampled_from((ROUTE, CHAT)))
    fields = {**dict.fromkeys(names), "never_heard_of": None}
    fields |= data.draw(st.sampled_from((
        {}, {"stream_options": {"include_usage": None}}, {"vlroute": {"price": None, "caption": None}},
        {"reasoning": {"effort": None, "max_tokens": None, "enabled": None, "exclude": None}},
        {"chat_template_kwargs": {"enable_thinking": None}}, {"thinking": {"type": "auto", "budget_tokens": None}},
    )))  # fmt: skip
    assert post(http, fields, path).status_code == 200, fields


@pytest.mark.parametrize(
    "broken",
    [
        b"{",
        b"{'a': 1}",
        b'{"messages": [}',
        b'{"a": 1,}',
        b"\xff\xfe",
        b"\x80",
        b"hello",
        b'{"a": "\x01"}',
        b"[" * 9999,
    ],
)
@pytest.mark.parametrize("path", [ROUTE, CHAT, "/v1/feedback", "/api/predict"])
def test_malformed_json_is_reported(http: httpx.Client, path: str, broken: bytes) -> None:
    body = error(http.post(path, content=broken, headers={"Content-Type": "application/json"}))
    assert body["code"] == "invalid_json"
    assert "JSON" in body["message"]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"3", b'"text"'])
def test_a_body_that_is_not_an_object_is_reported(http: httpx.Client, body: bytes) -> None:
    said = error(http.post(ROUTE, content=body, headers={"Content-Type": "application/json"}))
    assert "object" in said["message"]


@pytest.mark.parametrize(("fields", "param"), [
    ({"stop": 5}, "stop"), ({"stop": ["a", 5]}, "stop.1"), ({"thinking": 7}, "thinking"),
    ({"thinking": {"type": "on"}}, "thinking.type"), ({"thinking": {}}, "thinking.type"), ({"think": 5}, "think"),
    ({"enable_thinking": "false"}, "enable_thinking"), ({"enable_thinking": 0}, "enable_thinking"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"), ({"vlroute": {"price": -1}}, "vlroute.price"),
    ({"temperature": float("nan")}, "temperature"), ({"vlroute": {"price": float("inf")}}, "vlroute.price"),
    ({"seed": float("inf")}, "seed"), ({"max_tokens": 10**400}, "max_tokens"),
])  # fmt: skip
def test_a_wrong_value_names_its_field_and_nothing_else(http: httpx.Client, fields: Any, param: str) -> None:
    assert error(post(http, fields), 422)["param"] == param


def test_other_requests_have_allow_lists(http: httpx.Client) -> None:
    for path, asked in (("/v1/feedback", {"id": "x", "correct": True}), ("/api/predict", {"data": [None, "Hello?"]})):
        body = error(http.post(path, json={**asked, "commentt": 1}))
        assert (body["code"], body["param"]) == ("unknown_parameter", "commentt")
    gradio = {"data": [None, "Hello?", None], "fn_index": 0, "session_hash": "x"}
    assert http.post("/api/predict", json=gradio).status_code == 200


def test_a_repeat_penalty_is_a_repetition_penalty(server: Served, http: httpx.Client) -> None:
    alone = server.router.ask(SOME.prompt, **media(SOME), mode="thinking", repetition_penalty=5.0)
    for name in ("repeat_penalty", "repetition_penalty"):
        said = http.post(CHAT, json={"messages": [user(SOME)], "model": "thinking", name: 5.0}).json()
        assert said["choices"][0]["message"]["reasoning"] == alone.thinking


@pytest.mark.parametrize("fields", [
    {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None},  # openai
    {"annotations": [], "tool_calls": [], "reasoning": "r", "reasoning_content": "r"},  # vLLM's own, sent back
    {"reasoning_content": "r", "provider_specific_fields": {"reasoning": "r", "refusal": None}},  # litellm
    {"name": "someone"}, {"content": [{"type": "text", "text": "Yes."}]}, {"reasoning_content": ""},
])  # fmt: skip
def test_past_answers_of_clients_are_accepted(http: httpx.Client, fields: dict[str, Any]) -> None:
    question = {"role": "user", "content": "Is it?"}
    messages = [{"role": "system", "content": "Be brief."}, question,
                {"role": "assistant", "content": "Yes.", **fields}, question]  # fmt: skip
    said = http.post(CHAT, json={"messages": messages, "model": "instruct", "max_tokens": 8})
    assert said.status_code == 200, said.text


LONE = "\ud800x"  # a lone surrogate: valid in JSON, but not in UTF-8


@pytest.mark.parametrize("address", [LONE, "http://a/" + LONE, "http://" + LONE, "data:" + LONE])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_lone_surrogate_in_an_address_is_refused(http: httpx.Client, kind: str, address: str) -> None:
    parts: list[dict[str, Any]] = [{"type": kind, key: address} for key in (kind, "url", "path", "base64")]
    parts += [{"type": f"{kind}_url", f"{kind}_url": url} for url in (address, {"url": address})]
    for part in parts:
        asked = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}
        for path in (ROUTE, CHAT):
            error(post(http, asked, path))


def test_a_lone_surrogate_in_another_field_is_refused_by_name(http: httpx.Client) -> None:
    for fields in ({"model": LONE}, {"vlroute": {"caption": LONE}}, {"reasoning_effort": LONE}):
        for path in (ROUTE, CHAT):
            assert error(post(http, fields, path), 422)["param"].startswith(next(iter(fields)))
    for stop in (LONE, [LONE]):
        assert "stop" in error(post(http, {"stop": stop}))["message"]
    for asked in ({"id": LONE, "correct": True}, {"id": "x", "correct": True, "comment": LONE}):
        sent = http.post("/v1/feedback", content=json.dumps(asked), headers={"Content-Type": "application/json"})
        error(sent, 422)


def test_a_lone_surrogate_is_stored_as_a_replacement(tmp_path: Path) -> None:
    router = Router.from_pretrained(store=tmp_path / "answers.db")
    answer = router.ask(SOME.prompt, caption=LONE, max_new_tokens=2)
    router.feedback(answer.id, correct=True, comment=LONE)
    with pytest.raises(UnknownAnswerError):
        router.feedback(LONE, correct=True)
    with pytest.raises(SettingsError, match="stop"):
        router.ask(SOME.prompt, stop=[LONE])


@pytest.mark.parametrize("path", [ROUTE, CHAT])
def test_an_unexpected_error_keeps_the_connection_and_is_logged_once(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault in this server")

    monkeypatch.setattr(server.router, "decide_on", fail)
    monkeypatch.setattr(Pipeline, "answer", fail)
    with server.http() as http:
        for _ in range(4):
            assert error(post(http, {}, path), 500)["code"] == "internal_error"
            assert http.get("/health").status_code == 200
    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(failures) == 4
    assert all(record.exc_info for record in failures)


INTEGERS = ("max_tokens", "max_completion_tokens", "top_k", "seed", "thinking_budget", "reasoning_budget")
NUMBERS = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty",
)  # fmt: skip


@pytest.mark.parametrize("name", [*INTEGERS, *NUMBERS])
def test_numbers_are_neither_booleans_nor_strings(http: httpx.Client, name: str) -> None:
    for value in (True, False, "1", "0.5", float("nan"), [1], *((1.5,) if name in INTEGERS else ())):
        assert error(post(http, {name: value}), 422)["param"] == name
    for value in (1, 1.0):
        assert post(http, {name: value}).status_code == 200


@pytest.mark.parametrize("value", [True, "0.2", float("nan")])
def test_numbers_inside_other_objects_are_strict_too(http: httpx.Client, value: Any) -> None:
    assert error(post(http, {"vlroute": {"price": value}}), 422)["param"] == "vlroute.price"
    if value is not True:
        asked = {"id": "x", "correct": value}
        sent = http.post("/v1/feedback", content=json.dumps(asked), headers={"Content-Type": "application/json"})
        assert error(sent, 422)["param"] == "correct"


def test_integral_floats_count_as_integers(http: httpx.Client) -> None:
    asked = {**ASKED, "model": "instruct", "temperature": 1, "top_k": 3.0, "seed": -2.0}
    few = http.post(CHAT, json={**asked, "max_tokens": 2.0}).json()
    assert few["usage"]["completion_tokens"] == 2
    assert few["choices"] == http.post(CHAT, json={**asked, "max_tokens": 2, "seed": -2}).json()["choices"]


def test_a_value_without_effect_has_its_type(http: httpx.Client, known: dict[str, Any]) -> None:
    for name, field in known.items():
        for value in (value for value in field.get("enum", ()) if isinstance(value, bool | int)):
            other = int(value) if isinstance(value, bool) else bool(value)
            if other not in field["enum"] or value in (0, 1):
                assert error(post(http, {name: other}))["param"] == name


def test_nan_is_reported(http: httpx.Client) -> None:
    assert "finite" in error(post(http, {"temperature": float("nan")}), 422)["message"]


def test_json_that_python_cannot_parse_is_reported_with_the_cause(http: httpx.Client) -> None:
    for broken, cause in (
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested"), ("[" * 100_000, "nested"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
    ):  # fmt: skip
        for path in (ROUTE, CHAT):
            sent = http.post(path, content=broken, headers={"Content-Type": "application/json"})
            assert cause in error(sent)["message"]
            assert "UTF-8" not in error(sent)["message"]
