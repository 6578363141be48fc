"""Run the notebooks and write them with their outputs: `python examples/run_notebooks.py`.

Each runs in a fresh kernel, in its own folder. Warnings of libraries (stderr) are left out of what is written: they
name places on this machine and say nothing about the notebook.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from rich.progress import track

FOLDER = Path(__file__).with_name("notebooks")
CELL_SECONDS = 300


def run(path: Path) -> NotebookNode:
    """The notebook with fresh outputs. CellExecutionError, with the cell and its traceback, if one fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, startup_timeout=CELL_SECONDS, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    try:
        client.execute()
    except DeadKernelError:
        raise
    except RuntimeError:  # the kernel did not start: another process may have taken one of its ports
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}  # the kernel's own entry holds this machine's version
    return notebook


def main() -> None:
    for path in track(sorted(FOLDER.glob("*.ipynb")), "running"):
        nbformat.write(run(path), path)


if __name__ == "__main__":
    main()
