"""`vlroute cluster`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from vlroute.cli_options import Device, Pair, RouterFolder, StoreAt, Wanted
from vlroute.serving.command import AllowHost, Deadline, Host, MaxTokens, Rows, Waiting, bounds

Address = Annotated[
    str | None,
    typer.Option(
        help="Host and port of a Ray that runs, or auto: deploy there and return. Default: start Ray, on this machine."
    ),
]


def cluster(
    pair: Pair = None,
    router: RouterFolder = None,
    policy: Wanted = None,
    store: StoreAt = None,
    address: Address = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the pair, at least.")] = 1,
    most_replicas: Annotated[
        int | None, typer.Option(min=1, help="At most, made as requests queue up; by default as many.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs for each replica; a share lets several live on one.")] = 0.0,
    cpus: Annotated[float, typer.Option(min=0.01, help="CPU cores for each replica.")] = 1.0,
    rows: Rows = 8,
    max_waiting: Waiting = 64,
    deadline: Deadline = 600.0,
    max_tokens: MaxTokens = 32_768,
    allow_host: AllowHost = None,
    device: Device = None,
) -> None:
    """Serve OpenAI's API by several replicas of the pair, on one machine or many.

    vlroute cluster --pair Qwen/Qwen3-VL-2B --replicas 2 --gpus 1 --store answers.db

    VLROUTE_API_KEYS=… vlroute cluster --address auto --host 0.0.0.0 --router my-router
    """
    from vlroute.engine.checkpoint_files import check_folders
    from vlroute.pair_names import resolve_pair
    from vlroute.serving.cluster_settings import ClusterSettings
    from vlroute.serving.cluster_start import deploy, join, start_here, vacant

    server = bounds(allow_host, host=host, port=port, max_waiting=max_waiting, deadline=deadline, max_tokens=max_tokens)
    settings = ClusterSettings(
        pair=_absolute(pair), router=str(router) if router else None, policy=policy, store=_placed(store),
        device=device, replicas=replicas, most_replicas=most_replicas, rows=rows, cpus=cpus, gpus=gpus, server=server,
    )  # fmt: skip
    if pair is not None:  # checked now, not after Ray and each replica have started
        check_folders(*resolve_pair(pair, None, None, router)[:2])
    here: str | None = None
    if address is None:
        vacant(host, port)
        here = start_here()  # first of all: Ray must not be imported before
    else:
        join(address)
    import ray
    from ray import serve

    from vlroute.serving.cluster import NAME, build

    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        application = build(settings)
        serve.start(http_options={"host": host, "port": port})
        deploy(application, NAME)
        typer.echo(f"answers at http://{host}:{port}/v1", err=True)
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


def _absolute(pair: str | None) -> str | None:
    """Replicas work in folders of their own, so that a relative path means nothing there."""
    return str(Path(pair).expanduser().resolve()) if pair and Path(pair).expanduser().is_dir() else pair


def _placed(store: str | None) -> str | None:
    return str(Path(store).expanduser().resolve()) if store and "://" not in store else store
