"""Structured output: what is accepted, and answers that have the form, whatever else is set."""

from __future__ import annotations

import json
import pickle
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, Generic, Literal, TypeVar

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field, field_validator
from training.bench.structured import LONG, answer_schemas
from training.pocket.checkpoint import ADDED, SPECIAL

from tests.conftest import forget, media, task
from tests.forcing import STRONG, biased, end_id, token_ids
from tests.recording import model_calls
from tests.scripted_endpoint import DONE, USAGE, Scripted, chunk, scripted_endpoint
from tests.serving import Served, served, user
from tests.tiny import write_tiny
from vlroute import Answer, Endpoint, Router
from vlroute.engine.local.early_exit import EarlyExit
from vlroute.engine.local.grammar import allowed_tokens, constraint
from vlroute.engine.local.reasoning import CLOSING
from vlroute.engine.local.scheduler import Scheduler
from vlroute.errors import MissingExtraError, SettingsError
from vlroute.learning import draw_evenly
from vlroute.pocket import TASKS
from vlroute.serving.settings import ServerSettings
from vlroute.structured import ResponseFormat, json_schema, read_format
from vlroute.types import MODES, AnswerDelta, Finished, ThinkingDelta

pytestmark = pytest.mark.float32
T = TypeVar("T")
KEY = "a-key-for-these-tests"
SOME = task("math")
HARD = task("math", "hard")


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: int = Field(ge=0, le=99)


class Square(BaseModel):
    kind: Literal["square"]
    side: int = Field(ge=0, le=99)


class Drawing(BaseModel):
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]] = Field(max_length=1)
    title: str = Field(max_length=8)
    color: Literal["red", "green"] | None = None


class Box(BaseModel, Generic[T]):
    content: T


class Odd(BaseModel):
    value: int = Field(ge=0, le=9)

    @field_validator("value")
    @classmethod
    def _refuse(cls, value: int) -> int:
        raise ValueError("never right")


NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 3}
FORMS: dict[str, Any] = {
    "model": Drawing,
    "schema": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": NUMBERS, "strict": True}},
    "choice": {"choice": ["yes", "yes, but", "no", "圆形", 'a "b"\\\n c']},
    "regex": {"regex": "[A-Z]{2}-[0-9]{3}( (red|green)){1,2}"},
}


def fits(form: Any, text: str) -> bool:
    """Whether `text` has one of `FORMS`."""
    if isinstance(form, type) and issubclass(form, BaseModel):
        return bool(form.model_validate_json(text))
    if "choice" in form:
        return text in form["choice"]
    if "regex" in form:
        return bool(re.fullmatch(form["regex"], text))
    jsonschema.validate(json.loads(text), form["json_schema"]["schema"])
    return True


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with Router.from_pretrained(write_tiny("qwen3_5", tmp_path_factory.mktemp("hybrid"))).load() as router:
        yield router


@pytest.fixture
def both(router: Router, hybrid: Router) -> dict[str, Router]:
    """A tokenizer with a fallback to bytes, and one whose tokens are bytes as Qwen's."""
    return {"pair": router, "hybrid": hybrid}


def ask(router: Router, form: Any, mode: Any = "instruct", **settings: Any) -> Answer:
    settings = {"max_new_tokens": 500, **({} if "temperature" in settings else {"do_sample": False}), **settings}
    return router.ask(SOME.prompt, **media(SOME), mode=mode, response_format=form, **settings)


# --- what is accepted ---


