"""vLLM and llama.cpp as servers of endpoints, with the options that docs/how-to/endpoints.md names.

Tests and `training.bench.record_streams` start them. vLLM has an environment of its own, see `peer_servers`; llama.cpp
needs the extra bench.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.bench.peer_servers import CACHE, LLAMA, VLLM, Launch, gguf_files, launch_vllm, llama_server
from training.bench.servers import free_port, started
from vlroute import Endpoint
from vlroute.types import MODES, Mode

#: The name under which each server takes a thinking budget.
BUDGET_FIELDS = {LLAMA: "thinking_budget_tokens", VLLM: "thinking_token_budget"}
KEY = "a-key-of-these-servers"
#: Options of llama.cpp. With more threads, each waits for the others in a loop, which is slow beside other programs.
LLAMA_OPTIONS = ("--api-key", KEY, "--metrics", "--threads", "1")
#: Options of vLLM for a model that reasons; Instruct runs without a reasoning parser.
#: vLLM reads tool calls only with these.
VLLM_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser")
VLLM_REASONS = ("--reasoning-parser", "qwen3", "--enable-prompt-tokens-details")


@dataclass(slots=True)
class EndpointServer:
    """One server. `begin` after `kill` starts it at the same address.

    Attributes:
        name: A key of `BUDGET_FIELDS`.
        launch: How it is started.
        port: Its port.
    """

    name: str
    launch: Launch
    port: int = field(default_factory=free_port)
    _running: ExitStack = field(default_factory=ExitStack)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL without a path."""
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Start it unless it runs, and return once it is ready."""
        if self._process is not None:
            return
        command = [*self.launch.command, "--port", str(self.port)]
        ready = self.url + self.launch.health
        self._process = self._running.enter_context(started(command, ready, self.name, self.launch.environment()))

    def kill(self) -> None:
        """End all its processes at once, as a crash does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """End it, if it runs."""
        self._process = None
        self._running.close()

    def endpoint(self, **options: Any) -> Endpoint:
        """The endpoint of this server. `options`: arguments of `Endpoint`."""
        return Endpoint(**{"base_url": f"{self.url}/v1", "model": self.launch.model, "api_key": KEY, **options})


def launch(name: str, mode: Mode, folder: Path) -> Launch:
    """The command of a server of one checkpoint of the pocket pair.

    Args:
        name: A key of `BUDGET_FIELDS`.
        mode: Which checkpoint.
        folder: Where converted checkpoints are written.

    Returns:
        The command.
    """
    if name == LLAMA:
        return llama_server(sys.executable, mode, *gguf_files(mode, folder), LLAMA_OPTIONS)
    reasons = VLLM_REASONS if mode == "thinking" else ()
    return launch_vllm(mode, CACHE, more=["--api-key", KEY, *reasons, *VLLM_TOOLS, "hermes"])


def launch_hybrid(name: str, checkpoint: Path, folder: Path) -> Launch:
    """The command of a server of one checkpoint for both modes.

    Args:
        name: A key of `BUDGET_FIELDS`.
        checkpoint: Its folder.
        folder: Where converted checkpoints are written.

    Returns:
        The command.
    """
    if name == LLAMA:
        return llama_server(sys.executable, "hybrid", *gguf_files("hybrid", folder, checkpoint), LLAMA_OPTIONS)
    # the last --dtype counts; on CPUs, vLLM has kernels of gated delta networks only in bfloat16
    more = ["--api-key", KEY, *VLLM_REASONS, *VLLM_TOOLS, "qwen3_coder", "--dtype", "bfloat16"]
    return launch_vllm("hybrid", CACHE, checkpoint, more)


@contextmanager
def running_servers(name: str, folder: Path) -> Iterator[dict[Mode, EndpointServer]]:
    """Run a server for each checkpoint of the pocket pair until the block ends.

    Args:
        name: A key of `BUDGET_FIELDS`.
        folder: Where converted checkpoints are written.

    Yields:
        The servers.
    """
    servers = {mode: EndpointServer(name, launch(name, mode, folder)) for mode in MODES}
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(EndpointServer.begin, servers.values()))
        yield servers
    finally:
        for server in servers.values():
            server.end()
