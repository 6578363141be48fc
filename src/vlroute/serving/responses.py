"""OpenAI's Responses API: requests, replies, stream events and endpoints."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field, StrictBool
from sse_starlette import ServerSentEvent

from vlroute.conversations import Conversations
from vlroute.errors import StoreError
from vlroute.inputs.tools import Tools, checked_tools
from vlroute.pipeline import RequestOptions
from vlroute.serving.bodies import JSONRoute, PooledBody
from vlroute.serving.dependencies import Caller
from vlroute.serving.errors import APIError, documented, encodable
from vlroute.serving.fetch import Preparation
from vlroute.serving.replies import (
    answer_details,
    begin,
    compact_json,
    decision_headers,
    is_large,
    json_in_pieces,
    until_disconnect,
)
from vlroute.serving.response_items import StoredMedia, items_of, messages_of, unknown_field
from vlroute.serving.schemas import (
    MAX_CHARACTERS,
    NO_NAMES,
    Count,
    Effort,
    Fields,
    Model,
    Number,
    Objects,
    QuestionFields,
    RouterOptions,
    TopLogprobs,
    agreed,
    at_most,
    mode_of,
    read_form,
)
from vlroute.serving.service import Service
from vlroute.serving.settings import EFFORTS, ServerSettings
from vlroute.serving.sse import EventStream
from vlroute.structured import ResponseFormat, json_schema, read_format
from vlroute.types import (
    MODES,
    Answer,
    AnswerDelta,
    Decided,
    Event,
    Finished,
    Mode,
    ThinkingDelta,
    TokenLogprob,
    ToolCall,
    ToolCalled,
)

PREFIX = "resp_"
_ID = re.compile(PREFIX + "([0-9a-f]{32})")
#: Ids of the items of an answer, see `Reply`.
_ITEM_ID = re.compile("(?:rs_|msg_|fc_)([0-9a-f]{32})(?:_[0-9]+)?")
#: Of longer stored responses, only the beginning and the end are checked, because parsing them stops other threads.
_CHECKED_BODY = 2**20
_ERRORS = (401, 404, 421, 503)
Summary = Literal["auto", "concise", "detailed"]
#: The value of `include` for log-probabilities.
LOGPROBS = "message.output_text.logprobs"
Included = Literal[
    "message.output_text.logprobs", "reasoning.encrypted_content", "message.input_image.image_url",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "code_interpreter_call.outputs", "computer_call_output.output.image_url",
]  # fmt: skip
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16), at_most(16)
]
router = APIRouter(route_class=JSONRoute)


class ResponseReasoning(Fields):
    """The field `reasoning` of a response."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"context": ("auto", "current_turn"), "mode": ("standard",)}
    effort: Effort | None = None
    summary: Summary | None = Field(
        None, description="With a value, the reasoning is in `summary` of its item instead of `content`."
    )
    generate_summary: Summary | None = Field(None, description="Older name of summary.")


