"""Shadow mode: a second router artifact decides on the same requests, and both decisions are stored.

The shadow decides in a separate thread after the answer is stored, with the caption, the price and the latencies of the
decision in force. It is compared with the first decision on a request, at the stage "prompt". It cannot change an
answer or make a request fail.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

from vlroute.checks import Number
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.selector import ModeSelector
from vlroute.decision.target import Target
from vlroute.decision.tradeoff import TradeoffCurve
from vlroute.engine.protocol import Reply
from vlroute.errors import ArtifactError, RouterClosedError
from vlroute.exit import end_at_exit
from vlroute.types import MODES, Answer, Decision, Mode, new_id, other

log = logging.getLogger("vlroute")
#: Accepted values of `label_share`.
LABEL_SHARE = Number(0, 1)
#: Maximum number of decisions waiting to be stored. Further ones are dropped, so that a blocked database does not fill
#: the memory.
MOST_PENDING = 1000
#: Time for which decisions are collected before they are made, so that they do not contend with the end of an answer
#: for the GIL.
COLLECT_SECONDS = 0.05
#: Maximum time that `close` waits for decisions to be stored.
FLUSH_SECONDS = 5.0
#: Result of a request that was drawn to be answered in the other mode too.
LabelResult = Literal["stored", "busy", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What one router artifact predicts for a request, and the mode that it chooses.

    Attributes:
        artifact: Fingerprint of the artifact; empty if there is none.
        mode: The chosen mode.
        p_instruct: Expected probability that Instruct answers correctly.
        p_thinking: The same for Thinking.
        seconds_instruct: Expected seconds of Instruct's whole answer.
        seconds_thinking: The same for Thinking.
        threshold: The gain that Thinking needs.
    """

    artifact: str
    mode: Mode
    p_instruct: float
    p_thinking: float
    seconds_instruct: float
    seconds_thinking: float
    threshold: float


@dataclass(frozen=True, slots=True)
class ShadowedDecision:
    """Both decisions on one request. Contains no text of the request.

    Attributes:
        answer: Id of the answer.
        created: Seconds since 1970, UTC.
        used: The decision in force.
        shadow: The decision of the shadow.
        probability: Probability with which the request was drawn to be answered in the other mode too.
        drawn: Whether it was drawn. A drawn request can lack a label, see `LabelResult`.
    """

    answer: str
    created: float
    used: Choice
    shadow: Choice
    probability: float = 0.0
    drawn: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """The answer of the other mode to a request that was drawn. No user has seen it.

    Attributes:
        answer: Id of the user's answer.
        mode: The mode of this answer.
        probability: Probability with which the request was drawn. An estimate weights the label by its inverse.
        text: The answer.
        same: Whether the user's answer has the same text, apart from case, white space and a final full stop.
        tokens: Number of generated tokens.
        seconds: Time of the answer. Too short if pictures and prompt were cached for the user's answer.
        prefill_seconds: Time before the first token.
        finish_reason: See `Answer`.
        correct: Feedback on this answer, if any.
        id: Identifies the label for `Store.feedback`.
    """

    answer: str
    mode: Mode
    probability: float
    text: str | None
    same: bool
    tokens: int
    seconds: float
    prefill_seconds: float
    finish_reason: str
    correct: float | None = None
    id: str = field(default_factory=new_id)


class ShadowStore(Protocol):
    """Where decisions and labels are stored, see `Store`."""

    def record_shadowed(self, decisions: Sequence[ShadowedDecision]) -> None:
        """Store decisions on answers that are stored."""

    def record_label(self, label: Label) -> None:
        """Store a label of an answer that is stored."""


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """Counts since the router was created.

    Attributes:
        decisions: Number of stored decisions by mode in force and mode of the shadow.
        errors: Number of decisions that failed ("decision"), could not be stored ("store"), or were dropped because
            too many were waiting ("dropped").
        labels: Requests that were drawn to be answered in the other mode too, by `LabelResult`.
    """

    decisions: Mapping[tuple[Mode, Mode], int]
    errors: Mapping[str, int]
    labels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Watched:
    """What the decision in force on one request was based on."""

    decision: Decision
    artifact: ComplexityClassifier | None
    policy: Policy
    target: Target | None
    price: float | None
    usual_prefill: dict[Mode, float]
    prefill: dict[Mode, float]  # of this request
    per_token: dict[Mode, float]


