"""Dockerfile and compose.yaml, linted. No image is built here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8").splitlines()


def test_the_dockerfile_has_nothing_to_complain_of() -> None:
    command = [BIN / "hadolint", "--failure-threshold", "style", ROOT / "Dockerfile"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


def test_compose_yaml_fits_the_schema() -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", ".dockerignore"])
def test_each_says_that_it_is_untested(name: str) -> None:
    first = (ROOT / name).read_text("utf-8").splitlines()[0]
    assert first.startswith("# Checked by ")
    assert "on the machine that wrote it" in first


def test_the_image_gets_all_that_the_wheel_is_built_of() -> None:
    copied = (ROOT / ".dockerignore").read_text("utf-8")
    for needed in ("pyproject.toml", "hatch_build.py", "hatch_build.py", "README.md", "LICENSE", "src", "models"):
        assert f"!{needed}\n" in copied
        assert (ROOT / needed).exists()


def test_the_image_does_not_run_as_root() -> None:
    assert DOCKERFILE.index("USER 10001:10001") < DOCKERFILE.index('ENTRYPOINT ["vlroute"]')


def test_every_base_is_of_one_version() -> None:
    bases = {line.split()[1] for line in DOCKERFILE if line.startswith("FROM ")}
    assert len(bases) == 1
    assert bases.pop().startswith("python:3.12.")


def test_the_service_is_locked_up() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["vlroute"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["environment"]["VLROUTE_API_KEYS"].startswith("${VLROUTE_API_KEYS:?")  # no start without a key
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"]
    assert {volume.split(":")[1] for volume in service["volumes"]} == {"/data", "/data/hub"}
