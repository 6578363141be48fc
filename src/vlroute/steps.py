"""Work that waits for futures, as a generator: run in one thread, or in parts without a thread that waits.

A function of this kind yields each future that it has to wait for, and goes on when the future is done. It reads the
result itself, so that an error of the future is raised at this place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
_thread = threading.local()
Steps: TypeAlias = Generator[Future[Any], None, T]


def wait(future: Future[T]) -> Steps[T]:
    """The result of `future`, for `yield from`."""
    if not future.done():
        yield future
    return future.result()


def immediate(work: Callable[[], T]) -> Steps[T]:
    """Steps without a future: the result of `work`, in the thread that runs them."""
    yield from ()
    return work()


def forbid_waiting(reason: str) -> None:
    """Make `check_waiting` fail in this thread from now on, with `reason` as its message."""
    _thread.reason = reason


def may_wait() -> bool:
    """Whether this thread may wait for answers."""
    return not getattr(_thread, "reason", None)


def check_waiting() -> None:
    """Check that this thread may wait for answers. Raises RuntimeError in a thread that generates them."""
    if reason := getattr(_thread, "reason", None):
        raise RuntimeError(reason)


def run(steps: Steps[T]) -> T:
    """The result of `steps`, in this thread.

    Args:
        steps: A generator that was not started.

    Returns:
        What the generator returns.

    Raises:
        RuntimeError: This thread would have to wait, and it must not, see `check_waiting`.
    """
    try:
        while True:
            future = next(steps)
            try:
                check_waiting()
                future.exception()
            except BaseException as error:  # such as KeyboardInterrupt while this thread waited
                steps.throw(error)
    except StopIteration as end:
        result: T = end.value
        return result


def start(steps: Steps[T], executor: Executor | None = None) -> Future[T]:
    """Run `steps` in threads of `executor`; none of them waits for a future.

    Args:
        steps: A generator that was not started.
        executor: Its threads run one part after the other. None, or shut down: this thread runs the first part, and
            each further part runs in the thread that completes the future for which it waits, so that no thread is
            woken for it.

    Returns:
        The future result. Cancelling it has no effect on `steps`.
    """
    result: Future[T] = Future()
    result.set_running_or_notify_cancel()

    def go_on(_: Future[Any] | None = None) -> None:
        if executor is None:
            part()
            return
        once = threading.Lock()

        def part_once() -> None:
            if once.acquire(blocking=False):
                part()

        try:
            executor.submit(part_once)
        except RuntimeError:  # shut down: its model cancels what has begun; or out of threads, perhaps after queuing
            part_once()

    def part() -> None:
        try:
            future = next(steps)
        except StopIteration as end:
            result.set_result(end.value)
        except BaseException as error:
            result.set_exception(error)
        else:
            future.add_done_callback(go_on)

    go_on()
    return result
