"""`POST /api/predict`: a picture in base64, a prompt and a model's name, as simple pages for Qwen3-VL send them."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field

from vlroute import __version__
from vlroute.inputs.messages import Conversation, parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.dependencies import Entered
from vlroute.serving.errors import APIError
from vlroute.serving.fetch import fetched, is_quick, prepared
from vlroute.serving.schemas import ChatRequest, FeedbackRequest, Fields, mode_of
from vlroute.serving.service import failure_reason
from vlroute.serving.sse import PREFIX, Chunks, EventStream, completion, first, headers, whole
from vlroute.types import MODES, Decision


class PredictRequest(Fields):
    """`data`: a picture (base64, a data URI, or null), the prompt, and optionally a model's name."""

    harmless = frozenset({"fn_index", "session_hash", "event_data"})  # sent by Gradio's pages
    data: list[str | None] = Field(min_length=2, max_length=3)


predictions = APIRouter()


@predictions.post("/api/predict")
async def predict(asked: PredictRequest, request: Request, entry: Entered) -> dict[str, Any]:
    """Answer one question about one picture."""
    arrived = time.perf_counter()
    picture, prompt, model = (*asked.data, None)[:3]
    options = RequestOptions(mode=mode_of(model or "auto"), namespace=entry.namespace)
    if prompt is None:
        raise APIError(400, "data must be [picture in base64 or null, prompt, model]", "bad_message", "data")

    def prepare() -> Conversation:
        uri = picture if not picture or picture[:5].lower() == "data:" else f"data:image/png;base64,{picture}"
        return parse(prompt, uri or None, limits=entry.dependencies.service.limits)

    answer, _ = await whole(entry.dependencies.service.start(prepare, options, arrived, deltas=False), request)
    return {
        "data": [answer.text],
        "duration": answer.timing.total,
        "vlroute": {"id": answer.id, "thinking": answer.thinking, "decision": answer.decision.as_dict()},
    }


STARTED = int(time.time())
ASKING = (400, 401, 404, 413, 415, 421, 422, 429, 503)
endpoints = APIRouter()


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "An error in OpenAI's shape."} for status in statuses}


@endpoints.post("/v1/chat/completions", response_model=None, responses=_errors(*ASKING, 504))
async def chat_completions(asked: ChatRequest, request: Request, entry: Entered) -> Response:
    """Answer a conversation; in the mode that the router decides on, unless one is asked for."""
    arrived, dependencies = time.perf_counter(), entry.dependencies
    options = asked.options(dependencies.settings, entry.namespace)
    messages = await fetched(asked.messages, dependencies.fetcher, dependencies.settings)
    running = dependencies.service.start(
        prepared(messages, dependencies.settings, dependencies.service.sampling), options, arrived, bool(asked.stream)
    )
    if not asked.stream:
        answer, decided = await whole(running, request)
        return JSONResponse(completion(answer, asked.ignored, asked.hides_reasoning), headers=headers(decided))
    decided = await first(running)
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    chunks = Chunks(decided, with_usage, asked.ignored, asked.hides_reasoning)
    return EventStream(running, chunks, dependencies.service.metrics.refused, headers(decided))


@endpoints.post("/v1/route", responses=_errors(*ASKING))
async def route(asked: ChatRequest, entry: Entered) -> dict[str, Any]:
    """Only the decision for a chat request, including the captions of its pictures."""
    dependencies = entry.dependencies
    options = asked.options(dependencies.settings, entry.namespace)
    prepare = prepared(
        await fetched(asked.messages, dependencies.fetcher, dependencies.settings),
        dependencies.settings,
        dependencies.service.sampling,
    )

    def decide() -> Decision:
        return dependencies.service.router.decide_on(prepare(), options)

    # a few words take a fraction of a millisecond, less than going to a thread and back
    decision: Decision = decide() if is_quick(asked.messages) else await dependencies.service.in_thread(decide)
    dependencies.service.metrics.decisions.labels(decision.mode).inc()
    return {"model": decision.mode, "decision": decision.as_dict(), "ignored": asked.ignored}


@endpoints.post("/v1/feedback", responses=_errors(400, 401, 404, 413, 415, 421, 422, 503))
async def feedback(judged: FeedbackRequest, entry: Entered) -> dict[str, Any]:
    """Say how right an answer was; whoever knows its id may."""
    id = judged.id.removeprefix(PREFIX)
    store = partial(entry.dependencies.service.feedback, id, correct=judged.correct, comment=judged.comment)
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
    service = request.app.state.dependencies.service
    if service.failure is None:
        return JSONResponse({"status": "ok", "version": __version__})
    said = {"status": "failed", "reason": failure_reason(service.failure), "version": __version__}
    return JSONResponse(said, 503)


@endpoints.head("/ready", include_in_schema=False)
@endpoints.get("/ready", response_model=None, responses={503: {"description": "Loading, failed or shutting down."}})
async def ready(request: Request) -> Response:
    """Requests are taken: the models are loaded and nobody has told the server to stop."""
    service = request.app.state.dependencies.service
    service.begin()
    said = {"status": service.state}
    if service.state == "failed":
        said["reason"] = failure_reason(service.failure)
    return JSONResponse(said, 200 if said["status"] == "ready" else 503)


@endpoints.get("/metrics", response_model=None, responses=_errors(401, 421))
async def metrics(entry: Entered) -> Response:
    """Prometheus' text format."""
    return Response(entry.dependencies.service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "vlroute"}
