"""The two modes; the one word that every room shares."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from vlroute.errors import InputError

Mode = Literal["instruct", "thinking"]
MODES: tuple[Mode, ...] = get_args(Mode)
#: Accepted values of `mode=`; "auto" lets the router decide, as None does.
ModeChoice = Literal["auto", "instruct", "thinking"]


def other(mode: Mode) -> Mode:
    """The other mode."""
    return "thinking" if mode == "instruct" else "instruct"


def forced_mode(choice: object) -> Mode | None:
    """The mode that `choice` forces; None for None and "auto". InputError for anything else."""
    if choice is None or (isinstance(choice, str) and choice == "auto"):
        return None
    if isinstance(choice, str) and choice in MODES:
        return choice
    raise InputError(f"mode must be one of auto, {', '.join(MODES)}, not {choice!r}")


Stage = Literal["prompt", "prefill", "answer"]
FinishReason = Literal["stop", "length", "content_filter", "cancelled"]
Channel = Literal["thinking", "answer"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Which mode answers, and why.

    `stage`: how much evidence it rests on. `p_*`, `gain`: probabilities. `seconds_*`: expected, for the whole
    answer. `threshold`: the gain needed, price x extra seconds. `forced`: the caller chose the mode.
    `caption`: what was read. `fallback`: the mode that was chosen could not answer, so `mode` is the other one.
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

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON: no NaN, no infinity."""
        return asdict(self)


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


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Name of a pair and, if its weights are on this machine, the fingerprint of both checkpoints.

    `name`: the hub name ("Qwen/Qwen3-VL-2B") or the name of a folder, without its path.
    `fingerprint`: see `CheckpointFiles.fingerprint`.
    """

    name: str
    fingerprint: str | None = None

    def differs(self, other: ModelIdentity) -> bool:
        """Whether the pairs certainly differ: by fingerprint, else by hub name. Folder names are not compared."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint != other.fingerprint
        return "/" in self.name and "/" in other.name and self.name.casefold() != other.name.casefold()

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:12]}…)" if self.fingerprint else self.name

    def as_card(self) -> dict[str, Any]:
        """The entry in the card of a router artifact."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    @classmethod
    def from_card(cls, card: Any) -> ModelIdentity | None:
        """The inverse of `as_card`; None if the artifact has no entry. ValueError for any other value."""
        if card is None:
            return None
        if not isinstance(card, Mapping) or not isinstance(card.get("name"), str):
            raise ValueError("'pair' needs a name")
        fingerprint = card.get("fingerprint")
        if not isinstance(fingerprint, str | None):
            raise ValueError("the fingerprint of 'pair' must be a string or null")
        return cls(card["name"], fingerprint)
