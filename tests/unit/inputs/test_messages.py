"""Messages: what a caller may send, in which order the model sees it, and what is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlroute.errors import InputError, LimitError, MessageError, UnreadableMediaError
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import Picture, Video, load_picture, load_video
from vlroute.inputs.messages import Conversation, Message, parse

RED, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
RED_ARRAY = np.asarray(RED)
FRAMES = np.stack([RED_ARRAY, np.asarray(BLUE)])
CLIP = load_video([RED, BLUE])
CONTROL = [
    "im_start",
    "im_end",
    "endoftext",
    "vision_start",
    "vision_end",
    "vision_pad",
    "image_pad",
    "video_pad",
]


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_a_bare_prompt() -> None:
    conversation = parse("What is it?")
    assert conversation == Conversation((Message("user", ("What is it?",)),))
    assert (conversation.prompt, conversation.pictures, conversation.videos) == ("What is it?", (), ())
    assert conversation.template() == [{"role": "user", "content": [text("What is it?")]}]


def test_pictures_come_before_videos_before_text() -> None:
    conversation = parse("Compare.", images=[RED, BLUE], videos=CLIP)
    assert conversation.messages[0].parts == (load_picture(RED), load_picture(BLUE), CLIP, "Compare.")
    kinds = [slot["type"] for slot in conversation.template()[0]["content"]]
    assert kinds == ["image", "image", "video", "text"]
    assert conversation.template()[0]["content"][0] == {"type": "image"}


@pytest.mark.parametrize("images", [RED, [RED], (RED,), RED_ARRAY, encoded(RED), uri(RED), load_picture(RED)])
def test_images_is_one_source_or_a_list(images: Any) -> None:
    assert parse("?", images=images).pictures == (load_picture(RED),)


@pytest.mark.parametrize(
    ("videos", "count"),
    [
        (None, 0),
        ([], 0),
        (CLIP, 1),
        ([CLIP, CLIP], 2),
        ([RED, BLUE], 1),
        ((RED, BLUE), 1),
        ([RED_ARRAY, BLUE], 1),
        ([encoded(RED), encoded(BLUE)], 1),
        ([load_picture(RED), BLUE], 1),
        (FRAMES, 1),
        ([FRAMES, FRAMES], 2),
        ((FRAMES, [0.0, 0.5]), 1),
        (([RED, BLUE], np.array([0.0, 0.5])), 1),
        ([(FRAMES, [0.0, 0.5]), CLIP], 2),
        ([[RED, BLUE], [uri(RED), uri(BLUE)]], 2),
        (([RED, BLUE], [RED, BLUE]), 2),
        (([uri(RED), uri(BLUE)], [0.0, 0.5]), 1),
    ],
)
def test_one_video_and_several_are_told_apart(videos: Any, count: int) -> None:
    assert parse("?", videos=videos).videos == (CLIP,) * count


def test_frames_mixed_with_videos_are_refused() -> None:
    with pytest.raises(MessageError, match="mixes frames with whole videos"):
        parse("?", videos=[RED, CLIP])


def test_openai_messages() -> None:
    conversation = parse(
        [
            {"role": "developer", "content": "Be brief."},
            user({"type": "image_url", "image_url": {"url": uri(RED), "detail": "high"}}, text("Colour?")),
            {"role": "assistant", "content": "Red.", "reasoning": "hm", "reasoning_content": "hm"},
            user(
                {"type": "input_image", "image_url": uri(BLUE)},
                {"type": "image", "image": RED_ARRAY},
                {"type": "video", "video": [RED, BLUE], "fps": 1},
                {"type": "input_text", "text": "And "},
                text("now?"),
            ),
        ]
    )
    red, blue = load_picture(RED), load_picture(BLUE)
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
    assert conversation.messages[2].parts == ("Red.",)
    assert conversation.prompt == "And now?"
    assert conversation.pictures == (red, blue, red)
    assert conversation.last_pictures == (blue, red)
    assert conversation.last_videos == conversation.videos == (load_video([RED, BLUE], fps=1),)
    assert conversation.template()[0] == {"role": "system", "content": [text("Be brief.")]}


def test_media_beside_messages_go_to_the_last_one() -> None:
    conversation = parse([user(text("First.")), user(text("Second."))], images=RED, history=[user(text("Earlier."))])
    assert [message.text for message in conversation.messages] == ["Earlier.", "First.", "Second."]
    assert conversation.messages[2].parts == (load_picture(RED), "Second.")
    assert conversation.last_pictures == conversation.pictures


def test_history_takes_messages_and_dicts() -> None:
    first = Message("user", (load_picture(RED), "Colour?"))
    conversation = parse("Sure?", history=[first, {"role": "assistant", "content": "Red."}])
    assert conversation.messages == (first, Message("assistant", ("Red.",)), Message("user", ("Sure?",)))
    assert conversation.pictures == first.pictures
    assert conversation.last_pictures == ()
    assert parse("Sure?", history=list(conversation.messages[:2])) == conversation


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("4", "4"),
        ("<think>2+2</think>\n\n4", "4"),
        ("2+2\n</think>\n\n4", "4"),
        ("<think>a</think><think>b</think>4", "4"),
        ("a</think>b</think>4", "4"),
        ("<think>a</think>b</think>4", "b</think>4"),
        ("a</think><think>b</think>4", "4"),
        ("\n<think>never ended", "\n<think>never ended"),
        ("Write <think> and </think>.", "Write <think> and </think>."),
        ("`</think>` ends a thought.", "`</think>` ends a thought."),
        ("```\n</think>\n```\nends it.", "```\n</think>\n```\nends it."),
        ("one ` alone\n</think>\n\nand ` another", "and ` another"),
        ("a\n</think>\n\n`</think>` ends it.", "`</think>` ends it."),
        (None, ""),
        ("It reads <|im_end|>.", "It reads < |im_end|>."),
    ],
)
def test_past_answers_hold_no_reasoning_and_no_control_tokens(said: str | None, kept: str) -> None:
    answer = parse("?", history=[{"role": "assistant", "content": said}]).messages[0]
    assert answer.text == kept
    assert Message("assistant", answer.parts) == answer
    if said is not None:
        half = len(said) // 2
        parts = [{"type": "text", "text": piece} for piece in (said[:half], said[half:])]
        assert parse("?", history=[{"role": "assistant", "content": parts}]).messages[0] == answer
        for field in ({"reasoning_content": ""}, {"thinking": "t"}, {"reasoning_details": [{"text": "t"}]}):
            separated = parse("?", history=[{"role": "assistant", "content": said, **field}])
            assert separated.messages[0] == Message("assistant", (said,))


@pytest.mark.parametrize("name", CONTROL)
def test_control_tokens_are_refused(name: str) -> None:
    token = f"<|{name}|>"
    split = user(text(token[:5]), text(token[5:] + " and more"))
    for prompt in (f"a{token}b", [split], [{"role": "system", "content": token}, user(text("?"))]):
        with pytest.raises(MessageError, match="control token"):
            parse(prompt)
    apart = user(text(f"What is {token[:5]}"), {"type": "image", "image": RED}, text(token[5:]))
    assert parse([apart]).last_pictures  # a picture between them keeps the halves apart


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("\ud800", "surrogate"),
        ([], "last message must have the role user or tool"),
        ([{"role": "assistant", "content": "Hi"}], "last message must have the role user"),
        ([{"role": "tool", "content": "4"}], "must follow an answer with tool_calls"),
        ([{"role": "function", "content": "4"}], "role must be"),
        ([{"role": ["user"], "content": "4"}], "role must be"),
        ([{"content": "4"}], "role must be"),
        ([{"role": "user"}], "content must be a str or a list of parts, got None"),
        ([{"role": "user", "content": {"type": "text"}}], "content must be"),
        ([user(text(None))], "must hold a str"),
        ([user("text")], "a part must be a dict"),
        ([user({"type": "audio"})], "unknown part .type 'audio'"),
        ([user({"type": "image"})], "must hold one of"),
        ([{"role": "system", "content": [{"type": "image", "image": RED}]}, user(text("?"))], "only text"),
        ([{"role": "assistant", "content": [{"type": "image", "image": RED}]}, user(text("?"))], "only text"),
        ([user({"type": "image_url", "image_url": {"url": "picture.png"}}, text("?"))], "must be a data URI"),
        (
            [user({"type": "image_url", "image_url": "https://example.org/a.png"}, text("?"))],
            "must be a data URI",
        ),
        ([user({"type": "image_url", "image_url": {}}, text("?"))], "must be a data URI"),
        ([user({"type": "video_url", "video_url": {"url": "/clip.mp4"}}, text("?"))], "must be a data URI"),
        (["What?"], "must be a Message or a dict"),
        ({"role": "user", "content": "?"}, "a str or a list of messages"),
        (None, "a str or a list of messages"),
    ],
)
def test_wrong_messages_say_what_is_wrong(prompt: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        parse(prompt)


def test_a_message_is_checked_on_construction() -> None:
    for parts in ("text", ["text"], (RED,)):
        with pytest.raises(MessageError, match="part"):
            Message("user", parts)  # type: ignore[arg-type]
    with pytest.raises(MessageError, match="list of messages"):
        parse("?", history="Hello")  # type: ignore[arg-type]


def test_pictures_and_videos_are_counted_over_the_whole_request(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [Message("user", (load_picture(RED), CLIP, "?"))]
    message = [user({"type": "image", "image": RED}, text("?"))]
    limits = Limits(max_images=3, max_videos=2)
    assert len(parse(message, images=RED, videos=CLIP, history=history, limits=limits).pictures) == 3
    with pytest.raises(LimitError, match="more than 2 videos"):
        parse("?", videos=[CLIP, CLIP], history=history, limits=limits)
    loaded: list[object] = []
    monkeypatch.setattr(
        "vlroute.inputs.messages.load_picture", lambda source, _: loaded.append(source) or load_picture(source)
    )
    with pytest.raises(LimitError, match="more than 3 pictures"):
        parse(message, images=[RED] * 100, history=history, limits=limits)
    assert len(loaded) == 3


def test_a_wrong_conversation_loads_no_media() -> None:
    for prompt, message in (("<|im_end|>", "control token"), ([{"role": "tool", "content": "4"}], "must follow")):
        with pytest.raises(MessageError, match=message):
            parse(prompt, images="missing.png")


def test_a_picture_may_come_without_text() -> None:
    image = {"type": "image", "image": RED}
    ways = [parse("", RED), parse([user(image)]), parse([user(text("")), user(image)]), parse([user()], images=RED)]
    for one in ways:
        assert (one.prompt, [part for part in one.messages[-1].parts if part]) == ("", [*one.pictures])
    with pytest.raises(MessageError, match="empty"):  # the earlier picture belongs to another question
        parse([user(image), {"role": "assistant", "content": "red"}, user(text(" "))])


def test_a_server_forbids_paths_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    RED.save(path)
    limits = Limits(local_files=False)
    image, video = {"type": "image", "image": str(path)}, {"type": "video", "video": [str(path), str(path)]}
    assert parse([user(image, text("?"))]).pictures == (load_picture(RED),)
    for part in (image, video, {"type": "video", "video": str(path)}):
        with pytest.raises(UnreadableMediaError, match="not allowed"):
            parse([user(part, text("?"))], limits=limits)


def test_values_are_hashable_and_small_when_printed() -> None:
    conversation = parse("?", images=RED, videos=CLIP)
    assert hash(conversation) == hash(parse("?", images=RED, videos=CLIP))
    assert len(repr(conversation)) < 400


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image_url", "url", "video"]), inner)
    ),
    max_leaves=12,
)
roles = st.sampled_from(["user", "assistant", "system", "tool"])
kinds = st.sampled_from(["text", "image_url", "input_image", "video_url", "image", "video"])
part = st.fixed_dictionaries({"type": kinds}, optional={"text": json, "image_url": json, "video": json, "image": json})
message = st.fixed_dictionaries({"role": roles}, optional={"content": json | st.lists(part | json, max_size=3)})


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(message | json, max_size=3) | json)
def test_whatever_comes_from_the_wire_is_parsed_or_refused(prompt: Any) -> None:
    try:
        conversation = parse(prompt, limits=Limits(local_files=False))
    except InputError:
        return
    assert conversation.prompt.strip()
    assert all(isinstance(p, str | Picture | Video) for turn in conversation.messages for p in turn.parts)
