"""Grammars that no process survives, or that take hours, are refused; others are checked as before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from vlroute import grammar_check
from vlroute.errors import SettingsError
from vlroute.grammar_check import TOO_COMPLEX, grammar_error
from vlroute.structured import json_schema


def intersection(count: int) -> dict[str, Any]:
    """A schema. With each further pattern, compiling it takes three times as long."""
    return {"allOf": [{"type": "string", "pattern": f".*{index}.*"} for index in range(count)]}


def grammar(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema))


def test_what_takes_hours_is_refused_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError, match="format: the JSON schema is too complex"):
        json_schema("format", intersection(30))
    assert time.monotonic() - began < 60
    began = time.monotonic()  # this is remembered
    with pytest.raises(SettingsError, match="too complex"):
        json_schema("format", intersection(30))
    assert time.monotonic() - began < 1


def test_what_ends_a_process_does_not_end_this_one() -> None:
    chain = {f"d{at}": {"properties": {"a": {"$ref": f"#/$defs/d{at + 1}"}}} for at in range(5000)}
    assert grammar_error(grammar({"$defs": chain | {"d5000": {}}, "$ref": "#/$defs/d0"})) == TOO_COMPLEX
    assert grammar_error(grammar({"const": -(2**63)})) == TOO_COMPLEX
    assert grammar_error(grammar({"type": "string"})) == ""


def test_others_are_not_kept_waiting() -> None:
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(grammar_error, grammar(intersection(31)))
        time.sleep(0.1)
        began = time.monotonic()
        assert grammar_error(grammar({"type": "string", "maxLength": 7})) == ""
        assert time.monotonic() - began < 5
        assert not slow.done()
        assert slow.result() == TOO_COMPLEX


def test_messages_of_llguidance_are_passed_on() -> None:
    assert "Unimplemented keys" in grammar_error(grammar({"type": "object", "propertyNames": {"pattern": "a"}}))
    assert "regex parse error" in grammar_error(LLMatcher.grammar_from_regex("("))


def test_a_process_that_somebody_ended_is_replaced() -> None:
    assert grammar_error(grammar({"minLength": 3})) == ""
    for process in grammar_check._checks._idle:
        os.kill(process._process.pid, signal.SIGKILL)
        process._process.wait()
    assert grammar_error(grammar({"minLength": 4})) == ""


def test_a_process_that_somebody_ends_during_a_check_says_nothing_about_the_grammar() -> None:
    checks, ended = grammar_check._Checks(), set[int]()
    known = children()
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(checks.error, grammar(intersection(17)))
        until = time.monotonic() + 30
        while not slow.done():
            assert time.monotonic() < until
            for pid in children() - known - ended:
                if processor_seconds(pid) > 0.5:  # it has started, and compiles
                    os.kill(pid, signal.SIGKILL)
                    ended.add(pid)
            time.sleep(0.02)
    assert slow.result()[0] == TOO_COMPLEX
    assert len(ended) == 2  # a second process has tried again
    assert not checks._known


def children() -> set[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], stdout=subprocess.PIPE, text=True, check=False
    )
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "vlroute.grammar_check" in line}


def processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def test_after_too_long_a_process_is_ended_and_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "SECONDS", 0.5)
    checks = grammar_check._Checks()
    assert checks.error(grammar(intersection(32)))[0] == TOO_COMPLEX
    assert not checks._known


@pytest.mark.parametrize("executable", ["", "/bin/false", "/nonexistent"])
def test_without_a_process_formats_are_compiled_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    checks = grammar_check._Checks()
    assert checks.error(grammar({"minLength": 9}))[0] == ""
    assert "Unimplemented keys" in checks.error(grammar({"propertyNames": {}}))[0]
    assert [one.getMessage()[:20] for one in caplog.records] == ["formats are compiled"]


def test_a_fork_starts_processes_of_its_own() -> None:
    code = (
        "from vlroute import grammar_check as g; from llguidance import LLMatcher; import os;"
        "ask = lambda x: g.grammar_error(LLMatcher.grammar_from_regex(x)); ask('a'); pid = os.fork();"
        "print(ask('b') == '', len(g._checks._idle), flush=True); pid and os.wait()"
    )
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert ran.stdout == "True 1\n" * 2


def test_the_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "from vlroute import grammar_check as g; from llguidance import LLMatcher; import os;"
        "g.grammar_error(LLMatcher.grammar_from_regex('a'));"
        "print(g._checks._idle[0]._process.pid, flush=True); os._exit(1)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout)
    until = time.monotonic() + 10
    while (state := Path(f"/proc/{pid}/stat")).exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)
