"""The web page on the server: at /, behind the same queue, and behind a log-in where keys are needed."""

from __future__ import annotations

from typing import cast

import gradio as gr
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from vlroute.serving.door import Door
from vlroute.serving.errors import no_endpoint, response
from vlroute.serving.page import build_page, page_settings


def mount_page(app: FastAPI) -> FastAPI:
    """`app` of `create_app`, with the page. Where the server has API keys, any name and a key log in."""
    door = cast(Door, app.state.door)

    options = page_settings(door.settings.limits)
    if door.settings.api_keys:
        options["auth"] = lambda _, key: door.keys.known(key)
    gr.mount_gradio_app(app, build_page(door.service), "", **options)
    page = cast(FastAPI, cast(Mount, app.routes[-1]).app)  # it gets every path that is not an endpoint of the API
    gradios = page.router.default

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        """Used for the paths that the page does not know either. Gradio's own response is not in OpenAI's shape."""
        if scope["type"] == "http":
            await response(no_endpoint(), door.service.metrics.refused)(scope, receive, send)
        else:
            await gradios(scope, receive, send)

    page.router.default = not_found
    return app