class ResponseText(Fields):
    """The field `text` of a response."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}
    format: dict[str, Any] | None = Field(None, description="`text`, `json_object` or `json_schema`.")


class ResponseStreamOptions(Fields):
    """The field `stream_options` of a response."""

    harmless = frozenset({"include_obfuscation"})


class ResponseRequest(QuestionFields):
    """OpenAI's request for a response."""

    of_reasoning = ("reasoning.summary", "reasoning.generate_summary")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,), "background_options": (), "conversation": (), "context_management": ([],),
        "prompt": (), "moderation": (), "access_programs": (), "image": (),
        "truncation": ("disabled",),
    }  # fmt: skip
    harmless = frozenset({
        "max_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
        "service_tier",
    })  # fmt: skip
    model: Model | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2000)] = Field(
        description="A question, or items: messages, reasoning, function calls and their outputs."
    )
    instructions: str | None = Field(None, description="A system message for this response only.")
    previous_response_id: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="A stored response that the input continues. Needs a store."
    )
    store: StrictBool | None = Field(
        None, description="Whether the response is stored; by default it is, if the server has a store."
    )
    max_output_tokens: Count | None = Field(None, description="Reasoning included.")
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    tools: Objects | None = Field(None, description="Functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(
        None,
        description="'auto'; 'none': no tools are offered; 'required': the answer consists of calls; a function; or "
        "allowed_tools.",
    )
    parallel_tool_calls: StrictBool | None = Field(None, description="False: the answer ends after one call.")
    text: ResponseText | None = None
    reasoning: ResponseReasoning | None = None
    include: Annotated[list[Included], Field(max_length=100, fail_fast=True)] | None = Field(
        None,
        description=f"`{LOGPROBS}`: the log-probability of each token of the answer. Other values have no effect: "
        "reasoning is not encrypted, and there are no built-in tools.",
    )
    top_logprobs: TopLogprobs | None = Field(
        None, description="How many of the most probable tokens are named at each place; needs the log-probabilities."
    )
    metadata: Metadata | None = Field(None, description="Returned and stored with the response.")
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="Returned with the response.")
    stream: StrictBool | None = None
    stream_options: ResponseStreamOptions | None = None
    vlroute: RouterOptions | None = None

    def options(
        self, settings: ServerSettings, namespace: str, names: Mapping[str, Mode | None] = NO_NAMES
    ) -> RequestOptions:
        """Convert the fields to options for the router.

        Args:
            settings: Limits of the server.
            namespace: Namespace of the caller's caches.
            names: See `mode_of`.

        Returns:
            The options.

        Raises:
            APIError: 400 for fields that contradict each other or exceed a limit, 404 for an unknown model.
        """
        effort, most = self.reasoning and self.reasoning.effort, self.max_output_tokens
        if most is not None and most > settings.max_tokens:
            raise APIError(
                400, f"an answer may have at most {settings.max_tokens} tokens here, {most} were asked for",
                "limit_exceeded", "max_output_tokens",
            )  # fmt: skip
        if self.top_logprobs and not self.logprobs:
            raise APIError(
                400, f"top_logprobs needs include: [{json.dumps(LOGPROBS)}]", "contradiction", "top_logprobs"
            )
        forced: Mode | None = None if effort is None else MODES[effort != "none"]
        named = None if self.model is None else mode_of(self.model, names)
        extra = self.vlroute or RouterOptions()
        given = {
            "temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": most,
            "thinking_budget": EFFORTS.get(effort or ""), "response_format": self._format(),
            "answer_reserve": extra.answer_reserve, "close_loops": extra.close_loops, "early_exit": extra.early_exit,
            "logprobs": self.logprobs or None, "top_logprobs": self.top_logprobs or None,
        }  # fmt: skip
        generation = {name: value for name, value in given.items() if value is not None}
        modes: list[tuple[str, Mode | None]] = [("model", named), ("reasoning.effort", forced)]
        return RequestOptions(extra.caption, agreed(modes), extra.price, None, generation, namespace)

    def offered_tools(self) -> Tools | None:
        """The tools that the model may call. InputError if they are invalid."""
        return checked_tools(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def format(self) -> Mapping[str, Any] | None:
        """What constrains the form of the answer. Checking it can take a second."""
        return self.text.format if self.text else None

    @property
    def has_format(self) -> bool:
        """Whether a field constrains the form of the answer."""
        return self.format is not None

    @property
    def summary(self) -> Summary | None:
        """Whether, and how, the reasoning is a summary in the reply."""
        return agreed(self.values("reasoning.summary", "reasoning.generate_summary"))

    @property
    def logprobs(self) -> bool:
        """Whether the reply contains log-probabilities."""
        return LOGPROBS in (self.include or ())

    def ignored(self, options: RequestOptions) -> list[str]:
        """See `QuestionFields.ignored`."""
        without = {*(self.include or ())} - {LOGPROBS}
        return sorted([*super().ignored(options), *(["include"] if without else [])])

    def _format(self) -> ResponseFormat | None:
        if self.format is None:
            return None
        fields = {name: value for name, value in self.format.items() if value is not None}
        kind = fields.pop("type", None)
        if kind == "json_schema":
            if unknown := sorted(set(fields) - {"name", "description", "schema", "strict"}):
                raise unknown_field("text.format", unknown[0])
            name, strict, schema = fields.get("name"), fields.get("strict"), fields.get("schema")
            if not isinstance(name, str) or not name:
                raise APIError(400, "text.format.name must be a string", "invalid_format", "text.format.name")
            if not isinstance(strict, bool | None):
                raise APIError(400, "text.format.strict must be true or false", "invalid_format", "text.format.strict")
            if not isinstance(schema, dict):
                raise APIError(
                    400, "text.format.schema must be a JSON schema: an object", "invalid_format", "text.format.schema"
                )
            checked = read_form("text.format.schema", schema, partial(json_schema, title=name, strict=strict))
        elif kind in ("text", "json_object"):
            if fields:
                raise unknown_field("text.format", min(fields))
            checked = read_form("text.format", {"type": kind}, read_format)
        else:
            raise APIError(
                400, "text.format.type must be text, json_object or json_schema", "invalid_format", "text.format.type"
            )
        return checked


# replies


class Reply:
    """Creates the response objects for one request.

    Args:
        body: The request.
        options: Its options.
        stored: Whether the response is stored.
    """

    def __init__(self, body: ResponseRequest, options: RequestOptions, stored: bool) -> None:
        self.body, self.stored, self.created = body, stored, int(time.time())
        self.ignored, self.summary = body.ignored(options), body.summary
        self._finished: dict[str, Any] | None = None
        self._text: str | None = None

    def begun(self, decided: Decided) -> dict[str, Any]:
        """The response while the answer is generated."""
        details = {"id": decided.id, "decision": decided.decision.as_dict(), "ignored": self.ignored}
        return self._response(decided.id, decided.decision.mode, "in_progress", [], vlroute=details)

    def failed(self, decided: Decided, error: APIError) -> dict[str, Any]:
        """The response after an error in a stream."""
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        return self.begun(decided) | {
            "status": "failed", "error": {"code": code, "message": encodable(error.message)}
        }  # fmt: skip

    def finished(self, answer: Answer) -> dict[str, Any]:
        """The complete response. Later calls return the same object."""
        if self._finished is None:
            complete = _is_complete(answer)
            reason = "content_filter" if answer.finish_reason == "content_filter" else "max_output_tokens"
            details = answer_details(answer, self.ignored)
            self._finished = self._response(
                answer.id, answer.decision.mode, "completed" if complete else "incomplete", self._output(answer),
                completed_at=int(time.time()) if complete else None,
                incomplete_details=None if complete else {"reason": reason}, usage=_usage(answer), vlroute=details,
            )  # fmt: skip
        return self._finished

    def text(self, answer: Answer) -> str:
        """The complete response as JSON, as it is stored and sent."""
        if self._text is None:
            encode = json_in_pieces if is_large([answer]) else json.dumps
            self._text = encode(self.finished(answer))
        return self._text

    def reasoning(self, id: str, text: str, status: str = "completed") -> dict[str, Any]:
        """The item of a reasoning."""
        item: dict[str, Any] = {
            "id": f"rs_{id}", "type": "reasoning", "summary": [], "encrypted_content": None, "status": status,
        }  # fmt: skip
        if self.summary:
            return item | {"summary": [{"type": "summary_text", "text": text}]}
        return item | {"content": [{"type": "reasoning_text", "text": text}]}

    def message(
        self, id: str, text: str, logprobs: Sequence[TokenLogprob] | None = None, status: str = "completed"
    ) -> dict[str, Any]:
        """The item of an answer."""
        entries = [one.as_dict() for one in logprobs or ()]
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}
        return {"id": f"msg_{id}", "type": "message", "role": "assistant", "status": status, "content": [part]}

    def _output(self, answer: Answer) -> list[dict[str, Any]]:
        """The items of an answer. If it is not complete, the last one is not."""
        complete = _is_complete(answer)
        items = [self.reasoning(answer.id, answer.thinking)] if answer.thinking else []
        if answer.text or (complete and not answer.tool_calls):
            items.append(self.message(answer.id, answer.text, answer.logprobs))
        items += [_call_item(f"fc_{answer.id}_{index}", call) for index, call in enumerate(answer.tool_calls)]
        if items and not complete:
            items[-1]["status"] = "incomplete"
        return items

    def _response(self, id: str, mode: Mode, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        body = self.body
        return {
            "id": PREFIX + id, "object": "response", "created_at": self.created, "status": status,
            "background": False, "completed_at": None, "error": None, "incomplete_details": None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "max_tool_calls": None,
            "model": mode, "output": output, "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": self.summary},
            "service_tier": "default", "store": self.stored, "temperature": body.temperature,
            "text": {"format": dict(body.format or {"type": "text"}), "verbosity": "medium"},
            "tool_choice": _tool_choice(body.tool_choice), "tools": [_tool(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0, "top_p": body.top_p, "truncation": "disabled", "usage": None,
            "user": body.user, "metadata": body.metadata or {}, **more,
        }  # fmt: skip


def _is_complete(answer: Answer) -> bool:
    return answer.finish_reason in ("stop", "tool_calls")


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in the form of this API; it may have been sent in that of the chat API."""
    function = tool.get("function") or tool
    fields = {name: function.get(name) for name in ("name", "description", "parameters")}
    return {"type": "function", **fields, "strict": bool(function.get("strict"))}


def _tool_choice(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any]:
    """A choice in the form of this API; it may have been sent in that of the chat API, or as the name of a tool."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice or "auto"
    if isinstance(choice, str):
        return {"type": "function", "name": choice}
    if choice["type"] == "function":
        return {"type": "function", "name": choice.get("function", choice)["name"]}
    allowed = choice.get("allowed_tools", choice)
    return {"type": "allowed_tools", "mode": allowed["mode"], "tools": [*map(_tool_choice, allowed["tools"])]}


def _call_item(id: str, call: ToolCall) -> dict[str, Any]:
    return {
        "id": id, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.text,
        "status": "completed",
    }  # fmt: skip


def _usage(answer: Answer) -> dict[str, Any] | None:
    """Token counts, videos under `image_tokens`. None if an endpoint sent no counts."""
    used = answer.usage
    if used.prompt_tokens is None:
        return None
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": used.cached_tokens, "cache_write_tokens": 0, "image_tokens": used.vision_tokens
        },
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.thinking_tokens},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }  # fmt: skip


