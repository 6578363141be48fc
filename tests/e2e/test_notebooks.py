"""The notebooks in examples/: each is really run, and its committed outputs are those of this code."""

from __future__ import annotations

import importlib.util
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import ROOT
from tests.synthetic_records import draw_records
from vlroute.records import write_records

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
#: No two runs print the same: answers are generated and timed in the first; the second trains, and its figures differ
#: in the last digit with the CPU's linear algebra.
VARYING = {"02_retrain_on_your_data", "04_how_many_records"}
MOST_BYTES = 300 * 1024
CHINESE = re.compile("[\u4e00-\u9fff]")


def load_runner() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "examples" / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(notebook: Any) -> list[list[str]]:
    """The kinds of what each code cell shows."""
    return [
        [kind for output in cell.outputs for kind in ("text", *sorted(output.get("data", ())))]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def text_of(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_its_committed_outputs_show(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    fresh = load_runner().run(path)  # raises if a cell fails
    assert shown(fresh) == shown(committed)
    assert [cell.source for cell in fresh.cells] == [cell.source for cell in committed.cells]
    if path.stem not in VARYING:
        assert text_of(fresh) == text_of(committed), "run examples/run_notebooks.py again"


@pytest.mark.parametrize("count", [35, 60, 620])
def test_how_many_records_runs_on_files_of_any_size(tmp_path: Path, count: int) -> None:
    notebook = nbformat.read(ROOT / "examples" / "notebooks" / "04_how_many_records.ipynb", as_version=4)
    write_records(tmp_path / "own.jsonl", draw_records(count)[1])
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").replace(
        "%matplotlib inline", ""
    )
    assert "../../training/pocket/measured.jsonl.gz" in code
    with redirect_stdout(io.StringIO()) as printed:
        exec(code.replace("../../training/pocket/measured.jsonl.gz", str(tmp_path / "own.jsonl")), {})
    assert f"from {min(count, 600)} records" in printed.getvalue()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_whole_and_explained_in_two_languages(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for cell in code for output in cell.outputs} <= {
        "stream",
        "execute_result",
        "display_data",
    }
    assert not re.search(r"/(home|root|Users|tmp)/|[A-Z]:\\\\", text_of(notebook))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading, _, chinese, *rest = cell.source.split("\n")
            assert heading.startswith("#")
            assert CHINESE.search(chinese)
            assert any(len(line) > 40 for line in rest)


def test_the_four_notebooks_are_listed() -> None:
    listed = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert len(NOTEBOOKS) == 4
    assert all(f"notebooks/{path.name}" in listed for path in NOTEBOOKS)
