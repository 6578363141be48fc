"""A client that disconnects while its answer begins."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from fastapi import Request

from vlroute.serving.errors import APIError
from vlroute.serving.replies import until_disconnect


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
