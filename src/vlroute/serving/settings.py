"""What a server allows, and whom."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vlroute.decision.target import Preset
from vlroute.inputs.media import Limits

MiB = 2**20
#: Tokens of reasoning for each `reasoning_effort` of OpenAI's; None: as many as the answer may have.
EFFORTS: dict[str, int | None] = {"minimal": 256, "low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Bounds of one server. ValueError for one that cannot be, or for an open door without keys."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    """Each is a tenant: caches are not shared between them. None are needed on the loopback address only."""
    max_num_seqs: int = 8
    """Answers written at the same time in each mode."""
    max_waiting: int = 64
    """Requests that may wait beyond those being written; more get 429."""
    max_connections: int = 1024
    """Open at the same time; more are turned away with 503."""
    deadline: float = 600.0
    """Seconds from arrival to the last token."""
    max_tokens: int = 32_768
    """Of one answer, reasoning included."""
    max_prompt: int = 200_000
    """Characters of text in one request."""
    max_body: int = 64 * MiB
    """Bytes of one request."""
    limits: Limits = field(default_factory=lambda: Limits(local_files=False))
    allowed_hosts: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`) from which pictures and videos may be fetched; none by default."""
    fetch_seconds: float = 10.0
    """For fetching one picture or video."""

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_connections",
            "max_tokens",
            "max_prompt",
            "max_body",
            "deadline",
            "fetch_seconds",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting must be 0 or more, not {self.max_waiting}")
        if self.limits.local_files:
            raise ValueError("limits.local_files must be False: a server reads no file that a request names")
        if any(len(key) < 16 for key in self.api_keys):
            raise ValueError("an API key must have at least 16 characters; make one with: openssl rand -hex 32")
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"without an API key the server listens on this machine only, not on {self.host}; set VLROUTE_API_KEYS "
                "(make a key with: openssl rand -hex 32)"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost may point anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


KEYS = "VLROUTE_API_KEYS"


def keys() -> tuple[str, ...]:
    """The API keys of the environment."""
    return tuple(os.environ.get(KEYS, "").replace(",", " ").split())


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """One cluster. ValueError for one that cannot be; `server` has bounds and rules of its own.

    All but `router` is fixed while the cluster runs: to deploy with another value restarts the replicas one by one.
    """

    model: str | None = None
    """As `name` of `Router.from_pretrained`; None: the embedded pocket pair. A folder must exist on every machine."""
    router: str | None = None
    """Folder of a router artifact, on every machine; None: the pair's own. Changed without a restart."""
    policy: Preset | None = None
    store: str | None = None
    """File or postgresql:// URL; replicas write to it and the ingress reads, so a file serves one machine only."""
    device: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    """As of `Router.from_pretrained`."""
    replicas: int = 1
    """Least number of replicas."""
    most_replicas: int | None = None
    """Most of them, made as requests queue up; None: as many as the least."""
    max_num_seqs: int = 8
    """Answers that one replica writes at the same time in each mode."""
    cpus: float = 1.0
    """CPU cores that Ray sets aside for each replica."""
    gpus: float = 0.0
    """GPUs that Ray sets aside for each replica; a share lets several live on one."""
    ingresses: int = 1
    """Processes that take requests, decode pictures and decide."""
    server: ServerSettings = field(default_factory=ServerSettings)
    """Keys, limits and deadline of each ingress; its `max_num_seqs` follow from the replicas'."""

    def __post_init__(self) -> None:
        for name in ("replicas", "max_num_seqs", "ingresses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.most < self.replicas:
            raise ValueError(f"most_replicas must be at least replicas ({self.replicas}), not {self.most_replicas}")
        if (self.model or "").endswith(".json"):
            raise ValueError("replicas hold checkpoints, not endpoints: name a pair, or use vlroute serve")
        if not (self.cpus > 0 and self.gpus >= 0):
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, not {self.cpus} and {self.gpus}")

    @property
    def most(self) -> int:
        return self.replicas if self.most_replicas is None else self.most_replicas

    @property
    def ongoing(self) -> int:
        """Requests inside one replica before the next one goes to another: what it writes at the same time."""
        return 2 * self.max_num_seqs

    @property
    def ingress(self) -> ServerSettings:
        """The server of one ingress, which admits its share of what all replicas can write."""
        return replace(self.server, max_num_seqs=math.ceil(self.max_num_seqs * self.most / self.ingresses))

    def without_artifact(self) -> ClusterSettings:
        """What stays the same while the artifact changes."""
        return replace(self, router=None)

    @classmethod
    def read(cls, args: Mapping[str, Any], server: Mapping[str, Any]) -> ClusterSettings:
        """From the words of a command line or the values of a file: fields of this class and of ServerSettings by their
        names. `server` holds what `args` may not say. ValueError for an unknown name or a value that does not fit."""
        from pydantic import TypeAdapter

        own = {one.name for one in fields(cls)} - {"server"}
        servers = {one.name for one in fields(ServerSettings)} - {"max_num_seqs", "limits", *server}
        if unknown := sorted(set(args) - own - servers):
            raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(own | servers))}")
        bounds = TypeAdapter(ServerSettings).validate_python({
            **{name: value for name, value in args.items() if name in servers}, **server,
        })  # fmt: skip
        given = {name: value for name, value in args.items() if name in own}
        return TypeAdapter(cls).validate_python({**given, "server": bounds})
