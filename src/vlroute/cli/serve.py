"""`vlroute serve`, `vlroute ui` and `vlroute cluster`."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vlroute.cli.options import (
    Compile,
    Device,
    Explore,
    LabelShare,
    Memory,
    ModelOption,
    RouterOption,
    ShadowFolder,
    Stages,
    StoreAt,
    Wanted,
    policy_of,
)
from vlroute.errors import InputError, MissingExtraError, SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vlroute.cli.config import EffectiveSettings
    from vlroute.serving.settings import ServerSettings

log = logging.getLogger("vlroute")
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="VLROUTE_CONFIG", metavar="FILE", help="TOML file with settings; options take precedence."
    ),
]
Host = Annotated[
    str,
    typer.Option(
        help="Address to listen on; all but the loopback address need API keys (VLROUTE_API_KEYS or --key-file)."
    ),
]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Answers generated at the same time in each mode.")]
Waiting = Annotated[int, typer.Option(min=0, help="Requests that may wait beyond those; further ones get status 429.")]
Deadline = Annotated[float, typer.Option(min=0.1, help="Time limit of a request, in seconds.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer, reasoning included.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        help="A host (host or host:port) from which pictures may be fetched; may be repeated. Default: none.",
    ),
]
RetentionDays = Annotated[
    float,
    typer.Option(min=0.001, max=36_500, help="Days for which the store keeps responses for previous_response_id."),
]
MaxStored = Annotated[
    int, typer.Option(min=1, metavar="BYTES", help="Maximum size of the responses that the store keeps for one key.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", metavar="FILE", help="TOML file with named API keys and their limits; may change later."
    ),
]
TrustedHost = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-host",
        metavar="NAME",
        help="An accepted name in the Host header, such as example.com or *.example.com; may be repeated.",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        metavar="ORIGIN",
        help="An origin whose web pages may use the API, such as https://example.com; may be repeated.",
    ),
]
RootPath = Annotated[
    str, typer.Option(metavar="PREFIX", help="Path prefix under which a proxy serves this server, such as /vlroute.")
]
ForwardedAllowIps = Annotated[
    list[str] | None,
    typer.Option(
        "--forwarded-allow-ips",
        metavar="ADDRESS",
        help="Address or network of a proxy whose X-Forwarded headers are trusted; may be repeated. "
        "Default: 127.0.0.1 and ::1.",
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(
        min=1, help="Maximum number of open connections; for a further one, a connection without a request is closed."
    ),
]
MaxPerAddress = Annotated[
    int,
    typer.Option(
        min=1,
        help="Maximum number of connections of one address, and of requests of one address behind a trusted proxy.",
    ),
]
MaxTotalBody = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of bytes of the bodies of all requests together; one key has half of it. Default: 1 GiB.",
    ),
]
HeaderSeconds = Annotated[float, typer.Option(min=0.1, help="Time limit for the header of a request.")]
BodySeconds = Annotated[
    float, typer.Option(min=0.1, help="Time limit for the body of a request; each 8 KiB extend it by a second.")
]
IdleSeconds = Annotated[float, typer.Option(min=0.1, help="Seconds without a request until a connection is closed.")]
WriteSeconds = Annotated[
    float, typer.Option(min=0.1, help="Seconds for which a client may not read its response until it is disconnected.")
]
GraceSeconds = Annotated[
    float, typer.Option(min=0, help="Time for unfinished answers after SIGTERM; then they end with an error.")
]
Learned = Annotated[
    bool, typer.Option("--learned", help="Use the artifacts that vlroute learn puts in use for the store.")
]
LearnedFolder = Annotated[
    Path | None,
    typer.Option(
        "--learned-folder", metavar="FOLDER", help="Folder of these artifacts, if it has another path on this machine."
    ),
]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Serve the web page, if its packages are installed.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")]
LogFormat = Annotated[
    Literal["text", "json"], typer.Option(help="Format of the log on stderr, which has one line for each request.")
]


# The options of these commands are read from the context, because other sources have to be merged with those that were
# given. The defaults in the signatures are shown by --help; a test compares them with the real ones.


def serve(
    context: typer.Context,
    config: ConfigFile = None,
    model: ModelOption = None,
    router: RouterOption = None,
    policy: Wanted = None,
    stages: Stages = None,
    store: StoreAt = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_num_seqs: MaxNumSeqs = 32,
    max_waiting: Waiting = 64,
    deadline: Deadline = 600.0,
    max_tokens: MaxTokens = 32_768,
    retention_days: RetentionDays = 30.0,
    max_stored: MaxStored = 4_294_967_296,
    key_file: KeyFile = None,
    allowed_hosts: AllowHost = None,
    trusted_hosts: TrustedHost = None,
    cors_origins: CorsOrigin = None,
    root_path: RootPath = "",
    forwarded_allow_ips: ForwardedAllowIps = None,
    max_connections: MaxConnections = 1024,
    max_per_address: MaxPerAddress = 256,
    max_total_body: MaxTotalBody = None,
    header_seconds: HeaderSeconds = 10.0,
    body_seconds: BodySeconds = 20.0,
    idle_seconds: IdleSeconds = 75.0,
    write_seconds: WriteSeconds = 30.0,
    grace_seconds: GraceSeconds = 20.0,
    device: Device = None,
    memory: Memory = None,
    compile: Compile = None,
    shadow: ShadowFolder = None,
    label_share: LabelShare = 0.0,
    explore: Explore = 0.0,
    learned: Learned = False,
    learned_folder: LearnedFolder = None,
    page: Page = True,
    log_format: LogFormat = "text",
) -> None:
    """Serve the HTTP API (OpenAI's and Anthropic's), and the web page at /.

    vlroute serve --model Qwen/Qwen3-VL-2B --store answers.db

    VLROUTE_API_KEYS=$(openssl rand -hex 32) vlroute serve --host 0.0.0.0

    vlroute serve --config vlroute.toml
    """
    settings, server = _read("serve", context, config)
    _run(settings, server, "wanted" if settings.values["page"] else "none")


def ui(
    context: typer.Context,
    config: ConfigFile = None,
    model: ModelOption = None,
    router: RouterOption = None,
    policy: Wanted = None,
    stages: Stages = None,
    store: StoreAt = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    key_file: KeyFile = None,
    device: Device = None,
    log_format: LogFormat = "text",
) -> None:
    """Open the web page: chat, compare, batch, trade-off. The API is there too.

    vlroute ui

    vlroute ui --model Qwen/Qwen3-VL-2B --store answers.db
    """
    _run(*_read("ui", context, config), "needed")


@wraps(serve, assigned=("__annotations__",))
def show_settings(context: typer.Context, config: ConfigFile = None, **_: Any) -> None:
    """Print the settings that vlroute serve would use with the same options, as TOML, and where each comes from.

    Keys and passwords are not shown.

    vlroute config --config vlroute.toml --port 9000
    """
    settings, _server = _read("serve", context, config)
    typer.echo(settings.toml())


def _read(
    command: Literal["serve", "ui", "cluster"], context: typer.Context, file: Path | None
) -> tuple[EffectiveSettings, ServerSettings]:
    """All settings of a command, and those of its server."""
    from vlroute.cli.config import read_settings
    from vlroute.serving.settings import ServerSettings

    settings = read_settings(command, context, file)
    return settings, settings.of(ServerSettings)


def _run(settings: EffectiveSettings, server: ServerSettings, page: Literal["needed", "wanted", "none"]) -> None:
    """Serve until interrupted. Raises an error if the server cannot start or the models cannot be loaded.

    Args:
        settings: All settings.
        server: Those of the server.
        page: Whether the web page is served; "wanted": if its packages are installed.
    """
    try:
        from vlroute.serving.app import create_app
        from vlroute.serving.http_server import HTTPServer
        from vlroute.serving.keys import APIKeys
        from vlroute.serving.log_format import configure_logging
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "serve") from error
    from vlroute.router import Router

    configure_logging(server.log_format)
    _check_free(server.host, server.port)
    names = ("router", "store", "device", "memory", "compile", "shadow", "label_share", "explore")
    given = settings.values
    if server.learned and not given["store"]:
        raise SettingsError("--learned needs --store: the store says which artifact vlroute learn has put in use")
    if server.learned_folder is not None and not server.learned:
        raise SettingsError("--learned-folder needs --learned: without it, the artifacts in the folder are not used")
    if server.learned_folder is not None and not server.learned_folder.is_dir():
        raise InputError(
            f"{server.learned_folder} is not a folder; pass the folder with the artifacts of vlroute learn"
        )
    APIKeys(server.api_keys, server.key_file, bool(given["store"]))  # before the router creates the file of a new store
    mount = None if page == "none" else _page(needed=page == "needed")
    router = Router.from_pretrained(
        given["model"], policy=policy_of(given["policy"], given["stages"]), max_num_seqs=server.max_num_seqs,
        **{name: given[name] for name in names},
    )  # fmt: skip
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        program.should_exit = True

    app = create_app(router, server, stop)
    program = HTTPServer(mount(app) if mount else app, app.state.service, server)
    program.run()
    if failures:
        raise failures[0]


def _page(needed: bool) -> Callable[[FastAPI], FastAPI] | None:
    """The function that mounts the web page; None, with a warning, if the extra ui is not installed."""
    from vlroute.serving.app import mount_page

    try:
        import gradio  # noqa: F401 - before the models are loaded
    except ModuleNotFoundError as error:
        if needed:
            raise MissingExtraError(error, "ui") from error
        log.warning("serving without the web page (%s); for the page: pip install 'vlroute[ui]'", error)
        return None
    return mount_page


def _check_free(host: str, port: int) -> None:
    """InputError if the port cannot be listened on.

    Ray does not report a port in use: two of its proxies share it, and each gets a part of the requests.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise InputError(f"cannot listen on {host}:{port} ({reason}); choose another --port") from error


