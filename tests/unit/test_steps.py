"""Work that waits for futures: in one thread, and in parts without a thread that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest

from vlroute.steps import Steps, check_waiting, forbid_waiting, immediate, run, start, wait


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def total(*futures: Future[int]) -> Steps[int]:
    result = 0
    for future in futures:
        result += yield from wait(future)
    return result


def started(steps: Steps[Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return start(steps, pool).result(5)


def started_here(steps: Steps[Any]) -> Any:
    return start(steps).result(5)


both = pytest.mark.parametrize("ran", [run, started, started_here])


@both
def test_the_result_is_what_the_generator_returns(ran: Callable[[Steps[Any]], Any]) -> None:
    assert ran(total()) == 0
    assert ran(total(done(1), done(2))) == 3
    assert ran(immediate(lambda: "now")) == "now"
    later: Future[int] = Future()
    timer = threading.Timer(0.05, later.set_result, [4])
    timer.start()
    assert ran(total(done(1), later)) == 5
    timer.join()


@both
def test_an_error_of_a_future_is_raised_where_it_was_waited_for(ran: Callable[[Steps[Any]], Any]) -> None:
    def careful(future: Future[int]) -> Steps[str]:
        try:
            yield from wait(future)
        except KeyError as error:
            return f"caught {error}"
        return "nothing"

    assert ran(careful(failed(KeyError("x")))) == "caught 'x'"
    later: Future[int] = Future()
    timer = threading.Timer(0.05, later.set_exception, [KeyError("y")])
    timer.start()
    assert ran(careful(later)) == "caught 'y'"
    timer.join()
    with pytest.raises(OSError, match="disk"):
        ran(careful(failed(OSError("disk"))))
    with pytest.raises(ZeroDivisionError):
        ran(immediate(lambda: 1 // 0))


@both
def test_the_result_is_read_by_the_steps_themselves(ran: Callable[[Steps[Any]], Any]) -> None:
    """A future that is only awaited, as one of another request, raises nothing."""

    def patient(future: Future[int]) -> Steps[bool]:
        yield future
        return future.exception() is not None

    assert ran(patient(failed(OSError("of another request"))))


@both
def test_a_cancelled_future_is_an_error_of_the_steps(ran: Callable[[Steps[Any]], Any]) -> None:
    future: Future[int] = Future()
    future.cancel()
    with pytest.raises(CancelledError):
        ran(total(future))


def test_an_interrupt_while_waiting_reaches_the_steps() -> None:
    """As Ctrl-C does, which the main thread receives within `exception`."""

    class Interrupted(Future[int]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            raise KeyboardInterrupt

    cleaned = []

    def steps() -> Steps[int]:
        try:
            return (yield from wait(Interrupted()))
        finally:
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        run(steps())
    assert cleaned == [True]


def test_no_thread_is_held_by_steps_that_wait() -> None:
    futures: list[Future[int]] = [Future() for _ in range(50)]
    with ThreadPoolExecutor(1) as pool:
        results = [start(total(done(i), future), pool) for i, future in enumerate(futures)]
        assert pool.submit(lambda: "free").result(5) == "free"
        assert not any(result.done() for result in results)
        for future in reversed(futures):
            future.set_result(100)
        assert [result.result(5) for result in results] == [100 + i for i in range(50)]


def test_steps_go_on_in_the_executor_and_not_where_the_future_was_set() -> None:
    threads: list[str] = []

    def steps(future: Future[None]) -> Steps[None]:
        threads.append(threading.current_thread().name)
        yield from wait(future)
        threads.append(threading.current_thread().name)

    future: Future[None] = Future()
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        result = start(steps(future), pool)
        while not threads:
            pass
        future.set_result(None)
        result.result(5)
    assert all(name.startswith("pool") for name in threads)
    assert len(threads) == 2


def completed(future: Future[Any], complete: Callable[[], None]) -> str:
    """Complete a future in a thread of its own. Returns the name of the thread."""
    thread = threading.Thread(target=complete, name="completes")
    thread.start()
    thread.join(5)
    assert future.done()
    return thread.name


def test_without_an_executor_each_part_runs_in_the_thread_that_completes_its_future() -> None:
    threads: list[str] = []

    def steps(*futures: Future[int]) -> Steps[int]:
        result = 0
        for future in futures:
            threads.append(threading.current_thread().name)
            result += yield from wait(future)
        threads.append(threading.current_thread().name)
        return result

    first, second = Future[int](), Future[int]()
    result = start(steps(done(1), first, done(2), second))
    here = threading.current_thread().name
    assert threads == [here, here]  # it waits for the first future, and this thread does not
    thread = completed(first, lambda: first.set_result(3))
    assert threads == [here, here, thread, thread]
    assert not result.done()
    second.set_result(4)
    assert threads[4:] == [here]
    assert result.result(0) == 10


def test_without_an_executor_errors_reach_the_result_and_not_the_thread_that_completes_the_future() -> None:
    """This thread generates the answers of all requests."""

    def steps(future: Future[int], error: BaseException) -> Steps[int]:
        yield from wait(future)
        raise error

    first, others, after = Future[int](), Future[int](), list[int]()
    bad = [start(steps(first, error)) for error in (KeyError("x"), SystemExit(3), KeyboardInterrupt())]
    good = start(total(first, others))

    def complete() -> None:
        first.set_result(1)
        after.append(1)  # the thread goes on
        others.set_result(2)

    completed(others, complete)
    assert after == [1]
    assert [type(one.exception(0)) for one in bad] == [KeyError, SystemExit, KeyboardInterrupt]
    assert good.result(0) == 3
    later = Future[int]()
    failing = start(total(later))
    completed(later, lambda: later.set_exception(OSError("the tower failed")))
    assert isinstance(failing.exception(0), OSError)
    assert isinstance(start(total(failed(OSError("at once")))).exception(0), OSError)


def test_many_futures_that_are_done_need_no_deep_stack() -> None:
    later = Future[int]()
    result = start(total(*(done(1) for _ in range(5000)), later, *(done(1) for _ in range(5000))))
    later.set_result(1)
    assert result.result(0) == 10001


def test_a_thread_that_generates_answers_may_start_steps_but_not_wait_for_them() -> None:
    later, outcomes = Future[int](), list[Any]()

    def generates() -> None:
        forbid_waiting("this thread generates the answers")
        outcomes.append(run(total(done(1), done(2))))  # nothing to wait for
        outcomes.append(start(total(later)))
        for wrong in (check_waiting, lambda: run(total(later))):
            try:
                wrong()
            except RuntimeError as error:
                outcomes.append(str(error))

    thread = threading.Thread(target=generates)
    thread.start()
    thread.join(5)
    assert outcomes[0] == 3
    assert outcomes[2:] == ["this thread generates the answers"] * 2
    check_waiting()  # in other threads it is allowed
    later.set_result(4)
    assert outcomes[1].result(0) == 4


def test_steps_that_must_not_wait_are_told_so() -> None:
    """They release what they hold."""
    cleaned = []

    def steps() -> Steps[int]:
        try:
            return (yield from wait(Future[int]()))
        finally:
            cleaned.append(True)

    def generates() -> None:
        forbid_waiting("this thread generates the answers")
        with pytest.raises(RuntimeError, match="generates the answers"):
            run(steps())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(generates).result(5)
    assert cleaned == [True]


def test_an_error_of_any_kind_ends_only_its_steps() -> None:
    with ThreadPoolExecutor(1) as pool:
        bad = start(total(failed(KeyboardInterrupt())), pool)
        good = start(total(done(1)), pool)
        assert isinstance(bad.exception(5), KeyboardInterrupt)
        assert good.result(5) == 1


def test_cancelling_the_result_has_no_effect() -> None:
    future: Future[int] = Future()
    with ThreadPoolExecutor(1) as pool:
        result = start(total(future), pool)
        assert not result.cancel()
        future.set_result(3)
        assert result.result(5) == 3


def test_steps_go_on_when_the_pool_is_shut_down_meanwhile() -> None:
    """As those of an answer that `Router.close` cancels."""
    pool, later = ThreadPoolExecutor(1), Future[int]()
    result = start(total(done(1), later), pool)
    pool.shutdown()
    later.set_result(2)
    assert result.result(5) == 3
    assert start(total(done(1)), pool).result(5) == 1
