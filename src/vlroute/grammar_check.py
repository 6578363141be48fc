"""Compiles grammars in processes of their own, to find out whether an answer can follow them.

llguidance needs hours for some grammars, such as for the intersection of 20 patterns, and crashes for others. Such a
grammar ends a process of this module instead, and is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess  # nosec B404
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from typing import Any

log = logging.getLogger("vlroute")
#: Number of processes, which are started when they are needed.
PROCESSES = 2
#: Processor time for one grammar. Limits are in whole seconds, so up to one more second may pass.
CPU_SECONDS = 1
#: Time after which a process is ended in any case: where processor time cannot be limited, or on a busy machine.
SECONDS = 20.0
MEMORY = 2**31  # bytes of one process
NICENESS = 10  # answers come first
KNOWN = 2000  # grammars of which the result is kept
TOO_COMPLEX = "too complex: it cannot be compiled in reasonable time and memory"
#: Signals that end a process because of its grammar. Others, such as SIGKILL, may come from the system or a user.
_OWN_SIGNALS = [getattr(signal, name) for name in ("SIGXCPU", "SIGABRT", "SIGSEGV", "SIGBUS") if hasattr(signal, name)]


class _Ended(Exception):
    """The process ended.

    Args:
        code: Its exit code.
        late: Whether because `SECONDS` had passed.

    Attributes:
        by_grammar: Whether because of its grammar.
        late: See above.
    """

    def __init__(self, code: int, late: bool) -> None:
        super().__init__(f"exit code {code}" + (f" after {SECONDS:g} s" if late else ""))
        self.by_grammar, self.late = -code in _OWN_SIGNALS, late


class _Process:
    """A process that compiles one grammar after the other. OSError if it cannot be started."""

    def __init__(self) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            raise OSError("this program has no Python interpreter of its own")
        # the same modules as here, wherever they come from
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        # no argument comes from outside
        self._process = subprocess.Popen(  # nosec B603
            [sys.executable, "-P", "-m", "vlroute.grammar_check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        try:
            if self._reply(b"") is not True:
                raise OSError("the process did not start correctly")
        except _Ended as error:
            raise OSError(f"the process did not start: {error}") from None

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def check(self, grammar: str) -> tuple[str, float]:
        """The error of llguidance, "" if it accepts the grammar, and the processor time. _Ended if the process ends."""
        error, seconds = self._reply(json.dumps(grammar).encode() + b"\n")
        return error, seconds

    def _reply(self, line: bytes) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        alarm = threading.Timer(SECONDS, end)
        alarm.daemon = True
        alarm.start()
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except OSError:
            reply = b""
        finally:
            alarm.cancel()
        if not reply.endswith(b"\n"):
            self.close()
            raise _Ended(self._process.returncode, late.is_set())
        return json.loads(reply)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not sent
                if stream is not None:
                    stream.close()
        with suppress(subprocess.TimeoutExpired):  # it ends at the end of its input
            self._process.wait(0.2)
        self._process.kill()
        self._process.wait()


class _Checks:
    """The processes of this process, and what they found out about the latest grammars. Thread-safe."""

    def __init__(self) -> None:
        self._free, self._idle = threading.Semaphore(PROCESSES), list[_Process]()
        self._lock, self._known = threading.Lock(), OrderedDict[bytes, str]()
        self._warned = False

    def error(self, grammar: str) -> tuple[str, float]:
        """The error, see `grammar_error`, and the processor time that it took to find it out."""
        key = hashlib.sha256(grammar.encode()).digest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key], 0.0
        found, seconds, certain = self._checked(grammar)
        if certain:
            with self._lock:
                self._known[key] = found
                if len(self._known) > KNOWN:
                    self._known.popitem(last=False)
        return found, seconds

    def _checked(self, grammar: str) -> tuple[str, float, bool]:
        """Error, processor time, and whether another try would find the same."""
        with self._free:
            for _ in range(2):  # again if somebody else ended the process
                try:
                    process = self._next()
                except OSError as error:
                    return (*self._here(grammar, error), True)
                try:
                    found, seconds = process.check(grammar)
                except _Ended as ended:
                    log.info("the process that compiled a grammar ended: %s", ended)
                    if ended.by_grammar or ended.late:
                        return TOO_COMPLEX, CPU_SECONDS, ended.by_grammar
                else:
                    self._idle.append(process)
                    return found, seconds, True
        return TOO_COMPLEX, CPU_SECONDS, False

    def _next(self) -> _Process:
        """An idle process that nobody has ended, or a new one."""
        while self._idle:
            process = self._idle.pop()
            if process.runs:
                return process
            process.close()
        return _Process()

    def _here(self, grammar: str, error: OSError) -> tuple[str, float]:
        """Compile in this process, because no other one can be started."""
        if not self._warned:
            self._warned = True
            log.warning("formats are compiled without limits of time and memory, because no process starts: %s", error)
        began = time.thread_time()
        return compile_error(_bytes(), grammar), time.thread_time() - began


class _State(threading.local):
    """The processor time that the checks of a thread have taken."""

    seconds = 0.0


_checks, _state = _Checks(), _State()


def _after_fork() -> None:
    """A fork must not share the processes of its parent."""
    global _checks
    _checks = _Checks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def grammar_error(grammar: str) -> str:
    """What is wrong with a grammar, whatever the tokenizer.

    Args:
        grammar: A grammar of llguidance.

    Returns:
        The message of llguidance, or `TOO_COMPLEX`; "" if an answer can follow the grammar.
    """
    error, seconds = _checks.error(grammar)
    _state.seconds += seconds
    return error


def seconds_spent() -> float:
    """The processor time that the calls of `grammar_error` in this thread have taken, in seconds."""
    return _state.seconds


@lru_cache(maxsize=1)
def _bytes() -> Any:
    """A tokenizer whose tokens are bytes. Whether a grammar is valid does not depend on the tokenizer."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def compile_error(tokenizer: Any, grammar: str) -> str:
    """Compile a grammar in this process.

    Args:
        tokenizer: A tokenizer of llguidance whose tokens are bytes.
        grammar: The grammar.

    Returns:
        The message of llguidance; "" if it accepts the grammar.
    """
    from llguidance import LLMatcher

    try:
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
    except ValueError as error:  # such as for JSON that is nested too deeply
        return str(error)
    if not matcher.is_error():
        # the first two steps fail for what is too complex, or matches no text
        allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ~(1 << tokenizer.eos_token)
        if allowed and not matcher.is_error():
            matcher.consume_token((allowed & -allowed).bit_length() - 1)
    return matcher.get_error() if matcher.is_error() else ""


def _limit() -> None:
    """Limit processor time and memory for the next grammar, where the system can."""
    try:
        import resource
    except ImportError:
        return
    limits = {
        "RLIMIT_CPU": int(time.process_time()) + CPU_SECONDS + 1, "RLIMIT_CORE": 0, "RLIMIT_AS": MEMORY,
    }  # fmt: skip
    for name, most in limits.items():
        with suppress(AttributeError, OSError, ValueError):
            hard = resource.getrlimit(getattr(resource, name))[1]
            soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(getattr(resource, name), (soft, hard))


def main() -> None:
    """Read grammars as lines of JSON, and write what is wrong with them, until the input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else writes to the replies
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that asks
    tokenizer = _bytes()
    print(json.dumps(True), file=replies, flush=True)
    for line in sys.stdin.buffer:
        _limit()
        began = time.process_time()
        try:
            error = compile_error(tokenizer, json.loads(line))
        except MemoryError:
            error = TOO_COMPLEX
        print(json.dumps([error, time.process_time() - began]), file=replies, flush=True)


if __name__ == "__main__":
    main()