@pytest.mark.parametrize(("given", "kind", "content"), [
    (Drawing, "json_schema", None),
    ({"type": "text"}, "text", ""),
    ({"type": "json_object"}, "json_object", ""),
    ({"type": "json_object", "schema": NUMBERS}, "json_schema", NUMBERS),
    ({"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBERS}}, "json_schema", NUMBERS),
    ({"type": "json_schema", "json_schema": {"schema": NUMBERS, "strict": None}}, "json_schema", NUMBERS),
    ({"json": NUMBERS}, "json_schema", NUMBERS),
    ({"json": json.dumps(NUMBERS)}, "json_schema", NUMBERS),
    ({"choice": ["a", "b", "a"]}, "choice", ("a", "b")),
    ({"regex": "[0-9]+"}, "regex", "[0-9]+"),
    (ResponseFormat("regex", "a"), "regex", "a"),
])  # fmt: skip
def test_forms(given: Any, kind: str, content: Any) -> None:
    found = read_format("response_format", given)
    assert found.kind == kind
    if content is not None:
        assert (json.loads(str(found.content)) if isinstance(content, dict) else found.content) == content
    assert pickle.loads(pickle.dumps(found)) == found
    assert str(found) == f"{found.kind} {found.content}"


def schema_error(**schema: Any) -> dict[str, Any]:
    return {"json": {"type": "object", "properties": {"a": schema}}}


ONE_OF = "must be {'type': 'json_object'}"
REFUSED: list[tuple[Any, str]] = [
    (3, ONE_OF), ("json", ONE_OF), ({}, ONE_OF),
    (int, ONE_OF), ({"type": "object"}, ONE_OF),
    ({"type": "structural_tag"}, ONE_OF), ({"grammar": "root ::= 'a'"}, ONE_OF),
    ({"json": NUMBERS, "choice": ["a"]}, ONE_OF),
    ({"type": "json_schema"}, ONE_OF),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, "must be a JSON schema"),
    ({"type": "json_schema", "json_schema": {"schema": NUMBERS, "stict": True}}, "stict"),
    ({"type": "json_schema", "json_schema": {"schema": NUMBERS, "strict": 1}}, "strict must be"),
    ({"type": "json_schema", "json_schema": {"schema": NUMBERS, "name": 1}}, "name must be"),
    ({"json": "{"}, "not JSON"), ({"json": "3"}, "must be a JSON schema"),
    ({"json": {"const": float("nan")}}, "not JSON"),
    ({"json": {"const": {1, 2}}}, "not JSON"), ({"json": {"const": "\ud800"}}, "surrogate"),
    (schema_error(**{"not": {}}), "uses not,"), (schema_error(uniqueItems=True, type="array"), "uses uniqueItems,"),
    (schema_error(contains={}, type="array"), "uses contains,"), (schema_error(**{"if": {}, "then": {}}), "if, then"),
    (schema_error(type="object", propertyNames={}), "propertyNames"), (schema_error(divisibleBy=2), "divisibleBy"),
    (schema_error(type="string", minLenght=3), "minLenght (did you mean minLength?)"),
    (schema_error(type="strin"), "Invalid type: strin"), (schema_error(type="string", format="colour"), "colour"),
    (schema_error(type="string", minLength="x"), "minLength"),
    (schema_error(type="string", pattern="(?=a)b"), "look-ahead"),
    (schema_error(oneOf=[{"type": "string"}, {"const": "a"}]), "oneOf"),
    (schema_error(**{"$ref": "#/nowhere"}), "/nowhere"),
    ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum"), ({"json": {"enum": []}}, "invalid"),
    *[(schema_error(**{key: number}), f"{key} needs numbers up to 2**53")
      for key, number in (("const", 2**53 + 1), ("const", -(2**63)), ("enum", ["a", {"b": [-1e19]}]),
                          ("maximum", -(2**63)), ("exclusiveMinimum", 2**64))],
    ({"json": {"properties": {"default": {"const": -(2**63)}}}}, "const needs numbers"),
    ({"json": {"default": {"const": -(2**63)}, "$ref": "#/default"}}, "const needs numbers"),
    (schema_error(multipleOf=-2), "multipleOf must be above 0"),
    (schema_error(multipleOf=10_000_019), "multipleOf 10000019 is not supported"),
    (schema_error(multipleOf=2**20), "multipleOf 1048576"), (schema_error(multipleOf=10**4200 + 1), "multipleOf 1"),
    (schema_error(allOf=[{"multipleOf": 311}, {"multipleOf": 0.313}, {"multipleOf": 17}]), "common multiple"),
    ({"json": {"properties": {"a": {"multipleOf": 2**20}, "b": {"multipleOf": 5**20}}}}, "multipleOf 1048576"),
    ({"choice": []}, "at least one string"), ({"choice": "ab"}, "at least one"), ({"choice": [1]}, "at least one"),
    ({"choice": [" a"]}, "white space"), ({"choice": [""]}, "at least one"), ({"choice": ["\ud800"]}, "at least one"),
    ({"regex": ""}, "not empty"), ({"regex": "a("}, "unclosed group"), ({"regex": r"(a)\1"}, "backreferences"),
    ({"regex": r"\bx"}, "lookaround"), ({"regex": r"[^\s\S]"}, "no text"),
    ({"regex": "((a{1000}){1000}){1000}"}, "not supported"),
    ({"regex": "a" * 200_000}, "200000 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda one: str(one)[:40])
def test_what_cannot_be_followed_is_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        read_format("response_format", given)
    assert str(caught.value).startswith("response_format")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("schema", [
    {"minimum": -(2**60), "maximum": 9}, {"minimum": 0, "maximum": 2**63 - 1}, {"multipleOf": 86_400},
    {"type": "number", "multipleOf": 1e-9}, {"const": 2**53},
    {"type": "boolean", "const": True},
])  # fmt: skip
def test_large_numbers_that_can_be_followed(schema: dict[str, Any]) -> None:
    assert read_format("response_format", {"json": {"type": "integer"} | schema}).kind == "json_schema"


def chain(link: Any, count: int) -> dict[str, Any]:
    """Schemas each of which refers to the next one."""
    links = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(count)}
    return {"$defs": links | {f"a{count}": {"type": "string"}}, "$ref": "#/$defs/a0"}


LINKS: dict[str, Any] = {
    "$ref": lambda next: next,
    "anyOf": lambda next: {"anyOf": [next]},
    "two": lambda next: {"anyOf": [next, {"type": "array", "items": next}]},
    "allOf": lambda next: {"allOf": [next]},
    "items": lambda next: {"type": "array", "items": next},
    "properties": lambda next: {"type": "object", "properties": {"a": next}},
    "named as a keyword": lambda next: {"type": "object", "properties": {"default": {"anyOf": [next]}}},
}


@pytest.mark.parametrize("link", LINKS)
def test_a_chain_of_references_that_would_end_the_process(link: str) -> None:
    with pytest.raises(SettingsError, match=r"nested too deeply|characters"):
        read_format("response_format", {"json": chain(LINKS[link], 1700)})
    assert read_format("response_format", {"json": chain(LINKS[link], 15)}).is_json


def test_a_recursive_schema() -> None:
    tree = {"type": "object", "properties": {"more": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}}}
    assert read_format("response_format", {"json": tree}).is_json


def test_many_alternatives_are_compared_in_linear_time() -> None:
    empty = {"type": "object", "required": ["a"], "properties": {"a": {"enum": []}}}
    began = time.process_time()
    with pytest.raises(SettingsError):
        read_format("response_format", {"json": {"e": empty, "oneOf": [{"$ref": "#/e"}] * 6000}})
    assert time.process_time() - began < 5


@pytest.mark.parametrize("depth", [300, 100_000])
def test_deeply_nested_schemas_are_refused(depth: int) -> None:
    schema: Any = {}
    for _ in range(depth):
        schema = {"items": schema}
    with pytest.raises(SettingsError, match="json"):
        read_format("response_format", {"json": schema})


@pytest.mark.parametrize("way", ["ask", "stream", "chat", "router", "mode"])
def test_an_invalid_format_is_refused_before_anything_runs(router: Router, way: str) -> None:
    bad = schema_error(uniqueItems=True, type="array")
    ways: dict[str, Any] = {
        "ask": lambda: router.ask(SOME.prompt, **media(SOME), response_format=bad),
        "stream": lambda: router.stream(SOME.prompt, **media(SOME), response_format=bad),
        "chat": lambda: router.chat().send(SOME.prompt, **media(SOME), response_format=bad),
        "router": lambda: Router.from_pretrained(response_format=bad),
        "mode": lambda: Router.from_pretrained(generation={"thinking": {"response_format": bad}}),
    }
    with model_calls() as calls, pytest.raises(SettingsError, match="uniqueItems"):
        ways[way]()
    assert not calls


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, router: Router) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'vlroute[structured]'")):
        ask(router, Drawing)


