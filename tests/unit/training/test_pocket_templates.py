"""The chat templates of the pocket pair render what the published templates of Qwen3-VL render.

The expected texts are literal. The published Instruct and Thinking templates gave the same ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from training.pocket.checkpoint import build_processor

from vlroute import Mode
from vlroute.types import MODES

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
TAP = {"type": "function", "function": {"name": "tap", "description": "Tap <a> or 按钮.", "parameters": {"n": None}}}
READ = {"type": "function", "function": {"name": "read"}}
TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "tap", "description": "Tap <a> or 按钮.", "parameters": {"n": null}}}
{"type": "function", "function": {"name": "read"}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
"""
QUESTION = "<|im_start|>user\nQ<|im_end|>\n"
TAP_A = '<tool_call>\n{"name": "tap", "arguments": {"button": "A"}}\n</tool_call>'


@cache
def processor(mode: Mode) -> Any:
    return build_processor(mode)


def render(mode: Mode, *messages: dict[str, Any], **arguments: Any) -> str:
    return str(processor(mode).apply_chat_template(list(messages), tokenize=False, **arguments))


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(*content: Any) -> dict[str, Any]:
    """One text is a string, everything else a list of parts, in which a string is a text."""
    if len(content) == 1 and isinstance(content[0], str):
        return {"role": "user", "content": content[0]}
    return {"role": "user", "content": parts(*content)}


def parts(*content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]


def answer(content: Any = "", *calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **fields}


def result(content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "1", "content": content}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "1", "function": {"name": name, "arguments": arguments}}


TAPPED = call("tap", {"button": "A"})
IMAGE, MOVIE = {"type": "image"}, {"type": "video"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user("Add 2 and 3.")], "<|im_start|>user\nAdd 2 and 3.<|im_end|>\n"),
        ([user(IMAGE, "Read.")], f"<|im_start|>user\n{PICTURE}Read.<|im_end|>\n"),
        ([user("Read.", IMAGE)], f"<|im_start|>user\nRead.{PICTURE}<|im_end|>\n"),
        ([user("a", IMAGE, " b ", IMAGE, "\n")], f"<|im_start|>user\na{PICTURE} b {PICTURE}\n<|im_end|>\n"),
        ([user(MOVIE, "a"), answer("b"), user(IMAGE)],
         f"<|im_start|>user\n{VIDEO}a<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
         f"<|im_start|>user\n{PICTURE}<|im_end|>\n"),
        ([user({"type": "image_url", "image_url": {"url": "u"}}, {"image": "f"}, {"type": "image", "image": "f"})],
         f"<|im_start|>user\n{PICTURE * 3}<|im_end|>\n"),
        ([user({"video": "f"}, {"type": "video", "video": "f"}, {"type": "audio", "audio": "f"}, {"text": "t"})],
         f"<|im_start|>user\n{VIDEO * 2}t<|im_end|>\n"),
        ([system("S"), user("Q")], f"<|im_start|>system\nS<|im_end|>\n{QUESTION}"),
        ([system(parts("S", "T\n")), user("Q")], f"<|im_start|>system\nST\n<|im_end|>\n{QUESTION}"),
        ([system(""), user("Q")], f"<|im_start|>system\n<|im_end|>\n{QUESTION}"),
        ([user("Q"), {"role": "developer", "content": "D"}], QUESTION),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_messages(mode: Mode, messages: list[Any], expected: str) -> None:
    assert render(mode, *messages) == expected


@pytest.mark.parametrize("mode", MODES)
def test_the_generation_prompt_of_thinking_opens_a_thought(mode: Mode) -> None:
    opened = {"instruct": "<|im_start|>assistant\n", "thinking": "<|im_start|>assistant\n<think>\n"}[mode]
    assert render(mode, user("Q"), add_generation_prompt=True) == QUESTION + opened
    said = [user("Q"), answer("", TAPPED), result("ok")]
    assert render(mode, *said, add_generation_prompt=True) == render(mode, *said) + opened


