"""The ingress of the cluster: the very server of `vlroute serve`, over replicas instead of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from vlroute.serving.api import create_app
from vlroute.serving.cluster_calls import Calls
from vlroute.serving.cluster_replica import take_up
from vlroute.serving.cluster_router import ClusterRouter
from vlroute.serving.cluster_settings import ClusterSettings
from vlroute.serving.errors import APIError, response
from vlroute.serving.settings import is_loopback


class Ingress:
    """Made by Ray, which calls `reconfigure` once it is there, and again with each new router artefact."""

    def __init__(self, settings: ClusterSettings, pairs: Any) -> None:
        """`pairs`: handle of the replicas."""
        self.settings = settings
        self.router = self._made(None, policy=None, store=settings.store).reach(Calls(pairs))
        self._begun = False

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(self.router, self.settings.ingress)
        return app if self.settings.server.api_keys else LocalOnly(app)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Decide by another router artefact from the next request on. ArtefactError."""
        folder = config["router"]
        if self._begun:
            take_up(self.router, self.settings.pair, folder)
        else:  # not before: a policy may need the calibration set that comes with this artefact
            self.router.judge = self._made(folder, policy=self.settings.policy).judge
            self._begun = True

    def _made(self, folder: str | None, **options: Any) -> ClusterRouter:
        limits = self.settings.server.limits
        return ClusterRouter.from_pretrained(self.settings.pair, router=folder, limits=limits, **options)


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
