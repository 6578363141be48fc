"""The Ray Serve application of a cluster: its ingress and its replicas."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vlroute import __version__
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import MissingExtraError
from vlroute.serving.app import create_app
from vlroute.serving.cluster.replica import Replica, take_up
from vlroute.serving.cluster.router import Calls, ClusterRouter
from vlroute.serving.errors import APIError, response
from vlroute.serving.settings import ClusterSettings, is_loopback, keys_from_environment


class Ingress:
    """Made by Ray, which calls `reconfigure` once it is there, and again with each new router artifact."""

    def __init__(self, settings: ClusterSettings, pairs: Any) -> None:
        """`pairs`: handle of the replicas."""
        self.settings = settings
        self.router = self._made(None, policy=None, store=settings.store).reach(Calls(pairs))
        self._begun = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self.router, self.settings.ingress)
        return app if self.settings.server.api_keys else LocalOnly(app)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Decide by another router artifact from the next request on. ArtifactError."""
        folder = config["router"]
        if self._begun:
            take_up(self.router, self.settings.model, folder)
        else:  # not before: a policy may need the calibration set that comes with this artifact
            self.router.selector = self._made(folder, policy=self.settings.policy).selector
            self._begun = True

    def _made(self, folder: str | None, **options: Any) -> ClusterRouter:
        limits = self.settings.server.limits
        return ClusterRouter.from_pretrained(self.settings.model, router=folder, limits=limits, **options)


class LocalOnly:
    """ASGI middleware that serves this machine only. Ray's proxy listens where Ray was told to, which the settings do
    not know; without keys nobody elsewhere may come in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_loopback((scope.get("client") or ("",))[0]):
            why = "without API keys a cluster serves its own machine only; deploy it with VLROUTE_API_KEYS set"
            await response(APIError(403, why, "not_local"))(scope, receive, send)
            return
        await self.app(scope, receive, send)


try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from vlroute.serving.cluster.router import Affinity
except ModuleNotFoundError as error:
    raise MissingExtraError(error, "cluster") from error


NAME = "vlroute"


def build(settings: ClusterSettings) -> serve.Application:
    """The application, for `serve.run`. To run it again with another `router` and else the same changes the artifact
    while requests go on; ArtifactError, here and with nothing changed, if it cannot be used."""
    config = {"router": _checked(settings.router)}
    fixed = settings.without_artifact()
    patience = settings.server.deadline  # so long a replica that is to stop may finish what it is at
    replicas = serve.deployment(
        Replica,
        name="Pair",
        user_config=config,
        max_ongoing_requests=settings.ongoing,
        autoscaling_config={
            "min_replicas": settings.replicas, "initial_replicas": settings.replicas,
            "max_replicas": settings.most, "target_ongoing_requests": settings.max_num_seqs,
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
    `ServerSettings` by their names. Keys come from VLROUTE_API_KEYS. ValueError, ArtifactError."""
    return build(ClusterSettings.read(args, {"api_keys": keys_from_environment()}))


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
