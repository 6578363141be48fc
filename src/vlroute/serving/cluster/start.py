"""Ray for one machine, closed to all others."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import Any

from vlroute.errors import InputError, MissingExtraError, VLRouteError
from vlroute.serving.settings import is_loopback

#: Read by Ray when it is imported or starts. Without the first its ports listen on every address of this machine; its
#: name is historical, and so is that it is off on Linux only.
SAFE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def start_here(cpus: int | None = None, **options: Any) -> str:
    """Start Ray on the loopback address, without dashboard and statistics for its makers; whoever connects needs the
    token that Ray keeps in the user's home. It ends with this process. Gives its address, host and port.

    `cpus`: cores to hand out, by default all. `options`: of `ray.init`.

    MissingExtraError without Ray. RuntimeError if Ray was imported before in this process: it is too late then.
    """
    _keep_safe()
    ray = _ray()
    mask = os.umask(0o077)  # the token and the logs are nobody else's to read
    try:
        started = ray.init(num_cpus=cpus, include_dashboard=False, **options)
    finally:
        os.umask(mask)
    return str(started.address_info["address"])


def join(address: str) -> None:
    """Connect to a Ray that runs: host and port, or "auto" for that of a cluster to which this machine belongs. One of
    `start_here` has a loopback address, which Ray would exchange for another one unless told. Errors as there, and
    ConnectionError if nobody is there."""
    if is_loopback(address.rpartition(":")[0]):
        _keep_safe()
    _ray().init(address=address)


def vacant(host: str, port: int) -> None:
    """InputError if nobody can listen there. Ray would not say so: two of its proxies share a port, and each would get
    a part of the requests."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        raise InputError(f"cannot listen on {host}:{port} ({why}); choose another --port") from error


def deploy(application: Any, name: str) -> None:
    """Deploy a Ray Serve application and wait until it runs.

    Raises:
        VLRouteError: a replica or the ingress could not start; the message contains the last line of its error. The
            application is deleted if one of its deployments has no running replica, so that its ingress does not wait
            forever.
    """
    from ray import serve

    try:
        serve.run(application, name=name)
    except RuntimeError as error:
        found = serve.status().applications.get(name)
        parts = [*found.deployments.values()] if found else []
        reasons = [lines[-1] for part in parts if (lines := _errors(part.message))]
        if not all("RUNNING" in part.replica_states for part in parts):
            serve.delete(name)
        raise VLRouteError(f"the cluster could not start: {reasons[0] if reasons else error}") from error


def _errors(message: str) -> list[str]:
    """The lines of a traceback with the raised errors, without module names."""
    found = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Missing): .*)$", message, re.MULTILINE)
    return [str(line) for line in found]


def _keep_safe() -> None:
    if "ray" in sys.modules and any(os.environ.get(name) != value for name, value in SAFE.items()):
        raise RuntimeError(f"Ray was imported already; set {', '.join(f'{k}={v}' for k, v in SAFE.items())} before")
    os.environ.update(SAFE)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "cluster") from error
    return ray
