"""vLLM and llama.cpp with the pocket pair. VLROUTE_TEST_SERVERS names the servers that run, separated by commas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from training.bench.endpoint_servers import BUDGET_FIELDS, EndpointServer, running_servers
from training.bench.peer_servers import LLAMA, VLLM

from vlroute import Endpoint, Router
from vlroute.types import Mode

#: vLLM needs an environment of its own, so that only `make test-servers` runs it.
SERVERS = (os.environ.get("VLROUTE_TEST_SERVERS") or LLAMA).split(",")
if unknown := set(SERVERS) - set(BUDGET_FIELDS):
    raise pytest.UsageError(f"VLROUTE_TEST_SERVERS: unknown {', '.join(unknown)}; expected {', '.join(BUDGET_FIELDS)}")
collect_ignore = [] if VLLM in SERVERS else ["test_vllm.py"]


@dataclass(frozen=True, slots=True)
class RealServers:
    """A server for each checkpoint of the pocket pair.

    Attributes:
        name: A key of `BUDGET_FIELDS`.
        modes: The server of each mode.
    """

    name: str
    modes: dict[Mode, EndpointServer]

    def endpoint(self, mode: Mode, **options: Any) -> Endpoint:
        options = {"budget_field": BUDGET_FIELDS[self.name], "retries": 1, **options}
        return self.modes[mode].endpoint(**options)

    def router(self, policy: Any = None, **options: Any) -> Router:
        """A router of both, greedy by default. `options`: arguments of both endpoints."""
        ends = self.endpoint("instruct", **options), self.endpoint("thinking", **options)
        return Router.from_endpoints(*ends, policy=policy, do_sample=False, max_new_tokens=200)


@pytest.fixture(scope="session", params=SERVERS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServers]:
    with running_servers(request.param, tmp_path_factory.mktemp("checkpoints")) as servers:
        yield RealServers(request.param, servers)
