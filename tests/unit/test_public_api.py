"""The public names and their signatures are those in `public_api.txt`.

`python -m tests.unit.test_public_api` rewrites that file.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vlroute

SNAPSHOT = Path(__file__).with_name("public_api.txt")
PACKAGES = ("vlroute", "vlroute.learning", "vlroute.serving")


class Text:
    """Shows an annotation, or a default that has no short `repr`, without quotes."""

    def __init__(self, text: object) -> None:
        self.text = text

    def __repr__(self) -> str:
        return str(self.text)


def signature(value: Any) -> str:
    found = inspect.signature(value)
    parameters = []
    for one in found.parameters.values():
        short = one.default in (one.empty, None) or isinstance(one.default, bool | int | float | str)
        parameters.append(
            one.replace(
                annotation=one.annotation if one.annotation is one.empty else Text(one.annotation),
                default=one.default if short else Text("…"),
            )
        )
    return str(found.replace(parameters=parameters, return_annotation=Text(found.return_annotation)))


def described(name: str, value: Any) -> Iterator[str]:
    """One line for a function or constant; for a class its own line, then its fields and public members."""
    if not inspect.isclass(value):
        yield f"{name}{signature(value)}" if inspect.isfunction(value) else name
        return
    errors = issubclass(value, Exception)
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})" if errors else f"class {name}"
    if is_dataclass(value):
        for field in fields(value):
            needed = field.default is MISSING and field.default_factory is MISSING
            yield f"    {field.name}: {field.type}{'' if needed else ' = …'}"
    elif not errors:
        yield f"    {signature(value)}"
    members = {field.name for field in fields(value)} if is_dataclass(value) else set()
    for key, member in sorted(vars(value).items()):
        if key.startswith("_") or key in members:
            continue
        if isinstance(member, property):
            yield f"    {key}"
        elif isinstance(member, classmethod | staticmethod) or inspect.isfunction(member):
            yield f"    {key}{signature(getattr(value, key))}"


def public_api() -> str:
    lines = []
    for package in PACKAGES:
        lines.append(f"# {package}")
        module = import_module(package)
        for name in sorted(module.__all__):
            lines += described(name, getattr(module, name))
        lines.append("")
    return "\n".join(lines)


def test_public_names_and_signatures_are_the_recorded_ones() -> None:
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8"), "rewrite it: python -m tests.unit.test_public_api"


def test_every_package_lists_its_public_names() -> None:
    packages = [one.name for one in pkgutil.walk_packages(vlroute.__path__, "vlroute.") if one.ispkg]
    for package in ("vlroute", *packages):
        source = Path(import_module(package).__file__ or "").read_text(encoding="utf-8")
        assert "__all__" in source, package


@pytest.mark.parametrize("package", PACKAGES)
def test_names_for_type_checkers_are_the_lazy_ones(package: str) -> None:
    module: ModuleType = import_module(package)
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname: one.module for one in checked.body if isinstance(one, ast.ImportFrom) for alias in one.names
    }
    assert {*imported} == {*module.__all__} - {"__version__"}
    assert dir(module) == sorted({*module.__all__})
    for name, home in imported.items():
        assert getattr(import_module(str(home)), str(name)) is getattr(module, str(name))


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_no_large_library(package: str) -> None:
    large = {"torch", "transformers", "sklearn", "matplotlib", "fastapi", "gradio", "numpy", "ray"}
    code = f"import sys, {package}; print(*({large!r} & {{*sys.modules}}))"
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_names_are_refused(package: str) -> None:
    with pytest.raises(AttributeError):
        _ = import_module(package).no_such_name


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api(), encoding="utf-8")
