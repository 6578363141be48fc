"""Bodies of Anthropic's Messages API, and their conversion to the chat requests that all checks apply to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool

from vlroute.checks import type_of
from vlroute.errors import MessageError
from vlroute.inputs.messages import known_fields
from vlroute.inputs.tools import Tools, checked_tools
from vlroute.pipeline import RequestOptions
from vlroute.serving.errors import APIError
from vlroute.serving.schemas import (
    NO_NAMES,
    ChatRequest,
    Count,
    Fields,
    Model,
    Number,
    Objects,
    QuestionFields,
    RouterOptions,
    ThinkingSwitch,
    TopK,
    agreed,
    read_form,
)
from vlroute.serving.settings import EFFORTS, ServerSettings
from vlroute.structured import json_schema
from vlroute.types import Mode

Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class Thinking(ThinkingSwitch):
    """The field `thinking`."""

    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted: the reasoning is left out of the reply. summarized: it is sent in full (default)."
    )


class OutputFormat(Fields):
    """A JSON schema that the answer follows."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """The field `output_config`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="Maximum number of reasoning tokens, unless budget_tokens is sent. It does not choose the mode.",
    )
    format: OutputFormat | None = None


class ToolChoice(Fields):
    """The field `tool_choice`."""

    type: Literal["auto", "none", "any", "tool"] = Field(
        description="auto: calls or text. none: no tools are offered. any: the answer consists of calls. tool: the "
        "answer is one call of the tool `name`."
    )
    name: str | None = None
    disable_parallel_tool_use: StrictBool | None = Field(None, description="True: the answer ends after one call.")


class CountTokensRequest(QuestionFields):
    """The body of `/v1/messages/count_tokens`: what determines the prompt."""

    of_reasoning = ("thinking.budget_tokens", "output_config.effort")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "container": (), "context_management": (), "diagnostics": (), "inference_geo": (), "mcp_servers": ([],),
        "speed": ("standard",),
    }  # fmt: skip
    harmless = frozenset({"cache_control", "metadata", "service_tier", "user_profile_id", "workspace_id"})
    model: Model | None = None
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=2000, description="Messages of Anthropic's API.")
    system: str | Objects | None = Field(None, description="A text, or blocks of type text.")
    thinking: Thinking | None = None
    tools: Objects | None = Field(None, description="Custom tools, which the caller runs.")
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="Older name of output_config.format.")

    def chat_messages(self) -> list[dict[str, Any]]:
        """The messages in the form of OpenAI's API, whose contents `parse` checks.

        Returns:
            The messages. The result of a tool is one of its own.

        Raises:
            MessageError: A block is of a kind that is not supported, or has an unknown field.
        """
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [converted for message in (*system, *self.messages) for converted in _converted(message)]

    def offered_tools(self) -> Tools | None:
        """The tools that the model may call. InputError or APIError 400 if they are invalid or not supported."""
        choice, tools = self.tool_choice, [_tool(tool) for tool in self.tools or ()]
        if choice is None:
            return checked_tools(tools)
        if (choice.type == "tool") != (choice.name is not None):
            raise APIError(
                400, "the type 'tool', and only it, needs tool_choice.name", "invalid_value", "tool_choice.name"
            )
        if choice.type == "any" and not tools:
            raise APIError(400, "tool_choice of the type 'any' needs tools", "invalid_value", "tool_choice")
        named = {"type": "function", "function": {"name": choice.name}}
        chosen: Any = {"any": "required", "tool": named}.get(choice.type, choice.type)
        return checked_tools(tools, chosen, not choice.disable_parallel_tool_use)

    @property
    def has_format(self) -> bool:
        """Whether a field constrains the form of the answer. Checking it can take a second."""
        return self.output_format is not None or (self.output_config is not None and bool(self.output_config.format))

    def ignored(self, options: RequestOptions) -> list[str]:
        """See `QuestionFields.ignored`."""
        budgets = dict(self.values(*self.of_reasoning))
        replaced = {"output_config.effort"} if None not in budgets.values() else set()
        return sorted({*super().ignored(options), *replaced})

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
        return ChatRequest.model_construct(**self._chat_fields()).options(settings, namespace, names)

    def _chat_fields(self) -> dict[str, Any]:
        """Fields of a chat request, which were checked here."""
        config = self.output_config or OutputConfig(effort=None, format=None)
        form = agreed(
            (name, given and read_form(f"{name}.schema", given.schema_, json_schema))
            for name, given in (("output_config.format", config.format), ("output_format", self.output_format))
        )
        budget = EFFORTS.get(config.effort or "")
        if self.thinking is not None and self.thinking.budget_tokens is not None:
            budget = self.thinking.budget_tokens
        return {
            "model": self.model, "thinking": self.thinking, "thinking_budget": budget,
            "response_format": form,
        }  # fmt: skip


