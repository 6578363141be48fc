"""Edge cases of endpoints against a scripted server: forms of reasoning, ends of a stream, and faults."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scripted_endpoint import DONE, HANG_UP, READ_SECONDS, USAGE, Scripted, chunk, failed, scripted_endpoint
from tests.serving import served
from vlroute import Answer, Policy, Router
from vlroute.cli.app import run
from vlroute.engine.protocol import TOP_TOKENS, Evidence, Reply, Trial
from vlroute.engine.remote.client import RemoteEngine
from vlroute.engine.remote.endpoint import Endpoint
from vlroute.errors import EndpointError, InputError, ModeUnavailableError, SettingsError, VLRouteError
from vlroute.inputs.messages import parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.settings import ServerSettings
from vlroute.steps import run as run_steps
from vlroute.types import AnswerDelta, Finished, Mode, ThinkingDelta

END = [chunk(end="stop"), USAGE, DONE]
CUT = [chunk(end="length"), USAGE, DONE]
PAUSE = 30.0  # of a server that stops sending, in seconds


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted_endpoint() as script:
        yield script


@pytest.fixture(scope="module")
def routers(server: Scripted) -> dict[str, Router]:
    return {reasoning: server.router(reasoning=reasoning) for reasoning in ("auto", "parsed", "raw")}


@pytest.fixture
def _retries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlroute.engine.remote.client.random", SimpleNamespace(uniform=lambda *_: 0.0))


def asked(server: Scripted, router: Router, steps: Sequence[Any], mode: Any = "thinking", **options: Any) -> Answer:
    """The answer to one script, whose pieces must be its text. A second request is answered with `RESCUE`."""
    server.play(steps, RESCUE)
    events = list(router.stream("How many?", mode=mode, **options))
    answer = events[-1].answer if isinstance(events[-1], Finished) else pytest.fail("no answer")
    assert answer.text == "".join(one.text for one in events if isinstance(one, AnswerDelta))
    assert answer.thinking == "".join(one.text for one in events if isinstance(one, ThinkingDelta))
    return answer


#: What Instruct answers after Thinking has left no answer.
RESCUE = [chunk("rescued"), *END]
FIELD = [chunk(None, "so"), chunk("2")]
SPACE_FIRST = [chunk("\n"), chunk(None, "so"), chunk("\n2")]
ANSWER_FIRST = [chunk("2"), chunk(None, "so")]
MIXED = [chunk(" "), chunk("2", "s"), chunk(None, "o"), chunk("")]
IN_TEXT = [chunk("\nso\n"), chunk("</th"), chunk("ink>"), chunk("\n\n2")]
BOTH_TAGS = [chunk("<thi"), chunk("nk>\nso</thin"), chunk("k>2")]
PLAIN = [chunk("2")]


@pytest.mark.parametrize(
    ("steps", "reasoning", "expected"),
    [
        *((steps, setting, ("so", "2")) for steps in (FIELD, SPACE_FIRST, ANSWER_FIRST, MIXED)
          for setting in ("auto", "parsed")),
        *((steps, setting, ("so", "2")) for steps in (FIELD, SPACE_FIRST, IN_TEXT, BOTH_TAGS)
          for setting in ("auto", "raw")),
        (BOTH_TAGS, "parsed", ("so", "2")),
        (PLAIN, "auto", ("", "2")),
        (PLAIN, "parsed", ("", "2")),
        ([chunk("so </think> `</think>` 2 </think>")], "auto", ("so", "`</think>` 2")),
        ([chunk("so `</think>` so</think>2")], "auto", ("so `</think>` so", "2")),
        ([chunk("so ```\nx\n</think>\n\n2")], "raw", ("so ```\nx", "2")),
        ([chunk("so</think><think>so</think>2")], "raw", ("soso", "2")),
        ([chunk(None, "so"), chunk("so </think>\n\n2")], "auto", ("so", "so \n\n2")),
        ([chunk(None, "so"), chunk("```\n</think>\n```")], "auto", ("so", "```\n</think>\n```")),
    ],
)  # fmt: skip
def test_reasoning_and_answer_of_every_dialect(
    server: Scripted, steps: Any, reasoning: str, expected: tuple[str, str]
) -> None:
    answer = asked(server, server.router(reasoning=reasoning), [*steps, *END])
    assert (answer.thinking, answer.text, answer.finish_reason) == (*expected, "stop")


def test_a_stream_that_shows_nothing_is_read_as_earlier_ones(server: Scripted) -> None:
    router = server.router()
    assert asked(server, router, [*PLAIN, *END]).text == "2"
    asked(server, router, [*IN_TEXT, *END])
    answer = asked(server, router, [chunk("so"), *END])  # a thought that ended by itself
    assert (answer.thinking, answer.text, answer.finish_reason) == ("so", "rescued", "stop")
    asked(server, router, [*FIELD, *END])
    for end, reason in ((END, "stop"), (CUT, "length")):
        answer = asked(server, router, [*PLAIN, *end])
        assert (answer.thinking, answer.text, answer.finish_reason) == ("", "2", reason)


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
@pytest.mark.parametrize("text", ["2</think>", "</think>2", "2 </think>\n</think>"])
def test_no_closing_tag_stays_in_an_answer(server: Scripted, routers: dict[str, Router], mode: Any, text: str) -> None:
    answer = asked(server, routers["parsed"], [chunk(text), *END], mode)
    assert (answer.text, answer.finish_reason) == ("2", "stop")


@pytest.mark.parametrize("reasoning", ["auto", "parsed", "raw"])
@pytest.mark.parametrize("mode", ["instruct", "thinking"])
@pytest.mark.parametrize("steps", [[chunk(None, "so")], [chunk("")], [chunk("\n")], [chunk("so</think>\n")], []])
def test_an_empty_answer_is_no_success(server: Scripted, steps: Any, mode: Any, reasoning: str) -> None:
    if mode == "instruct" and steps == [chunk("so</think>\n")]:
        steps = [chunk("</think>\n")]
    answer = asked(server, server.router(reasoning=reasoning), [*steps, *END], mode)
    if reasoning == "parsed" and answer.text == "so":  # by its setting, content is the answer
        return
    rescued = mode == "thinking"
    assert (answer.text, answer.finish_reason) == (("rescued", "stop") if rescued else ("", "length"))
    assert answer.decision.rescued == rescued
    assert "no answer" in answer.decision.reason
    assert ("parser" in answer.decision.reason) == (mode == "instruct" and steps == [chunk(None, "so")])


@pytest.mark.parametrize("reasoning", ["auto", "raw"])
def test_truncated_reasoning_is_not_an_answer(server: Scripted, reasoning: str) -> None:
    answer = asked(server, server.router(reasoning=reasoning), [chunk("so"), *CUT])
    assert (answer.thinking, answer.text, answer.finish_reason) == ("so", "rescued", "stop")


@pytest.mark.parametrize("field", [True, False])
def test_reasoning_ends_where_the_reserve_for_the_answer_begins(server: Scripted, field: bool) -> None:
    """The server has no field for a budget, so that its stream is ended and Instruct answers with the other tokens."""
    steps = [chunk(*((None, f"so {i} ") if field else (f"so {i} ",))) for i in range(100)]
    with server.router(reasoning="parsed" if field else "raw") as router:
        answer = asked(server, router, [*steps, *END], max_new_tokens=40, answer_reserve=8)
        assert (answer.text, answer.finish_reason, answer.decision.rescued) == ("rescued", "stop", True)
        assert answer.usage.thinking_tokens == 32
        assert [body["max_tokens"] for body in server.bodies] == [40, 8]
        assert "kept for the answer" in answer.decision.reason
        short = asked(server, router, [chunk(None, "so"), *(chunk("2") for _ in range(39)), *CUT], max_new_tokens=40)
        assert (short.text, short.decision.rescued) == ("2" * 39, False)


def test_a_server_with_a_budget_closes_the_reasoning_itself(server: Scripted) -> None:
    with server.router(budget_field="thinking_token_budget") as router:
        for settings, budget in (
            ({"max_new_tokens": 40}, 30), ({"max_new_tokens": 40, "answer_reserve": 5}, 35),
            ({"max_new_tokens": 40, "thinking_budget": 7}, 7), ({"thinking_budget": 70}, 70), ({}, None),
        ):  # fmt: skip
            asked(server, router, [*FIELD, *END], **settings)
            assert server.bodies[0].get("thinking_token_budget") == budget
            assert server.bodies[0].get("max_tokens") == settings.get("max_new_tokens")


def test_reasoning_that_repeats_itself_is_ended(server: Scripted) -> None:
    steps = [chunk(None, word) for _ in range(60) for word in ("wait ", "let me ", "check ")]
    with server.router() as router:
        answer = asked(server, router, [*steps, *FIELD, *END])
        assert (answer.text, answer.decision.rescued) == ("rescued", True)
        assert answer.usage.thinking_tokens < 70
        assert "repeated itself" in answer.decision.reason
        answer = asked(server, router, [*steps, *FIELD, *END], close_loops=False)
        assert (answer.text, answer.decision.rescued) == ("2", False)


def test_counts_of_a_stream_that_is_ended_here(server: Scripted) -> None:
    """A server that sends counts with each chunk, of several tokens: they hold for the limit and for the usage."""

    def counted(i: int) -> dict[str, Any]:
        return {**chunk(None, f"so so {i} "), "usage": {"prompt_tokens": 21, "completion_tokens": 3 * (i + 1)}}

    options = {"include_usage": True, "continuous_usage_stats": True}
    with server.router(extra_body={"stream_options": options}) as router:
        answer = asked(server, router, [*(counted(i) for i in range(30)), *END], max_new_tokens=40, answer_reserve=8)
        assert answer.closed == "reserve"
        assert server.bodies[0]["stream_options"] == options
        assert [body["max_tokens"] for body in server.bodies] == [40, 7]  # 33 tokens in 11 chunks
        used = answer.usage
        assert (used.prompt_tokens, used.completion_tokens, used.thinking_tokens) == (41, 33 + 9, 33)


def test_counts_that_are_older_than_the_text(server: Scripted) -> None:
    """Some servers send counts with the first chunk; the last ones are missing if the stream is ended here."""
    first = {**chunk(None, "so "), "usage": {"prompt_tokens": 21, "completion_tokens": 1}}
    with server.router() as router:
        steps = [first, *(chunk(None, f"so {i} ") for i in range(60)), *END]
        used = asked(server, router, steps, max_new_tokens=40, answer_reserve=8).usage
        assert (used.prompt_tokens, used.completion_tokens, used.thinking_tokens) == (41, 32 + 9, 32)
        used = asked(server, router, steps[1:], max_new_tokens=40, answer_reserve=8).usage
        assert (used.prompt_tokens, used.completion_tokens, used.thinking_tokens) == (None, 32 + 9, 32)


def test_a_stream_that_ends_by_itself_keeps_its_counts(server: Scripted) -> None:
    """The last chunk is the last token before the reserve."""
    steps = [*(chunk(None, f"so {i} ") for i in range(31)), chunk(None, "so", end="length"), USAGE, DONE]
    with server.router() as router:
        answer = asked(server, router, steps, max_new_tokens=40, answer_reserve=8)
    assert (answer.decision.rescued, answer.closed) == (True, None)
    assert answer.usage.prompt_tokens == 20 + 20


def test_pictures_encoded_by_two_servers_are_added(server: Scripted) -> None:
    """Both servers are `vlroute serve`, which reports the number at the end of a stream."""

    def end(encoded: int) -> list[Any]:
        return [{**chunk(end="stop"), "vlroute": {"encoded": encoded}}, USAGE, DONE]

    with server.router() as router:
        for thought, total in (([chunk(None, "so"), *end(1)], 3), ([chunk(None, "so ")] * 90, None)):
            server.play(thought, [chunk("2"), *end(2)])
            answer = router.ask("How many?", mode="thinking")
            assert (answer.text, answer.decision.rescued, answer.usage.encoded) == ("2", True, total)


def test_reasoning_of_a_raw_server_without_a_closing_tag(server: Scripted, routers: dict[str, Router]) -> None:
    answer = asked(server, routers["raw"], [chunk("so"), *END])
    assert (answer.thinking, answer.text, answer.finish_reason) == ("so", "rescued", "stop")
    assert "no answer" in answer.decision.reason


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "length"),
        ("something_new", "length"),
    ],
)
def test_finish_reasons(server: Scripted, routers: dict[str, Router], end: str, expected: str) -> None:
    for mode in ("instruct", "thinking"):
        answer = asked(server, routers["auto"], [chunk(None, "so"), chunk("2"), chunk(end=end), DONE], mode)
        assert (answer.text, answer.finish_reason) == ("2", expected)
        assert (repr(end) in answer.decision.reason) == (end in ("tool_calls", "something_new"))


def test_a_refusal_is_a_content_filter(server: Scripted, routers: dict[str, Router]) -> None:
    answer = asked(server, routers["auto"], [chunk(None, refusal="I can't "), chunk(None, refusal="say."), *END])
    assert (answer.text, answer.finish_reason) == ("I can't say.", "content_filter")
    assert "refused" in answer.decision.reason


@pytest.mark.parametrize("end", ["error", "abort"])
def test_a_server_that_aborts_has_not_answered(server: Scripted, routers: dict[str, Router], end: str) -> None:
    with pytest.raises(ModeUnavailableError):
        asked(server, routers["auto"], [chunk(None, "so"), chunk("2"), chunk(end=end), DONE])


TEXT = st.lists(
    st.sampled_from([
        "</think>", "<think>", "`", "``", "```", "```\n", "\n", "\n\n", "~~~\n", "~", " ", "a", "<", "</", "</thin",
        "think>", "- ", "> ", "1. ", "END", "EN", "\r\n", "é",
    ]),
    max_size=14,
).map("".join)  # fmt: skip
CUTS = st.lists(st.integers(0, 60), max_size=10)


def pieces(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


FIELDS = st.sampled_from(["content", "content", "reasoning_content", "reasoning"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(FIELDS, TEXT), max_size=4), CUTS, st.sampled_from(["auto", "parsed", "raw"]),
    st.sampled_from(["instruct", "thinking"]), st.sampled_from([END, CUT]), st.booleans(),
)  # fmt: skip
def test_chunks_do_not_matter(
    server: Scripted, routers: dict[str, Router], stream: list[tuple[str, str]], cuts: list[int], setting: str,
    mode: str, end: Any, stop: bool,
) -> None:  # fmt: skip
    def told(cut: Any) -> tuple[str, str, str]:
        parts = [(field, part) for field, text in stream for part in cut(text)]
        steps = [chunk(part) if field == "content" else chunk(None, part, field=field) for field, part in parts]
        options: Any = {"mode": mode, "stop": ["END", "a<"] if stop else None}
        answer = asked(server, routers[setting], [*steps, *end], **options)
        return answer.text, answer.thinking, answer.finish_reason

    whole = told(lambda text: [text])
    assert whole == told(lambda text: pieces(text, cuts)) == told(list)
    assert whole[0] or stop or whole[2] != "stop"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
def test_tags_in_code_are_kept_and_others_removed(server: Scripted, routers: dict[str, Router], text: str) -> None:
    markdown = pytest.importorskip("markdown_it")
    text = "x " + text.replace("<think>", "").replace("```</think>", "")
    text = re.sub(r"\n\s*(?:> |- |1\. )+", "\n", text)  # quotes and lists that interrupt a paragraph are not recognized
    parser = markdown.MarkdownIt("commonmark", {"html": False}).disable(["html_block", "html_inline", "code"])
    inline = [child for token in parser.parse(text) for child in token.children or []]
    code = [token.info + token.content for token in parser.parse(text) if token.type == "fence"]
    code += [child.content for child in inline if child.type == "code_inline"]
    answer = asked(server, routers["parsed"], [chunk(text), *END])
    assert answer.text.count("</think>") == "".join(code).count("</think>") or "<" in text.replace("</think>", "")


def test_usage_after_a_stop_string_is_right_or_absent(server: Scripted, routers: dict[str, Router]) -> None:
    steps = [chunk(None, "so"), chunk("4"), chunk("EN"), chunk("D 5"), chunk(" 6"), *END]
    answer = asked(server, routers["auto"], steps, stop=["END"])
    assert (answer.text, answer.finish_reason) == ("4", "stop")
    assert answer.usage.prompt_tokens is None
    assert 0 < answer.usage.thinking_tokens < answer.usage.completion_tokens
    running = [{**step, "usage": USAGE["usage"]} for step in steps[:4]]
    answer = asked(server, routers["auto"], [*running, *steps[4:]], stop=["END"])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (20, 9)
    assert asked(server, routers["auto"], [chunk("2"), chunk(end="stop"), DONE]).usage.prompt_tokens is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ({"image_tokens": 5}, 5),
        ({"multimodal_tokens": 5}, 5),
        ({"multimodal_tokens": {"image": 3, "video": 2, "audio": 1}}, 5),
        ({"multimodal_tokens": None}, 0),
        ({}, 0),
    ],
)
def test_usage_of_every_dialect(server: Scripted, routers: dict[str, Router], prompt: Any, expected: int) -> None:
    used = {
        "choices": [],
        "usage": {
            **USAGE["usage"], "prompt_tokens_details": {"cached_tokens": 4, **prompt},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip
    thought = [chunk(None, one) for one in "think"]
    usage = asked(server, routers["auto"], [*thought, chunk("2"), chunk(end="stop"), used, DONE]).usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.vision_tokens) == (20, 4, expected)
    assert 0 < usage.thinking_tokens < usage.completion_tokens == 9


def test_chunks_without_anything(server: Scripted, routers: dict[str, Router]) -> None:
    empty = [
        ": keep-alive\n\n", {"choices": []}, {"choices": None}, {"object": "chat.completion.chunk"},
        chunk(None, None, role="assistant"), {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": None, "reasoning": None}}], "usage": None},
        {"choices": [{"index": 0}]},
    ]  # fmt: skip
    answer = asked(
        server, routers["auto"], [*empty, chunk(None, "so", field="reasoning"), *empty, chunk("2"), *empty, *END]
    )
    assert (answer.thinking, answer.text, answer.finish_reason) == ("so", "2", "stop")
    with pytest.raises(ModeUnavailableError, match="not text"):
        asked(server, routers["auto"], [chunk(None, reasoning_content=[{"type": "text", "text": "2"}]), *END])


REFUSALS = [
    (400, None, InputError), ("400", None, InputError), (422, None, InputError), (401, None, EndpointError),
    (404, None, EndpointError), (None, "BadRequestError", InputError), ("context_length_exceeded", None, InputError),
    ("limit_exceeded", "invalid_request_error", InputError), (None, "exceed_context_size_error", InputError),
    ("invalid_api_key", "invalid_request_error", EndpointError),
    ("model_not_found", "invalid_request_error", EndpointError),
]  # fmt: skip
OUTAGES = [500, "500", 502, None, "server_error", "InternalServerError", "something_new"]
OVERLOADS = [429, 503, "rate_limit_exceeded", "ServiceUnavailableError", "overloaded_error"]


@pytest.mark.parametrize(("code", "kind", "error"), REFUSALS)
def test_a_refusal_in_a_stream_is_no_outage(server: Scripted, code: Any, kind: Any, error: type[Exception]) -> None:
    router = server.router(retries=2)
    assert router.remote is not None
    for flat in (False, True):
        event = failed(code, kind)
        server.play([{"object": "error", **event["error"]} if flat else event, DONE])
        for _ in range(2):
            with pytest.raises(error, match="that went wrong"):
                router.ask("?", mode="thinking")
        assert len(server.bodies) == 2  # and is not sent again
    assert router.remote.breakers["thinking"].state == "closed"


@pytest.mark.usefixtures("_retries_at_once")
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(400, 599), st.booleans(), st.sampled_from(["code", "status"]), st.booleans())
def test_every_code_in_a_stream(server: Scripted, code: int, text: bool, field: str, in_chunk: bool) -> None:
    """A refused request or key does not count as an outage; other requests may be retried."""
    router = server.router(retries=1, read_seconds=20.0)
    assert router.remote is not None
    error = {"message": "that went wrong", field: str(code) if text else code}
    again = code >= 500 or code in (408, 409, 425, 429, 499)
    server.play([{"object": "error", **error} if in_chunk else {"error": error}], [chunk("2"), *END])
    if again:
        assert router.ask("?", mode="instruct").text == "2"
    else:
        with pytest.raises((InputError, EndpointError)):
            router.ask("?", mode="instruct")
    assert len(server.bodies) == 1 + again
    assert router.remote.breakers["instruct"].state == "closed"
    router.close()


@pytest.mark.usefixtures("_retries_at_once")
@pytest.mark.parametrize("code", [*OUTAGES, *OVERLOADS])
def test_an_outage_in_a_stream_is_retried_before_the_first_token(server: Scripted, code: Any) -> None:
    router = server.router(retries=1)
    for steps in ([failed(code), DONE], [chunk(None, role="assistant"), failed(code, "what"), DONE]):
        server.play(steps, [chunk("2"), *END])
        assert router.ask("?", mode="instruct").text == "2"
        assert len(server.bodies) == 2


@pytest.mark.usefixtures("_retries_at_once")
@pytest.mark.parametrize(
    "steps", [[HANG_UP], [chunk(None, role="assistant"), HANG_UP], [": ping\n\n"], ["data: {\n\n"]]
)
def test_a_stream_that_breaks_off_before_the_first_token(server: Scripted, steps: Any) -> None:
    router = server.router(retries=1)
    server.play(steps, [chunk("2"), *END])
    if steps == ["data: {\n\n"]:  # the error is not temporary, so a retry would fail too
        with pytest.raises(ModeUnavailableError):
            router.ask("?", mode="instruct")
        return
    assert router.ask("?", mode="instruct").text == "2"


@pytest.mark.parametrize("fault", [HANG_UP, failed(500), failed(503), failed("server_error")])
def test_after_the_first_token_nothing_is_sent_again(server: Scripted, fault: Any) -> None:
    router = server.router(retries=2)
    server.play([chunk(None, "so"), chunk("2"), fault])
    began = time.monotonic()
    with pytest.raises(ModeUnavailableError) as broken:
        router.ask("?", mode="thinking")
    assert broken.value.begun
    assert len(server.bodies) == 1
    assert time.monotonic() - began < READ_SECONDS  # a closed connection is not waited for


def test_only_outages_open_the_breaker_and_health_closes_it(server: Scripted) -> None:
    router = server.router()
    assert router.remote is not None
    breaker = router.remote.breakers["instruct"]
    for code in (*OVERLOADS, 400):
        server.play([failed(code), DONE])
        with pytest.raises((ModeUnavailableError, InputError)):
            router.ask("?", mode="instruct")
    assert breaker.state == "closed"
    server.play([failed(500), DONE])
    for _ in range(3):
        with pytest.raises(ModeUnavailableError):
            router.ask("?", mode="instruct")
    assert breaker.state == "open"
    server.play([chunk("2"), *END])
    with pytest.raises(ModeUnavailableError):
        router.ask("?", mode="instruct")
    health = router.remote.health()["instruct"]
    assert (health.reachable, health.breaker, breaker.state) == (True, "closed", "closed")
    assert router.ask("?", mode="instruct").text == "2"


def test_held_back_text_does_not_prevent_a_fallback(server: Scripted) -> None:
    """The other mode may answer if the stream of the first one failed before a piece was passed on."""
    router = Router.from_endpoints(
        *2 * (Endpoint(server.url, "m", retries=0),), policy=Policy(price=0.0, fallback_mode="thinking")
    )
    server.play([chunk("so"), failed(500)], [chunk("2"), *END])
    answer = router.ask("?")
    assert (answer.text, answer.decision.mode, answer.decision.fallback) == ("2", "instruct", True)


@pytest.mark.parametrize("steps", [[], [chunk("2")], [chunk(None, "so"), chunk("2")]])
def test_a_server_that_stops_sending_is_given_up(server: Scripted, steps: Any) -> None:
    router = server.router(idle_seconds=0.3, read_seconds=0.6 if not steps else 60.0)
    for silent in ([PAUSE], 300 * [0.1, ": ping\n\n", chunk("")]):  # keep-alives are no tokens
        server.play([*steps, *silent])
        began = time.monotonic()
        with pytest.raises(ModeUnavailableError, match="no token for") as broken:
            router.ask("?", mode="instruct")
        assert broken.value.begun == bool(steps)
        assert time.monotonic() - began < PAUSE


def test_a_slow_first_token_is_waited_for(server: Scripted) -> None:
    router = server.router(idle_seconds=0.2)
    server.play([0.8, chunk("2"), *END])
    assert router.ask("?", mode="instruct").text == "2"


@pytest.mark.parametrize("last", [PAUSE, HANG_UP, failed(500)])
def test_a_complete_answer_needs_no_end_of_the_stream(server: Scripted, routers: dict[str, Router], last: Any) -> None:
    began = time.monotonic()
    answer = asked(server, routers["auto"], [chunk(None, "so"), chunk("2"), chunk(end="stop"), last])
    assert (answer.text, answer.finish_reason, answer.usage.prompt_tokens) == ("2", "stop", None)
    assert time.monotonic() - began < PAUSE


def test_invalid_values_of_an_endpoint_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ends.json"
    good = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    for name, value in (
        ("idle_seconds", 0), ("idle_seconds", "5"), ("read_seconds", -1), ("connect_seconds", True), ("retries", -1),
        ("retries", 1.5), ("reasoning", "deepseek"), ("reasoning", None), ("budget_field", ""), ("budget_field", 3),
        ("model", 3), ("base_url", None), ("base_url", "http://"), ("base_url", "http://a:port/v1"),
        ("base_url", "http://a:99999/v1"), ("headers", "x"), ("headers", {"x": 3}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Endpoint(**{**good, name: value})
        file.write_text(json.dumps({"instruct": good, "thinking": {**good, name: value}}))
        with pytest.raises(InputError, match=name):
            Router.from_pretrained(file)
    file.write_text(json.dumps({"instruct": {**good, "idle_seconds": 3}, "thinking": good}))
    remote = Router.from_pretrained(file).remote
    assert remote is not None
    assert [remote.endpoints[mode].idle_seconds for mode in ("instruct", "thinking")] == [3, 20]  # type: ignore[index]


@pytest.mark.parametrize(
    "field", ["thinking_budget", "thinking_token_budget", "thinking_budget_tokens", "custom_params.thinking_budget"]
)
def test_budgets_and_penalties_under_every_name(server: Scripted, field: str) -> None:
    router = server.router(budget_field=field)
    server.play([chunk(None, "so"), chunk("2"), *END])
    router.ask("?", mode="thinking", thinking_budget=0, repetition_penalty=1.5)
    body = server.bodies[0]
    assert body["repetition_penalty"] == body["repeat_penalty"] == 1.5
    for name in field.split("."):
        body = body[name]
    assert body == 0
    for mode in ("thinking", "instruct"):
        with pytest.raises(ValueError, match="thinking_budget"):
            router.ask("?", mode=mode, thinking_budget=-1)  # type: ignore[arg-type]
    assert len(server.bodies) == 1


def test_a_past_answer_about_tags_is_sent_whole(server: Scripted) -> None:
    chat = server.router().chat()
    text = "`</think>` ends a thought"
    server.play([chunk(text), *END])
    assert chat.send("What is it?", mode="instruct").text == text
    chat.send("And then?", mode="thinking")
    past = server.bodies[1]["messages"][1]
    assert (past["content"], past["reasoning_content"]) == (text, "")


def test_clients_see_what_is_wrong_with_an_answer(server: Scripted) -> None:
    asked: Any = {"model": "thinking", "messages": [{"role": "user", "content": "?"}]}
    with served(ServerSettings(), router=server.router()) as front:
        client = front.openai()
        server.play([chunk(None, "so"), *END])
        whole: Any = client.chat.completions.create(**asked)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("", "length")
        assert "no answer" in whole.vlroute["decision"]["reason"]
        server.play([chunk(None, "so"), chunk("2"), chunk(end="content_filter"), DONE])
        whole = client.chat.completions.create(**asked)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("2", "content_filter")
        assert whole.usage is None
        server.play([chunk(None, "so"), *END])
        chunks: list[Any] = list(client.chat.completions.create(**asked, stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"
        assert "no answer" in chunks[-1].vlroute["decision"]["reason"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
DELTAS = st.dictionaries(st.sampled_from(["content", "reasoning", "reasoning_content", "refusal", "role"]), JSON)
CHOICES = st.fixed_dictionaries({}, optional={"delta": DELTAS | JSON, "finish_reason": JSON, "index": JSON})
CHUNKS = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(CHOICES | JSON, max_size=2) | JSON, "usage": st.just(USAGE["usage"]) | JSON, "error": JSON,
        "object": JSON, "vlroute": JSON,
    },
)  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHUNKS | JSON, max_size=4), st.sampled_from(["instruct", "thinking"]))
def test_any_stream_ends_in_an_answer_or_a_known_error(
    server: Scripted, routers: dict[str, Router], chunks: list[Any], mode: Any
) -> None:
    remote = routers["auto"].remote
    assert remote is not None
    remote.breakers[mode].succeeded()
    server.play([*(f"data: {json.dumps(one)}\n\n" for one in chunks), *END])
    try:
        answer = routers["auto"].ask("?", mode=mode)
    except VLRouteError:
        return
    assert answer.text or answer.finish_reason != "stop"


def test_a_slow_consumer_is_not_a_fault_of_the_server(server: Scripted) -> None:
    server.play([chunk("2"), chunk("3"), *END])
    router = server.router(idle_seconds=0.2)
    answer = router.answer_turn(parse("?"), RequestOptions(mode="instruct"), emit=lambda event: time.sleep(0.5))
    assert answer.text == "23"


def test_settings_without_effect_are_not_sent(server: Scripted) -> None:
    server.play([chunk("2"), *END])
    assert server.router().ask("?", mode="instruct", min_new_tokens=0, no_repeat_ngram_size=0).text == "2"
    assert not {"min_new_tokens", "no_repeat_ngram_size"} & set(server.bodies[0])
    with pytest.raises(TypeError, match="min_new_tokens"):
        server.router().ask("?", mode="instruct", min_new_tokens=1)
    assert len(server.bodies) == 1


def test_an_answer_without_reasoning_is_not_taken_for_reasoning(server: Scripted) -> None:
    """Neither under a budget of 0 nor where the server counts reasoning tokens, whatever came before."""
    counted = {"choices": [], "usage": {**USAGE["usage"], "completion_tokens_details": {"reasoning_tokens": 0}}}
    for end in ("stop", "length"):
        router = server.router(budget_field="thinking_budget")
        asked(server, router, [*IN_TEXT, *END])
        answer = asked(server, router, [*PLAIN, chunk(end=end), USAGE, DONE], thinking_budget=0)
        assert (answer.thinking, answer.text, answer.finish_reason) == ("", "2", end)
        answer = asked(server, router, [*PLAIN, chunk(end=end), counted, DONE])
        assert (answer.thinking, answer.text, answer.finish_reason) == ("", "2", end)


@pytest.mark.parametrize("reasoning", ["auto", "parsed", "raw"])
def test_halves_of_a_character_are_joined_over_chunks(server: Scripted, reasoning: str) -> None:
    router, halves = server.router(reasoning=reasoning), ["a\ud83d", "\ude00b"]
    chat = router.chat()
    server.play([*(chunk(None, one) for one in halves), *(chunk(one) for one in halves), *END])
    answer = chat.send("?", mode="thinking")
    assert (answer.thinking, answer.text) == ("a\U0001f600b", "a\U0001f600b")
    server.play([chunk(None, "\ude00"), chunk(None, "\ud83d"), chunk("\ud83d\ud83d"), chunk("\ude00x\ud83d"), *END])
    answer = chat.send("?", mode="thinking")  # the earlier turn can be sent
    assert (answer.thinking, answer.text) == ("\ufffd\ufffd", "\ufffd\U0001f600x\ufffd")
    server.play([failed(400, message="wrong: \ud83d"), DONE])
    with pytest.raises(InputError) as refusal:
        chat.send("?", mode="thinking")
    assert str(refusal.value).encode()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("a\U0001f600é\U0001f468\u200d", min_size=1, max_size=12), st.sets(st.integers(0, 24)))
def test_text_does_not_depend_on_cuts_within_characters(
    server: Scripted, routers: dict[str, Router], text: str, cuts: set[int]
) -> None:
    units = text.encode("utf-16-le")
    at = [0, *sorted(2 * cut for cut in cuts if 0 < 2 * cut < len(units)), len(units)]
    parts = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(at)]
    answer = asked(server, routers["auto"], [*(chunk(None, one) for one in parts), *map(chunk, parts), *END])
    assert (answer.thinking, answer.text) == (text, text)


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_sampling_is_asked_for(server: Scripted, mode: Any) -> None:
    router = server.router()
    server.play([chunk("2"), *END])
    for asking in ({"do_sample": True}, {"do_sample": True, "seed": 1}, {"top_p": 0.5}):
        router.ask("?", mode=mode, **asking)
        assert server.bodies[-1]["temperature"] > 0
    router.ask("?", mode=mode, do_sample=True, temperature=0.3)
    assert server.bodies[-1]["temperature"] == 0.3
    router.ask("?", mode=mode, seed=1)
    assert "temperature" not in server.bodies[-1]
    with pytest.raises(InputError, match="temperature"):
        router.ask("?", mode=mode, do_sample=True, temperature=0)
    assert len(server.bodies) == 5


def front_says(front: Any, mode: str, stream: bool = False) -> tuple[int, str]:
    """Status and body of the reply of `vlroute serve` to one request."""
    body = {"model": mode, "messages": [{"role": "user", "content": "?"}], "stream": stream}
    with front.http() as client:
        reply = client.post("/v1/chat/completions", json=body)
    return reply.status_code, reply.text


@pytest.mark.parametrize("code", [401, 403, 404, 400, 500])
def test_clients_see_no_address_and_the_log_has_one_line(
    server: Scripted, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    with served(ServerSettings(), router=server.router(api_key="sesame")) as front:
        server.play([failed(code, message="no")["error"]], status=code)
        for stream in (False, True):
            caplog.clear()
            status, text = front_says(front, "thinking", stream)
            assert status == {400: 400, 500: 503}.get(code, 502) or stream
            assert not [secret for secret in ("127.0.0.1", "sesame", "the server failed") if secret in text]
            errors = [record for record in caplog.records if record.levelname == "ERROR"]
            assert len(errors) == (code != 400)
            assert all(server.url in one.getMessage() and not one.exc_info for one in errors)


def test_a_fallback_names_no_address(server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    ends = 2 * (Endpoint(server.url, "m", retries=0),)
    router = Router.from_endpoints(*ends, policy=Policy(price=0.0, fallback_mode="thinking"))
    server.play([failed(500), DONE], [chunk("2"), *END])
    decision = router.ask("?").decision
    assert decision.fallback
    assert "m answers 500" in decision.reason
    assert "127.0.0.1" not in decision.reason
    assert server.url in caplog.text
    server.play([failed(400), DONE])
    with pytest.raises(InputError, match=server.url):  # in this process the address helps
        router.ask("?")


BAD = {"message": "that went wrong", "type": "BadRequestError", "code": 400}


@pytest.mark.parametrize(
    "event",
    [
        BAD, f"error: {json.dumps(BAD)}\n\n", {"error": {**BAD, "code": None, "type": None, "status_code": 422}},
        {"error": {"message": "that went wrong", "http_status": 400}}, {"error": {**BAD, "code": 400.0}},
        json.dumps({"error": BAD}), json.dumps(BAD), json.dumps({"error": BAD}, indent=2),
    ],
)  # fmt: skip
def test_every_form_of_a_refusal_is_no_outage(server: Scripted, event: Any) -> None:
    router = server.router(retries=1)
    assert router.remote is not None
    server.play([event])
    for _ in range(3):
        with pytest.raises(InputError, match="that went wrong"):
            router.ask("?", mode="instruct")
    assert len(server.bodies) == 3
    assert router.remote.breakers["instruct"].state == "closed"


@pytest.mark.parametrize(
    "reply",
    ["data: hello\n\n", '{"object": "chat.completion", "choices": []}', "<!doctype html><p>welcome</p>", "welcome"],
)
def test_a_response_that_is_not_a_stream_is_reported(server: Scripted, reply: str) -> None:
    server.play([reply])
    with pytest.raises(ModeUnavailableError, match="stream") as error:
        server.router().ask("?", mode="instruct")
    assert "reached" not in str(error.value)
    assert "ended its stream" not in str(error.value)


@pytest.mark.parametrize("value", ["é", "a\n", "a\r\nb: c", " qz", "\0"])
def test_values_that_headers_cannot_contain_are_refused(server: Scripted, value: str) -> None:
    for field, held in (("api_key", value), ("headers", {"x": value}), ("headers", {value: "x"})):
        with pytest.raises(ValueError, match=field) as error:
            server.router(**{field: held})
        assert field == "headers" or value not in str(error.value)
    assert Endpoint(server.url, "m", headers={"x-a": "b c", "y": ""}, api_key="sk-~1").api_key == "sk-~1"


@pytest.mark.parametrize(
    "wrong", [{"max_num_seqs": 4}, {"device": "cpu"}, {"dtype": "float32"}, {"quantization": "int8"}, {"price": 0.1}]
)
def test_endpoints_load_nothing(server: Scripted, tmp_path: Path, wrong: dict[str, Any]) -> None:
    hint = "policy" if "price" in wrong else "servers"
    with pytest.raises(ValueError, match=hint):
        Router.from_endpoints((server.url, "m"), (server.url, "m"), **wrong)
    file, end = tmp_path / "ends.json", {"base_url": server.url, "model": "m"}
    file.write_text(json.dumps({"instruct": end, "thinking": end}))
    if "max_num_seqs" not in wrong:  # `vlroute serve` passes max_num_seqs for every pair
        with pytest.raises(ValueError, match=hint):
            Router.from_pretrained(file, **wrong)
    Router.from_endpoints((server.url, "m"), (server.url, "m"), max_num_seqs=1, device=None).close()


def test_a_missing_file_of_endpoints_is_a_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (tmp_path / "none.json", tmp_path / "folder.json"):
        if file.stem == "folder":
            file.mkdir()
        with pytest.raises(InputError, match=file.name):
            Router.from_pretrained(file)
        with pytest.raises(SystemExit) as end:
            run(["ask", "hi", "--model", str(file)])
        assert end.value.code == 2
        assert "endpoints.md" in capsys.readouterr().err


# trials


def scored(content: str, *tokens: tuple[str, float], end: str | None = None, top: Sequence[float] = ()) -> Any:
    """A chunk with log-probabilities of its tokens. `top`: those of the most probable tokens."""
    made = chunk(content, end=end)
    made["choices"][0]["logprobs"] = {
        "content": [
            {"token": token, "logprob": value, "bytes": None,
             "top_logprobs": [{"token": "x", "logprob": one, "bytes": None} for one in top or (value,)]}
            for token, value in tokens
        ]
    }  # fmt: skip
    return made


#: The last chunk contains the end token, as vLLM sends it.
SCORED = [
    scored("4", ("4", -0.5), top=(-0.5, -1.5)), scored("", ("\ufffd", -2.0)), scored("2 .", ("2", -0.25), (" .", -1.0)),
    scored("", ("<|im_end|>", -3.0), end="stop"), USAGE, DONE,
]  # fmt: skip
LOG_PROBS = (-0.5, -2.0, -0.25, -1.0)


class Tried:
    """One Instruct answer with a trial, whose judge keeps the evidence, and pieces."""

    def __init__(self, server: Scripted, *verdicts: Any, engine: RemoteEngine | None = None, **options: Any) -> None:
        self.seen: list[Evidence] = []
        self.pieces: list[str] = []
        self._verdicts = [*verdicts]
        self._engine = engine or RemoteEngine.over(end := Endpoint(server.url, "m", retries=0), end)
        self.trial = Trial(self._judge, **{"answer": True, **options})

    def _judge(self, evidence: Evidence) -> Any:
        assert not self.pieces
        self.seen.append(evidence)
        return self._verdicts.pop(0)

    def answer(self, **options: Any) -> Reply:
        with self._engine.request(parse("How many?")) as request:
            steps = request.answer(
                "instruct", {}, lambda _, piece: self.pieces.append(piece), trial=self.trial, **options
            )
            return run_steps(steps)


@pytest.mark.parametrize("verdict", [True, None])
@pytest.mark.parametrize("end", ["with the end token", "in the last chunk", "without it", "length"])
def test_evidence_of_an_endpoint(server: Scripted, verdict: Any, end: str) -> None:
    steps = {
        "with the end token": SCORED,
        "in the last chunk": [*SCORED[:2], scored("2 .", ("2", -0.25), (" .", -1.0), ("</s>", -3.0), end="stop"), DONE],
        "without it": [*SCORED[:2], scored("2 .", ("2", -0.25), (" .", -1.0), end="stop"), DONE],
        "length": [*SCORED[:3], *CUT],
    }[end]
    server.play(steps)
    tried = Tried(server, verdict, state=True)
    reply = tried.answer()
    assert (reply.text, reply.finish_reason) == ("42 .", "length" if end == "length" else "stop")
    assert tried.pieces == ["4", "2 ."]
    (evidence,) = tried.seen
    assert (evidence.log_probs, evidence.complete, evidence.state) == (LOG_PROBS, end != "length", None)
    shares = [math.exp(-0.5), math.exp(-1.5)]
    shares.append(1 - sum(shares))
    assert evidence.entropies[0] == pytest.approx(-sum(one * math.log(one) for one in shares))
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, TOP_TOKENS)


def test_only_the_most_probable_tokens_count_for_the_entropy(server: Scripted) -> None:
    """A server may send more than requested, in any order, with a probability of 0."""
    many = [math.log(0.01)] * 9 + [math.log(0.5), -1e4, 0.0]
    server.play([scored("4", ("4", -0.5), top=[math.log(0.2)] * 5), scored("2", ("2", -0.5), top=many), *END])
    tried = Tried(server, True)
    tried.answer()
    assert tried.seen[0].entropies[0] == pytest.approx(math.log(5))
    assert 0 <= tried.seen[0].entropies[1] < 1


def test_an_answer_that_its_trial_drops(server: Scripted) -> None:
    server.play(SCORED)
    tried = Tried(server, False)
    reply = tried.answer()
    assert (reply.text, reply.finish_reason, tried.pieces, len(tried.seen)) == ("42 .", "cancelled", [], 1)


@pytest.mark.parametrize("verdict", [True, None, False])
def test_seconds_after_the_first_token(server: Scripted, verdict: Any) -> None:
    """A rejected answer ends at once, although the server would send more."""
    server.play([SCORED[0], *([PAUSE] if verdict is False else []), *SCORED[1:]])
    tried, began = Tried(server, verdict, seconds=0), time.monotonic()
    reply = tried.answer()
    assert time.monotonic() - began < PAUSE / 2
    assert [(one.log_probs, one.complete) for one in tried.seen] == [((-0.5,), False)]
    expected = ("4", "cancelled", []) if verdict is False else ("42 .", "stop", ["4", "2 ."])
    assert (reply.text, reply.finish_reason, tried.pieces) == expected


@pytest.mark.parametrize("steps", [
    [chunk("4"), chunk("2"), *END],
    [{**chunk("4"), "choices": [{**chunk("4")["choices"][0], "logprobs": {"content": None}}]}, chunk("2"), *END],
    [{**chunk("4"), "choices": [{**chunk("4")["choices"][0], "logprobs": {"content": ["4"]}}]}, chunk("2"), *END],
    [scored("4", ("4", None), top=(None,)), chunk("2"), *END],  # type: ignore[arg-type]
], ids=["ignored", "null", "strings", "no numbers"])  # fmt: skip
def test_a_server_without_log_probabilities(server: Scripted, steps: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = RemoteEngine.over(end := Endpoint(server.url, "m", retries=0), end)
    for _ in range(2):
        server.play(steps)
        tried = Tried(server, engine=engine)
        reply = tried.answer()
        assert (reply.text, reply.finish_reason, tried.pieces, tried.seen) == ("42", "stop", ["4", "2"], [])
    assert caplog.text.count("sends no log-probabilities") == 1


def test_a_server_that_refuses_log_probabilities(
    server: Scripted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = RemoteEngine.over(end := Endpoint(server.url, "m", retries=0), end)
    submit = engine.submit

    def answering(mode: Any, body: dict[str, Any], *args: Any) -> Any:
        server.status = 400 if "logprobs" in body else 200
        server.scripts = (
            [[{"error": {"message": "logprobs is not supported"}}]] if server.status == 400 else [[*PLAIN, *END]]
        )
        return submit(mode, body, *args)

    monkeypatch.setattr(engine, "submit", answering)
    server.play([])
    for requests in (2, 3):  # the second answer does not ask for them
        tried = Tried(server, engine=engine)
        assert (tried.answer().text, tried.pieces, tried.seen) == ("2", ["2"], [])
        assert len(server.bodies) == requests
    assert caplog.text.count("sends no log-probabilities") == 1
    assert "logprobs" not in server.bodies[1]


def test_another_refusal_is_an_error(server: Scripted) -> None:
    server.play([failed(400, "invalid_request_error", "too long")], status=400)
    with pytest.raises(InputError, match="too long"):
        Tried(server).answer()
    assert len(server.bodies) == 1


def test_cancelling_an_undecided_answer(server: Scripted) -> None:
    server.play([*SCORED[:3], PAUSE])
    tried, cancel = Tried(server), threading.Event()
    threading.Timer(0.5, cancel.set).start()
    reply = tried.answer(cancel=cancel)
    assert (reply.text, reply.finish_reason, tried.pieces, tried.seen) == ("42 .", "cancelled", ["4", "2 ."], [])


def test_a_judge_that_raises(server: Scripted) -> None:
    server.play(SCORED)
    tried = Tried(server)
    with pytest.raises(IndexError):
        tried.answer()
    assert not tried.pieces


def test_a_stream_that_breaks_before_the_trial_is_decided_has_not_begun(server: Scripted) -> None:
    server.play([*SCORED[:2], HANG_UP])
    tried = Tried(server)
    with pytest.raises(ModeUnavailableError) as caught:
        tried.answer()
    assert not caught.value.begun
    assert not tried.pieces


def test_a_trial_of_the_prompt_decides_nothing(server: Scripted) -> None:
    """Endpoints give no hidden states."""
    server.play([*PLAIN, *END])
    tried = Tried(server, answer=False, state=True)
    assert (tried.answer().text, tried.pieces, tried.seen) == ("2", ["2"], [])
    assert "logprobs" not in server.bodies[0]
    assert (RemoteEngine.stages, RemoteEngine.shared_prompt) == (("answer",), False)


# log-probabilities


def with_logprobs(server: Scripted, mode: Mode = "instruct", **options: Any) -> tuple[list[Any], Answer]:
    """The pieces of an answer with log-probabilities, and the answer."""
    with server.router() as router:
        events = [*router.stream("How many?", mode=mode, **{"logprobs": True, **options})]
    assert isinstance(events[-1], Finished)
    pieces = [(event.text, [one.token for one in event.logprobs]) for event in events if isinstance(event, AnswerDelta)]
    return pieces, events[-1].answer


def tokens(answer: Answer) -> list[str]:
    return [one.token for one in answer.logprobs or ()]


def reasoned(text: str, *tokens: tuple[str, float], content: str | None = None) -> Any:
    """A chunk of reasoning with log-probabilities."""
    made = scored(content or "", *tokens)
    made["choices"][0]["delta"] = {"reasoning": text} | ({} if content is None else {"content": content})
    return made


def test_log_probabilities_of_an_answer(server: Scripted) -> None:
    server.play(SCORED)
    pieces, answer = with_logprobs(server, top_logprobs=1)
    assert pieces == [("4", ["4"]), ("2 .", ["\ufffd", "2", " ."])]  # the end token is not among them
    assert [one.logprob for one in answer.logprobs or ()] == [*LOG_PROBS]
    assert [len(one.top_logprobs) for one in answer.logprobs or ()] == [1] * 4  # the first chunk contains two
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 1)
    server.play(SCORED)
    _, answer = with_logprobs(server)
    assert [one.top_logprobs for one in answer.logprobs or ()] == [()] * 4
    assert server.bodies[0]["top_logprobs"] == 1  # llama.cpp would send no log-probabilities for 0


@pytest.mark.parametrize("steps", [
    [reasoned("so", ("so", -1.0)), scored("", ("</think>", -1.0)), scored("\n\n4", ("\n\n", -0.1), ("4", -0.5)), *END],
    [reasoned("so", ("so", -1.0)), reasoned(" on", (" on", -1.0), ("</think>", -1.0), ("\n\n", -0.1), ("4", -0.5),
                                            content="\n\n4"), *END],
    [reasoned("so", ("so", -1.0)), reasoned(" on", (" on", -1.0), ("\n\n", -0.1), ("4", -0.5), content="\n\n4"), *END],
    [scored("so", ("so", -1.0)), scored("</think>", ("</think>", -1.0)), scored("\n\n", ("\n\n", -0.1)),
     scored("4", ("4", -0.5)), *END],
    [scored("<think>", ("<think>", -1.0)), scored("so</th", ("so", -1.0)),
     scored("ink>\n\n4", ("</think>", -1.0), ("\n\n", -0.1), ("4", -0.5)), *END],
], ids=["parsed", "mixed chunk", "mixed chunk without the tag", "raw", "raw with both tags"])  # fmt: skip
def test_log_probabilities_of_the_reasoning_are_left_out(server: Scripted, steps: Any) -> None:
    server.play(steps)
    pieces, answer = with_logprobs(server, "thinking")
    assert (answer.text, tokens(answer)) == ("4", ["\n\n", "4"])
    assert answer.thinking.startswith("so")
    assert [entry for _, entries in pieces for entry in entries] == ["\n\n", "4"]


def test_log_probabilities_up_to_a_stop_string(server: Scripted) -> None:
    server.play([scored("one", ("one", -0.5)), scored(" two", (" two", -1.0)), scored(" six", (" six", -1.0)), *END])
    _, answer = with_logprobs(server, stop=[" tw"])
    assert (answer.text, tokens(answer)) == ("one", ["one", " two"])


@pytest.mark.parametrize("steps", [
    [chunk("4"), *END], [scored("4", ("4", -0.5)), chunk("2"), *END], [scored("4", ("5", -0.5)), *END],
    [scored("4", ("4", None)), *END],  # type: ignore[arg-type]
    [{**chunk("4"), "choices": [{**chunk("4")["choices"][0], "logprobs": {"content": ["4"]}}]}, *END],
], ids=["none", "missing", "wrong", "no number", "strings"])  # fmt: skip
def test_log_probabilities_that_are_missing_or_wrong_are_an_error(server: Scripted, steps: Any) -> None:
    server.play(steps)
    with pytest.raises(SettingsError, match="leave logprobs out"):
        with_logprobs(server)


def test_log_probabilities_and_a_refusal(server: Scripted) -> None:
    server.play([chunk(refusal="no"), *END])
    _, answer = with_logprobs(server)
    assert (answer.text, answer.finish_reason, answer.logprobs) == ("no", "content_filter", ())


def test_log_probabilities_that_the_server_refuses(server: Scripted) -> None:
    server.play([failed(400, "invalid_request_error", "logprobs is not supported")], status=400)
    with pytest.raises(InputError, match="logprobs is not supported"):
        with_logprobs(server)
    assert len(server.bodies) == 1
    with pytest.raises(SettingsError, match="together with tools"):
        with_logprobs(server, tools=[{"type": "function", "function": {"name": "tap", "parameters": {}}}])
    assert len(server.bodies) == 1
