"""`transformers serve` on loopback, asked through the official client."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from openai import OpenAI

START_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Served:
    """A running server and the name of its one model."""

    client: OpenAI
    model: str

    def answer_seconds(self, messages: list[Any]) -> float:
        """Seconds until an answer of one token is there."""
        began = time.perf_counter()
        self.client.chat.completions.create(model=self.model, messages=messages, max_tokens=1, temperature=0)
        return time.perf_counter() - began


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def transformers_serve(folder: Path, dtype: str, device: str) -> Iterator[Served]:
    """A server that holds the checkpoint of `folder`, until the block ends. RuntimeError if it does not start."""
    port, model = _free_port(), str(folder)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", dtype, "--device", device]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _wait_until_ready(process, port, log)
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=3600, max_retries=0)
            yield Served(client, model)
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"transformers serve did not start within {START_SECONDS} s:\n{log.read()[-2000:]}")
