"""Runs a notebook's cells of code in order, in this process, without Jupyter."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image


def code_cells(path: Path) -> list[dict[str, Any]]:
    """Return a notebook's cells of code, each with its `source` as one text."""
    cells = json.loads(path.read_text())["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def checksum(cells: list[dict[str, Any]]) -> str:
    """Return the SHA-256 of what is run."""
    return hashlib.sha256("\0".join(cell["source"] for cell in cells).encode()).hexdigest()


def run_notebook(path: Path, constants: dict[str, Any]) -> dict[str, Any]:
    """Run every cell and return the names that they leave; whatever a cell raises passes.

    constants: replace those that the first cell sets, so that a test takes less time than a reader
    """
    mpl.use("agg")
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(code_cells(path)):
        exec(compile(cell["source"], f"{path.name}, cell {number}", "exec"), names)
        if number == 0:
            assert constants.keys() <= names.keys(), f"the first cell sets no {constants.keys() - names.keys()}"
            names |= constants
    return names


def execute_notebook(path: Path) -> None:
    """Run a notebook in Jupyter and write its outputs into it, with the checksum of what was run.

    Needs nbclient and ipykernel, which no test does: `python -m tests.support.notebook docs/tutorial.ipynb`.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, record_timing=False).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            # The same table as plain text is there.
            data.pop("text/html", None)
            if (png := data.pop("image/png", None)) is not None:
                data["image/jpeg"] = _as_jpeg(png)
    notebook.metadata["executed_sha256"] = checksum([cell for cell in notebook.cells if cell.cell_type == "code"])
    nbformat.write(notebook, path)


def _as_jpeg(png: str) -> str:
    """Return the same picture as JPEG, a third as large; both in base 64."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=88, optimize=True)
        return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    execute_notebook(Path(sys.argv[1]))