@pytest.mark.parametrize("mode", MODES)
def test_vision_ids_number_pictures_and_videos_through_all_turns(mode: Mode) -> None:
    messages = [user(IMAGE, MOVIE), answer("", TAPPED), result(parts("r", IMAGE)), user(IMAGE, "x", MOVIE)]
    rendered = render(mode, *messages, add_vision_id=True)
    assert rendered == (
        f"<|im_start|>user\nPicture 1: {PICTURE}Video 1: {VIDEO}<|im_end|>\n<|im_start|>assistant\n{TAP_A}<|im_end|>\n"
        f"<|im_start|>user\n<tool_response>\nrPicture 2: {PICTURE}\n</tool_response><|im_end|>\n"
        f"<|im_start|>user\nPicture 3: {PICTURE}xVideo 2: {VIDEO}<|im_end|>\n"
    )


@pytest.mark.parametrize("mode", MODES)
def test_tools_are_described_in_the_system_turn(mode: Mode) -> None:
    tools = [TAP, READ]
    assert render(mode, user("Q"), tools=tools) == f"<|im_start|>system\n{TOOLS}{QUESTION}"
    assert render(mode, system("S"), user("Q"), tools=tools) == f"<|im_start|>system\nS\n\n{TOOLS}{QUESTION}"
    assert render(mode, system(parts("S", "T")), user("Q"), tools=tools).startswith("<|im_start|>system\nST\n\n# Tools")
    assert render(mode, user("Q"), tools=[]) == QUESTION


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer("", TAPPED), TAP_A),
        (answer([], TAPPED), TAP_A),
        (answer("Done:", TAPPED), f"Done:\n{TAP_A}"),
        (answer(parts("a", "b"), TAPPED), f"ab\n{TAP_A}"),
        (answer("", TAPPED, TAPPED), f"{TAP_A}\n{TAP_A}"),
        (answer("a", TAPPED, call("read", {})),
         f'a\n{TAP_A}\n<tool_call>\n{{"name": "read", "arguments": {{}}}}\n</tool_call>'),
        (answer("", call("tap", '{"button":  "A"}')),
         '<tool_call>\n{"name": "tap", "arguments": {"button":  "A"}}\n</tool_call>'),
        (answer("", {"name": "f", "arguments": {"按": ["<", None, 1.5]}}),
         '<tool_call>\n{"name": "f", "arguments": {"按": ["<", null, 1.5]}}\n</tool_call>'),
        (answer("a", tool_calls=[]), "a"),
        (answer("a", tool_calls=None), "a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_tool_calls(mode: Mode, said: dict[str, Any], expected: str) -> None:
    end = "<|im_start|>user\n<tool_response>\nok\n</tool_response><|im_end|>\n"
    rendered = render(mode, user("Q"), said, result("ok"))
    assert rendered == f"{QUESTION}<|im_start|>assistant\n{expected}<|im_end|>\n{end}"


@pytest.mark.parametrize("mode", MODES)
def test_consecutive_results_are_one_turn(mode: Mode) -> None:
    rendered = render(mode, result("0"), user("Q"), result("1"), result(parts("2", IMAGE)), result(""), user("Q"))
    assert rendered == (
        f"<|im_start|>user\n<tool_response>\n0\n</tool_response><|im_end|>\n{QUESTION}"
        f"<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2{PICTURE}\n</tool_response>\n"
        f"<tool_response>\n\n</tool_response><|im_end|>\n{QUESTION}"
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer("A", reasoning_content="t"), "<think>\nt\n</think>\n\nA"),
        (answer("\n\nA\n", reasoning_content="\nt\nu\n"), "<think>\nt\nu\n</think>\n\nA\n"),
        (answer("<think>\nt\n</think>\n\nA"), "<think>\nt\n</think>\n\nA"),
        (answer("t</think>A"), "<think>\nt\n</think>\n\nA"),
        (answer("<think>t</think>A</think>B"), "<think>\nt\n</think>\n\nB"),
        (answer("<think>\nt\n</think>\n\nA", TAPPED), f"<think>\nt\n</think>\n\nA\n{TAP_A}"),
        (answer("", TAPPED, reasoning_content="t"), f"<think>\nt\n</think>\n\n{TAP_A}"),
        (answer("A <think> B"), "A <think> B"),
        (answer("A"), "A"),
        (answer("A", reasoning_content=""), "A"),
        (answer("<think>\n\n</think>\n\nA"), "A"),
        (answer("a</think>b", reasoning_content=""), "a</think>b"),  # the answer itself may contain tags
        (answer("a</think>b", reasoning_content="t"), "<think>\nt\n</think>\n\na</think>b"),
    ],
)
def test_thoughts_after_the_last_question(said: dict[str, Any], expected: str) -> None:
    """A thought before a tool's result is kept. The last message has a thought even where it is empty."""
    assert render("thinking", user("Q"), said, result("r")).startswith(
        f"{QUESTION}<|im_start|>assistant\n{expected}<|im_end|>\n<|im_start|>user\n<tool_response>"
    )
    last = expected if expected.startswith("<think>") else f"<think>\n\n</think>\n\n{expected}"
    assert render("thinking", user("Q"), said) == f"{QUESTION}<|im_start|>assistant\n{last}<|im_end|>\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer("A", reasoning_content="t"), "A"),
        (answer("\nA", reasoning_content="t"), "\nA"),
        (answer("<think>\nt\n</think>\n\nA"), "A"),
        (answer("<think>\nt\n</think>\n\n", TAPPED), TAP_A),
        (answer("a</think>b", reasoning_content=""), "a</think>b"),
    ],
)
def test_thoughts_before_the_last_question_are_omitted(said: dict[str, Any], expected: str) -> None:
    rendered = render("thinking", user("Q"), said, result("r"), user("Q"))
    assert rendered.startswith(f"{QUESTION}<|im_start|>assistant\n{expected}<|im_end|>\n<|im_start|>user\n<tool_resp")
    assert rendered.endswith(QUESTION)


