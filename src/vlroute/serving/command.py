"""`vlroute serve` and `vlroute ui`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vlroute.cli_options import Device, Pair, RouterFolder, StoreAt, Wanted
from vlroute.errors import ExtraMissing

if TYPE_CHECKING:  # its imports may be missing
    from fastapi import FastAPI

    from vlroute.serving.settings import ServerSettings

KEYS = "VLROUTE_API_KEYS"
Host = Annotated[str, typer.Option(help=f"Address to listen on; any but this machine's own needs keys in {KEYS}.")]
Rows = Annotated[int, typer.Option(min=1, help="Answers written at the same time in each mode.")]
Waiting = Annotated[int, typer.Option(min=0, help="Requests that may wait beyond those; more get 429.")]
Deadline = Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of one answer, reasoning included.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="A host (host or host:port) from which pictures may be fetched; may be repeated. Default: none."),
]
NoPage = Annotated[bool, typer.Option("--no-page", help="Leave the web page out.")]


def keys() -> tuple[str, ...]:
    """The API keys of the environment."""
    return tuple(os.environ.get(KEYS, "").replace(",", " ").split())


def bounds(allow_host: list[str] | None, **options: Any) -> ServerSettings:
    """The server that a command line asks for; `options` by their names there. ValueError as of ServerSettings."""
    from vlroute.serving.settings import ServerSettings

    return ServerSettings(api_keys=keys(), allowed_hosts=tuple(allow_host or ()), **options)


def serve(
    pair: Pair = None,
    router: RouterFolder = None,
    policy: Wanted = None,
    store: StoreAt = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    rows: Rows = 8,
    max_waiting: Waiting = 64,
    deadline: Deadline = 600.0,
    max_tokens: MaxTokens = 32_768,
    allow_host: AllowHost = None,
    device: Device = None,
    no_page: NoPage = False,
) -> None:
    """Serve OpenAI's API, and the web page at /.

    vlroute serve --pair Qwen/Qwen3-VL-2B --store answers.db

    VLROUTE_API_KEYS=$(openssl rand -hex 32) vlroute serve --host 0.0.0.0
    """
    settings = bounds(
        allow_host, host=host, port=port, rows=rows, max_waiting=max_waiting, deadline=deadline, max_tokens=max_tokens
    )
    _run(settings, "none" if no_page else "wanted", pair=pair, router=router, policy=policy, store=store, device=device)


def ui(
    pair: Pair = None,
    router: RouterFolder = None,
    policy: Wanted = None,
    store: StoreAt = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 7860,
    device: Device = None,
) -> None:
    """Open the web page: chat, compare, batch, trade-off. The API is there too.

    vlroute ui

    vlroute ui --pair Qwen/Qwen3-VL-2B --store answers.db
    """
    settings = bounds(None, host=host, port=port)
    _run(settings, "needed", pair=pair, router=router, policy=policy, store=store, device=device)


def _run(settings: ServerSettings, page: Literal["needed", "wanted", "none"], **pair: Any) -> None:
    """Serve until told to stop. Ends the process with an error if the server cannot start or the pair cannot be loaded.

    `pair`: arguments of `Router.from_pretrained`, its `name` as `pair`.
    """
    try:
        import uvicorn

        from vlroute.serving.api import GRACE_SECONDS, create_app
    except ModuleNotFoundError as error:
        raise ExtraMissing(error, "serve") from error
    from vlroute.router import Router
    from vlroute.serving.cluster_start import vacant

    vacant(settings.host, settings.port)
    router = Router.from_pretrained(pair.pop("pair"), rows=settings.rows, **pair)
    mount = None if page == "none" else _page(needed=page == "needed")
    failures: list[BaseException] = []

    def end(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(router, settings, end)
    config = uvicorn.Config(
        mount(app) if mount else app, host=settings.host, port=settings.port, log_level="info", access_log=False,
        server_header=False, lifespan="on",  # with "auto", uvicorn ignores an exception at start-up
        timeout_keep_alive=75,  # longer than in clients and proxies, so that they close idle connections first
        timeout_graceful_shutdown=round(GRACE_SECONDS), limit_concurrency=settings.max_connections,
    )  # fmt: skip
    server = uvicorn.Server(config)
    try:
        server.run()
    except KeyboardInterrupt:
        return
    if failures:
        raise failures[0]


def _page(needed: bool) -> Callable[[FastAPI], FastAPI] | None:
    """The function that mounts the web page; None, with a line on stderr, if the extra ui is not installed."""
    try:
        from vlroute.serving.mount import mount_page
    except ModuleNotFoundError as error:
        if needed:
            raise ExtraMissing(error, "ui") from error
        typer.echo(f"serving without the web page ({error}); for the page: pip install 'vlroute[ui]'", err=True)
        return None
    return mount_page
