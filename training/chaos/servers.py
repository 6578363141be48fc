"""`vlroute serve` in a process of its own, for suites that attack or disturb it."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

#: Time for loading the models, and for ending.
START_SECONDS, STOP_SECONDS = 120.0, 60.0


@dataclass(slots=True)
class Server:
    """A running server.

    Attributes:
        url: Its address.
        log: File with its log.
        process: Its process.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    _read: int = 0

    def new_log(self) -> str:
        """The log since the last call."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        return data.decode("utf-8", "replace")


@contextmanager
def serving(
    folder: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "vlroute"),
) -> Iterator[Server]:
    """Run a server without a web page on a free port, until the end of the context.

    Args:
        folder: Folder for its log.
        options: Options of `vlroute serve`.
        environment: Environment variables besides those of this process.
        program: Arguments of Python before the command `serve`.

    Yields:
        The server, ready.

    Raises:
        RuntimeError: It has ended before it was ready, or is not ready in time.
    """
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / f"server-{port}.log"
    command = [sys.executable, *program, "serve", "--port", str(port), "--no-page", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}, cwd=folder
        )
    try:
        _wait_until_ready(process, url, log)
        yield Server(url, log, process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready: {log.read_text('utf-8', 'replace')[-2000:]}")


def free_port() -> int:
    """A port of the loopback address that no other program uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def data_uri(data: bytes) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()
