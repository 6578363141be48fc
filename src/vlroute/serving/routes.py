"""The endpoints of the API."""

from __future__ import annotations

import asyncio
import gzip
import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client.exposition import gzip_accepted

from vlroute import __version__
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.serving.bodies import JSONRoute
from vlroute.serving.chat_completions import PREFIX, ChoiceChunks, Chunks, completion
from vlroute.serving.dependencies import Caller
from vlroute.serving.errors import APIError, documented
from vlroute.serving.fetch import Preparation, is_quick
from vlroute.serving.messages_api import PREFIX as MESSAGE_PREFIX
from vlroute.serving.replies import begin, decision_headers, is_large, json_in_pieces, until_disconnect
from vlroute.serving.request_log import current_request
from vlroute.serving.responses import PREFIX as RESPONSE_PREFIX
from vlroute.serving.schemas import ChatRequest, FeedbackRequest, PredictRequest, mode_of
from vlroute.serving.service import Service, failure_reason
from vlroute.serving.sse import EventStream
from vlroute.types import Decision

#: Statuses of errors of the endpoints that take a chat request.
_CHAT_ERRORS = (400, 401, 404, 413, 415, 421, 422, 429, 503)
router = APIRouter(route_class=JSONRoute)


@router.post("/api/predict")
async def predict(body: PredictRequest, request: Request, caller: Caller) -> dict[str, Any]:
    """Answer one question about one picture, as simple pages for Qwen3-VL send it."""
    arrived = time.perf_counter()
    picture, prompt, model = (*body.data, None)[:3]
    service, mode = caller.service, mode_of(model or "auto", caller.service.models)
    options = RequestOptions(mode=mode, namespace=caller.namespace, flow=caller.flow)
    if prompt is None:
        raise APIError(400, "data must be [picture in base64 or null, prompt, model]", "bad_message", "data")

    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}] if prompt else []
    if picture:
        uri = picture if picture[:5].lower() == "data:" else f"data:image/png;base64,{picture}"
        content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
    asked = [{"role": "user", "content": content}]
    prepare = Preparation(asked, caller.fetcher, service.settings, service.sampling)
    answer = await until_disconnect(service.answer(prepare, options, arrived), request)
    return {
        "data": [answer.text],
        "duration": answer.timing.total,
        "vlroute": {
            "id": answer.id, "thinking": answer.thinking, "decision": answer.decision.as_dict(),
            "ignored": sorted(body.unread()),
        },
    }  # fmt: skip


@router.post("/v1/chat/completions", response_model=None, responses=documented(*_CHAT_ERRORS, 504))
async def chat_completions(body: ChatRequest, request: Request, caller: Caller) -> Response:
    """Answer a conversation in the mode that the router decides on, or in the requested mode."""
    arrived, service = time.perf_counter(), caller.service
    options = await until_disconnect(service.read_options(body, caller.namespace, caller.flow, arrived), request)
    tools = await until_disconnect(service.read_tools(body, options, arrived), request)
    prepare = Preparation(body.messages, caller.fetcher, service.settings, service.sampling, tools)
    count, ignored = body.n or 1, body.ignored(options)
    if not body.stream:
        if count == 1:
            answers = [await until_disconnect(service.answer(prepare, options, arrived), request)]
        else:
            answers = await until_disconnect(service.answers(prepare, options, arrived, count), request)
        headers = decision_headers(answers[0].id, answers[0].decision)
        reply = partial(completion, answers, ignored, body.hides_reasoning)
        if is_large(answers):
            text = await asyncio.to_thread(lambda: json_in_pieces(reply()))
            return Response(text, headers=headers, media_type="application/json")
        return JSONResponse(reply(), headers=headers)
    shape = bool(body.stream_options and body.stream_options.include_usage), ignored, body.hides_reasoning
    refused = service.metrics.refused
    if count == 1:
        events, decided = await until_disconnect(begin(service.stream(prepare, options, arrived)), request)
        headers = decision_headers(decided.id, decided.decision)
        return EventStream(events, Chunks(decided, *shape), refused, headers)
    items, decided = await until_disconnect(begin(service.choices(prepare, options, arrived, count)), request)
    headers = decision_headers(decided.id, decided.decision)
    return EventStream(items, ChoiceChunks(decided, *shape), refused, headers)


