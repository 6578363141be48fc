"""What a client may send, in OpenAI's words, and what it asks of the router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from vlroute.answering import Wish
from vlroute.modes import MODES, Mode
from vlroute.serving.errors import APIError
from vlroute.serving.settings import EFFORTS, ServerSettings

#: Cooler than this is greedy: a division by less overflows.
COLDEST = 1e-3
#: Fields that would change the answer but are not done here, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "best_of": (None, 1), "logprobs": (None, False, 0), "top_logprobs": (None, 0), "tools": (None, []),
    "functions": (None, []), "logit_bias": (None, {}), "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "suffix": (None,), "echo": (None, False),
    "tool_choice": (None, "none", "auto"), "function_call": (None, "none", "auto"), "guided_json": (None,),
}  # fmt: skip
#: Fields that do not change the answer.
_HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "stream_options", "verbosity",
})  # fmt: skip
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Model = Annotated[
    str,
    Field(
        max_length=200,
        description="'auto' lets the router decide; 'instruct' and 'thinking' force a mode, and so does a name that "
        "ends in -Instruct or -Thinking.",
    ),
]


class RouterWish(BaseModel):
    """What only vlroute knows; with OpenAI's client: `extra_body={"vlroute": {"price": 0.2}}`."""

    model_config = ConfigDict(extra="forbid")
    caption: str | None = Field(default=None, max_length=20_000, description="What is in the pictures.")
    price: float | None = Field(
        default=None, ge=0, le=1e6, description="What one second of waiting is worth, in probability."
    )


class StreamOptions(BaseModel):
    include_usage: bool = False


class RouteRequest(BaseModel):
    """What a decision rests on."""

    model_config = ConfigDict(extra="allow")
    model: Model = "auto"
    messages: list[dict[str, Any]] = Field(
        min_length=1, max_length=2000, description="As OpenAI's, pictures as data URIs; see docs/messages.md."
    )
    reasoning_effort: Effort | None = Field(
        None, description="'none': Instruct. A level: Thinking with a budget of tokens. Absent: the router decides."
    )
    vlroute: RouterWish = RouterWish()

    def wish(self, settings: ServerSettings, namespace: str) -> Wish:
        """APIError 400 or 404 for wishes that contradict each other or cannot be met."""
        return Wish(self.vlroute.caption, self.mode, self.vlroute.price, namespace=namespace)

    @property
    def mode(self) -> Mode | None:
        named = mode_of(self.model)
        asked: Mode | None = None
        if self.reasoning_effort is not None:
            asked = "instruct" if self.reasoning_effort == "none" else "thinking"
        if named and asked and named != asked:
            raise APIError(
                400, f"model {named!r} and reasoning_effort {self.reasoning_effort!r} contradict each other; leave one "
                "of them out", "contradiction", "reasoning_effort",
            )  # fmt: skip
        return named or asked

    def ignored(self) -> list[str]:
        """Names that were sent and mean nothing here. APIError 400 for one that would have to change the answer."""
        sent: Mapping[str, Any] = self.model_extra or {}
        for name, plain in _UNSUPPORTED.items():
            if name in sent and sent[name] not in plain:
                raise APIError(400, f"{name} is not supported here; leave it out", "unsupported_parameter", name)
        return sorted(set(sent) - set(_UNSUPPORTED) - _HARMLESS)


class ChatRequest(RouteRequest):
    """OpenAI's chat completion request, and the sampling fields that vLLM adds."""

    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, description="Reasoning included.")
    max_tokens: int | None = Field(None, ge=1, description="Older name of max_completion_tokens.")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="-1 and 0: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0.01, le=10)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = Field(None, description="Up to 16 strings; they end the answer, not the reasoning.")
    thinking_budget: int | None = Field(None, ge=0, description="Tokens of reasoning, whatever reasoning_effort says.")

    def wish(self, settings: ServerSettings, namespace: str) -> Wish:
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
                         "repetition_penalty", "seed")
            if (value := getattr(self, name)) is not None
        }  # fmt: skip
        if "top_k" in given:
            given["top_k"] = max(given["top_k"], 0)
        if "temperature" in given:
            given["do_sample"] = given["temperature"] > COLDEST
            if not given["do_sample"]:
                del given["temperature"]
        given["stop"] = self._stops()
        given["max_new_tokens"] = self._most(settings)
        given["thinking_budget"] = self._budget()
        generation = {name: value for name, value in given.items() if value is not None}
        return Wish(self.vlroute.caption, self.mode, self.vlroute.price, None, generation, namespace)

    def _stops(self) -> list[str] | None:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if stops and (len(stops) > 16 or not all(0 < len(stop) <= 1000 for stop in stops)):
            raise APIError(400, "stop must be up to 16 strings of 1 to 1000 characters", "invalid_value", "stop")
        return stops

    def _most(self, settings: ServerSettings) -> int | None:
        most = self.max_completion_tokens or self.max_tokens
        if most is not None and most > settings.max_tokens:
            raise APIError(
                400, f"an answer may have at most {settings.max_tokens} tokens here, {most} were asked for",
                "limit_exceeded", "max_completion_tokens" if self.max_completion_tokens else "max_tokens",
            )  # fmt: skip
        return most

    def _budget(self) -> int | None:
        return self.thinking_budget if self.thinking_budget is not None else EFFORTS.get(self.reasoning_effort or "")


class FeedbackRequest(BaseModel):
    """How right an answer was."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=200, description="Of the answer: `id` of a completion, with or without 'chatcmpl-'.")
    correct: StrictBool | Annotated[float, Field(ge=0, le=1)] = Field(description="True, false, or a share 0 to 1.")
    comment: str | None = Field(None, max_length=20_000)


def mode_of(model: str) -> Mode | None:
    """The mode a model's name stands for; None for "auto". APIError 404 for any other name."""
    name = model.lower()
    if name == "auto":
        return None
    for mode in MODES:
        if name == mode or name.endswith(f"-{mode}"):
            return mode
    raise APIError(
        404, f"there is no model {model[:80]!r} here; expected 'auto', 'instruct' or 'thinking'", "model_not_found",
        "model",
    )  # fmt: skip
