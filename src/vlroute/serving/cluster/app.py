"""The Ray Serve application of a cluster: ingresses decide, replicas answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute import __version__
from vlroute.decision.captions import probe_of
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.selector import ModeSelector
from vlroute.errors import MissingExtraError
from vlroute.hub import resolve_pair
from vlroute.router import Router
from vlroute.serving.app import create_app
from vlroute.serving.cluster.replica import Replica
from vlroute.serving.log_format import configure_logging
from vlroute.serving.middleware import LocalClientsOnly
from vlroute.serving.settings import ClusterSettings, keys_from_environment

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from vlroute.engine.remote.ray import AffinityRouter, RayEngine
except ModuleNotFoundError as error:
    raise MissingExtraError(error, "cluster") from error

NAME = "vlroute"
#: Seconds between two checks whether a replica lives; a dead one is replaced at the next check. Ray's default is 10.
HEALTH_SECONDS = 2.0


class _WithoutRequestId:
    """Removes `X-Request-Id` from responses: Ray's proxy makes the id of a request, and adds the header itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def filtered(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [one for one in message.get("headers", ()) if one[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, filtered)


class Ingress:
    """Accepts requests, decides, and lets the replicas answer.

    Ray calls `reconfigure` after the construction, and again with each new router artifact.

    Args:
        settings: Settings of the cluster.
        replicas: Ray's handle of the replicas.
    """

    def __init__(self, settings: ClusterSettings, replicas: Any) -> None:
        self.settings = settings
        configure_logging(settings.server.log_format)
        instruct, thinking, _ = resolve_pair(settings.model, None, None, None)
        self.router = Router(
            instruct, thinking, limits=settings.server.limits, generation=settings.generation, store=settings.store,
            engine=RayEngine(replicas, settings.server.deadline),
        )  # fmt: skip
        self._configured = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self.router, self.settings.ingress)
        if not self.settings.server.has_keys:
            count = app.state.service.metrics.refused
            app.user_middleware.append(Middleware(LocalClientsOnly, count))  # inside the log of requests
        return _WithoutRequestId(app)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Decide by another router artifact from the next request on.

        Args:
            config: The folder of the artifact as "router"; None: the artifact that belongs to the model, if any.

        Raises:
            ArtifactError: The artifact cannot be used; nothing is changed.
        """
        folder = config["router"] or resolve_pair(self.settings.model, None, None, None)[2]
        if not self._configured:  # not in the constructor: the policy may need the calibration set of this artifact
            classifier = None if folder is None else ComplexityClassifier.load(folder)
            probe = None if folder is None else probe_of(folder)
            self.router.selector = ModeSelector(classifier, self.settings.policy, probe=probe)
            self._configured = True
        if folder is None:
            self.router.selector.use(None, None)
        else:
            self.router.use(folder)  # this warns if the artifact was trained for another model


def build(settings: ClusterSettings) -> serve.Application:
    """Create the application for `serve.run`.

    If it is run again with only another `router`, the artifact is replaced while requests are answered.

    Args:
        settings: Settings of the cluster.

    Returns:
        The application.

    Raises:
        ArtifactError: The router artifact cannot be used.
    """
    folder = None if settings.router is None else Path(settings.router).resolve()
    if folder is not None:
        ComplexityClassifier.load(folder)
    config = {"router": folder and str(folder)}
    fixed = replace(settings, router=None)
    seconds = settings.server.deadline  # a replica that is to stop may finish its requests
    replicas = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=settings.ongoing,
        autoscaling_config={
            "min_replicas": settings.replicas, "initial_replicas": settings.replicas,
            "max_replicas": settings.most, "target_ongoing_requests": settings.max_num_seqs,
        },
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter, request_router_kwargs={"num_fallback_replicas": settings.most}
        ),
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        graceful_shutdown_timeout_s=seconds,
        health_check_period_s=HEALTH_SECONDS,
    )  # fmt: skip
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        user_config=config,
        num_replicas=settings.ingresses,
        max_ongoing_requests=settings.server.max_connections,  # the server inside has its own limits, with 429
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=seconds,
        health_check_period_s=HEALTH_SECONDS,
        max_surge_percent=100,
    )
    # Ray gives every deployment from Python a random version, so that even an equal one restarts all replicas, and
    # their caches are lost. With the same version only `reconfigure` is called.
    version = hashlib.sha256(f"{__version__} {fixed}".encode()).hexdigest()
    replicas, ingress = (one.options(version=version, _internal=True) for one in (replicas, ingress))
    return ingress.bind(fixed, replicas.bind(fixed))


def app(args: Mapping[str, Any]) -> serve.Application:
    """Create the application for `serve run` or a config file of Ray Serve. API keys come from VLROUTE_API_KEYS.

    Args:
        args: Fields of `ClusterSettings` and `ServerSettings` by their names.

    Returns:
        The application.

    Raises:
        ValueError: A setting is unknown or invalid.
        ArtifactError: The router artifact cannot be used.
    """
    return build(ClusterSettings.read(args, {"api_keys": keys_from_environment()}))
