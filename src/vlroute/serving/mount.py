"""The web page on the server: at /, behind the same queue, and behind a log-in where keys are needed."""

from __future__ import annotations

from typing import cast

import gradio as gr
from fastapi import FastAPI

from vlroute.serving.door import Door
from vlroute.serving.errors import APIError
from vlroute.serving.page import build_page, page_settings


def mount_page(app: FastAPI) -> FastAPI:
    """`app` of `create_app`, with the page. Where the server has API keys, any name and a key log in."""
    door = cast(Door, app.state.door)

    @app.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def unknown(rest: str) -> None:
        """The page takes every other path, and would answer in its own words."""
        raise APIError(404, "there is no such endpoint, or not by this method; see /openapi.json", "not_found")

    options = page_settings(door.settings.limits)
    if door.settings.api_keys:
        options["auth"] = lambda _, key: door.keys.known(key)
    return cast(FastAPI, gr.mount_gradio_app(app, build_page(door.service), "", **options))
