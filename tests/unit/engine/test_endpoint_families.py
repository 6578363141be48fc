"""What requests to endpoints contain to choose the mode, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlroute import Endpoint, InputError, Router, SettingsError, read_endpoints
from vlroute.engine.families import ENDPOINT_FAMILIES
from vlroute.inputs.messages import parse
from vlroute.types import MODES, Mode

URL = "http://127.0.0.1:9/v1"
FRAMES = [Image.new("RGB", (24, 24), (20 * i, 0, 0)) for i in range(3)]


def endpoint(**more: Any) -> Endpoint:
    return Endpoint(URL, "m", **more)


def extra(one: Endpoint, mode: Mode, **settings: Any) -> Any:
    return one.body(parse("?"), settings, mode).get("extra_body")


@pytest.mark.parametrize("family", [name for name, one in ENDPOINT_FAMILIES.items() if one.switch is not None])
@pytest.mark.parametrize("mode", MODES)
def test_the_switch_of_each_family_is_sent(family: str, mode: Mode) -> None:
    found = ENDPOINT_FAMILIES[family]
    assert extra(endpoint(family=family), mode) == found.fields(mode)
    assert found.fields("instruct") != found.fields("thinking")


def test_the_switch_of_qwen3_5() -> None:
    one = endpoint(family="qwen3_5")
    assert extra(one, "instruct") == {"chat_template_kwargs": {"enable_thinking": False}}
    assert extra(one, "thinking") == {"chat_template_kwargs": {"enable_thinking": True}}
    assert extra(endpoint(), "thinking") is None


def test_every_row_says_where_it_is_documented() -> None:
    for name, one in ENDPOINT_FAMILIES.items():
        assert one.source == "unverified" or one.source.startswith("https://"), name
        assert one.switch is None or set(one.modes) == set(MODES), name
        assert bool(one.why_one_mode) == (set(one.modes) != set(MODES)), name


def test_further_fields_are_sent_for_both_modes_or_for_one() -> None:
    both = endpoint(family="qwen3_5", extra_body={"chat_template_kwargs": {"add_vision_id": True}, "priority": 3})
    assert extra(both, "instruct", top_k=5) == {
        "top_k": 5, "priority": 3, "chat_template_kwargs": {"enable_thinking": False, "add_vision_id": True},
    }  # fmt: skip
    each = endpoint(extra_body={"instruct": {"reasoning_effort": "none"}, "thinking": {"reasoning_effort": "high"}})
    assert [extra(each, mode)["reasoning_effort"] for mode in MODES] == ["none", "high"]
    one = endpoint(extra_body={"thinking": {"reasoning_effort": "high"}})
    assert (extra(one, "instruct"), extra(one, "thinking")) == (None, {"reasoning_effort": "high"})


def test_one_endpoint_answers_in_both_modes_if_requests_can_choose() -> None:
    for able in (endpoint(family="qwen3_5"), endpoint(extra_body={mode: {"think": mode} for mode in MODES})):
        with Router.from_endpoints(able) as router:
            assert router.instruct == router.thinking == able.name
            assert router.identity.name == "m"
    for unable in (endpoint(), endpoint(extra_body={"thinking": {"a": 1}}), (URL, "m")):
        with pytest.raises(ValueError, match="needs a family with a switch"):
            Router.from_endpoints(unable)


def test_a_file_may_name_one_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(json.dumps({"base_url": URL, "model": "m", "family": "qwen3_5"}), "utf-8-sig")  # as on Windows
    instruct, thinking = read_endpoints(file)
    assert instruct is thinking
    with Router.from_pretrained(file) as router:
        assert router.remote is not None
        assert router.remote.endpoints["thinking"].family == "qwen3_5"
    file.write_text(json.dumps({"base_url": URL, "model": "m"}))
    with pytest.raises(InputError, match="needs a family with a switch"):
        read_endpoints(file)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"family": "gpt"}, r"family must be one of .*qwen3_5"),
        ({"extra_body": [1]}, "extra_body must be a mapping"),
        ({"extra_body": {"thinking": 3}}, "a mapping of fields for each mode"),
        ({"extra_body": {3: 4}}, "extra_body must be a mapping"),
        ({"videos": "mp4"}, "videos must be one of frames, video_url"),
    ],
)
def test_wrong_fields_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        endpoint(**wrong)


def test_a_budget_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(SettingsError, match="takes no thinking_budget"):
        endpoint(family="qwen3_5").check("thinking", {"thinking_budget": 5})
    assert endpoint(family="qwen3_5").check("instruct", {"thinking_budget": 5}) == {}
    router = Router.from_endpoints(endpoint(family="qwen3_5"))
    with router, pytest.raises(SettingsError, match="takes no thinking_budget"):
        router.ask("?", mode="thinking", thinking_budget=5)


def test_videos_go_as_frames_or_as_one_video_or_not_at_all() -> None:
    conversation = parse("What happens?", videos=[(FRAMES, (0.0, 0.5, 1.25))])

    def parts(**more: Any) -> Any:
        return endpoint(**more).body(conversation, {}, "instruct")["messages"][0]["content"]

    frames = parts(videos="frames")
    assert [part["text"] for part in frames if part["type"] == "text"][:3] == [
        "<0.0 seconds>", "<0.5 seconds>", "<1.2 seconds>",
    ]  # fmt: skip
    assert [part["type"] for part in frames] == ["text", "image_url"] * 3 + ["text"]
    (video, question) = parts(videos="video_url")
    assert question["text"] == "What happens?"
    head, _, data = video["video_url"]["url"].partition(",")
    assert head == "data:video/jpeg;base64"
    assert len(data.split(",")) == 3
    with pytest.raises(InputError, match="takes no videos"):
        parts()
