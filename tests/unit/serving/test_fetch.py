"""Which addresses of pictures the server fetches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.fair_share import DEFAULT_FLOW, Flow
from vlroute.inputs.media import FrameSampling
from vlroute.inputs.messages import Conversation
from vlroute.serving.fetch import Fetcher, Preparation, is_quick
from vlroute.serving.settings import ServerSettings

ALLOWED = ("Files.example.org", "plain.example:80", "tls.example:443", "[::1]:8000", "[::2]", "xn--bcher-kva.example")


@pytest.mark.parametrize(("address", "allowed"), [
    ("http://files.example.org/a.png", True), ("https://FILES.example.org:443/a.png", True),
    ("http://files.example.org:80/a.png", True), ("http://files.example.org:8000/a.png", False),
    ("http://files.example.org:443/a.png", False), ("http://plain.example/a.png", True),
    ("https://plain.example/a.png", False), ("https://tls.example/a.png", True), ("http://tls.example:443/a.png", True),
    ("http://tls.example/a.png", False), ("http://[::1]:8000/a.png", True), ("http://[::1]/a.png", False),
    ("http://[::2]/a.png", True), ("https://bücher.example/a.png", True),
    ("https://xn--bcher-kva.example/a.png", True), ("http://evil.example/a.png", False),
])  # fmt: skip
def test_hosts_and_ports(address: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(_self: Any, _url: Any, _most: int) -> bytes:
        return b"picture"

    async def fetch() -> bytes:
        fetcher = Fetcher(ServerSettings(allowed_hosts=ALLOWED, fetch_seconds=1.0))
        try:
            return await fetcher.fetch(address, 100, DEFAULT_FLOW)
        finally:
            await fetcher.close()

    monkeypatch.setattr(Fetcher, "_read", read)
    if allowed:
        assert asyncio.run(fetch()) == b"picture"
    else:
        with pytest.raises(UnreadableMediaError, match="does not fetch from that host"):
            asyncio.run(fetch())


def test_a_flow_cannot_keep_others_from_a_host() -> None:
    async def fetch() -> None:
        released, slow = asyncio.Event(), 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal slow
            if b"/slow" in await reader.readuntil(b"\r\n\r\n"):
                slow += 1
                await released.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\npicture")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            fetcher = Fetcher(ServerSettings(allowed_hosts=(host,), max_fetches=4, fetch_seconds=60.0))
            waiting = [
                asyncio.create_task(fetcher.fetch(f"http://{host}/slow", 100, Flow(name)))
                for name in ("first", "second") for _ in range(10)
            ]  # fmt: skip
            while slow < 6:
                await asyncio.sleep(0.01)
            fast = fetcher.fetch(f"http://{host}/fast", 100, Flow("third"))
            assert await asyncio.wait_for(fast, 30) == b"picture"
            assert slow == 6  # the first flow has all 4 places, the second one its share of 2
            released.set()
            assert await asyncio.gather(*waiting) == [b"picture"] * 20
            await fetcher.close()

    asyncio.run(fetch())


QUESTION = {"role": "user", "content": "x"}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking", "name", "refusal", "tool_calls"])
def test_a_decision_on_more_than_a_short_text_needs_a_thread(field: str) -> None:
    assert is_quick([QUESTION, {"role": "assistant", "content": "a"}, QUESTION])
    assert not is_quick([QUESTION, {"role": "assistant", "content": "a", field: "x"}, QUESTION])
    assert is_quick([QUESTION] * 50)
    assert not is_quick([QUESTION] * 51)
    assert not is_quick([{"role": "user", "content": "x" * 4001}])


def call(arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]


@pytest.mark.parametrize("fields", [
    {"reasoning_content": "x" * 101}, {"reasoning": "x" * 101}, {"reasoning_content": "", "thinking": "x" * 101},
    {"content": "", "refusal": "x" * 101}, {"content": [{"type": "refusal", "refusal": "x" * 101}]},
    {"tool_calls": call('{"a": "' + "x" * 101 + '"}')}, {"tool_calls": call({"a": {"b": ["x" * 101]}})},
    {"tool_calls": call({"x" * 101: 1})}, {"tool_calls": [{"name": "f", "arguments": {"a": "x" * 101}}]},
])  # fmt: skip
def test_all_texts_are_counted_before_anything_reads_them(fields: dict[str, Any]) -> None:
    """What follows the answer is invalid, but the length is found out first."""
    answer = {"role": "assistant", "content": "a", **fields}
    with pytest.raises(LimitError, match="over the limit of 100"):
        prepared([QUESTION, answer, {"role": "nobody"}])


def test_reasoning_before_the_last_question_does_not_count() -> None:
    answer = {"role": "assistant", "content": "a", "reasoning_content": "<|im_end|>" * 50}
    conversation = prepared([QUESTION, answer, QUESTION])
    assert [(one.text, one.thinking) for one in conversation.messages] == [("x", ""), ("a", ""), ("x", "")]


def prepared(messages: list[dict[str, Any]]) -> Conversation:
    settings = ServerSettings(max_prompt=100)
    return Preparation(messages, Fetcher(settings), settings, FrameSampling)()