# --- answers ---


def test_answers_to_random_schemas_fit_them(router: Router) -> None:
    tasks = [one for one in draw_evenly(600, "structured output") if not one.is_video][:200]
    hot = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "max_new_tokens": 320}  # decimals of a number come to an end
    found = answer_schemas(router, tasks, **hot)
    assert len(found) == 200
    assert not [(one.schema, one.answer.text, one.problem) for one in found if one.problem]
    assert sum(one.cut for one in found) <= 20
    for one in found:
        assert one.answer.parsed == (None if one.cut else json.loads(one.answer.text))
    plain = router.ask_many([
        {"prompt": each.prompt, "images": each.frames[0], "mode": "thinking", "seed": i, **hot}
        for i, (each, one) in enumerate(zip(tasks, found, strict=True)) if one.mode == "thinking"
    ])  # fmt: skip
    ours = [one.answer for one in found if one.mode == "thinking"]
    assert [one.thinking for one in ours] == [one.thinking for one in plain]
    assert [one.closed for one in ours] == [one.closed for one in plain]
    assert any(one.thinking for one in ours)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["pair", "hybrid"])
def test_each_form_in_both_modes(both: dict[str, Router], which: str, mode: Any, form: str) -> None:
    for settings in ({}, {"seed": 1, "temperature": 3.0, "top_k": 0, "top_p": 1.0}):
        answer = ask(both[which], FORMS[form], mode, thinking_budget=20, **settings)
        assert answer.finish_reason == "stop"
        assert fits(FORMS[form], answer.text)
        plain = ask(both[which], None, mode, thinking_budget=20, **settings, max_new_tokens=40, answer_reserve=1)
        assert answer.thinking == plain.thinking


