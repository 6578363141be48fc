"""Runs `vlroute` in the process of the tests, because a new process loads torch, which takes seconds."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from vlroute.cli.app import run


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. The names are those of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, typed: str = "", cwd: Path | None = None, **env: str) -> Ended:
    """Run `vlroute` with these arguments, and leave environment, warnings and logging as they were.

    An error that `vlroute` does not turn into a message is raised, as a process would show a traceback.

    Args:
        *arguments: The arguments of the command.
        typed: What it reads from stdin.
        cwd: The working folder.
        **env: Environment variables.
    """
    out, err, logger = io.StringIO(), io.StringIO(), logging.getLogger("vlroute")
    with (
        pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ, env), warnings.catch_warnings(),
        redirect_stdout(out), redirect_stderr(err),
    ):  # fmt: skip
        patch.setattr(sys, "stdin", io.StringIO(typed))
        patch.setattr(logger, "handlers", [])  # each command adds one
        if cwd is not None:
            patch.chdir(cwd)
        level = logger.level
        try:
            with pytest.raises(SystemExit) as ended:
                run(arguments)
        finally:
            logger.setLevel(level)
    code = ended.value.code
    return Ended(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())
