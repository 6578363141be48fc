"""Servers in separate processes for the tests of endpoints: they can be killed, frozen and restarted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import httpx
from training.bench.servers import free_port

#: `vlroute serve` with endless reasoning: no token is an end of sequence.
ENDLESS = """
import sys, uvicorn
from vlroute import Router
from vlroute.serving.app import create_app
long = {"thinking": {"eos_token_id": -1, "max_new_tokens": 20_000}}
router = Router.from_pretrained(max_num_seqs=2, generation=long)
uvicorn.run(create_app(router), port=int(sys.argv[1]), log_level="error")
"""


@dataclass(slots=True)
class Server:
    """One `vlroute serve` with the pocket pair. `begin` after `kill` starts it at the same address."""

    endless: bool = False
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def begin(self) -> Server:
        serve = ["-c", ENDLESS, str(self.port)] if self.endless else []
        serve = serve or ["-m", "vlroute", "serve", "--port", str(self.port), "--no-page", "--max-num-seqs", "2"]
        self.process = subprocess.Popen([sys.executable, *serve], stderr=subprocess.DEVNULL)
        return self

    def wait(self) -> Server:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            assert self.process is not None
            assert self.process.poll() is None
            try:
                if httpx.get(self.url.removesuffix("/v1") + "/ready", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
