"""What a server allows, and whom."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from vlroute.media import Limits

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
    rows: int = 8
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
        for name in ("rows", "max_connections", "max_tokens", "max_prompt", "max_body", "deadline", "fetch_seconds"):
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
