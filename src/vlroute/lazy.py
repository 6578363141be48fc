"""Public names that are imported from their modules when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make names of other modules available in a package; the modules are imported when a name is first used.

    Args:
        package: The `__name__` of the package.
        names: For each module, the names that the package takes from it. No name may be that of a submodule of the
            package, because importing that submodule would replace it.

    Returns:
        Values for `__getattr__`, `__dir__` and `__all__` of the package.
    """
    homes = {name: module for module, several in names.items() for name in several}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    public = sorted(homes)
    return get, lambda: sorted(public), public
