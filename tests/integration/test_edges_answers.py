"""Every answer is complete: one closed thought, visible text, room in the context, and no text lost on the way."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import media, task
from tests.forcing import STRONG, biased, end_id, prompts, scripted, token_ids
from tests.serving import served, user
from vlroute import Answer, Router
from vlroute.pocket import TASKS

SOME = task("math")
TAGS = ("<think>", "</think>")


@pytest.fixture(scope="module")
def shared() -> Router:
    """Answers that share forward passes."""
    return Router.from_pretrained(max_num_seqs=8).load()


@pytest.fixture(params=["alone", "shared"])
def either(request: Any, router: Router, shared: Router) -> Router:
    return router if request.param == "alone" else shared


def think(router: Router, **options: Any) -> Answer:
    return router.ask(SOME.prompt, **media(SOME), mode="thinking", **options)


def assert_complete(answer: Answer) -> None:
    assert not any(tag in answer.text for tag in TAGS)
    assert answer.text or answer.finish_reason != "stop"


@pytest.mark.parametrize("budget", [None, 0, 3])
def test_a_closed_thought_is_not_closed_again(either: Router, budget: int | None) -> None:
    """The model wants nothing but `</think>`."""
    with biased(either, "thinking", {token_ids(either, "</think>")[0]: STRONG}):
        answer = think(either, thinking_budget=budget, max_new_tokens=20)
    assert_complete(answer)
    assert answer.text


def test_a_closed_thought_is_not_opened_again(either: Router) -> None:
    ids = token_ids(either, "A</think>\n\n<think>B</think>C")
    with scripted(either, "thinking", ids):
        answer = think(either)
    assert_complete(answer)
    assert answer.thinking == "A"


@pytest.mark.parametrize("thought", ["", "A", "A\n", "A B"])
def test_an_end_within_the_thought_closes_it_and_an_answer_follows(either: Router, thought: str) -> None:
    ids = [*token_ids(either, thought), end_id(either)]
    free = len(ids)
    with biased(either, "thinking", {end_id(either): 30.0}) if not thought else scripted(either, "thinking", ids):
        answer = think(either, max_new_tokens=30)
    assert_complete(answer)
    assert answer.text
    assert answer.finish_reason == "stop"
    assert answer.thinking == thought.strip()
    assert answer.usage.thinking_tokens >= free if thought else answer.usage.thinking_tokens


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_an_answer_does_not_end_before_it_begins(either: Router, mode: Any) -> None:
    with biased(either, mode, {end_id(either, mode): STRONG}):
        answer = either.ask(SOME.prompt, **media(SOME), mode=mode, max_new_tokens=20)
    assert answer.text
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_only_white_space_is_no_success(router: Router, mode: Any) -> None:
    with biased(router, mode, {token_ids(router, "\n", mode)[0]: STRONG}):
        answer = router.ask(SOME.prompt, **media(SOME), mode=mode, thinking_budget=2, max_new_tokens=20)
    assert answer.text
    assert not answer.decision.rescued


@pytest.mark.parametrize("budget", [0, 5, 10, 20])
def test_budgets_leave_one_thought_and_an_answer(either: Router, budget: int) -> None:
    tasks = [task(kind, level, seed=budget) for kind in TASKS for level in ("easy", "hard")]
    for one in tasks:
        answer = either.ask(one.prompt, **media(one), mode="thinking", thinking_budget=budget)
        assert_complete(answer)
        assert answer.usage.thinking_tokens <= budget + 2  # the line break and the closing tag


@pytest.mark.parametrize("end", ["\n", "\n\n", "</think>"])
@pytest.mark.parametrize("budget", [None, 0, 3])
def test_an_end_token_within_the_closing_does_not_end_the_answer(either: Router, end: str, budget: int | None) -> None:
    ends = [token_ids(either, end)[0], end_id(either)]
    answer = think(either, thinking_budget=budget, eos_token_id=ends, max_new_tokens=60)
    assert_complete(answer)


def test_excluding_every_token_gives_no_empty_success(either: Router) -> None:
    tags = token_ids(either, "".join(TAGS))
    allowed = [*tags, end_id(either)]
    others = [i for i in range(len(either.pair.thinking.tokenizer)) if i not in allowed]
    answer = think(either, suppress_tokens=others, thinking_budget=2, max_new_tokens=20)
    assert (answer.text, answer.finish_reason) == ("", "length")


def test_over_http_a_thought_is_closed_once() -> None:
    with served() as server, server.http() as http:
        close = token_ids(server.router, "</think>")[0]
        body = {"model": "thinking", "messages": [user(SOME)], "thinking_budget": 0, "max_tokens": 20}
        with biased(server.router, "thinking", {close: STRONG}):
            choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"]
    assert not any(tag in choice["message"]["content"] for tag in TAGS)


# Past answers with tags


#: Treats past reasoning as the templates of Qwen's Thinking models do.
PUBLISHED = (
    "{%- for m in messages %}"
    "{%- set said = namespace(text=m.content if m.content is string else '') %}"
    "{%- if m.content is not string %}{%- for part in m.content %}"
    "{%- set said.text = said.text + part.text %}{%- endfor %}{%- endif %}"
    "{%- if m.role == 'assistant' and m.reasoning_content is not string and '</think>' in said.text %}"
    "{%- set said.text = said.text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "<|im_start|>{{ m.role }}\n{{ said.text }}<|im_end|>\n"
    "{%- endfor %}<|im_start|>assistant\n<think>\n"
)


@pytest.fixture
def published(router: Router, monkeypatch: pytest.MonkeyPatch) -> Router:
    """The pocket pair, but Thinking has such a template."""
    monkeypatch.setattr(router.pair.thinking.processor, "chat_template", PUBLISHED)
    return router


def read_after(router: Router, *history: Any) -> str:
    """The prompt that Thinking reads when these messages are followed by a question."""
    with prompts(router, "thinking") as read:
        router.ask("?", history=[{"role": "user", "content": "?"}, *history], mode="thinking", max_new_tokens=8)
    return read[0]


def test_an_answer_about_tags_reaches_the_next_turn_whole(published: Router) -> None:
    said = "A </think> B <think> C"
    chat = published.chat()
    with scripted(published, "instruct", token_ids(published, said, "instruct")):
        assert chat.send("?", mode="instruct").text == said
    with prompts(published, "thinking") as read:
        chat.send("?", mode="thinking", max_new_tokens=8)
    assert said in read[0]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_separated_answer_is_kept_in_a_message_list(published: Router, field: str) -> None:
    read = read_after(published, {"role": "assistant", "content": "A </think> B", field: "C D"})
    assert "A </think> B" in read
    assert "C D" not in read


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text("AB`\n ~", max_size=12), st.text("AB`\n", max_size=12))
def test_the_published_template_cuts_nothing(published: Router, before: str, after: str) -> None:
    """The model reads either the whole answer, or only the part after the tag, because the rest is reasoning."""
    read = read_after(published, {"role": "assistant", "content": f"{before}</think>{after}"})
    past = read.partition("assistant\n")[2].partition("<|im_end|>")[0]
    assert past in (f"{before}</think>{after}", after.lstrip())
    assert "`" in before or "~" in before or past == after.lstrip()


@pytest.mark.parametrize("text", ["Is <think> a tag?", "</think>", "<think>\n\n</think>\n\nWhy?", "a</think>b"])
@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_tags_of_the_user_are_tokenized_as_transformers_does(router: Router, mode: Any, text: str) -> None:
    with prompts(router, mode) as read:
        router.ask(text, mode=mode, max_new_tokens=8)
    processor = router.pair[mode].processor
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    theirs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert read == [processor.tokenizer.decode(theirs["input_ids"][0])]


# The end of the context


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_an_answer_ends_where_the_context_does(either: Router, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"mode": mode, "max_new_tokens": 300, "eos_token_id": -1}
    prompt = either.ask(SOME.prompt, **media(SOME), mode=mode, max_new_tokens=8).usage.prompt_tokens
    monkeypatch.setattr(either.pair[mode].model.config.text_config, "max_position_embeddings", prompt + 9)
    answer = either.ask(SOME.prompt, **media(SOME), **asked)
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == 9


# Characters in pieces


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([*"中é😀a \n", b"\xe5", b"\x8f", b"\xf0\x9f", b"\x80", b"\xc3"]), min_size=1, max_size=14)
)
def test_streams_lose_no_character(router: Router, pieces: list[str | bytes]) -> None:
    tokenizer = router.pair.instruct.tokenizer
    ids = []
    for piece in pieces:
        raw = piece if isinstance(piece, bytes) else piece.encode()
        ids += tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in raw])
    with scripted(router, "instruct", ids):
        *events, finished = router.stream("?", mode="instruct", max_new_tokens=len(ids))
    answer = finished.answer  # type: ignore[union-attr]
    assert "".join(event.text for event in events[1:]) == answer.text  # type: ignore[union-attr]
    whole = b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)
    if "\ufffd" not in whole.decode(errors="replace"):  # bytes may form a character with their neighbours
        assert answer.text == whole.decode().strip()
    else:
        assert "\ufffd" in answer.text


def test_an_unfinished_character_at_the_end_is_shown(router: Router) -> None:
    ids = router.pair.instruct.tokenizer.convert_tokens_to_ids(["A", "<0xE5>", "<0x8F>"])
    with scripted(router, "instruct", ids):
        answer = router.ask("?", mode="instruct", max_new_tokens=3)
    assert answer.text.startswith("A\ufffd")


def test_undecodable_bytes_cost_linear_time(router: Router) -> None:
    from vlroute.engine.local.reasoning import Splitter

    tokenizer = router.pair.instruct.tokenizer
    byte, special = tokenizer.convert_tokens_to_ids(["<0x80>", "<|vision_start|>"])

    def seconds(token: int, count: int) -> float:
        splitter, began = Splitter(tokenizer, thinking=False), time.perf_counter()
        for _ in range(count):
            list(splitter.push(token))
        return time.perf_counter() - began

    for token in (byte, special, tokenizer.convert_tokens_to_ids("\n")):
        seconds(token, 100)
        assert seconds(token, 8000) < 40 * seconds(token, 800) + 0.05  # 100 times if quadratic
