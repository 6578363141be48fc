"""Compiles grammars in processes of their own, to find out whether an answer can follow them.

llguidance needs hours for some grammars, such as for the intersection of 20 patterns, and ends its process for others.
Such a grammar ends a process of this module instead, and is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from typing import Any

from vlroute.errors import VLRouteError

#: Number of processes, which are started when they are needed.
PROCESSES = 2
#: Processor time for one grammar. Limits are in whole seconds, so that one more may pass.
CPU_SECONDS = 1
#: Time after which a process is ended where processor time cannot be limited, or if the machine has no time for it.
SECONDS = 20.0
MEMORY = 2**31  # bytes of one process
KNOWN = 2000  # grammars of which the result is kept
TOO_COMPLEX = "too complex: it cannot be compiled in reasonable time and memory"


class _Checker:
    """A process that compiles one grammar after the other."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vlroute.grammar_check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths},
            )  # fmt: skip
        except OSError as error:
            raise VLRouteError(f"the process that checks formats could not be started: {error}") from error

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def error(self, grammar: str) -> str | None:
        """The error of llguidance; "" if it accepts the grammar, and None if the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(SECONDS, self._process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            self._process.stdin.write(json.dumps(grammar).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except OSError:
            reply = b""
        finally:
            alarm.cancel()
        return json.loads(reply) if reply else None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:
            pass


class _Checkers:
    """The processes of this process. Thread-safe."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(PROCESSES)
        self._idle: list[_Checker] = []

    def error(self, grammar: str) -> str:
        """See `grammar_error`."""
        with self._free:
            checker = self._next()
            found = None
            try:
                found = checker.error(grammar)
            finally:
                if found is None:
                    checker.close()
                else:
                    self._idle.append(checker)
        return TOO_COMPLEX if found is None else found

    def _next(self) -> _Checker:
        """An idle process that nobody has ended, or a new one."""
        while self._idle:
            checker = self._idle.pop()
            if checker.runs:
                return checker
            checker.close()
        return _Checker()


@lru_cache(maxsize=1)
def _checkers(pid: int) -> _Checkers:
    """The processes of the process `pid`: a fork must not share those of its parent."""
    return _Checkers()


class _Known:
    """What was found out about the latest grammars. Thread-safe."""

    def __init__(self) -> None:
        self._lock, self._errors = threading.Lock(), OrderedDict[bytes, str]()

    def error(self, grammar: str) -> str:
        """See `grammar_error`."""
        key = hashlib.sha256(grammar.encode()).digest()
        with self._lock:
            if key in self._errors:
                self._errors.move_to_end(key)
                return self._errors[key]
        found = _checkers(os.getpid()).error(grammar)
        with self._lock:
            self._errors[key] = found
            if len(self._errors) > KNOWN:
                self._errors.popitem(last=False)
        return found


_known = _Known()


def grammar_error(grammar: str) -> str:
    """What is wrong with a grammar, whatever the tokenizer.

    Args:
        grammar: A grammar of llguidance.

    Returns:
        llguidance's message, or `TOO_COMPLEX`; "" if an answer can follow the grammar.

    Raises:
        VLRouteError: No process could be started.
    """
    return _known.error(grammar)


def compile_error(tokenizer: Any, grammar: str) -> str:
    """Compile a grammar in this process.

    Args:
        tokenizer: A tokenizer of llguidance whose tokens are bytes.
        grammar: The grammar.

    Returns:
        llguidance's message; "" if it accepts the grammar.
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
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main() -> None:
    """Read grammars as lines of JSON, and write what is wrong with them, until the input ends."""
    from llguidance import LLTokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that asks
    tokenizer = LLTokenizer("byte")
    for line in sys.stdin.buffer:
        _limit()
        print(json.dumps(compile_error(tokenizer, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
