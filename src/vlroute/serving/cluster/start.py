"""Starts Ray on one machine, closed to all others, and deploys applications."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from vlroute.errors import MissingExtraError, VLRouteError
from vlroute.serving.settings import is_loopback

#: Read by Ray when it is imported or started. Without the first, its ports listen on every address of this machine; its
#: name and the fact that it is off on Linux only are historical.
SAFE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def start_here(**options: Any) -> str:
    """Start Ray on the loopback address, without dashboard and usage statistics. It ends with this process.

    Clients need the token that Ray stores in the user's home directory.

    Args:
        **options: Arguments of `ray.init`.

    Returns:
        Host and port of Ray.

    Raises:
        MissingExtraError: Ray is not installed.
        RuntimeError: Ray was imported before in this process with other settings.
    """
    _set_safe()
    # replicas serve requests; by default, Ray gives them nearly the lowest priority, behind all other processes
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray = _ray()
    mask = os.umask(0o077)  # other users must not read the token and the logs
    try:
        started = ray.init(include_dashboard=False, **options)
    finally:
        os.umask(mask)
    return str(started.address_info["address"])


def join(address: str) -> None:
    """Connect to a running Ray.

    Args:
        address: Host and port, or "auto" for the cluster that this machine belongs to.

    Raises:
        ConnectionError: No Ray runs there.
        MissingExtraError: Ray is not installed.
        RuntimeError: Ray was imported before in this process with other settings.
    """
    if is_loopback(address.rpartition(":")[0]):  # started by `start_here`; by default, Ray would use another address
        _set_safe()
    _ray().init(address=address)


def deploy(application: Any, name: str) -> None:
    """Deploy a Ray Serve application and wait until it runs.

    Args:
        application: The application.
        name: Its name.

    Raises:
        VLRouteError: A replica or the ingress could not start; the message contains the last line of its error. The
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
    found = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception): .*)$", message, re.MULTILINE)
    return [str(line) for line in found]


def _set_safe() -> None:
    if "ray" in sys.modules and any(os.environ.get(name) != value for name, value in SAFE.items()):
        variables = ", ".join(f"{name}={value}" for name, value in SAFE.items())
        raise RuntimeError(f"Ray is imported already; set {variables} before")
    os.environ.update(SAFE)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "cluster") from error
    return ray