def check_target(classifier: ComplexityClassifier | None, target: Target | None) -> None:
    """Raise an ArtifactError if the artifact of a shadow cannot convert the target of the router to a price."""
    if target is not None and classifier is not None and classifier.calibration is None:
        raise ArtifactError("the shadow has no calibration set, which a target needs; pass policy=Policy(price=…)")


class Shadow:
    """Decides on the same requests as the artifact in force. Thread-safe.

    Args:
        classifier: The artifact to try. Its vision probe is not used, because the caption is that of the decision in
            force. None: there is none, and only labels are made.
        store: Receives the decisions.
        label_share: Share of requests that the other mode also answers, in the background.
        most_running: No label is made while this router answers more requests than this.

    Raises:
        SettingsError: `label_share` is not a number from 0 to 1.
    """

    def __init__(
        self,
        classifier: ComplexityClassifier | None,
        store: ShadowStore,
        label_share: float = 0.0,
        most_running: int = 16,
    ) -> None:
        self.classifier, self.label_share = classifier, LABEL_SHARE.read("label_share", label_share)
        self._store, self._most_running = store, most_running
        self._decisions: Counter[tuple[Mode, Mode]] = Counter()
        self._errors: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._pending: list[Callable[[], ShadowedDecision]] = []
        self._writer: threading.Thread | None = None
        self._labeler: threading.Thread | None = None
        self._running = 0
        self._resolved: tuple[Policy | None, Policy | None] = None, None
        self._lock = threading.Lock()
        self.closed = threading.Event()
        """Set by `close`. It cancels a label that is being made."""

    def stats(self) -> ShadowStats:
        """The counts."""
        with self._lock:
            return ShadowStats(dict(self._decisions), dict(self._errors), dict(self._labels))

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as running."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def watch(
        self,
        selector: ModeSelector,
        decision: Decision,
        price: float | None,
        uncached_tokens: Mapping[Mode, int] | None,
    ) -> Watched | None:
        """Note what a decision was based on. This takes a few microseconds.

        Args:
            selector: The selector that made the decision.
            decision: The decision; forced ones have no shadow.
            price: The price of the request, if it has one.
            uncached_tokens: As for `ModeSelector.begin`.

        Returns:
            What `store` needs; None if there is nothing to compare, or after an error.
        """
        if decision.forced:
            return None
        try:
            latency, left = selector.latency, uncached_tokens or {}
            return Watched(
                decision, selector.classifier, selector.policy, selector.target, price,
                {mode: latency.expected(mode, 0) for mode in MODES},
                {mode: latency.expected(mode, 0, left.get(mode)) for mode in MODES},
                {mode: latency.seconds_per_token(mode) for mode in MODES},
            )  # fmt: skip
        except Exception as error:
            self._failed("decision", error)
            return None

    def store(self, watched: Watched, prompt: str, answer: Answer, again: Callable[[Mode], Reply]) -> None:
        """Decide and store in another thread, and answer in the other mode if the request is drawn. Raises nothing.

        Args:
            watched: The decision in force.
            prompt: Text of the request.
            answer: The answer, which is stored.
            again: Answers the request in the given mode.
        """
        try:
            # if the chosen mode could not answer, it is not asked again
            probability = 0.0 if answer.decision.fallback else self.label_share
            drawn = random.random() < probability
            created = time.time()

            def decide(classifier: ComplexityClassifier) -> ShadowedDecision:
                used, shadow = self._choices(classifier, watched, prompt)
                return ShadowedDecision(answer.id, created, used, shadow, probability, drawn)

            with self._lock:
                if self.closed.is_set():
                    return
                if self.classifier is not None:
                    if len(self._pending) >= MOST_PENDING:
                        self._errors["dropped"] += 1
                        return
                    self._pending.append(partial(decide, self.classifier))
                    # a forked process has no threads
                    if self._writer is None or not self._writer.is_alive():
                        self._writer = self._begin("vlroute-shadow", self._write)
                if drawn:
                    self._label(answer, probability, again)
        except Exception as error:
            self._failed("decision", error)

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until all decisions are stored and no label is being made, at most `seconds`."""
        until = time.monotonic() + seconds
        for thread in (self._writer, self._labeler):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(until - time.monotonic(), 0.0))

    def close(self) -> None:
        """Cancel a label that is being made, and wait for decisions that are being stored."""
        self.closed.set()
        self.flush()

    def _begin(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        end_at_exit(thread, self.closed.set)
        thread.start()
        return thread

    def _write(self) -> None:
        """Decide and store until nothing is left."""
        while True:
            self.closed.wait(COLLECT_SECONDS)
            with self._lock:
                pending, self._pending = self._pending, []
                if not pending:
                    self._writer = None
                    return
            made = []
            for decide in pending:
                try:
                    made.append(decide())
                except Exception as error:
                    self._failed("decision", error)
            try:
                self._store.record_shadowed(made)
            except Exception as error:
                self._failed("store", error, len(made))
            else:
                with self._lock:
                    self._decisions.update((one.used.mode, one.shadow.mode) for one in made)

    def _choices(self, classifier: ComplexityClassifier, watched: Watched, prompt: str) -> tuple[Choice, Choice]:
        decision, artifact = watched.decision, watched.artifact
        policy = self._policy(classifier, watched)
        # the latencies at the time of the decision in force, because its answer has changed them since then
        latency = LatencyModel(watched.per_token, watched.prefill)
        prediction = classifier.predict(prompt, decision.caption, decision.tools)
        interval = classifier.gain_interval(prediction.gain) if decision.previous else None
        mine = policy.decide(
            prediction, latency, decision.caption, tools=decision.tools, previous=decision.previous, interval=interval
        )
        return _choice(artifact.fingerprint if artifact else "", decision), _choice(classifier.fingerprint, mine)

    def _policy(self, classifier: ComplexityClassifier, watched: Watched) -> Policy:
        """The policy in force. A target is resolved on the calibration set of the shadow when that policy changes."""
        if watched.price is not None:
            return replace(watched.policy, price=watched.price)
        if watched.target is None:
            return watched.policy
        before, policy = self._resolved
        if policy is None or before is not watched.policy:
            check_target(classifier, watched.target)
            assert classifier.calibration is not None
            used = watched.policy
            # as for the policy in force: the mean prefill, at about the time when it was resolved
            latency = LatencyModel(watched.per_token, watched.usual_prefill)
            curve = TradeoffCurve(classifier.calibration, latency, used.min_coverage, used.fallback_mode)
            policy = replace(used, price=watched.target.resolve(curve).price)
            self._resolved = used, policy
        return policy

    def _label(self, answer: Answer, probability: float, again: Callable[[Mode], Reply]) -> None:
        """Answer in the other mode in a separate thread, unless the router is busy. The caller holds the lock."""
        if self._running > self._most_running or (self._labeler is not None and self._labeler.is_alive()):
            self._labels["busy"] += 1
            return
        chosen: Mode = "thinking" if answer.decision.rescued else answer.decision.mode
        mode = other(chosen)

        def work() -> None:
            result: LabelResult = "failed"
            try:
                reply = again(mode)
                if reply.finish_reason == "cancelled":
                    result = "cancelled"
                    return
                prefill = reply.vision_seconds + reply.prefill_seconds
                self._store.record_label(
                    Label(
                        answer.id, mode, probability, reply.text, _same(reply, answer),
                        reply.completion_tokens, prefill + reply.decode_seconds, prefill, reply.finish_reason,
                    )
                )  # fmt: skip
                result = "stored"
            except Exception as error:
                if self.closed.is_set() or isinstance(error, RouterClosedError):
                    result = "cancelled"
                else:
                    self._failed("label", error, 0)
            finally:
                with self._lock:
                    self._labels[result] += 1

        self._labeler = self._begin("vlroute-label", work)

    def _failed(self, what: str, error: Exception, count: int = 1) -> None:
        """Count errors, and log the first one of its kind."""
        with self._lock:
            first = what not in self._errors
            self._errors[what] += count
        if first:
            done = {"decision": "cannot decide", "store": "is not stored"}.get(what, "makes no label")
            log.warning("the shadow %s: %s (logged once; answers are not affected)", done, error)


def _choice(artifact: str, decision: Decision) -> Choice:
    return Choice(
        artifact, decision.mode, decision.p_instruct, decision.p_thinking, decision.seconds_instruct,
        decision.seconds_thinking, decision.threshold,
    )  # fmt: skip


def _same(reply: Reply, answer: Answer) -> bool:
    """Whether both have the same text and call the same tools."""
    calls = [[(call.name, call.arguments) for call in one.tool_calls] for one in (reply, answer)]
    return _plain(reply.text) == _plain(answer.text) and calls[0] == calls[1]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".。")
