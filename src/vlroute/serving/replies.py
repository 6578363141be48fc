"""Helpers for all endpoints that return answers, independent of the form of their replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import Request

from vlroute.serving.errors import APIError
from vlroute.stream import AsyncStream
from vlroute.types import Answer, Decided, Decision

T = TypeVar("T")
#: Number of tokens with log-probabilities from which a reply is large.
LARGE = 100
#: Lists from this length are encoded one element after the other.
_LONG = 20


def is_large(answers: Sequence[Answer]) -> bool:
    """Whether the reply takes long to encode, because of the log-probabilities of many tokens.

    Args:
        answers: The answers.

    Returns:
        Whether it does.
    """
    return sum(len(answer.logprobs or ()) for answer in answers) > LARGE


def json_in_pieces(value: Any) -> str:
    """JSON of a large value. Unlike `json.dumps`, which is one call in C, this lets other threads run meanwhile.

    Args:
        value: Objects and lists of JSON.

    Returns:
        The JSON, compact.
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{json_in_pieces(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        encode = compact_json if len(value) > _LONG else json_in_pieces
        return "[" + ",".join(map(encode, value)) + "]"
    return compact_json(value)


def compact_json(value: Any) -> str:
    """JSON without white space.

    Args:
        value: The value.

    Returns:
        The JSON.
    """
    return json.dumps(value, separators=(",", ":"))


async def until_disconnect(answering: Coroutine[Any, Any, T], request: Request) -> T:
    """Wait for an answer, or for the beginning of its stream. It is cancelled if the client disconnects.

    Args:
        answering: A coroutine of `Service.answer` or `Service.answers`, or `begin`.
        request: The request of the client.

    Returns:
        The result of the coroutine.

    Raises:
        APIError: 499 if the client disconnected.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.ensure_future(answering), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise APIError(499, "the client disconnected", "client_left")
        return answer.result()
    finally:
        left.cancel()
        answer.cancel()
        # otherwise asyncio logs an error that comes at the same time as the cancellation
        answer.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def begin(starting: Coroutine[Any, Any, AsyncStream[T]]) -> tuple[AsyncStream[T], Decided]:
    """Wait for the decision, so that an error before it gets an HTTP status of its own.

    Args:
        starting: A coroutine of `Service.stream` or `Service.choices`.

    Returns:
        The events, for `EventStream`, and their first one. They are closed if an error is raised.
    """
    events = await starting
    try:
        decided = await events.next()
    except BaseException:
        events.close()
        raise
    assert isinstance(decided, Decided)
    return events, decided


def decision_headers(id: str, decision: Decision) -> dict[str, str]:
    """The decision as headers, for clients that do not read the body.

    Args:
        id: Id of the answer.
        decision: The decision.

    Returns:
        Headers of the response.
    """
    return {
        "X-VLRoute-Id": id,
        "X-VLRoute-Mode": decision.mode,
        "X-VLRoute-Gain": f"{decision.gain:.4f}",
        "X-VLRoute-Forced": str(decision.forced).lower(),
    }


def answer_details(answer: Answer, ignored: Sequence[str]) -> dict[str, Any]:
    """The field `vlroute` of a complete reply.

    Args:
        answer: The answer.
        ignored: Names of the request's fields that have no effect.

    Returns:
        The JSON object.
    """
    return {
        "id": answer.id, "decision": answer.decision.as_dict(), "timing": asdict(answer.timing),
        "encoded": answer.usage.encoded, "closed": answer.closed, "ignored": list(ignored),
    }  # fmt: skip
