"""The server's endpoints, in OpenAI's words where OpenAI has one."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from vlroute import __version__
from vlroute.decision.policy import Decision
from vlroute.modes import MODES
from vlroute.serving.conversations import fetched, is_quick, prepared
from vlroute.serving.door import Entered
from vlroute.serving.errors import APIError
from vlroute.serving.replies import PREFIX, Chunks, completion, headers
from vlroute.serving.service import failure_reason
from vlroute.serving.streams import EventStream, first, whole
from vlroute.serving.wire import ChatRequest, FeedbackRequest

STARTED = int(time.time())
ASKING = (400, 401, 404, 413, 415, 421, 422, 429, 503)
endpoints = APIRouter()


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "An error in OpenAI's shape."} for status in statuses}


@endpoints.post("/v1/chat/completions", response_model=None, responses=_errors(*ASKING, 504))
async def chat_completions(asked: ChatRequest, request: Request, entry: Entered) -> Response:
    """Answer a conversation; in the mode that the router decides on, unless one is asked for."""
    arrived, door = time.perf_counter(), entry.door
    wish = asked.wish(door.settings, entry.namespace)
    messages = await fetched(asked.messages, door.fetcher, door.settings)
    running = door.service.start(
        prepared(messages, door.settings, door.service.sampling), wish, arrived, bool(asked.stream)
    )
    if not asked.stream:
        answer, decided = await whole(running, request)
        return JSONResponse(completion(answer, asked.ignored, asked.hides_reasoning), headers=headers(decided))
    decided = await first(running)
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    chunks = Chunks(decided, with_usage, asked.ignored, asked.hides_reasoning)
    return EventStream(running, chunks, door.service.metrics.refused, headers(decided))


@endpoints.post("/v1/route", responses=_errors(*ASKING))
async def route(asked: ChatRequest, entry: Entered) -> dict[str, Any]:
    """Only the decision for a chat request, including the captions of its pictures."""
    door = entry.door
    wish = asked.wish(door.settings, entry.namespace)
    prepare = prepared(await fetched(asked.messages, door.fetcher, door.settings), door.settings, door.service.sampling)

    def decide() -> Decision:
        return door.service.router.decide_on(prepare(), wish)

    # a few words take a fraction of a millisecond, less than going to a thread and back
    decision: Decision = decide() if is_quick(asked.messages) else await door.service.in_thread(decide)
    door.service.metrics.decisions.labels(decision.mode).inc()
    return {"model": decision.mode, "decision": decision.as_dict(), "ignored": asked.ignored}


@endpoints.post("/v1/feedback", responses=_errors(400, 401, 404, 413, 415, 421, 422, 503))
async def feedback(judged: FeedbackRequest, entry: Entered) -> dict[str, Any]:
    """Say how right an answer was; whoever knows its id may."""
    id = judged.id.removeprefix(PREFIX)
    store = partial(entry.door.service.feedback, id, correct=judged.correct, comment=judged.comment)
    await asyncio.to_thread(store)
    return {"id": id, "stored": True}


@endpoints.get("/v1/models", responses=_errors(401, 421))
async def models(entry: Entered) -> dict[str, Any]:
    """`auto` and the two modes."""
    return {"object": "list", "data": [_model(name) for name in ("auto", *MODES)]}


@endpoints.get("/v1/models/{name}", responses=_errors(401, 404, 421))
async def model(name: str, entry: Entered) -> dict[str, Any]:
    """One of them."""
    if name not in ("auto", *MODES):
        raise APIError(404, "no such model here; expected 'auto', 'instruct' or 'thinking'", "model_not_found")
    return _model(name)


@endpoints.head("/health", include_in_schema=False)
@endpoints.get("/health", response_model=None, responses={503: {"description": "The models could not be loaded."}})
async def health(request: Request) -> Response:
    """Liveness. 503 only if the models could not be loaded, so that the process has to be restarted."""
    service = request.app.state.door.service
    if service.failure is None:
        return JSONResponse({"status": "ok", "version": __version__})
    said = {"status": "failed", "reason": failure_reason(service.failure), "version": __version__}
    return JSONResponse(said, 503)


@endpoints.head("/ready", include_in_schema=False)
@endpoints.get("/ready", response_model=None, responses={503: {"description": "Loading, failed or shutting down."}})
async def ready(request: Request) -> Response:
    """Requests are taken: the models are loaded and nobody has told the server to stop."""
    service = request.app.state.door.service
    service.begin()
    said = {"status": service.state}
    if service.state == "failed":
        said["reason"] = failure_reason(service.failure)
    return JSONResponse(said, 200 if said["status"] == "ready" else 503)


@endpoints.get("/metrics", response_model=None, responses=_errors(401, 421))
async def metrics(entry: Entered) -> Response:
    """Prometheus' text format."""
    return Response(entry.door.service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "vlroute"}
