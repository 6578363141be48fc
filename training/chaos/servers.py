"""`vlroute serve` in a process of its own, with its log, for suites that disturb it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.bench.servers import free_port, started


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
        RuntimeError: It does not start.
    """
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    command = [sys.executable, *program, "serve", "--port", str(port), "--no-page", *options]
    with started(command, f"{url}/ready", "the server", {**os.environ, **(environment or {})}, log) as process:
        yield Server(url, log, process)