class MessagesRequest(CountTokensRequest):
    """The body of `/v1/messages`."""

    max_tokens: Count = Field(description="Reasoning included.")
    stream: StrictBool | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: TopK | None = Field(None, description="-1 and 0: all tokens.")
    stop_sequences: Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = Field(
        None, description="Strings that end the answer, not the reasoning."
    )
    thread: dict[str, Any] | None = Field(None, description="Not supported: messages have to be sent in full.")
    vlroute: RouterOptions | None = None

    @property
    def hides_reasoning(self) -> bool:
        """Whether the reply contains only the answer."""
        return self.thinking is not None and self.thinking.display == "omitted"

    def _chat_fields(self) -> dict[str, Any]:
        if self.thread is not None:  # after an error with this code, Anthropic's client goes on without threads
            raise APIError(
                400, "thread is not supported here; leave it out and send all messages", "thread_unsupported_request",
                "thread",
            )  # fmt: skip
        names = ("max_tokens", "temperature", "top_p", "top_k", "vlroute")
        return {
            **super()._chat_fields(), **{name: getattr(self, name) for name in names}, "stop": self.stop_sequences,
        }  # fmt: skip


def _converted(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages of OpenAI's API for one of Anthropic's."""
    fields = known_fields(message, "a message", ("role", "content"))
    role, content = fields.get("role"), fields.get("content")
    if role not in ("user", "assistant", "system"):
        raise MessageError(f"role must be user, assistant or system, got {str(role)[:40]!r}")
    if not isinstance(content, str | list):
        raise MessageError(f"content must be a string or a list of blocks, got {type_of(content)}")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    kinds = [block.get("type") if isinstance(block, Mapping) else None for block in blocks]
    if wrong := [kind for kind in kinds if kind not in _BLOCKS[role]]:
        raise MessageError(
            f"a message of the {role} has a block of the type {str(wrong[0])[:60]!r}; supported: "
            f"{', '.join(_BLOCKS[role])}"
        )
    if role == "assistant":
        yield _answer(blocks)
        return
    results = kinds.count("tool_result")
    if "tool_result" in kinds[results:]:
        raise MessageError("blocks of the type tool_result must be the first ones of a message")
    yield from map(_result, blocks[:results])
    if results < len(blocks) or not blocks:
        yield {"role": role, "content": [_part(block) for block in blocks[results:]]}


#: Types of blocks for each role.
_BLOCKS = {
    "system": ("text",),
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    """A text or a picture as a part of a message."""
    if block["type"] == "text":
        fields = known_fields(block, "a block of the type 'text'", ("text", "citations"))
        return {"type": "text", "text": fields.get("text")}
    fields = known_fields(block, "a block of the type 'image'", ("source", "transformations"))
    if fields.get("transformations", {}) not in ({}, {"oversized_image": "downsize"}):
        raise MessageError("transformations of a picture are not supported; large pictures are made smaller")
    source = fields.get("source")
    if not isinstance(source, Mapping):
        raise MessageError("a block of the type 'image' needs a source")
    kind = source.get("type")
    if kind == "base64":
        source = known_fields(source, "a source of the type 'base64'", ("media_type", "data"))
        if not str(source.get("media_type")).startswith("image/"):
            raise MessageError("media_type of a picture must begin with 'image/', such as 'image/png'")
        return {"type": "image", "base64": source.get("data", "")}
    if kind == "url":
        source = known_fields(source, "a source of the type 'url'", ("url",))
        if not isinstance(source.get("url"), str):
            raise MessageError("a source of the type 'url' needs a url")
        return {"type": "image_url", "image_url": {"url": source["url"]}}
    raise MessageError(f"the source of a picture has the type {str(kind)[:40]!r}; supported: base64, url")


def _answer(blocks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """An earlier answer. Signatures are not checked: the reasoning is part of the request, as any other text."""
    texts, thoughts, calls = [], list[str](), []
    for block in blocks:
        kind = block["type"]
        where = f"a block of the type {kind!r}"
        match kind:
            case "text":
                texts.append(_part(block))
            case "thinking":
                fields = known_fields(block, where, ("thinking", "signature"))
                if not isinstance(fields.get("thinking"), str):
                    raise MessageError(f"{where} must hold a string as 'thinking'")
                thoughts.append(fields["thinking"])
            case "redacted_thinking":  # encrypted by another service
                known_fields(block, where, ("data",))
            case _:
                fields = known_fields(block, where, ("id", "name", "input", "caller"))
                if fields.get("caller") not in (None, {"type": "direct"}):
                    raise MessageError(f"{where} has a caller that is not supported; expected the type 'direct'")
                function = {"name": fields.get("name"), "arguments": fields.get("input")}
                calls.append({"id": fields.get("id"), "type": "function", "function": function})
    # with this field, no tags are looked for in the texts
    return {"role": "assistant", "content": texts, "reasoning_content": "\n\n".join(thoughts), "tool_calls": calls}


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a tool as a message."""
    where = "a block of the type 'tool_result'"
    fields = known_fields(block, where, ("tool_use_id", "content", "is_error"))
    id, content, failed = fields.get("tool_use_id"), fields.get("content", ""), fields.get("is_error", False)
    if not isinstance(id, str) or not id:
        raise MessageError(f"{where} needs the tool_use_id of its call")
    if not isinstance(failed, bool):
        raise MessageError(f"is_error of {where} must be true or false")
    if not isinstance(content, str | list):
        raise MessageError(f"content of {where} must be a string or a list of blocks, got {type_of(content)}")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for inner in blocks:
        kind = inner.get("type") if isinstance(inner, Mapping) else None
        if kind not in ("text", "image"):
            raise MessageError(f"{where} contains a block of the type {str(kind)[:60]!r}; supported: text, image")
    parts = [{"type": "text", "text": "Error: "}] if failed else []
    return {"role": "tool", "tool_call_id": id, "content": [*parts, *map(_part, blocks)]}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A custom tool in the form of OpenAI's API."""
    if tool.get("type") not in (None, "custom"):
        raise MessageError(
            f"a tool has the type {str(tool['type'])[:60]!r}; only custom tools are supported, which the caller runs"
        )
    fields = known_fields(
        tool,
        "a tool",
        ("name", "description", "input_schema", "strict", "allowed_callers", "defer_loading", "eager_input_streaming",
         "input_examples"),
    )  # fmt: skip
    without_effect = {"allowed_callers": ["direct"], "defer_loading": False, "input_examples": []}
    for name, value in without_effect.items():
        if fields.get(name, value) != value:
            raise MessageError(f"{name} of a tool is not supported; leave it out")
    if "input_schema" not in fields:
        raise MessageError("a tool needs an input_schema")
    function = {name: fields.get(name) for name in ("name", "description", "strict")}
    return {"type": "function", "function": {**function, "parameters": fields["input_schema"]}}