@pytest.mark.parametrize("which", ["pair", "hybrid"])
def test_an_answer_in_a_batch_is_that_alone(both: dict[str, Router], which: str) -> None:
    """Beside answers of other forms, of no form, of the other mode, and with settings for one answer at a time."""
    router = both[which]
    forms = [*FORMS.values(), None, {"type": "json_object"}]
    settings: list[dict[str, Any]] = [
        {"do_sample": False}, {"seed": 3, "temperature": 1.0}, {"do_sample": False, "no_repeat_ngram_size": 3},
    ]  # fmt: skip
    asked: list[dict[str, Any]] = [
        {"prompt": f"{SOME.prompt} {i}", **media(SOME), "mode": MODES[i % 2], "max_new_tokens": 60,
         "response_format": forms[i % len(forms)], "thinking_budget": 10, **settings[i % len(settings)]}
        for i in range(12)
    ]  # fmt: skip
    alone = [router.ask(**one) for one in asked]
    forget(router)
    together = router.ask_many(asked)
    assert [(one.text, one.thinking) for one in together] == [(one.text, one.thinking) for one in alone]


def test_seeds(router: Router) -> None:
    texts = [ask(router, Drawing, seed=seed, do_sample=True, temperature=2.0).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len({*texts}) > 1


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_is_the_answer(router: Router, mode: Any) -> None:
    settings = {"mode": mode, "do_sample": False, "max_new_tokens": 500, "response_format": Drawing}
    events = [*router.stream(HARD.prompt, **media(HARD), **settings)]
    answer = router.ask(HARD.prompt, **media(HARD), **settings)
    assert isinstance(events[-1], Finished)
    assert events[-1].answer.parsed == answer.parsed
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == answer.text
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == answer.thinking
    assert isinstance(answer.parsed, Drawing)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_an_interrupted_answer_goes_on(family: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Router.from_pretrained(write_tiny(family, tmp_path)).load() as router:
        scheduler, preempt, interrupted = router.scheduler, Scheduler._preempt, list[int]()
        assert scheduler is not None

        def counted(scheduler: Scheduler) -> None:
            before = {one: len(one.sampler.output_ids) for lane in scheduler._lanes.values() for one in lane.running}
            preempt(scheduler)
            running = {one for lane in scheduler._lanes.values() for one in lane.running}
            interrupted.extend(count for one, count in before.items() if one not in running)

        asked = [
            {"prompt": f"How many {i} are there?", "mode": mode, "max_new_tokens": 120, "do_sample": False,
             "thinking_budget": 10, "response_format": {"json": LONG}}
            for i in range(3) for mode in MODES
        ]  # fmt: skip
        alone = [router.ask(**one) for one in asked]
        lane = next(iter(scheduler._lanes.values()))
        monkeypatch.setattr(Scheduler, "_preempt", counted)
        monkeypatch.setattr(scheduler.memory, "kv", lane.slots.bytes_of(4, 128) + lane.slots.bytes_of(1, 128))
        with ThreadPoolExecutor(len(asked)) as pool:
            together = [*pool.map(lambda one: router.ask(**one), asked)]
        assert max(interrupted) > 20
        assert [(one.text, one.thinking) for one in together] == [(one.text, one.thinking) for one in alone]


# --- together with other settings ---


@pytest.mark.parametrize("which", ["pair", "hybrid"])
@pytest.mark.parametrize("token", ["<tool_call>", "<|im_end|>", " ", "\n"])
def test_no_control_token_and_no_endless_white_space(both: dict[str, Router], which: str, token: str) -> None:
    """The model would always generate this token."""
    router = both[which]
    for mode in MODES:
        with biased(router, mode, {token_ids(router, token, mode)[0]: STRONG}):
            answer = ask(router, FORMS["schema"], mode, thinking_budget=8, seed=1, do_sample=True)
        assert answer.finish_reason == "stop"
        assert fits(FORMS["schema"], answer.text)
        assert answer.text.startswith("[")


@pytest.mark.parametrize("which", ["pair", "hybrid"])
def test_no_added_token_is_text(both: dict[str, Router], which: str) -> None:
    checkpoint = both[which].pair.instruct
    tokenizer, size = checkpoint.tokenizer, checkpoint.model.config.text_config.vocab_size
    inside = constraint(tokenizer, size, read_format("x", {"regex": "(?s:.)*"}).grammar, frozenset())
    (allowed,) = allowed_tokens([inside], size, checkpoint.device).tolist()
    assert size >= len(allowed) > sum(allowed) > 300
    ids = tokenizer.convert_tokens_to_ids([*SPECIAL, *ADDED])
    assert {i for i in ids if allowed[i]} == {tokenizer.eos_token_id}
    assert not any(allowed[len(tokenizer) :])


@pytest.mark.parametrize("settings", [
    {"min_new_tokens": 200}, {"eos_token_id": -1}, {"eos_token_id": [2, 300]}, {"suppress_tokens": [*range(13, 1300)]},
    {"bad_words_ids": [[one] for one in range(269, 400)]}, {"no_repeat_ngram_size": 1}, {"repetition_penalty": 5.0},
    {"presence_penalty": 50.0, "frequency_penalty": 50.0}, {"typical_p": 0.1}, {"top_k": 1, "epsilon_cutoff": 0.5},
    {"eta_cutoff": 0.9}, {"min_p": 0.9, "seed": 1}, {"sequence_bias": {(280,): 100.0}},
    {"begin_suppress_tokens": [*range(1000)]},
], ids=lambda one: " ".join(one))  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_the_form_precedes_other_settings(router: Router, settings: dict[str, Any], mode: Any) -> None:
    for form in (FORMS["schema"], FORMS["choice"]):
        given = {"mode": mode, "max_new_tokens": 500, "thinking_budget": 10, "response_format": form, **settings}
        answer = router.ask(SOME.prompt, **media(SOME), **given)
        assert answer.finish_reason == "stop"
        assert fits(form, answer.text)


def test_a_pattern_of_nothing_or_of_white_space_ends(router: Router) -> None:
    for pattern, text in (("a*", "a"), (r"\s{2}", ""), ("(a|)", "a")):
        for settings in ({}, {"min_new_tokens": 5}):
            answer = ask(router, {"regex": pattern}, suppress_tokens=token_ids(router, "aa"), **settings)
            assert answer.finish_reason == "stop"
            assert set(answer.text) <= set(text)


def test_a_stop_string_ends_the_answer(router: Router) -> None:
    answer = ask(router, {"json": {"const": [1, 2, 3]}}, stop=["2"])
    assert (answer.text.replace(" ", "").replace("\n", ""), answer.finish_reason) == ("[1,", "stop")
    assert answer.parsed is None


@pytest.mark.parametrize("which", ["pair", "hybrid"])
def test_a_thought_that_ends_early(both: dict[str, Router], which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials have the form too; without one, they do not end as early."""
    router, tried, push = both[which], list[list[int]](), EarlyExit.push

    def kept(exit: EarlyExit, *args: Any) -> bool:
        ended = push(exit, *args)
        if ended and exit._previous:
            tried.append(exit._previous)
        return ended

    monkeypatch.setattr(EarlyExit, "push", kept)
    form = {"choice": ["circle", "square"]}
    for kind in [*TASKS][:3]:
        one = task(kind, "hard")
        given = {"prompt": one.prompt, **media(one), "mode": "thinking", "do_sample": False, "max_new_tokens": 80,
                 "response_format": form, "close_loops": False}  # fmt: skip
        plain, ours = router.ask(**given), router.ask(**given, early_exit=1e-3)
        assert fits(form, ours.text)
        assert plain.thinking.startswith(ours.thinking)
    assert tried
    tokenizer = router.pair.thinking.tokenizer
    assert {tokenizer.decode(ids, skip_special_tokens=True) for ids in tried} <= {"circle", "square"}


def test_a_thought_that_the_model_closes_is_followed_by_the_white_space_of_the_template(router: Router) -> None:
    closing = token_ids(router, CLOSING)
    behind = closing[closing.index(token_ids(router, "</think>")[0]) + 1 :]
    asked = {"prompt": HARD.prompt, **media(HARD), "mode": "thinking", "do_sample": False}
    plain, answer = router.ask(**asked), router.ask(**asked, response_format={"choice": ["7"]})
    assert plain.closed is answer.closed is None
    assert (answer.thinking, answer.text) == (plain.thinking, "7")
    assert answer.usage.completion_tokens - answer.usage.thinking_tokens == len(behind) + 1
    assert behind


def test_an_answer_of_instruct_for_thinking_has_the_form(router: Router) -> None:
    answer = ask(router, {"choice": ["a"]}, "thinking", max_new_tokens=2)
    assert answer.decision.rescued
    assert (answer.text, answer.finish_reason) == ("a", "stop")


# --- what the caller gets ---


def test_a_pydantic_model_is_parsed(router: Router) -> None:
    answer = ask(router, Drawing)
    assert isinstance(answer.parsed, Drawing)
    assert answer.parsed == Drawing.model_validate_json(answer.text)
    assert json.loads(json.dumps(answer.as_dict()))["parsed"] == json.loads(answer.parsed.model_dump_json())
    assert hash(answer)


def test_what_is_not_parsed(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(router, None).parsed is None
    assert ask(router, {"choice": ["1"]}).parsed is None
    assert ask(router, {"regex": "1"}).parsed is None
    cut = ask(router, {"json": LONG}, max_new_tokens=20)
    assert (cut.finish_reason, cut.parsed) == ("length", None)
    assert ask(router, {"json": NUMBERS}).parsed[0] >= 0
    assert not [record for record in caplog.records if "parsed" in record.message]
    refused = ask(router, Odd)
    assert (refused.finish_reason, refused.parsed) == ("stop", None)
    assert "never right" in caplog.text


def test_a_format_of_a_router_and_of_a_mode() -> None:
    with Router.from_pretrained(
        response_format={"choice": ["both"]}, generation={"thinking": {"response_format": Drawing}}, do_sample=False
    ) as one:
        assert one.ask(SOME.prompt, mode="instruct").text == "both"
        assert isinstance(one.ask(SOME.prompt, mode="thinking", max_new_tokens=500).parsed, Drawing)
        assert one.ask(SOME.prompt, mode="thinking", response_format={"choice": ["mine"]}).text == "mine"
        free = one.ask(SOME.prompt, mode="instruct", response_format={"type": "text"})
        assert free.text != "both"
        (*_, last) = one.stream(SOME.prompt, mode="instruct", response_format={"type": "text"})
        assert isinstance(last, Finished)
        assert last.answer.text == free.text


async def _asked(router: Router) -> Answer:
    return await router.aask(SOME.prompt, mode="instruct", response_format={"choice": ["yes"]})


def test_a_chat_and_an_event_loop(router: Router, tmp_path: Any) -> None:
    import asyncio

    assert asyncio.run(_asked(router)).text == "yes"
    chat = router.chat()
    first = chat.send(SOME.prompt, **media(SOME), mode="instruct", response_format=Drawing, max_new_tokens=500)
    assert isinstance(first.parsed, Drawing)
    chat.save(tmp_path)
    again = router.resume(tmp_path)
    assert again.history[0].answer.parsed == json.loads(first.parsed.model_dump_json())
    assert again.send("And now?", mode="instruct", response_format={"choice": ["no"]}).text == "no"


# --- over HTTP ---


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServerSettings(api_keys=(KEY,), max_num_seqs=8)) as one:
        yield one


CHAT = "/v1/chat/completions"


def post(server: Served, **fields: Any) -> Any:
    body = {"messages": [user(SOME)], "model": "instruct", "max_tokens": 500, **fields}
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        return http.post(CHAT, json=body)


@pytest.mark.parametrize("mode", MODES)
def test_the_official_client_parses(server: Served, mode: str) -> None:
    client = server.openai(KEY)
    asked: dict[str, Any] = {"model": mode, "messages": [user(SOME)], "temperature": 0, "max_tokens": 500}
    parsed = client.chat.completions.parse(**asked, response_format=Drawing).choices[0].message
    assert isinstance(parsed.parsed, Drawing)
    with client.chat.completions.stream(**asked, response_format=Drawing) as stream:
        final = stream.get_final_completion().choices[0].message
    assert final.parsed == parsed.parsed
    assert bool(getattr(parsed, "reasoning", "")) == (mode == "thinking")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "form"), [
    ({"response_format": FORMS["schema"]}, "schema"), ({"guided_json": NUMBERS}, "schema"),
    ({"guided_json": json.dumps(NUMBERS)}, "schema"), ({"structured_outputs": {"json": NUMBERS}}, "schema"),
    ({"json_schema": json.dumps(NUMBERS)}, "schema"), ({"format": NUMBERS}, "schema"),
    ({"guided_choice": FORMS["choice"]["choice"]}, "choice"), ({"structured_outputs": FORMS["choice"]}, "choice"),
    ({"guided_regex": FORMS["regex"]["regex"]}, "regex"), ({"structured_outputs": FORMS["regex"]}, "regex"),
    (FORMS["regex"], "regex"), ({"guided_json": NUMBERS, "response_format": FORMS["schema"]}, "schema"),
])  # fmt: skip
def test_every_spelling_over_http(server: Served, fields: dict[str, Any], form: str, stream: bool) -> None:
    reply = post(server, stream=stream, **fields)
    assert reply.status_code == 200, reply.text
    if stream:
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        text = "".join(one.get("content") or "" for one in deltas)
    else:
        text = reply.json()["choices"][0]["message"]["content"]
    assert fits(FORMS[form], text)


@pytest.mark.parametrize("fields", [{"response_format": {"type": "text"}}, {"format": ""}, {"structured_outputs": {}}])
def test_no_format_over_http(server: Served, fields: dict[str, Any]) -> None:
    plain, ours = post(server).json(), post(server, **fields).json()
    assert ours["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]


@pytest.mark.parametrize("fields", [{"response_format": {"type": "json_object"}}, {"format": "json"}])
def test_any_object_over_http(server: Served, fields: dict[str, Any]) -> None:
    choice = post(server, temperature=1, seed=1, max_tokens=60, **fields).json()["choices"][0]
    assert choice["message"]["content"].startswith("{")
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize(("fields", "param", "message"), [
    ({"response_format": {"type": "grammar"}}, "response_format", "json_schema"),
    ({"guided_json": schema_error(uniqueItems=True, type="array")["json"]}, "guided_json", "uniqueItems"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}}, "response_format",
     "strin"),
    ({"guided_regex": "a("}, "guided_regex", "unclosed"), ({"guided_choice": []}, "guided_choice", "at least one"),
    ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex", "unclosed"),
    ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar", "not supported"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
    ({"structured_outputs": {"jsom": {}}}, "structured_outputs.jsom", "'json'"),
    ({"guided_grammar": "root ::= x"}, "guided_grammar", "not supported"), ({"ebnf": "x"}, "ebnf", "not supported"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice", "contradict"),
    ({"response_format": {"type": "json_object"}, "format": NUMBERS}, "format", "contradict"),
])  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/route"])
def test_refusals_over_http(server: Served, fields: dict[str, Any], param: str, message: str, path: str) -> None:
    with model_calls() as calls, server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        reply = http.post(path, json={"messages": [user(SOME)], **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert message in error["message"]
    assert not calls


def test_a_server_without_the_extra(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError, match="extra 'structured'"):
        server.openai(KEY).chat.completions.create(
            model="auto", messages=[user(SOME)], response_format={"type": "json_object"}
        )


# --- over endpoints ---


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Scripted]:
    with scripted_endpoint() as one:
        yield one


def played(endpoint: Scripted, text: str, form: Any, **options: Any) -> tuple[Answer, dict[str, Any]]:
    endpoint.play([chunk(text), chunk(end="stop"), USAGE, DONE])
    with endpoint.router(**options) as router:
        answer = router.ask("How many?", mode="instruct", response_format=form)
    return answer, endpoint.bodies[-1]


def test_json_is_sent_in_the_form_of_openai(endpoint: Scripted) -> None:
    answer, body = played(endpoint, "[1, 2]", FORMS["schema"])
    assert body["response_format"] == FORMS["schema"]
    assert answer.parsed == [1, 2]
    answer, body = played(endpoint, '{"a": 1}', {"type": "json_object"})
    assert body["response_format"] == {"type": "json_object"}
    assert answer.parsed == {"a": 1}
    answer, body = played(endpoint, '{"kind": "square", "side": 3}', Square)
    assert body["response_format"]["json_schema"]["name"] == "Square"
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["kind", "side"]
    assert answer.parsed == Square(kind="square", side=3)
    _, body = played(endpoint, '{"content": 1}', Box[int])
    assert body["response_format"]["json_schema"]["name"] == "Box_int_"
    answer, body = played(endpoint, "three", {"type": "text"})
    assert "response_format" not in body
    assert played(endpoint, "no JSON", Square)[0].parsed is None


def test_choices_are_sent_as_the_endpoint_says(endpoint: Scripted) -> None:
    assert played(endpoint, "a", {"choice": ["a"]}, choices="guided")[1]["guided_choice"] == ["a"]
    assert played(endpoint, "a", {"regex": "a"}, choices="guided")[1]["guided_regex"] == "a"
    _, body = played(endpoint, "a", {"choice": ["a", "b"]}, choices="structured_outputs")
    assert body["structured_outputs"] == {"choice": ["a", "b"]}
    _, body = played(endpoint, "a", {"regex": "a"}, choices="structured_outputs")
    assert body["structured_outputs"] == {"regex": "a"}


@pytest.mark.parametrize("form", [{"choice": ["a"]}, {"regex": "a"}])
def test_choices_are_refused_before_anything_is_sent(endpoint: Scripted, form: Any) -> None:
    endpoint.play([chunk("a", end="stop"), DONE])
    with endpoint.router() as router, pytest.raises(SettingsError, match="choices="):
        router.ask("How many?", mode="instruct", response_format=form)
    assert not endpoint.bodies
    with pytest.raises(ValueError, match="choices must be one of structured_outputs, guided"):
        endpoint.router(choices="grammar")


@pytest.mark.parametrize("form", FORMS)
def test_our_server_as_an_endpoint(server: Served, form: str) -> None:
    url = f"{server.url}/v1"
    ends = [Endpoint(url, mode, api_key=KEY, choices="structured_outputs") for mode in MODES]
    with Router.from_endpoints(*ends) as router:
        for mode in MODES:
            answer = ask(router, FORMS[form], mode)
            assert fits(FORMS[form], answer.text)
            assert (answer.parsed is None) == (form in ("choice", "regex"))
            assert bool(answer.thinking) == (mode == "thinking")


def test_no_end_token_inside(router: Router) -> None:
    """An id that ends the answer and is text as well is allowed only where the answer may end."""
    comma = token_ids(router, ",", "instruct")[0]
    answer = ask(router, {"json": NUMBERS}, eos_token_id=[comma, end_id(router, "instruct")])
    assert answer.finish_reason == "stop"
    assert isinstance(answer.parsed, list)


_BIG = {"type": "object", "properties": {"k": {"enum": [*range(9000)]}}, "required": ["k"]}
_PAIR = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a": _BIG}, "properties": {f"p{at}": _PAIR for at in range(650)}},
        {"$defs": {"a": {"$ref": "#/" + "x/" * 20_000}}, "oneOf": _PAIR["oneOf"] * 1250},
    ],
)
def test_references_are_looked_up_once(schema: dict[str, Any]) -> None:
    """It took a minute, before any limit of time applied."""
    began = time.thread_time()
    with suppress(SettingsError):
        json_schema("format", schema)
    assert time.thread_time() - began < 5
