"""What a cluster consists of: the pair, how many replicas of it, and the server before them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from vlroute.decision.target import Preset
from vlroute.serving.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """One cluster. ValueError for one that cannot be; `server` has bounds and rules of its own.

    All but `router` is fixed while the cluster runs: to deploy with another value restarts the replicas one by one.
    """

    pair: str | None = None
    """As `name` of `Router.from_pretrained`; None: the embedded pocket pair. A folder must exist on every machine."""
    router: str | None = None
    """Folder of a router artefact, on every machine; None: the pair's own. Changed without a restart."""
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
    rows: int = 8
    """Answers that one replica writes at the same time in each mode."""
    cpus: float = 1.0
    """CPU cores that Ray sets aside for each replica."""
    gpus: float = 0.0
    """GPUs that Ray sets aside for each replica; a share lets several live on one."""
    ingresses: int = 1
    """Processes that take requests, decode pictures and decide."""
    server: ServerSettings = field(default_factory=ServerSettings)
    """Keys, limits and deadline of each ingress; its `rows` follow from the replicas'."""

    def __post_init__(self) -> None:
        for name in ("replicas", "rows", "ingresses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.most < self.replicas:
            raise ValueError(f"most_replicas must be at least replicas ({self.replicas}), not {self.most_replicas}")
        if (self.pair or "").endswith(".json"):
            raise ValueError("replicas hold checkpoints, not endpoints: name a pair, or use vlroute serve")
        if not (self.cpus > 0 and self.gpus >= 0):
            raise ValueError(f"cpus must be above 0 and gpus 0 or more, not {self.cpus} and {self.gpus}")

    @property
    def most(self) -> int:
        return self.replicas if self.most_replicas is None else self.most_replicas

    @property
    def ongoing(self) -> int:
        """Requests inside one replica before the next one goes to another: what it writes at the same time."""
        return 2 * self.rows

    @property
    def ingress(self) -> ServerSettings:
        """The server of one ingress, which admits its share of what all replicas can write."""
        return replace(self.server, rows=math.ceil(self.rows * self.most / self.ingresses))

    def without_artefact(self) -> ClusterSettings:
        """What stays the same while the artefact changes."""
        return replace(self, router=None)

    @classmethod
    def read(cls, args: Mapping[str, Any], server: Mapping[str, Any]) -> ClusterSettings:
        """From the words of a command line or the values of a file: fields of this class and of ServerSettings by their
        names. `server` holds what `args` may not say. ValueError for an unknown name or a value that does not fit."""
        from pydantic import TypeAdapter

        own = {one.name for one in fields(cls)} - {"server"}
        servers = {one.name for one in fields(ServerSettings)} - {"rows", "limits", *server}
        if unknown := sorted(set(args) - own - servers):
            raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(own | servers))}")
        bounds = TypeAdapter(ServerSettings).validate_python({
            **{name: value for name, value in args.items() if name in servers}, **server,
        })  # fmt: skip
        given = {name: value for name, value in args.items() if name in own}
        return TypeAdapter(cls).validate_python({**given, "server": bounds})
