"""The names of the models that a server offers besides `auto` and the modes."""

from __future__ import annotations

from vlroute.hub import source_name
from vlroute.router import Router
from vlroute.types import MODES, Mode


def model_names(router: Router) -> dict[str, Mode | None]:
    """The names of the models that a router loads, without paths.

    Args:
        router: The router.

    Returns:
        Each name with the mode that it forces; None for a model that answers in both modes. "auto" and the names of
        modes are left out, because they keep their meaning.
    """
    if router.remote is not None:
        given = [router.remote.endpoints[mode].model for mode in MODES]
    else:
        given = [source_name(source) for source in (router.instruct, router.thinking)]
    names: dict[str, Mode | None] = {}
    for mode, name in zip(MODES, given, strict=True):
        if name.lower() not in ("auto", *MODES):
            names[name] = None if name in names else mode
    return names