Address = Annotated[
    str | None,
    typer.Option(
        help="Host and port of a running Ray, or auto: deploy there and return. Default: start Ray on this machine."
    ),
]


def cluster(
    context: typer.Context,
    config: ConfigFile = None,
    model: ModelOption = None,
    router: RouterOption = None,
    policy: Wanted = None,
    store: StoreAt = None,
    address: Address = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Minimum number of copies of the model.")] = 1,
    most_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of copies, started when requests queue up. Default: as --replicas."),
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs for each replica; with a fraction, replicas share one.")
    ] = 0.0,
    cpus: Annotated[float, typer.Option(min=0.01, help="CPU cores for each replica.")] = 1.0,
    max_num_seqs: MaxNumSeqs = 8,
    max_waiting: Waiting = 64,
    deadline: Deadline = 600.0,
    max_tokens: MaxTokens = 32_768,
    retention_days: RetentionDays = 30.0,
    max_stored: MaxStored = 4_294_967_296,
    key_file: KeyFile = None,
    allowed_hosts: AllowHost = None,
    trusted_hosts: TrustedHost = None,
    cors_origins: CorsOrigin = None,
    root_path: RootPath = "",
    forwarded_allow_ips: ForwardedAllowIps = None,
    device: Device = None,
    log_format: LogFormat = "text",
) -> None:
    """Serve the HTTP API by several replicas of the model, on one machine or several.

    vlroute cluster --model Qwen/Qwen3-VL-2B --replicas 2 --gpus 1 --store answers.db

    VLROUTE_API_KEYS=… vlroute cluster --address auto --host 0.0.0.0 --router my-router
    """
    from vlroute.engine.local.checkpoint_files import check_folders
    from vlroute.hub import resolve_pair
    from vlroute.serving.cluster.start import deploy, join, start_here
    from vlroute.serving.settings import ClusterSettings

    read, server = _read("cluster", context, config)
    # replicas and ingresses have other working directories
    model, store = _absolute_model(read.values["model"]), _absolute_store(read.values["store"])
    settings: ClusterSettings = read.of(ClusterSettings, server=server, model=model, store=store)
    address, host, port = read.values["address"], server.host, server.port
    if model is not None:  # before Ray and the replicas start
        check_folders(*resolve_pair(model, None, None, settings.router)[:2])
    here: str | None = None
    if address is None:
        _check_free(host, port)
        here = start_here()  # before anything imports Ray
    else:
        join(address)
    import ray
    from ray import serve

    from vlroute.serving.cluster.app import NAME, build

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        application = build(settings)
        serve.start(http_options={"host": host, "port": port})
        deploy(application, NAME)
        typer.echo(f"serving at http://{host}:{port}/v1", err=True)
        if here is not None:
            typer.echo(f"deploy again with: vlroute cluster --address {here} …", err=True)
            while not stopped.wait(0.5):
                pass
    except KeyboardInterrupt:
        pass
    finally:
        if here is not None:
            serve.shutdown()
        ray.shutdown()


def _absolute_model(model: str | None) -> str | None:
    """`model`, with an absolute path if it is a folder: replicas have other working directories."""
    return str(Path(model).expanduser().resolve()) if model and Path(model).expanduser().is_dir() else model


def _absolute_store(store: str | None) -> str | None:
    return str(Path(store).expanduser().resolve()) if store and "://" not in store else store
