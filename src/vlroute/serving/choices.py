"""Several answers to one request: the router decides once, and the prompt is read once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, replace

from vlroute.inputs.messages import Conversation
from vlroute.pipeline import Pipeline, RequestOptions
from vlroute.steps import Steps, start, wait
from vlroute.types import Answer, Decided, Decision, Event, Finished

#: Maximum number of answers to one request.
MAX_CHOICES = 8


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An event of one of several answers."""

    index: int
    event: Event


#: Decided is the decision for the request. Finished contains the first answer, with the tokens of all.
Item = Decided | ChoiceEvent | Finished


class Choices:
    """Answers one request several times.

    The other answers start when the first one has its first text or call: at this time, its mode is known and its
    prompt is in the prefix cache. If one of them fails, all are cancelled.

    Args:
        pipeline: Generates each answer.
        prepare: Makes the conversation.
        options: Options of the first answer. Their cancel event ends all answers.
        count: Number of answers.
        executor: Starts the other answers in its threads.
        finished: Called with the number of each answer and the answer.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        prepare: Callable[[], Conversation],
        options: RequestOptions,
        count: int,
        executor: Executor,
        finished: Callable[[int, Answer], None],
    ) -> None:
        self._pipeline, self._prepare, self._options, self._count = pipeline, prepare, options, count
        self._executor, self._finished = executor, finished
        self._others: list[Future[Answer]] = []

    def work(self, emit: Callable[[Item], None]) -> Steps[Answer]:
        """The steps that generate all answers.

        Args:
            emit: Called with each item. The first one is Decided, the last one is Finished.

        Returns:
            Steps whose result is the answer of the last item.
        """
        return self._work(emit)

    def _work(self, emit: Callable[[Item], None]) -> Steps[Answer]:
        conversation, decision = self._prepare(), None

        def observed(event: Event) -> None:
            nonlocal decision
            if isinstance(event, Decided):
                emit(event if decision is None else ChoiceEvent(0, event))
                decision = event.decision
                return
            if isinstance(event, Finished):
                self._finished(0, event.answer)
            elif not self._others and decision is not None:
                self._begin_others(conversation, decision, emit)
            emit(ChoiceEvent(0, event))

        try:
            first = yield from self._pipeline.answer(conversation, self._options, observed)
            if not self._others and first.finish_reason != "cancelled":  # it has no text
                self._begin_others(conversation, first.decision, emit)
            answers = [first]
            for other in self._others:
                answers.append((yield from wait(other)))
        except BaseException:
            self._cancel.set()
            for other in self._others:  # a request counts as running until all of its answers have ended
                with suppress(Exception):
                    yield from wait(other)
            raise
        whole = joined(dict(enumerate(answers)))
        emit(Finished(whole))
        return whole

    @property
    def _cancel(self) -> threading.Event:
        assert self._options.cancel is not None
        return self._options.cancel

    def _begin_others(self, conversation: Conversation, decision: Decision, emit: Callable[[Item], None]) -> None:
        for index in range(1, self._count):
            other = start(self._other(index, conversation, decision, emit), self._executor)
            other.add_done_callback(self._check)
            self._others.append(other)

    def _other(
        self, index: int, conversation: Conversation, decision: Decision, emit: Callable[[Item], None]
    ) -> Steps[Answer]:
        def observed(event: Event) -> None:
            if isinstance(event, Finished):
                self._finished(index, event.answer)
            emit(ChoiceEvent(index, event))

        options = self._pipeline.further_options(self._options, decision, index)
        return (yield from self._pipeline.answer(conversation, options, observed))

    def _check(self, other: Future[Answer]) -> None:
        if other.exception() is not None:
            self._cancel.set()


def without_prompt(answer: Answer) -> Answer:
    """The answer without the tokens of the prompt, which count for the first answer only."""
    return replace(answer, usage=replace(answer.usage, prompt_tokens=0, vision_tokens=0, cached_tokens=0))


def joined(answers: Mapping[int, Answer]) -> Answer:
    """One answer for the token counts of several ones.

    Args:
        answers: Answers by their numbers; the first one may be missing while it is generated.

    Returns:
        The answer with the lowest number, with the tokens of all. Those of the prompt count once.
    """
    first, used = answers[min(answers)], [one.usage for one in answers.values()]
    return replace(
        first,
        usage=replace(
            first.usage,
            completion_tokens=sum(one.completion_tokens for one in used),
            thinking_tokens=sum(one.thinking_tokens for one in used),
            encoded=None if any(one.encoded is None for one in used) else sum(one.encoded or 0 for one in used),
        ),
    )
