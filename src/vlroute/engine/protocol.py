"""The interface of an engine: a model in this process, endpoints, or replicas of a cluster. Does not import torch."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlroute.fair_share import Flow
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation
from vlroute.inputs.tools import Tools
from vlroute.steps import Steps
from vlroute.structured import ResponseFormat
from vlroute.types import Channel, Closed, FinishReason, Mode, Stage, TokenLogprob, ToolCall


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A text of the answer with the log-probabilities of the tokens since the text before, see `AnswerDelta`."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


#: A text of the thinking or of the answer, or a complete call on the channel "call". The texts of the answer are
#: ScoredText if the setting `logprobs` is on.
Piece: TypeAlias = str | ScoredText | ToolCall
#: Called with each new piece.
OnPiece = Callable[[Channel, Piece], None]
CAPTION_SETTINGS = {"do_sample": False, "max_new_tokens": 24}


@dataclass(frozen=True, slots=True)
class Reply:
    """The output of one mode, with token counts and the duration of each step in seconds.

    Attributes:
        text: the answer.
        thinking: the reasoning; "" for Instruct.
        finish_reason: see `vlroute.Answer`.
        prompt_tokens: None if a server sent no counts.
        cached_tokens: prompt tokens taken from a prefix cache.
        vision_tokens: prompt tokens of pictures and videos.
        completion_tokens: tokens of reasoning and answer.
        thinking_tokens: tokens of the reasoning.
        vision_seconds: from the call of `answer` until the vision features are there.
        prefill_seconds: until the first token.
        decode_seconds: after the first token.
        encoded: pictures and videos that the vision tower encoded for this request so far; None if not reported.
        note: what is wrong with the answer, if anything; appended to the reason of the decision.
        closed: why the reasoning was closed, see `vlroute.Answer`.
        tool_calls: the tools that the answer calls.
        stop: the stop string at which the answer ended, if it did.
        queue_seconds: from the vision features until the answer has a place in the batch; 0 if not known.
        logprobs: see `vlroute.Answer`.
    """

    text: str
    thinking: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    cached_tokens: int
    vision_tokens: int
    completion_tokens: int
    thinking_tokens: int
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float
    encoded: int | None = None
    note: str = ""
    closed: Closed | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    stop: str | None = None
    queue_seconds: float = 0.0
    logprobs: tuple[TokenLogprob, ...] | None = None


def empty_reply(finish_reason: FinishReason = "length", encoded: int | None = None) -> Reply:
    """A reply for which no token was read or generated."""
    return Reply("", "", finish_reason, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, encoded)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence of an answer so far, for decisions at the stages "prefill" and "answer".

    Attributes:
        state: Hidden state of the last prompt token after the last norm, float32 `[width]`; None if the engine does
            not give it.
        log_probs: Natural logarithm of the probability of each answer token so far, before temperature and penalties.
            The token that ends the answer is left out, because not all endpoints send it.
        entropies: For each token, the entropy in nats of the `TOP_TOKENS` most probable tokens, with all others as one
            outcome. Endpoints send only the most probable tokens and so give the same number.
        complete: Whether the answer has ended; False if it was cut off at the maximum length.
    """

    state: NDArray[np.float32] | None = None
    log_probs: Sequence[float] = ()
    entropies: Sequence[float] = ()
    complete: bool = False


#: Number of most probable tokens that `Evidence.entropies` distinguishes; most endpoints send up to 20, some only 5.
TOP_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Trial:
    """Decides during an answer whether it goes on. Its text is held back until then.

    Attributes:
        judge: Called with the evidence. True: the answer goes on, and its text is passed on from now on. False: it
            ends at once, and its text is not passed on. None: it goes on, undecided. It must return within a fraction
            of a millisecond, because a local engine calls it in the thread that generates all answers.
        state: Whether to call `judge` when the prompt has been read, with `Evidence.state` and no tokens.
        answer: Whether to call it, if still undecided, when the answer has ended, or `seconds` after its first token.
            A result of None then counts as True.
        seconds: Maximum time for which text is held back.
    """

    judge: Callable[[Evidence], bool | None]
    state: bool = False
    answer: bool = False
    seconds: float = math.inf


class EngineRequest(Protocol):
    """One conversation to answer. Vision features computed for the caption are reused for the answer."""

    namespace: str

    @property
    def tower(self) -> str | None:
        """Fingerprint of the Instruct tower whose features `pooled` returns; None if the engine has no features."""

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """Check generation settings before anything is encoded or generated.

        Args:
            mode: which mode would answer.
            settings: generation settings.

        Raises:
            SettingsError: `mode` cannot answer with these settings.
            LimitError: The conversation is much longer than the model accepts.
        """

    def prepare(self, modes: Sequence[Mode]) -> None:
        """Begin what an answer in any of `modes` needs, while the decision is made. Errors are raised by `answer`."""

    def caption(self, item: Picture | Video, prompt: str) -> Steps[str]:
        """Description of one picture or video by the Instruct model, decoded greedily with `prompt`."""

    def pooled(self, item: Picture | Video) -> Steps[NDArray[np.float32]]:
        """Mean and standard deviation of the vision features of one picture or video: `[2 · width]`."""

    def uncached_tokens(self) -> dict[Mode, int] | None:
        """Number of prompt tokens that each mode must prefill; None if unknown."""

    def prompt_tokens(self, mode: Mode) -> int | None:
        """Number of prompt tokens that `mode` reads, without running a model; None if unknown."""

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece | None = None,
        cancel: threading.Event | None = None,
        trial: Trial | None = None,
    ) -> Steps[Reply]:
        """Generate the answer.

        Args:
            mode: which mode answers.
            settings: generation settings.
            on_piece: called with each new piece of text and each tool call, in a thread of the engine. Without it, an
                engine may restart the answer after a fault.
            cancel: cancels the answer when set.
            trial: decides during the answer whether it goes on; only for Instruct. Its judge is not called for stages
                that are not among `Engine.stages`, and an error that it raises ends the answer.

        Returns:
            The reply. If `trial` ended the answer, it contains what was generated, with the finish reason "cancelled".

        Raises:
            ModeUnavailableError: this mode cannot answer now; the other one may.
        """


class Engine(Protocol):
    """Answers conversations in either mode. Thread-safe."""

    @property
    def remote(self) -> bool:
        """Whether servers elsewhere answer, with settings and caches of their own."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The later stages for which this engine gives evidence, see `Trial`."""

    @property
    def shared_prompt(self) -> bool:
        """Whether both modes share one model, so that Thinking can continue a prompt that Instruct has read."""

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of both checkpoints; None if it is not known."""

    def request(
        self, conversation: Conversation, namespace: str, flow: Flow | None = None
    ) -> AbstractContextManager[EngineRequest]:
        """Begin a request.

        Args:
            conversation: checked messages.
            namespace: separates the cache entries of tenants.
            flow: the requests with which this one shares its part of the model; None: those of its namespace. Servers
                elsewhere share among all requests as they do.

        Returns:
            A context manager that gives the request and releases its resources at the end.
        """

    def check_tools(self, tools: Tools, response: ResponseFormat | None) -> None:
        """Check what an answer with these tools needs, so that it does not wait for it.

        Args:
            tools: the tools of a request.
            response: the format of an answer without calls.

        Raises:
            SettingsError: an answer with the tools cannot be constrained.
        """

    def wait(self) -> None:
        """Wait until requests can be answered, or log why they cannot."""

    def close(self) -> None:
        """Cancel all running answers; no further requests are accepted."""
