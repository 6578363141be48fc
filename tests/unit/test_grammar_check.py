"""Grammars that no process survives, or that take hours, are refused; others are checked as before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llguidance import LLMatcher

from vlroute import grammar_check
from vlroute.errors import SettingsError
from vlroute.grammar_check import TOO_COMPLEX, grammar_error
from vlroute.structured import json_schema


def intersection(count: int) -> dict[str, Any]:
    """Each further pattern makes it three times as expensive."""
    return {"allOf": [{"type": "string", "pattern": f".*{index}.*"} for index in range(count)]}


def grammar(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema))


def test_what_takes_hours_is_refused_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError, match="format: the JSON schema is too complex"):
        json_schema("format", intersection(30))
    assert time.monotonic() - began < 10
    began = time.monotonic()  # this is remembered
    with pytest.raises(SettingsError, match="too complex"):
        json_schema("format", intersection(30))
    assert time.monotonic() - began < 0.1


def test_what_ends_a_process_does_not_end_this_one() -> None:
    chain = {f"d{at}": {"properties": {"a": {"$ref": f"#/$defs/d{at + 1}"}}} for at in range(5000)}
    assert grammar_error(grammar({"$defs": chain | {"d5000": {}}, "$ref": "#/$defs/d0"})) == TOO_COMPLEX
    assert grammar_error(grammar({"const": -(2**63)})) == TOO_COMPLEX
    assert grammar_error(grammar({"type": "string"})) == ""


def test_others_are_not_kept_waiting() -> None:
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(grammar_error, grammar(intersection(31)))
        time.sleep(0.2)
        began = time.monotonic()
        assert grammar_error(grammar({"type": "string", "maxLength": 7})) == ""
        assert time.monotonic() - began < 1.5
        assert slow.result() == TOO_COMPLEX


def test_messages_of_llguidance_are_passed_on() -> None:
    assert "Unimplemented keys" in grammar_error(grammar({"type": "object", "propertyNames": {"pattern": "a"}}))
    assert "regex parse error" in grammar_error(LLMatcher.grammar_from_regex("("))


def test_a_process_that_somebody_ended_is_replaced() -> None:
    assert grammar_error(grammar({"minLength": 3})) == ""
    for checker in grammar_check._checkers(os.getpid())._idle:
        os.kill(checker._process.pid, signal.SIGKILL)
        checker._process.wait()
    assert grammar_error(grammar({"minLength": 4})) == ""


def test_the_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "from vlroute import grammar_check as g; from llguidance import LLMatcher; import os;"
        "g.grammar_error(LLMatcher.grammar_from_regex('a'));"
        "print(g._checkers(os.getpid())._idle[0]._process.pid, flush=True); os._exit(1)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the process still runs")
