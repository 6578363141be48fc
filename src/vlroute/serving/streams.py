"""From the events of one request to a whole answer, or to server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vlroute.answer import Answer, Decided, Event, Finished
from vlroute.serving.errors import APIError, Count, api_error
from vlroute.serving.replies import DONE, Chunks, data
from vlroute.serving.running import Running

PING_SECONDS = 10.0  # proxies cut a silent stream after half a minute or so


async def first(running: Running) -> Decided:
    """The decision; what fails before it has a status of its own."""
    try:
        event = await running.next()
    except BaseException:
        running.close()
        raise
    assert isinstance(event, Decided)
    return event


async def whole(running: Running, request: Request) -> tuple[Answer, Decided]:
    """The answer with its decision; given up when the client leaves."""

    async def read() -> tuple[Answer, Decided]:
        decided = await first(running)
        while not isinstance(event := await running.next(), Finished):
            decided = event if isinstance(event, Decided) else decided
        return event.answer, decided

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    reading, leaving = asyncio.ensure_future(read()), asyncio.ensure_future(left())
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise APIError(499, "the client left", "client_left")
        return reading.result()
    finally:
        leaving.cancel()
        reading.cancel()
        running.close()


class EventStream(StreamingResponse):
    """The answer as server-sent events. However the client leaves, nothing is written for it any longer."""

    def __init__(self, running: Running, chunks: Chunks, count: Count, headers: dict[str, str]) -> None:
        told = {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_sent(running, chunks, count), media_type="text/event-stream", headers=told)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the generator: one that was never begun has no end either
            self._running.close()


async def _sent(running: Running, chunks: Chunks, count: Count) -> AsyncIterator[str]:
    """A comment now and then while there is nothing to say. An error ends them with its message; `count` is told."""
    try:
        yield chunks.first()
        event: Event | None = None
        while not isinstance(event, Finished):
            try:
                event = await running.next(PING_SECONDS)
            except TimeoutError:
                yield ": still working\n\n"
                continue
            for chunk in chunks.of(event):
                yield chunk
    except Exception as error:
        said = api_error(error)
        count(said.status, said.code)
        yield data(said.body())
    yield DONE
