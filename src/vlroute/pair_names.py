"""Which two checkpoints a name stands for, and the router artefact that comes with them."""

from __future__ import annotations

import logging
from pathlib import Path

from vlroute.shipped import shipped

log = logging.getLogger("vlroute")

Source = str | Path

#: Pairs on the hub for which this package carries a router artefact.
SHIPPED_ROUTERS = {"Qwen/Qwen3-VL-2B": "qwen3-vl-2b/router"}


def resolve_pair(
    name: Source | None, instruct: Source | None, thinking: Source | None, router: Source | None
) -> tuple[Source, Source, Source | None]:
    """(instruct, thinking, router artefact), see `Router.from_pretrained`. ValueError for names that do not fit."""
    if (instruct is None) != (thinking is None) or (name is not None and instruct is not None):
        raise ValueError("pass one name for the pair, or both instruct= and thinking=")
    if instruct is not None and thinking is not None:
        return instruct, thinking, router
    if name is None:
        log.warning(
            "using the embedded pocket pair: 1.9 M parameters, trained on small drawn pictures only; "
            'for real pictures: Router.from_pretrained("Qwen/Qwen3-VL-2B")'
        )
        return shipped("pocket/instruct"), shipped("pocket/thinking"), router or shipped("pocket/router")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / "instruct", folder / "thinking", router
    if router is None and str(name) in SHIPPED_ROUTERS:
        log.warning(
            "deciding by a router made from published scores, not from this pair's own answers; for one of your own: "
            "vlroute collect, then vlroute train (docs/decision.md)"
        )
        router = shipped(SHIPPED_ROUTERS[str(name)])
    return f"{name}-Instruct", f"{name}-Thinking", router