def test_a_user_message_with_a_tool_response_is_no_question() -> None:
    said = answer("A", reasoning_content="t")
    kept = "<|im_start|>assistant\n<think>\nt\n</think>\n\nA<|im_end|>\n"
    response = "<tool_response>\nr\n</tool_response>"
    for content in (response, parts(response)):
        assert kept in render("thinking", user("Q"), said, {"role": "user", "content": content})
        assert "<think>" not in render("thinking", said, {"role": "user", "content": content}), "there is no question"
    for text in ("<tool_response>\nr", f"{response}\nQ"):
        assert kept not in render("thinking", user("Q"), said, user(text))


def test_instruct_ignores_thoughts() -> None:
    """It does not render `reasoning_content`, and tags in an answer are text."""
    said = [answer("A", reasoning_content="t"), answer("<think>\nt\n</think>\n\nB")]
    assert render("instruct", user("Q"), *said) == (
        f"{QUESTION}<|im_start|>assistant\nA<|im_end|>\n<|im_start|>assistant\n<think>\nt\n</think>\n\nB<|im_end|>\n"
    )


def test_the_two_templates_differ_in_system_messages_and_pictures_of_answers() -> None:
    """Only Thinking renders later system messages, and pictures in system messages and answers."""
    messages = [system(parts("S", IMAGE)), user("Q"), system("T"), answer(parts(IMAGE, "A")), user("Q")]
    assert render("instruct", *messages) == (
        f"<|im_start|>system\nS<|im_end|>\n{QUESTION}<|im_start|>assistant\nA<|im_end|>\n{QUESTION}"
    )
    assert render("thinking", *messages) == (
        f"<|im_start|>system\nS{PICTURE}<|im_end|>\n{QUESTION}<|im_start|>system\nT<|im_end|>\n"
        f"<|im_start|>assistant\n{PICTURE}A<|im_end|>\n{QUESTION}"
    )
