"""Fields of messages and parts: each is obeyed, changes nothing, or is refused by its name."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlroute import InputError, LimitError, Limits, MessageError, Router, UnreadableMediaError, load_picture, load_video
from vlroute.errors import ChatFileError
from vlroute.inputs.messages import Conversation, parse

RED = Image.new("RGB", (300, 200), "red")
BLUE = Image.new("RGB", (300, 200), "blue")
FRAMES = [RED, BLUE, RED, BLUE]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


BASE64 = base64.b64encode(png(RED)).decode()
URI = f"data:image/png;base64,{BASE64}"
TEXT = {"type": "text", "text": "What is it?"}
NO_FILES = Limits(local_files=False)


def user(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, TEXT], **fields}


def seen(*messages: dict[str, Any]) -> Conversation:
    return parse([*messages], limits=NO_FILES)


def answered(**fields: Any) -> Conversation:
    """A conversation with a past answer that holds `fields`."""
    return seen(user(), {"role": "assistant", "content": "Red.", **fields}, user())


@pytest.mark.parametrize(
    "fields",
    [
        {"refusal": None, "tool_calls": None, "function_call": None, "audio": None, "annotations": None},
        {"refusal": "", "tool_calls": [], "annotations": [], "images": [], "provider_specific_fields": {}},
        {"annotations": [{"type": "url_citation"}], "provider_specific_fields": {"refusal": None}, "parsed": None},
        {"reasoning": "hm", "reasoning_content": "hm", "reasoning_details": [{"text": "hm"}], "thinking": "hm"},
        {"id": "msg_1", "type": "message", "status": "completed", "name": "agent"},
        {"cache_control": {"type": "ephemeral"}, "thinking_blocks": [{"thinking": "hm"}], "x_unknown": None},
    ],
)
def test_what_clients_echo_with_an_answer_changes_nothing(fields: dict[str, Any]) -> None:
    assert answered(**fields) == answered()


def test_a_past_refusal_is_what_was_said() -> None:
    assert answered(content=None, refusal="I cannot.") == answered(content="I cannot.")
    assert answered(content=[{"type": "refusal", "refusal": "I cannot."}]) == answered(content="I cannot.")
    with pytest.raises(MessageError, match="refusal"):
        answered(refusal="I cannot.")


def test_a_name_is_told_to_the_model() -> None:
    assert seen(user(name="Ann")).prompt == "Ann: What is it?"
    assert seen({"role": "user", "content": "Hi", "name": "Ann"}).prompt == "Ann: Hi"
    assert seen(user(name=None)) == seen(user(name="")) == seen(user())
    assert seen({"role": "user", "content": [{"type": "image", "url": URI}], "name": "Ann"}).prompt == ""
    with pytest.raises(MessageError, match="control token"):
        seen(user(name="<|im_end|>"))


WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
#: Some that other servers know.
UNKNOWN = st.sampled_from(["contnet", "fpss", "max_pixel", "max_dynamic_patch", "uuid", "file_id", "mime_type"]) | WORDS
KNOWN = {
    "type", "role", "content", "name", "id", "images", "image", "url", "path", "base64", "image_url", "detail", "text",
    "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "channel_axis", "cache_control",
    "annotations", "logprobs", "video", "video_url", "fps", "sample_fps", "nframes", "num_frames", "min_frames",
    "max_frames", "video_start", "video_end", "refusal", "reasoning", "reasoning_content", "reasoning_details",
    "thinking", "thinking_blocks", "parsed", "provider_specific_fields", "status",
}  # fmt: skip
PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "?"},
    {"type": "image_url", "image_url": {"url": URI}},
    {"type": "input_image", "image_url": URI},
    {"type": "image", "image": URI},
    {"type": "image", "url": URI},
    {"type": "image", "base64": BASE64},
    {"type": "video", "video": [URI, URI]},
    {"type": "video_url", "video_url": {"url": URI}},
]


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.sampled_from(PARTS),
    UNKNOWN.filter(lambda name: name not in KNOWN),
    st.sampled_from([1, "x", [], {}, False, 0]),
    st.booleans(),
)
def test_an_unknown_field_is_refused_by_its_name(part: dict[str, Any], name: str, value: Any, inside: bool) -> None:
    nested = part.get("image_url") or part.get("video_url")
    if inside and isinstance(nested, dict):
        wrong = {**part, part["type"]: {**nested, name: value}}
    else:
        wrong = {**part, name: value}
    with pytest.raises(MessageError, match=f"'{name}'"):
        seen(user(wrong))
    if value not in ([], {}):
        for role in ("user", "system"):
            with pytest.raises(MessageError, match=f"'{name}'"):
                seen({"role": role, "content": "Hi", name: value}, user())
        with pytest.raises(MessageError, match=f"'{name}'"):
            answered(**{name: value})


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image", "image": URI, "fps": 2}, "fps"),
        ({"type": "image", "image": URI, "nframes": 2}, "nframes"),
        ({"type": "text", "text": "?", "max_pixels": 99}, "max_pixels"),
        ({"type": "image", "image": URI, "max_pixels": 0}, "max_pixels"),
        ({"type": "image", "image": URI, "max_pixels": "9"}, "max_pixels"),
        ({"type": "image", "image": URI, "max_pixels": True}, "max_pixels"),
        ({"type": "image", "image": URI, "min_pixels": 1.5}, "min_pixels"),
        ({"type": "image", "image": URI, "min_pixels": 99, "max_pixels": 98}, "min_pixels"),
        ({"type": "image", "image": URI, "resized_height": 64}, "resized_width"),
        ({"type": "image", "image": URI, "resized_height": 64, "resized_width": 64, "max_pixels": 9}, "max_pixels"),
        ({"type": "image", "image": URI, "detail": "lowest"}, "detail"),
        ({"type": "image", "image": URI, "detail": "low", "max_pixels": 9}, "detail"),
        ({"type": "image_url", "image_url": {"url": URI, "detail": "low"}, "detail": "high"}, "detail"),
        ({"type": "image_url", "image_url": URI, "channel_axis": 0}, "channel_axis"),
        ({"type": "image", "url": URI, "base64": BASE64}, "base64"),
        ({"type": "image", "url": 5}, "url"),
        ({"type": "image", "base64": 5}, "base64"),
        ({"type": "video", "video": [URI, URI], "nframes": 2}, "nframes"),
        ({"type": "video", "video": [URI, URI], "video_start": 1}, "video_start"),
        ({"type": "video", "video": [URI, URI], "fps": 0}, "fps"),
        ({"type": "video", "video": [URI, URI], "fps": 2, "sample_fps": 2}, "sample_fps"),
        ({"type": "video", "video": ([URI, URI], [0, 1]), "fps": 2}, "fps"),
        ({"type": "video", "video": [URI, URI], "detail": "low"}, "detail"),
        ({"type": "video", "video": [URI, URI], "min_pixels": 9999, "total_pixels": 9999}, "total_pixels"),
        ({"type": "video_url", "video_url": URI, "fps": 2, "nframes": 2}, "nframes"),
        ({"type": "video_url", "video_url": URI, "nframes": 2, "num_frames": 2}, "nframes"),
        ({"type": "video_url", "video_url": URI, "nframes": 1}, "nframes"),
        ({"type": "video_url", "video_url": URI, "min_frames": 5, "max_frames": 4}, "min_frames"),
        ({"type": "video_url", "video_url": URI, "min_frames": 0}, "min_frames"),
        ({"type": "video_url", "video_url": URI, "video_start": 3, "video_end": 2}, "video_start"),
        ({"type": "video_url", "video_url": URI, "video_end": -1}, "video_end"),
        ({"type": "video_url", "video_url": URI, "sample_fps": 2}, "sample_fps"),
        ({"type": "video_url", "video_url": URI, "channel_axis": 0}, "channel_axis"),
        ({"type": "video_url", "video_url": URI, "nframes": 5, "max_frames": 3}, "max_frames"),
        ({"type": "video_url", "video_url": URI, "nframes": 3, "min_frames": 8}, "min_frames"),
        ({"type": "image_url", "image_url": {"url": URI, "min_pixels": np.ones(2)}, "min_pixels": np.ones(2)}, "min_"),
        ({"type": "image", "image": BASE64}, "base64"),
        ({"type": "video", "video": ([URI, URI], [0, 10**400])}, "times"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_obeyed_is_refused_by_its_name(part: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=field):
        seen(user(part))


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": 2**25 + 1},
        {"min_pixels": 2**25 + 1},
        {"resized_height": 2**13, "resized_width": 2**13},
        {"resized_height": 2, "resized_width": 500},
    ],
)
def test_a_request_cannot_have_a_picture_scaled_up_without_end(options: dict[str, int]) -> None:
    with pytest.raises(LimitError):
        seen(user({"type": "image", "image": URI, **options}))
    with pytest.raises(LimitError):
        seen(user({"type": "video_url", "video_url": URI, "min_frames": 10_000}))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": RED},
        {"type": "image", "image": io.BytesIO(png(RED))},
        {"type": "image", "image": np.asarray(RED).transpose(2, 0, 1), "channel_axis": 0},
        {"type": "image", "url": URI},
        {"type": "image", "base64": BASE64},
        {"type": "image", "base64": URI},
        {"type": "image_url", "image_url": {"url": URI, "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": URI}, "detail": "high"},
        {"type": "input_image", "image_url": URI, "detail": "original", "file_id": None},
    ],
)
def test_one_picture_in_every_shape(part: dict[str, Any]) -> None:
    assert seen(user(part)).pictures == (load_picture(RED),)


def test_paths_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(png(RED))
    for part in ({"path": str(path)}, {"path": path}, {"url": path.as_uri()}, {"image": str(path)}):
        assert parse([user({"type": "image", **part})]).pictures == (load_picture(RED),)
        for kind in ("image", "video"):
            source = part.get("image", "") if kind == "video" and "image" in part else None
            asked = {"video": source} if source else part
            with pytest.raises(UnreadableMediaError, match="not allowed"):
                seen(user({"type": kind, **asked}))
    for address in ({"url": "https://example.org/a.png"}, {"image": "http://example.org/a.png"}):
        with pytest.raises(UnreadableMediaError, match="download"):
            parse([user({"type": "image", **address})])


def test_pictures_beside_the_text_as_in_ollama() -> None:
    expected = seen(user({"type": "image", "image": RED}))
    assert seen(user(images=[BASE64])) == seen(user(images=[URI])) == expected
    assert seen({"role": "user", "content": "What is it?", "images": [BASE64]}) == expected
    for wrong in ("red.png", [5], [{"url": URI}]):
        with pytest.raises(MessageError, match="images"):
            seen(user(images=wrong))
    with pytest.raises(UnreadableMediaError, match="base64"):
        seen(user(images=["/etc/passwd.png"]))
    with pytest.raises(MessageError, match="only text"):
        answered(images=[BASE64])
    with pytest.raises(LimitError):
        parse([user(images=[BASE64] * 3)], limits=Limits(max_images=2))


def test_numbers_may_come_from_numpy() -> None:
    budgets = [
        seen(user({"type": "image", "image": RED, "max_pixels": most})).pictures[0].budget
        for most in (9999, 9999.0, np.int64(9999), np.float64(9999))
    ]
    assert {(type(budget.max_pixels), budget.max_pixels) for budget in budgets} == {(int, 9999)}


def test_frames_take_their_distance() -> None:
    for name in ("fps", "sample_fps"):
        found = seen(user({"type": "video", "video": FRAMES, name: 4})).videos
        assert found == (load_video(FRAMES, fps=4),)
    assert seen(user({"type": "video", "video": FRAMES, "fps": None})).videos == (load_video(FRAMES),)


def test_a_size_makes_another_picture_of_it() -> None:
    sizes: list[dict[str, Any]] = [
        {}, {"max_pixels": 9999}, {"min_pixels": 9999}, {"detail": "low"}, {"resized_height": 64, "resized_width": 64},
    ]  # fmt: skip
    pictures = [seen(user({"type": "image", "image": RED, **size})).pictures[0] for size in sizes]
    assert len(set(pictures)) == len(sizes)
    assert {picture.image.size for picture in pictures} == {RED.size}
    videos = [seen(user({"type": "video", "video": FRAMES, **size})).videos[0] for size in (*sizes[:3], sizes[4])]
    assert len({video.digest for video in videos}) == 4
    assert seen(user({"type": "image", "image": load_picture(RED), "max_pixels": 9999})).pictures[0] == pictures[1]


def test_a_list_of_messages_keeps_all_of_them_in_a_chat(router: Router, tmp_path: Path) -> None:
    chat = router.chat("Be brief.")
    first = [
        user({"type": "image", "image": RED, "max_pixels": 4000}),
        {"role": "assistant", "content": "Red."},
        user({"type": "image", "image": BLUE}),
    ]
    chat.send(first, mode="instruct", max_new_tokens=4)
    plain = router.ask([{"role": "system", "content": "Be brief."}, *first], mode="instruct", max_new_tokens=4)
    assert chat.history[0].answer.text == plain.text
    assert chat.history[0].answer.usage.prompt_tokens == plain.usage.prompt_tokens
    for event in chat.stream("And the first one?", mode="instruct", max_new_tokens=4):
        assert event
    said = [{"role": "assistant", "content": plain.text}, {"role": "user", "content": "And the first one?"}]
    whole = router.ask([{"role": "system", "content": "Be brief."}, *first, *said], mode="instruct", max_new_tokens=4)
    assert chat.history[1].answer.usage.prompt_tokens == whole.usage.prompt_tokens
    assert chat.history[1].answer.text == whole.text
    resumed = router.resume(chat.save(tmp_path / "chat"))
    assert [(turn.before, turn.message) for turn in resumed.history] == [
        (turn.before, turn.message) for turn in chat.history
    ]
    again = [talk.send("Again?", mode="instruct", max_new_tokens=4) for talk in (chat, resumed, resumed.fork())]
    assert len({(answer.text, answer.usage.prompt_tokens) for answer in again[:2]}) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.sampled_from(["low", "", "x", URI, BASE64]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*sorted(KNOWN)]), inner, max_size=2),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from([*sorted(KNOWN - {"type"})]), VALUES, max_size=3)


@settings(max_examples=400, deadline=None, database=None)
@given(st.sampled_from([*PARTS, {"type": "refusal"}]), FIELDS, st.sampled_from(["user", "assistant", "system"]), FIELDS)
def test_any_value_of_any_field_is_read_or_refused(
    part: dict[str, Any], more: dict[str, Any], role: str, fields: dict[str, Any]
) -> None:
    why = ""
    try:
        conversation = seen({"role": role, "content": [{**more, **part}, TEXT], **fields}, user({**part, **more}))
    except InputError as error:
        why = str(error)
    assert 0 < len(why) < 1000 or conversation.prompt.strip()


@pytest.mark.parametrize("part", ["hi", None, {"text": "hi"}, 5])
def test_what_is_no_part_is_shown_with_an_example(part: Any) -> None:
    with pytest.raises(MessageError, match=r"\{'type': 'text'"):
        seen({"role": "user", "content": [part]})


@pytest.mark.parametrize(
    "change",
    [{"system": 5}, {"turns": [{"answer": "x"}]}, {"turns": 5}, {"text": 5}, {"part": 5}],
    ids=str,
)
def test_a_chat_file_with_a_wrong_type_is_damaged(router: Router, tmp_path: Path, change: dict[str, Any]) -> None:
    chat = router.chat()
    chat.send("How many?", mode="instruct", max_new_tokens=1)
    file = chat.save(tmp_path) / "chat.json"
    saved = json.loads(file.read_text())
    if "text" in change:
        saved["turns"][0]["answer"] |= change
    elif "part" in change:
        saved["turns"][0]["parts"] = [{"text": change["part"]}]
    else:
        saved |= change
    file.write_text(json.dumps(saved))
    with pytest.raises(ChatFileError):
        router.resume(tmp_path)
