"""Types that all parts of the package share: modes, decisions, answers and stream events."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from vlroute.errors import InputError

Mode = Literal["instruct", "thinking"]
MODES: tuple[Mode, ...] = get_args(Mode)
#: Accepted values of `mode=`; "auto" lets the router decide, as None does.
ModeChoice = Literal["auto", "instruct", "thinking"]
#: Named targets; see `Target`.
Preset = Literal["fast", "balanced", "accurate", "knee"]


def other(mode: Mode) -> Mode:
    """The other mode."""
    return "thinking" if mode == "instruct" else "instruct"


def forced_mode(choice: object) -> Mode | None:
    """The mode that a caller forces.

    Args:
        choice: What the caller passed as `mode`.

    Returns:
        A mode; None for None and "auto".

    Raises:
        InputError: `choice` is anything else.
    """
    if choice is None or (isinstance(choice, str) and choice == "auto"):
        return None
    if isinstance(choice, str) and choice in MODES:
        return choice
    raise InputError(f"mode must be one of auto, {', '.join(MODES)}, not {choice!r}")


#: How much evidence a decision rests on.
Stage = Literal["prompt", "prefill", "answer"]
STAGES: tuple[Stage, ...] = get_args(Stage)
#: The part of tools in a request: none, tools are offered, or the last message is the result of a tool.
ToolUse = Literal["", "offered", "result"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled"]
Channel = Literal["thinking", "answer", "call"]
#: Why reasoning was closed, see `Answer.closed`.
Closed = Literal["budget", "reserve", "loop", "early", "end"]


@dataclass(frozen=True, slots=True)
class PassedStage:
    """A stage that a decision has passed.

    Attributes:
        stage: The stage.
        p_instruct: Probability at this stage that Instruct answers correctly.
        p_thinking: The same for Thinking.
        threshold: The gain that is needed at this stage.
        seconds: Seconds from the beginning of the request until this stage was decided.
    """

    stage: Stage
    p_instruct: float
    p_thinking: float
    threshold: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Which mode answers, and why.

    Attributes:
        mode: The mode that answers.
        stage: The evidence on which the decision is based.
        p_instruct: Expected probability that Instruct answers correctly.
        p_thinking: The same for Thinking.
        gain: `p_thinking - p_instruct`.
        seconds_instruct: Expected seconds of Instruct's whole answer.
        seconds_thinking: The same for Thinking; at a later stage, including the seconds that Instruct has taken.
        threshold: The gain that is needed: price × extra seconds.
        reason: The reason, in one sentence.
        caption: The caption that was used.
        forced: Whether the caller chose the mode.
        fallback: Whether the chosen mode could not answer, so that `mode` is the other one.
        rescued: Whether Thinking was chosen but gave no answer, so that Instruct wrote the answer. `mode` is then
            "instruct", and `Answer.thinking` is the reasoning.
        stages: All stages that were passed, the last one included.
        later_stages: For a decision without an answer, the stages that could still change it.
        thinking_budget: Number of reasoning tokens that `thinking_budget="auto"` stands for; None without a router
            artifact with a calibration set, or if the coverage of the request is below `Policy.min_coverage`.
        tools: "offered": the request offers tools. "result": its last message is the result of a tool. "": neither.
        previous: The mode whose tool calls the last messages answer, if it is known. See `Policy.decide`.
        explored: Whether the request was drawn to be answered in the other mode, see `explore` of
            `Router.from_pretrained`. `mode` is then the other mode.
        propensity: Probability with which this mode was chosen: 1 without exploration.
    """

    mode: Mode
    stage: Stage
    p_instruct: float
    p_thinking: float
    gain: float
    seconds_instruct: float
    seconds_thinking: float
    threshold: float
    reason: str
    caption: str | None = None
    forced: bool = False
    fallback: bool = False
    rescued: bool = False
    stages: tuple[PassedStage, ...] = ()
    later_stages: tuple[Stage, ...] = ()
    thinking_budget: int | None = None
    tools: ToolUse = ""
    previous: Mode | None = None
    explored: bool = False
    propensity: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for JSON; all numbers are finite."""
        return asdict(self)


def judged_mode(decision: Decision) -> Mode:
    """The mode for which correctness and seconds of the answer count: Thinking if the answer was rescued."""
    return "thinking" if decision.rescued else decision.mode


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens of one request. Those of a rescued answer are the sums over both modes.

    Most endpoints send their counts at the end of a stream. If an endpoint sends none, or if its stream was ended early
    (at a stop string, at the reserve for the answer or in a loop), `prompt_tokens` is None, and each chunk of the
    stream counts as one token of `completion_tokens`. Tokens of an Instruct answer that was abandoned at a later stage
    are not counted, because they are not part of the answer.

    Attributes:
        prompt_tokens: Tokens of the prompt, media included; None if unknown.
        vision_tokens: Tokens of pictures and videos, part of `prompt_tokens`.
        completion_tokens: Generated tokens.
        thinking_tokens: Tokens of reasoning, part of `completion_tokens`.
        cached_tokens: Prompt tokens that were taken from a prefix cache.
        encoded: Number of pictures and videos that went through the tower for this request; None if unknown.
    """

    prompt_tokens: int | None
    vision_tokens: int
    completion_tokens: int
    thinking_tokens: int
    cached_tokens: int = 0
    encoded: int | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the steps of one request.

    Attributes:
        caption: Caption, with the tower if it ran for the caption.
        decide: Decision, with an Instruct answer that was begun for a later stage and given up.
        vision: Preparing pictures and videos, and waiting for the tower; almost 0 if all features were cached.
        prefill: Until the first token.
        decode: After the first token.
        total: All of these.
        queue: Waiting until the scheduler has room for the answer, between `vision` and `prefill`; 0 if the model runs
            elsewhere.
    """

    caption: float
    decide: float
    vision: float
    prefill: float
    decode: float
    total: float
    queue: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for. The caller runs it, see `Answer.message`.

    Attributes:
        id: Identifies the call for its result.
        name: The name of the tool. A model may write a name that was not offered.
        arguments: The arguments by name. They may differ from the schema of the tool.
        text: The arguments as JSON text, as the model wrote them.
    """

    id: str
    name: str
    arguments: Mapping[str, Any]
    text: str

    def as_dict(self) -> dict[str, Any]:
        """The call in OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.text}}


#: The bytes of a token; None if it has none.
Bytes: TypeAlias = bytes | None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer, or an alternative to it, with its log-probability.

    Attributes:
        token: The text of the token. Bytes that form no whole character are U+FFFD in it.
        bytes: The bytes of the text in UTF-8; a character may be divided between tokens. None for control tokens, which
            are no text.
        logprob: Natural logarithm of the probability that the model gives the token, before temperature, penalties and
            everything else that changes or restricts the choice.
        top_logprobs: The most probable tokens at this place, as many as `top_logprobs` asks for, the most probable one
            first.
    """

    token: str
    bytes: Bytes
    logprob: float
    top_logprobs: tuple[TokenLogprob, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The token in OpenAI's form."""
        return {**self._fields(), "top_logprobs": [one._fields() for one in self.top_logprobs]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TokenLogprob:
        """The inverse of `as_dict`.

        Args:
            value: The token in OpenAI's form.

        Returns:
            The token.

        Raises:
            KeyError: A field is missing; TypeError or ValueError if one is invalid.
        """
        data = None if value["bytes"] is None else bytes(value["bytes"])
        top = tuple(cls.from_dict(one) for one in value.get("top_logprobs", ()))
        return cls(str(value["token"]), data, float(value["logprob"]), top)

    def _fields(self) -> dict[str, Any]:
        return {
            "token": self.token, "logprob": self.logprob, "bytes": None if self.bytes is None else list(self.bytes),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its decision.

    Attributes:
        text: The answer alone, without tool calls.
        thinking: The reasoning before it; empty for Instruct, unless the answer was rescued, see `Decision`.
        decision: Which mode answered, and why.
        finish_reason: "stop": the answer is complete, or reached a stop string. "tool_calls": it is complete and calls
            tools. "length": it is not complete. The tokens or the context of the model ran out (`text` is empty if this
            happened during the reasoning and Instruct could not answer either), or an endpoint returned no answer or
            ended for another reason, which `decision.reason` states. "content_filter": an endpoint withheld the answer
            or a part of it, or refused. "cancelled": the caller cancelled it.
        usage: Numbers of tokens.
        timing: Seconds of the steps.
        id: Identifies the answer for `Router.feedback`: 128 random bits as 32 hexadecimal digits.
        closed: Why the reasoning was closed before the model did so. "budget": it reached `thinking_budget`. "reserve":
            only the tokens of `answer_reserve` were left. "loop": it repeated itself. "early": its answer no longer
            changed (`early_exit`). "end": the model would have ended its output without an answer. None if the model or
            a server closed it, or if there was no reasoning.
        tool_calls: The tools that the model calls.
        parsed: The answer for a `response_format` of JSON: the instance of the pydantic model, or the JSON value. None
            for other formats, if the answer is not complete (`finish_reason` is not "stop", or a stop string cut it),
            or if the validators of the model refuse it, which is logged.
        stop: The stop string at which the answer ended; None if it ended otherwise.
        logprobs: The tokens of the answer with their log-probabilities, if the setting `logprobs` asks for them: all
            tokens after the reasoning but the end token, so `usage.completion_tokens - usage.thinking_tokens` of them
            unless the answer was rescued. Their bytes together are the answer as the model wrote it, with the white
            space around it, tool calls, and the stop string that ended it, which are not part of `text`.
    """

    text: str
    thinking: str
    decision: Decision
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    id: str = ""
    closed: Closed | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    parsed: Any = field(default=None, hash=False)
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message for the next request, to which the results of its tool calls are appended.

        `{"role": "tool", "tool_call_id": call.id, "content": "…"}` is the result of a call. The reasoning is part of
        the message, because models continue it until the next question.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        return message

    def __str__(self) -> str:
        if self.text or self.tool_calls or self.finish_reason == "stop":
            calls = [f"{call.name}({call.text})" for call in self.tool_calls]
            return "\n".join([self.text, *calls] if self.text else calls)
        return f"[no answer: {self.finish_reason} after {self.usage.thinking_tokens} tokens of thinking]"

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for JSON."""
        dumped = getattr(self.parsed, "model_dump", None)
        return asdict(replace(self, parsed=None, logprobs=None)) | {
            "parsed": dumped(mode="json") if dumped else self.parsed,
            "logprobs": None if self.logprobs is None else [one.as_dict() for one in self.logprobs],
        }


@dataclass(frozen=True, slots=True)
class Decided:
    """First event of a stream. A second one follows if the mode gives no answer and the other one replaces it.

    Attributes:
        decision: Which mode answers, and why.
        id: `Answer.id` of the answer that follows.
    """

    decision: Decision
    id: str = ""


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of the reasoning. All pieces joined are `Answer.thinking`."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """A piece of the answer. All pieces joined are `Answer.text`.

    Attributes:
        text: The text.
        logprobs: The entries of `Answer.logprobs` since the piece before, if they were asked for. Those after the last
            piece, such as for white space, are only in `Finished.answer`.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A complete tool call. All calls together are `Answer.tool_calls`."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream, with the whole answer."""

    answer: Answer


Event = Decided | ThinkingDelta | AnswerDelta | ToolCalled | Finished
#: The events of one answer. Closing it cancels the answer.
Events = Generator[Event, None, None]


def new_id() -> str:
    """128 random bits as 32 hexadecimal digits. They cannot be guessed, so the id authorizes feedback on the answer."""
    return secrets.token_hex(16)


#: Names of the models that are part of this package.
EMBEDDED_MODELS = ("pocket", "pocket-hybrid")


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Identifies the model of an answer, a record or a router artifact.

    Attributes:
        name: The hub name ("Qwen/Qwen3-VL-2B") or the name of a folder, without its path.
        fingerprint: Fingerprint of both checkpoints if their weights are on this machine, see
            `CheckpointFiles.fingerprint`.
    """

    name: str
    fingerprint: str | None = None

    def differs(self, other: ModelIdentity) -> bool:
        """Whether the models certainly differ: by fingerprint, or by name if both are embedded models or on the hub.

        Names of folders and of models on a server are not compared: they can stand for any model.
        """
        if self.fingerprint and other.fingerprint:
            return self.fingerprint != other.fingerprint
        names = {self.name.casefold(), other.name.casefold()}
        return len(names) == 2 and all("/" in name or name in EMBEDDED_MODELS for name in names)

    @property
    def key(self) -> str:
        """What tells the models of stored answers apart: the fingerprint, otherwise the name."""
        return self.fingerprint or self.name.casefold()

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:12]}…)" if self.fingerprint else self.name

    def as_card(self) -> dict[str, Any]:
        """The entry in the card of a router artifact."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    @classmethod
    def from_card(cls, card: Any) -> ModelIdentity | None:
        """The inverse of `as_card`.

        Args:
            card: The entry, or None if the artifact has none.

        Returns:
            The identity; None if there is no entry.

        Raises:
            ValueError: The entry has another form.
        """
        if card is None:
            return None
        if not isinstance(card, Mapping) or not isinstance(card.get("name"), str):
            raise ValueError("'model' needs a name")
        fingerprint = card.get("fingerprint")
        if not isinstance(fingerprint, str | None):
            raise ValueError("the fingerprint of 'model' must be a string or null")
        return cls(card["name"], fingerprint)
