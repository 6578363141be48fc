"""Settings of a server and of a cluster."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from vlroute.errors import SettingsError
from vlroute.inputs.media import Limits
from vlroute.types import Preset

MiB = 2**20
MAX_DAYS = 36_500
#: Characters of an API key: shorter ones could be guessed.
MIN_KEY_LENGTH = 16
#: Maximum number of reasoning tokens for each `reasoning_effort` of OpenAI; None: as many as the answer may have.
EFFORTS: dict[str, int | None] = {"minimal": 256, "low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None}
_HOST_PATTERN = re.compile(r"(\*\.)?[a-z\d_-]+(\.[a-z\d_-]+)*|\[[\da-f:]+\]", re.IGNORECASE | re.ASCII)
_ALLOWED_HOST = re.compile(r"([a-z\d_-]+(\.[a-z\d_-]+)*|\[[\da-f:.]+\])(:\d+)?", re.IGNORECASE | re.ASCII)
_ORIGIN = re.compile(
    r"[a-z][a-z\d+.-]*://(\[[\da-f:]+\]|[a-z\d_.-]+)(:\d+)?", re.ASCII
)  # browsers send it in lower case
_ROOT_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one server.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        api_keys: Accepted keys. Each key has caches of its own. Keys are optional on the loopback address only.
        key_file: File with further keys, which have names and limits. It is read again when it changes.
        max_num_seqs: Maximum number of answers that are generated at the same time in each mode.
        max_waiting: Maximum number of requests that wait beyond those; further ones get status 429.
        max_decoding: Maximum number of requests whose pictures and videos are decoded at the same time. One key, or
            one client address without keys, has all but one of these places.
        max_media_pixels: Maximum number of decoded pixels of all requests together; further requests wait. It must be
            at least `limits.max_total_pixels` for each place of `max_decoding`, and for two.
        max_connections: Maximum number of open connections. For a further one, a connection without a request is
            closed; if there is none, it gets status 503. It is lowered if the process may not open as many files.
        max_per_address: Maximum number of open connections of one address (of one /64 network for IPv6), and of
            concurrent requests of one address behind a trusted proxy; further ones get status 503 and 429.
        header_seconds: Time limit for the header of a request, from the opening of the connection or the first byte.
        body_seconds: Time limit for the body of a request. Each 8 KiB that arrive extend it by a second.
        idle_seconds: Seconds without a request after which a connection is closed.
        write_seconds: Seconds for which a client may not read its response before it is disconnected.
        grace_seconds: Time for unfinished answers after the server was told to stop.
        deadline: Seconds from the arrival of a request to its last token.
        max_tokens: Maximum number of tokens of one answer, reasoning included.
        max_prompt: Maximum number of characters of text in one request.
        max_body: Maximum number of bytes of one request.
        max_total_body: Maximum number of bytes of the bodies of all requests together, at least four times `max_body`;
            None: 16 times `max_body`. One key, or one client address without keys, has half of it; see `BodyPool`.
            Further requests get status 429.
        max_uploads: Maximum number of bytes of all files together that visitors have uploaded to the web page.
        limits: Limits of the pictures and videos.
        allowed_hosts: Hosts from which pictures and videos may be fetched; none by default. `host` allows the default
            ports of http and https, `host:port` another one.
        fetch_networks: Networks of private addresses, such as `10.0.0.0/8`, from which a host of `allowed_hosts` may be
            fetched. By default, its name must have public addresses; an address in `allowed_hosts` itself, and
            `localhost`, need no entry.
        fetch_seconds: Time limit for fetching one picture or video.
        max_fetches: Maximum number of files that are fetched at the same time for one key, and from one host. Keys
            with less than their share of a host do not wait, so that it can get more requests of several keys.
        retention_days: Days for which the store keeps responses for `previous_response_id`; older ones are deleted.
        max_stored: Maximum number of bytes of the stored responses of one key, with their pictures and videos; without
            keys, of all responses. Further ones get status 429 unless they are sent with `store: false`.
        trusted_hosts: Accepted names in the `Host` header, besides local ones: `example.com`, or `*.example.com` for
            all names below it. Without any, a server on the loopback address accepts local names only, and other
            servers accept every name.
        cors_origins: Origins (`https://example.com`) whose web pages may use the API; `*`: all, only with keys.
        root_path: Path prefix under which a reverse proxy serves this server, such as `/vlroute`. The proxy may pass it
            on or remove it.
        forwarded_allow_ips: Addresses and networks of reverse proxies whose X-Forwarded-For, X-Forwarded-Proto and
            X-Forwarded-Host headers are trusted; `*`: all.
        learned: Use the router artifacts that `vlroute learn` puts in use for the store of the router. The store is
            looked at every few seconds.
        learned_folder: Folder of these artifacts on this machine, if it is neither beside the file of the store nor
            has the path under which `vlroute learn` wrote them.
        log_format: Format of the log of `vlroute serve` and of the ingresses of a cluster. `create_app` leaves the log
            of its process as it is.

    Raises:
        SettingsError: A value is out of range, or `host` is not a loopback address and there is no key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    key_file: Path | None = None
    max_num_seqs: int = 32
    max_waiting: int = 64
    max_decoding: int = 2
    max_media_pixels: int = 3 * 2**27
    max_connections: int = 1024
    max_per_address: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    idle_seconds: float = 75.0  # longer than in clients and proxies, so that they close idle connections first
    write_seconds: float = 30.0
    grace_seconds: float = 20.0
    deadline: float = 600.0
    max_tokens: int = 32_768
    max_prompt: int = 200_000
    max_body: int = 64 * MiB
    max_total_body: int | None = None
    max_uploads: int = 2048 * MiB
    limits: Limits = field(default_factory=lambda: Limits(local_files=False))
    allowed_hosts: tuple[str, ...] = ()
    fetch_networks: tuple[str, ...] = ()
    fetch_seconds: float = 10.0
    max_fetches: int = 8
    retention_days: float = 30.0
    max_stored: int = 4096 * MiB
    trusted_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    forwarded_allow_ips: tuple[str, ...] = ("127.0.0.1", "::1")
    learned: bool = False
    learned_folder: Path | None = None
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        if self.key_file is not None:  # replicas of a cluster have other working directories
            # not resolved: a secret of Kubernetes is a link, which is replaced when the secret changes
            object.__setattr__(self, "key_file", self.key_file.expanduser().absolute())
        positive = (
            "max_num_seqs",
            "max_decoding",
            "max_connections",
            "max_per_address",
            "header_seconds",
            "body_seconds",
            "idle_seconds",
            "write_seconds",
            "max_tokens",
            "max_prompt",
            "max_body",
            "max_uploads",
            "deadline",
            "fetch_seconds",
            "max_fetches",
            "retention_days",
            "max_stored",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"port must be 0 to 65535, not {self.port}")
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"log_format must be text or json, not {self.log_format!r}")
        for name in ("max_waiting", "grace_seconds"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.retention_days > MAX_DAYS:
            raise SettingsError(f"retention_days must be at most {MAX_DAYS}, not {self.retention_days}")
        least = max(self.max_decoding, 2) * self.limits.max_total_pixels
        if self.max_media_pixels < least:
            raise SettingsError(
                f"max_media_pixels must be at least {least}, which is limits.max_total_pixels for each of "
                f"{max(self.max_decoding, 2)} requests, not {self.max_media_pixels}"
            )
        if self.body_pool < 4 * self.max_body:
            raise SettingsError(
                f"max_total_body must be at least {4 * self.max_body}, which is four times max_body, not "
                f"{self.max_total_body}"
            )
        for network in self.fetch_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise SettingsError(f"fetch_networks: {error}; expected a network such as 10.0.0.0/8") from None
        if self.limits.local_files:
            raise SettingsError("limits.local_files must be False: a server must not read files that a request names")
        for name in self.allowed_hosts:
            if _ALLOWED_HOST.fullmatch(name) is None:
                raise SettingsError(
                    f"allowed_hosts: {name!r} is no host; expected files.example.com, or files.example.com:8000 for "
                    "another port than the default one"
                )
        if not all(map(is_sendable, self.api_keys)):
            raise SettingsError(
                "clients cannot send one of the API keys; use ASCII characters, without spaces at the beginning or end"
            )
        if any(len(key) < MIN_KEY_LENGTH for key in self.api_keys):
            raise SettingsError(
                f"an API key must have at least {MIN_KEY_LENGTH} characters; make one with: openssl rand -hex 32"
            )
        if not self.has_keys and not is_loopback(self.host):
            raise SettingsError(
                f"without an API key the server listens on this machine only, not on {self.host}; set VLROUTE_API_KEYS "
                "(make a key with: openssl rand -hex 32), or pass a key file"
            )
        self._check_proxy()

    @property
    def max_admitted(self) -> int:
        """Maximum number of answers that are generated or wait: `2 · max_num_seqs + max_waiting`."""
        return 2 * self.max_num_seqs + self.max_waiting

    @property
    def body_pool(self) -> int:
        """Maximum number of bytes of all bodies together: `max_total_body`, or its default."""
        return 16 * self.max_body if self.max_total_body is None else self.max_total_body

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self.api_keys) or self.key_file is not None

    def _check_proxy(self) -> None:
        for name in self.trusted_hosts:
            if _HOST_PATTERN.fullmatch(name) is None:
                raise SettingsError(f"trusted_hosts: {name!r} is no host name; expected example.com or *.example.com")
        for origin in self.cors_origins:
            if origin == "*":
                if not self.has_keys:
                    raise SettingsError(
                        "cors_origins: '*' needs API keys; without keys any web page could use the server"
                    )
            elif _ORIGIN.fullmatch(origin) is None:
                raise SettingsError(
                    f"cors_origins: {origin!r} is no origin; expected https://example.com, without a path and with the "
                    "port if it is not the default one"
                )
        if self.root_path and _ROOT_PATH.fullmatch(self.root_path) is None:
            raise SettingsError(f"root_path: {self.root_path!r} is no prefix; expected a path such as /vlroute")
        for address in self.forwarded_allow_ips:
            try:
                local = address != "*" and ipaddress.ip_network(address).is_loopback
            except ValueError as error:
                raise SettingsError(f"forwarded_allow_ips: {error}; expected an address, a network or '*'") from None
            if not (local or self.has_keys):  # a client could pass for one on this machine
                raise SettingsError(
                    f"forwarded_allow_ips: {address!r} needs API keys; without keys only addresses of this machine are "
                    "accepted"
                )


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine only. Of all names, only localhost counts."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def split_values(text: str) -> tuple[str, ...]:
    """The values in an environment variable, separated by commas or blanks."""
    return tuple(text.replace(",", " ").split())


def is_sendable(key: str) -> bool:
    """Whether clients can send `key` in a header."""
    return key.isascii() and key.isprintable() and key == key.strip()


def keys_from_environment() -> tuple[str, ...]:
    """The API keys in VLROUTE_API_KEYS."""
    return split_values(os.environ.get("VLROUTE_API_KEYS", ""))


#: Settings of `ServerSettings` that a cluster does not have: Ray's proxy accepts the connections, and a new artifact
#: needs a new deployment.
NOT_IN_CLUSTER = (
    "learned", "learned_folder", "header_seconds", "idle_seconds", "write_seconds", "grace_seconds"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Settings of one cluster. `router` can change while the cluster runs; any other change restarts its replicas.

    Attributes:
        model: As `name` of `Router.from_pretrained`; None: the embedded pocket pair. A folder must exist on every
            machine.
        router: Folder of a router artifact, on every machine; None: the artifact that belongs to the model.
        policy: A target, such as "knee", instead of a price.
        store: File or postgresql:// URL for answers. The ingresses use it, so a file serves one machine only.
        device: Device of each replica; None: CUDA if there is one.
        generation: As in `Router.from_pretrained`.
        replicas: Minimum number of replicas.
        most_replicas: Maximum number of replicas, started when requests queue up; None: same as `replicas`.
        max_num_seqs: Maximum number of answers that a replica generates at the same time in each mode.
        cpus: CPU cores that Ray reserves for each replica.
        gpus: GPUs that Ray reserves for each replica; with a fraction, several replicas share one.
        ingresses: Number of processes that accept requests, decode pictures and decide.
        server: Keys, limits and deadline of each ingress; its `max_num_seqs` is computed from that of the replicas.

    Raises:
        SettingsError: A value is out of range.
    """

    model: str | None = None
    router: str | None = None
    policy: Preset | None = None
    store: str | None = None
    device: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    most_replicas: int | None = None
    max_num_seqs: int = 8
    cpus: float = 1.0
    gpus: float = 0.0
    ingresses: int = 1
    server: ServerSettings = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        for name in ("replicas", "max_num_seqs", "ingresses"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.most < self.replicas:
            raise SettingsError(f"most_replicas must be at least replicas ({self.replicas}), not {self.most_replicas}")
        if (self.model or "").endswith(".json"):
            raise SettingsError(
                "replicas load checkpoints, not endpoints: pass the name of a model, or use vlroute serve"
            )
        if not (self.cpus > 0 and self.gpus >= 0):
            raise SettingsError(f"cpus must be above 0 and gpus 0 or more, not {self.cpus} and {self.gpus}")

    @property
    def most(self) -> int:
        """Maximum number of replicas."""
        return self.replicas if self.most_replicas is None else self.most_replicas

    @property
    def ongoing(self) -> int:
        """Maximum number of requests in one replica: what it generates at the same time in both modes."""
        return 2 * self.max_num_seqs

    @property
    def ingress(self) -> ServerSettings:
        """Settings of one ingress, which admits its share of what all replicas can generate."""
        return replace(self.server, max_num_seqs=math.ceil(self.max_num_seqs * self.most / self.ingresses))

    @classmethod
    def read(cls, args: Mapping[str, Any], server: Mapping[str, Any]) -> ClusterSettings:
        """Read the strings of a command line or the values of a file.

        Args:
            args: Fields of this class and of ServerSettings by their names.
            server: Fields of ServerSettings that `args` must not contain.

        Returns:
            The settings.

        Raises:
            ValueError: A name is unknown or a value is invalid.
        """
        from pydantic import TypeAdapter

        own = {one.name for one in fields(cls)} - {"server"}
        servers = {one.name for one in fields(ServerSettings)} - {"max_num_seqs", "limits", *NOT_IN_CLUSTER, *server}
        if unknown := sorted(set(args) - own - servers):
            raise SettingsError(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(own | servers))}")
        given = {name: value for name, value in args.items() if name in servers}
        server_settings = TypeAdapter(ServerSettings).validate_python({**given, **server})
        given = {name: value for name, value in args.items() if name in own}
        return TypeAdapter(cls).validate_python({**given, "server": server_settings})