@router.post("/v1/route", responses=documented(*_CHAT_ERRORS))
async def route(body: ChatRequest, request: Request, caller: Caller) -> dict[str, Any]:
    """Only decide on a chat request, including the captions of its pictures."""
    arrived, service = time.perf_counter(), caller.service
    options = await until_disconnect(service.read_options(body, caller.namespace, caller.flow, arrived), request)
    tools = await until_disconnect(service.read_tools(body, options, arrived, answered=False), request)
    prepare = Preparation(body.messages, caller.fetcher, service.settings, service.sampling, tools)

    def decide(conversation: Conversation) -> Decision:
        return service.decide_on(conversation, options)

    # deciding on a short text takes a fraction of a millisecond, less than a switch to a thread and back
    quick = not body.tools and is_quick(body.messages)
    if quick:
        decision = decide(prepare())
    else:
        decision = await service.with_conversation(prepare, decide, caller.flow, arrived)
    current_request().decision = decision
    service.metrics.decisions.labels(decision.mode).inc()
    return {"model": decision.mode, "decision": decision.as_dict(), "ignored": body.ignored_by_decision(options)}


@router.post("/v1/feedback", responses=documented(400, 401, 404, 413, 415, 421, 422, 429, 503, 504))
async def feedback(body: FeedbackRequest, caller: Caller) -> dict[str, Any]:
    """Store how right an answer was. The id of the answer is the permission to do so."""
    id = body.id.removeprefix(PREFIX).removeprefix(MESSAGE_PREFIX).removeprefix(RESPONSE_PREFIX)
    key = (
        caller.flow.name if caller.namespace else ""
    )  # without keys, the flow is an address, and ratings are not limited
    work = partial(caller.service.feedback, id, correct=body.correct, comment=body.comment, key=key)
    await caller.service.use_store(work, caller.flow, time.perf_counter())
    return {"id": id, "stored": True}


@router.post("/v1/completions", include_in_schema=False)
async def completions() -> None:
    """Refuse the older API."""
    message = "completions of plain text are not supported; send messages to /v1/chat/completions"
    raise APIError(404, message, "unsupported_endpoint")


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=None, responses={503: {"description": "The models could not be loaded."}})
async def health(request: Request) -> Response:
    """Liveness: status 503 only if the models could not be loaded, so that the process has to be restarted."""
    service: Service = request.app.state.service
    if service.failure is None:
        return JSONResponse({"status": "ok", "version": __version__})
    body = {"status": "failed", "reason": failure_reason(service.failure), "version": __version__}
    return JSONResponse(body, 503)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", response_model=None, responses={503: {"description": "Loading, failed or shutting down."}})
async def ready(request: Request) -> Response:
    """Readiness: the models are loaded and the server does not shut down."""
    service: Service = request.app.state.service
    service.begin()
    body: dict[str, str] = {"status": service.state}
    if service.failure is not None and service.state == "failed":
        body["reason"] = failure_reason(service.failure)
    return JSONResponse(body, 200 if body["status"] == "ready" else 503)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, caller: Caller) -> Response:
    """The schema of the API. FastAPI's own route would not ask for a key."""
    schema, prefix = request.app.openapi(), str(request.scope.get("root_path", "")).rstrip("/")
    return JSONResponse({**schema, "servers": [{"url": prefix}]} if prefix else schema)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_model=None, responses=documented(401, 421))
async def metrics(request: Request, caller: Caller) -> Response:
    """Metrics in Prometheus' text format, or as OpenMetrics if the header `Accept` asks for it."""
    text, content_type = caller.service.metrics.text(request.headers.get("accept", ""))
    headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    if gzip_accepted(request.headers.get("accept-encoding", "")):
        text, headers["Content-Encoding"] = gzip.compress(text, compresslevel=1), "gzip"
    return Response(text, headers=headers)
