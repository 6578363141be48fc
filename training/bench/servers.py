"""Servers in processes of their own, and pictures to ask them about."""

from __future__ import annotations

import base64
import io
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from vlroute.learning import draw_evenly
from vlroute.pocket import Task

START_SECONDS, END_SECONDS = 600, 20
PORTS = range(10_000, 32_000)  # below the ports that Linux gives to outgoing connections and to `bind` with port 0
_given: set[int] = set()


def free_port() -> int:
    """A free loopback port that this process has not been given before.

    The port is chosen at random, because the next process that binds port 0 is often given the one that this process
    has just released.
    """
    while True:
        port = random.SystemRandom().choice(PORTS)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


@contextmanager
def running(module: str, *arguments: str, health: str) -> Iterator[tuple[str, int]]:
    """Run `python -m module` as a server on a free loopback port until the block ends.

    Args:
        module: The module of the server.
        *arguments: Its arguments, without `--port`.
        health: A path that answers 200 once the server is ready.

    Yields:
        Its URL without a path, and its process id.

    Raises:
        RuntimeError: If it does not start.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started([sys.executable, "-m", module, *arguments, "--port", str(port)], url + health, module) as process:
        yield url, process.pid


@contextmanager
def started(
    command: Sequence[str],
    ready: str,
    name: str,
    environment: Mapping[str, str] | None = None,
    log_file: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own until the block ends, with all processes that it starts.

    Args:
        command: The command with its arguments.
        ready: A URL that answers 200 once the server is ready.
        name: The name of the server, for the error.
        environment: Its environment variables; by default those of this process.
        log_file: Where it writes its log; by default a temporary file.

    Yields:
        The process. Its id is that of the group.

    Raises:
        RuntimeError: If it does not start.
    """
    with (
        log_file.open("w+", errors="replace") if log_file else tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0) as process,
    ):
        try:
            until = time.monotonic() + START_SECONDS
            while not _ready(ready):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{name} did not start:\n{log.read()[-2000:]}")
                time.sleep(0.2)
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server, also a stopped one, and the processes of its group that outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def vlroute_server(*options: str) -> Any:
    """`vlroute serve` with the pocket pair, without its web page. `options`: further options of the command."""
    return running("vlroute", "serve", "--no-page", *options, health="/ready")


def draw_pictures(count: int, seed: str) -> list[Task]:
    """`count` drawn tasks, without videos."""
    return [task for task in draw_evenly(2 * count, seed) if not task.is_video][:count]


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user_message(pictures: tuple[Image.Image, ...], question: str) -> dict[str, Any]:
    """A message with pictures, in the format of OpenAI's API."""
    parts = [{"type": "image_url", "image_url": {"url": data_uri(picture)}} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
