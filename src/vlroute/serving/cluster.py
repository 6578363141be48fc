"""A cluster on Ray Serve: one ingress, several replicas of the pair, each conversation with the one that knows it.

`serve run vlroute.serving.cluster:app replicas=2`, or `vlroute cluster --replicas 2`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlroute import __version__
from vlroute.errors import ExtraMissing

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from vlroute.serving.cluster_affinity import Affinity
    from vlroute.serving.cluster_ingress import Ingress
except ModuleNotFoundError as error:
    raise ExtraMissing(error, "cluster") from error

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.serving.cluster_replica import PairReplica
from vlroute.serving.cluster_settings import ClusterSettings
from vlroute.serving.command import keys

NAME = "vlroute"


def build(settings: ClusterSettings) -> serve.Application:
    """The application, for `serve.run`. To run it again with another `router` and else the same changes the artefact
    while requests go on; ArtefactError, here and with nothing changed, if it cannot be used."""
    config = {"router": _checked(settings.router)}
    fixed = settings.without_artefact()
    patience = settings.server.deadline  # so long a replica that is to stop may finish what it is at
    replicas = serve.deployment(
        PairReplica,
        name="Pair",
        user_config=config,
        max_ongoing_requests=settings.ongoing,
        autoscaling_config={
            "min_replicas": settings.replicas, "initial_replicas": settings.replicas,
            "max_replicas": settings.most, "target_ongoing_requests": settings.rows,
        },
        request_router_config=RequestRouterConfig(
            request_router_class=Affinity, request_router_kwargs={"num_fallback_replicas": settings.most}
        ),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=patience,
    )  # fmt: skip
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        user_config=config,
        num_replicas=settings.ingresses,
        max_ongoing_requests=settings.server.max_connections,  # the server inside has bounds of its own, with 429
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=patience,
        max_surge_percent=100,
    )
    version = hashlib.sha256(f"{__version__} {fixed}".encode()).hexdigest()
    return _of(ingress, version).bind(fixed, _of(replicas, version).bind(fixed))


def app(args: Mapping[str, Any]) -> serve.Application:
    """`build` from the arguments of `serve run`, or of a Serve config file: fields of `ClusterSettings` and
    `ServerSettings` by their names. Keys come from VLROUTE_API_KEYS. ValueError, ArtefactError."""
    return build(ClusterSettings.read(args, {"api_keys": keys()}))


def _of(deployment: serve.Deployment, version: str) -> serve.Deployment:
    """Ray gives every deployment from Python a random version, so that even an equal one restarts all replicas, and
    their caches are lost. With the same version only `reconfigure` is called."""
    return deployment.options(version=version, _internal=True)


def _checked(router: str | None) -> str | None:
    if router is None:
        return None
    folder = Path(router).resolve()
    ComplexityClassifier.load(folder)
    return str(folder)
