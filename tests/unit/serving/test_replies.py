"""A client that disconnects while its answer begins; JSON of large replies."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
from fastapi import Request

from vlroute.serving.errors import APIError
from vlroute.serving.replies import json_in_pieces, until_disconnect


async def _disconnect() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def test_an_error_at_the_same_time_as_a_disconnect_is_not_logged() -> None:
    problems: list[dict[str, Any]] = []

    async def refused_when_cancelled() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise APIError(429, "too many", "too_many_requests") from None

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        with pytest.raises(APIError, match="disconnected"):
            await until_disconnect(refused_when_cancelled(), Request({"type": "http"}, _disconnect))
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()

    asyncio.run(ask())
    assert problems == []


@pytest.mark.parametrize("count", [0, 3, 20, 21, 500])
def test_json_in_pieces_is_json(count: int) -> None:
    one = {"token": '你\u2028"', "logprob": -1.5e-7, "top": [{"a": None, "b": True}] * 3, "bytes": [1, 2]}
    entries = [one] * count
    value = {"choices": [{"logprobs": {"content": entries}, "é": [[], {}, [entries]]}], "n": count}
    text = json_in_pieces(value)
    assert text == json.dumps(value, separators=(",", ":"))