# streams


class ResponseEvents:
    """Converts the events of one stream to those of the Responses API.

    Args:
        decided: The first event.
        reply: Creates the response objects.
    """

    def __init__(self, decided: Decided, reply: Reply) -> None:
        self.decided, self.reply = decided, reply
        self._sent = 0
        self._begun: dict[str, int] = {}  # index of each item by its id
        self._ended: set[str] = set()
        self._thinking = ""
        self._encode: Callable[[Any], str] = compact_json

    def first(self) -> Iterator[ServerSentEvent]:
        """The response with the decision."""
        response = self.reply.begun(self.decided)
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def of(self, event: Event) -> Iterator[ServerSentEvent]:
        """The events for a later event."""
        id = self.decided.id
        match event:
            case Decided():  # a second decision: the mode chosen first gives no answer
                self.decided = event
                yield self._event("response.in_progress", response=self.reply.begun(event))
            case ThinkingDelta(text):
                item = self.reply.reasoning(id, "", "in_progress")
                if item["id"] not in self._ended:  # what an endpoint sends later is in the last event only
                    yield from self._begin(item)
                    self._thinking += text
                    yield self._delta(item, text)
            case AnswerDelta(text, logprobs):
                yield from self._end_reasoning()
                item = self.reply.message(id, "", logprobs, "in_progress")
                yield from self._begin(item)
                yield self._delta(item, text)
            case ToolCalled():  # sent after all text, so that the items are in the order of the reply
                yield from self._end_reasoning()
            case Finished(answer):
                self._encode = json_in_pieces if is_large([answer]) else compact_json
                response = self.reply.finished(answer)
                for item in response["output"]:
                    yield from self._begin(item)
                    yield from self._end(item)
                yield self._event(f"response.{response['status']}", response=response)

    def error(self, error: APIError) -> Iterator[ServerSentEvent]:
        """The events for an error. OpenAI's clients raise it because of the field `error`."""
        yield self._event("response.failed", response=self.reply.failed(self.decided, error))
        details = error.body()["error"]
        named = {name: details[name] for name in ("code", "message", "param")}
        yield self._event("error", **named, error=details)

    def last(self) -> Iterator[ServerSentEvent]:
        """Nothing: the last event ends the stream."""
        yield from ()

    def _end_reasoning(self) -> Iterator[ServerSentEvent]:
        """Complete the reasoning, if there is one, because the answer begins."""
        item = self.reply.reasoning(self.decided.id, self._thinking)
        if item["id"] in self._begun:
            yield from self._end(item)

    def _begin(self, item: Mapping[str, Any]) -> Iterator[ServerSentEvent]:
        if item["id"] in self._begun:
            return
        self._begun[item["id"]] = len(self._begun)
        names = _names(item)
        empty = {**item, "status": "in_progress", names["field"]: [] if names["part"] else ""}
        yield self._event("response.output_item.added", output_index=self._begun[item["id"]], item=empty)
        if names["part"]:
            part = {**item[names["field"]][0], "text": ""}
            if "logprobs" in part:
                part["logprobs"] = []
            yield self._event(f"{names['part']}.added", **self._place(item), part=part)
        elif item["arguments"]:
            yield self._delta(item, item["arguments"])

    def _delta(self, item: Mapping[str, Any], text: str) -> ServerSentEvent:
        names = _names(item)
        return self._event(f"{names['text']}.delta", **self._place(item), delta=text, **_logprobs(item))

    def _end(self, item: Mapping[str, Any]) -> Iterator[ServerSentEvent]:
        if item["id"] in self._ended:
            return
        self._ended.add(item["id"])
        names = _names(item)
        place = self._place(item)
        if names["part"]:
            part = item[names["field"]][0]
            yield self._event(f"{names['text']}.done", **place, text=part["text"], **_logprobs(item))
            yield self._event(f"{names['part']}.done", **place, part=part)
        else:
            yield self._event(f"{names['text']}.done", **place, name=item["name"], arguments=item["arguments"])
        yield self._event("response.output_item.done", output_index=place["output_index"], item=item)

    def _place(self, item: Mapping[str, Any]) -> dict[str, Any]:
        place = {"item_id": item["id"], "output_index": self._begun[item["id"]]}
        if item["type"] == "function_call":
            return place
        return place | {"summary_index" if item.get("summary") else "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> ServerSentEvent:
        self._sent += 1
        data = self._encode({"type": kind, "sequence_number": self._sent - 1, **fields})
        return ServerSentEvent(data, event=kind, sep="\n")


#: For each type of item: the field with its text, and the names of the events for its text and for its only part.
_EVENTS = {
    "reasoning": {"field": "content", "text": "response.reasoning_text", "part": "response.content_part"},
    "summary": {
        "field": "summary", "text": "response.reasoning_summary_text", "part": "response.reasoning_summary_part"
    },
    "message": {"field": "content", "text": "response.output_text", "part": "response.content_part"},
    "function_call": {"field": "arguments", "text": "response.function_call_arguments", "part": ""},
}  # fmt: skip


def _names(item: Mapping[str, Any]) -> Mapping[str, str]:
    return _EVENTS["summary" if item.get("summary") else item["type"]]


def _logprobs(item: Mapping[str, Any]) -> dict[str, Any]:
    """The field that events for the text of an answer must have."""
    return {"logprobs": item["content"][0]["logprobs"]} if item["type"] == "message" else {}


# endpoints


@router.post("/v1/responses", response_model=None, responses=documented(400, 413, 415, 422, 429, 504, *_ERRORS))
async def create_response(body: ResponseRequest, request: Request, caller: Caller) -> Response:
    """Answer in OpenAI's Responses API, in the mode that the router decides on, or in the requested mode."""
    arrived, service = time.perf_counter(), caller.service
    options = await until_disconnect(service.read_options(body, caller.namespace, caller.flow, arrived), request)
    if body.store and service.conversations is None:
        raise _no_store("store")
    stored = body.store is not False and service.conversations is not None
    if stored:
        await service.use_store(partial(_check_stored, caller), caller.flow, arrived)
    earlier: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        earlier, _ = await _messages(caller, request, body.previous_response_id, arrived, "previous_response_id")
    given = await until_disconnect(_with_items(body.input, caller, request, arrived), request)
    asked = [*earlier, *messages_of(given)]
    # the chat API would continue an answer, but the stored turn would be in two parts
    if asked[-1].get("role") == "assistant":
        raise APIError(
            400, "the last item of input is an answer; send a question or the output of a function after it",
            "bad_message", "input",
        )  # fmt: skip
    system = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    tools = await until_disconnect(service.read_tools(body, options, arrived), request)
    prepare = Preparation([*system, *asked], caller.fetcher, service.settings, service.sampling, tools)
    reply = Reply(body, options, stored)

    def keep(answer: Answer) -> None:
        assert service.conversations is not None
        messages = [*prepare.messages[len(system) :], answer.message]
        service.conversations.add(caller.namespace, answer.id, messages, len(earlier), reply.text(answer))

    kept = keep if stored else None
    if body.stream:
        events, decided = await until_disconnect(begin(service.stream(prepare, options, arrived, kept)), request)
        headers = decision_headers(decided.id, decided.decision)
        return EventStream(events, ResponseEvents(decided, reply), service.metrics.refused, headers)
    answer = await until_disconnect(service.answer(prepare, options, arrived, kept), request)
    large = not stored and is_large([answer])
    text = await asyncio.to_thread(reply.text, answer) if large else reply.text(answer)
    return _json(text, decision_headers(answer.id, answer.decision))


@router.get("/v1/responses/{id}", response_model=None, responses=documented(400, 429, 504, *_ERRORS))
async def get_response(id: str, request: Request, caller: Caller) -> Response:
    """A stored response."""
    _check_query(request, "include", "include[]", "stream", "starting_after", "include_obfuscation")
    if request.query_params.get("stream", "false").lower() not in ("false", "0", "") or (
        "starting_after" in request.query_params
    ):
        raise APIError(400, "a stored response is not streamed; leave out stream", "unsupported_parameter", "stream")
    conversations, digits = _conversations(caller.service, id)
    read = partial(_stored_body, conversations, caller.namespace, digits)
    body = await until_disconnect(caller.service.use_store(read, caller.flow, time.perf_counter()), request)
    if body is None:
        raise _not_found()
    pooled: PooledBody = request.scope["state"]["pooled_body"]
    pooled.take(caller.flow.name, len(body))  # until the client has read it
    return _json(body)


@router.delete("/v1/responses/{id}", responses=documented(400, 429, 504, *_ERRORS))
async def delete_response(id: str, request: Request, caller: Caller) -> dict[str, Any]:
    """Delete a stored response. Responses that continue it keep their messages."""
    _check_query(request)
    conversations, digits = _conversations(caller.service, id)
    work = partial(conversations.delete, caller.namespace, digits)
    if not await caller.service.use_store(work, caller.flow, time.perf_counter()):
        raise _not_found()
    return {"id": id, "object": "response", "deleted": True}


@router.get("/v1/responses/{id}/input_items", response_model=None, responses=documented(400, 422, 429, *_ERRORS))
async def list_input_items(
    id: str,
    request: Request,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The input items of a stored response, without those of the responses before it."""
    _check_query(request, "limit", "order", "after", "include", "include[]")
    messages, first = await _messages(caller, request, id, time.perf_counter())
    media = StoredMedia()
    items = items_of(messages[first:-1], id.removeprefix(PREFIX), media)
    items = items if order == "asc" else items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise APIError(404, "after is not the id of an input item of this response", "item_not_found", "after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    value = {"object": "list", "data": page, "has_more": len(items) > limit, **ends}
    # in pieces, because the JSON of several pictures would take long
    return StreamingResponse(media.json(value), media_type="application/json")


def _check_query(request: Request, *known: str) -> None:
    """APIError 400 for an unknown or repeated query parameter, and for values of `include` that are not obeyed."""
    for name, value in request.query_params.multi_items():
        if name not in (*known, "api-version"):  # which clients of Azure send with each request
            expected = f"; expected {', '.join(known)}" if known else ""
            shown = encodable(name[:MAX_CHARACTERS])
            raise APIError(400, f"unknown query parameter {shown!r}{expected}", "unknown_parameter", shown)
        if not name.startswith("include") or name == "include_obfuscation":
            if len(request.query_params.getlist(name)) > 1:
                raise APIError(400, f"the query parameter {name} is sent twice", "invalid_value", name)
        elif value not in get_args(Included) or value == LOGPROBS:
            raise APIError(
                400, f"{name} cannot add {encodable(value[:MAX_CHARACTERS])!r} to a stored response; send include with "
                "the request that creates it", "unsupported_parameter", name,
            )  # fmt: skip


async def _messages(
    caller: Caller, request: Request, id: str, arrived: float, param: str | None = None
) -> tuple[list[dict[str, Any]], int]:
    """The conversation that a response ends, and the number of its messages before the request.

    It counts as bytes of the request.
    """
    conversations, digits = _conversations(caller.service, id, param)
    what = "the messages, pictures and videos of this conversation"
    reserve = _reservation(caller, request, what, "begin a new conversation", param)
    read = partial(conversations.messages, caller.namespace, digits, reserve)
    found = await until_disconnect(caller.service.use_store(read, caller.flow, arrived), request)
    if found is None:
        raise _not_found(param)
    return found


def _reservation(caller: Caller, request: Request, what: str, advice: str, param: str | None) -> Callable[[int], None]:
    """A function that counts what is read from the store as bytes of the request. It raises APIError for too many."""
    body: PooledBody = request.scope["state"]["pooled_body"]
    most = caller.service.settings.body_pool // 2  # more than one flow alone may hold
    total = 0

    def reserve(size: int) -> None:
        nonlocal total
        total += size
        if total > most:
            raise APIError(
                413, f"{what} have more than {most} bytes, half of the server's setting max_total_body; {advice}",
                "body_too_large", param,
            )  # fmt: skip
        body.take(caller.flow.name, size)

    return reserve


async def _with_items(given: str | list[Any], caller: Caller, request: Request, arrived: float) -> str | list[Any]:
    """The input, with each reference replaced by the item of a stored response. APIError if it cannot be.

    The responses that are read count as bytes of the request.
    """
    if isinstance(given, str):
        return given
    references = {
        index: str(item.get("id"))
        for index, item in enumerate(given)
        if isinstance(item, dict) and item.get("type") == "item_reference"
    }
    conversations = caller.service.conversations
    if not references:
        return given
    if conversations is None:
        where = f"input.{min(references)}"
        raise APIError(
            400, f"{where} refers to another item, but this server stores no responses: send the item itself, or "
            "start the server with --store FILE", "no_store", where,
        )  # fmt: skip

    wanted = set[str]()
    for index, id in references.items():
        if id in wanted:
            raise APIError(
                400, f"input.{index} refers to an item that input contains already; leave it out", "duplicate_item",
                f"input.{index}.id",
            )  # fmt: skip
        wanted.add(id)
    answers = sorted({found[1] for id in wanted if (found := _ITEM_ID.fullmatch(id)) is not None})
    what = "the responses with the items that input refers to"
    reserve = _reservation(caller, request, what, "send the items themselves", "input")

    def stored() -> dict[str, dict[str, Any]]:
        items: dict[str, dict[str, Any]] = {}
        for answer in answers:  # not at once: a response can contain megabytes besides the items
            body = _stored_body(conversations, caller.namespace, answer)
            if body is None:
                continue
            reserve(len(body))
            try:
                for item in json.loads(body)["output"]:
                    if item["id"] in wanted:
                        for part in item.get("content", ()):
                            part.pop("logprobs", None)  # which have no effect in a request
                        items[item["id"]] = item
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise _damaged(answer) from error
        return items

    items, output = list(given), await caller.service.use_store(stored, caller.flow, arrived)
    for index, id in references.items():
        if id not in output:
            raise APIError(
                404, f"input.{index}: no item of an answer with this id is stored here; send the item itself",
                "item_not_found", f"input.{index}.id",
            )  # fmt: skip
        items[index] = output[id]
    return items


def _stored_body(conversations: Conversations, owner: str, id: str) -> str | None:
    """What the client got for a response; None if there is none. StoreError if it is damaged."""
    body = conversations.body(owner, id)
    if body is None:
        return None
    complete = body.startswith((f'{{"id": "{PREFIX}{id}"', f'{{"id":"{PREFIX}{id}"')) and body.endswith("}")
    if complete and len(body) <= _CHECKED_BODY:
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            complete = False
    if not complete:
        raise _damaged(id)
    return body


def _damaged(id: str) -> StoreError:
    return StoreError(f"the stored response {id} is damaged; delete it")


def _conversations(service: Service, id: str, param: str | None = None) -> tuple[Conversations, str]:
    """The stored conversations, and the id of an answer. APIError without a store, or if the id cannot exist."""
    if service.conversations is None:
        raise _no_store(param)
    found = _ID.fullmatch(id)
    if found is None:
        raise _not_found(param)
    return service.conversations, found[1]


def _check_stored(caller: Caller) -> None:
    """APIError if the key has stored as much as it may."""
    assert caller.service.conversations is not None
    used, most = caller.service.conversations.size(caller.namespace), caller.service.settings.max_stored
    if used >= most:
        raise APIError(
            429,
            f"the stored responses of this API key (without keys: of all clients) have {used} bytes, and {most} are "
            "allowed by the server's setting max_stored; delete some of them, or send store: false",
            "stored_bytes_exceeded",
            "store",
        )


def _no_store(param: str | None) -> APIError:
    return APIError(400, "this server stores no responses; start it with --store FILE", "no_store", param)


def _not_found(param: str | None = None) -> APIError:
    message = "no response with this id is stored here; it may be deleted or expired"
    return APIError(404, message, "response_not_found", param)


def _json(text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(text, headers=headers, media_type="application/json")
