"""Files that other tools read fit their schemas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORMS = ".github/ISSUE_TEMPLATE"


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-issue-config", f"{FORMS}/config.yml"),
        ("github-issue-forms", f"{FORMS}/bug_report.yml"),
        ("github-issue-forms", f"{FORMS}/feature_request.yml"),
    ],
)
def test_a_file_fits_its_schema(schema: str, name: str) -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    found = subprocess.run(
        [tool, "--builtin-schema", f"vendor.{schema}", ROOT / name], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
