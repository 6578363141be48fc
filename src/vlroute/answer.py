"""What comes back: the answer with its decision, and the events of a stream."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

from vlroute.decision.policy import Decision
from vlroute.engine.protocol import FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `thinking_tokens` are part of `completion_tokens`, `vision_tokens` of `prompt_tokens`.

    `cached_tokens` is the number of prompt tokens that were taken from a prefix cache. An endpoint sends its counts
    at the end of a stream. If it sends none, or if the stream was cut at a stop string, `prompt_tokens` is None and
    each chunk of the stream counts as one token of `completion_tokens`.
    """

    prompt_tokens: int | None
    vision_tokens: int
    completion_tokens: int
    thinking_tokens: int
    cached_tokens: int = 0
    encoded: int | None = None
    """Pictures and videos that went through the tower for this request: 0 where all were known, None if not said."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per step of one request.

    `caption`: what the captioner took (with the tower, if it ran for it); `decide`: the classifier; `vision`: picture
    processing and tower, 0 where features were there already; `prefill`: until the first token; `decode`: after it.
    """

    caption: float
    decide: float
    vision: float
    prefill: float
    decode: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` is the answer alone, `thinking` the reasoning before it ("" for Instruct).

    `finish_reason`:
        "stop": the answer is complete, or reached a stop string.
        "length": the answer is not complete. The tokens or the context of the model ran out (`text` is empty if this
            happened during the reasoning), or an endpoint returned no answer or ended for another reason, which
            `decision.reason` states.
        "content_filter": an endpoint withheld the answer or a part of it, or refused.
        "cancelled": the caller cancelled it.
    """

    text: str
    thinking: str
    decision: Decision
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    id: str = ""
    """What `Router.feedback` takes: 128 random bits as 32 hex characters."""

    def __str__(self) -> str:
        if self.text or self.finish_reason == "stop":
            return self.text
        return f"[no answer: {self.finish_reason} after {self.usage.thinking_tokens} tokens of thinking]"

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decided:
    """First event of a stream: which mode answers, and why; `id` is that of the answer to come."""

    decision: Decision
    id: str = ""


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of reasoning; all pieces joined are `Answer.thinking`."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """A piece of the answer; all pieces joined are `Answer.text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a stream: the whole answer with usage and timing."""

    answer: Answer


Event = Decided | ThinkingDelta | AnswerDelta | Finished
#: Closing it cancels what is still being written.
Events = Generator[Event, None, None]


def new_id() -> str:
    """128 random bits as 32 hex characters: cannot be guessed, so knowing an id is leave to judge its answer."""
    return secrets.token_hex(16)
