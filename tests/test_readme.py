"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

from datalake.lake import Lake

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.integration
@pytest.mark.parametrize("block", BLOCKS, ids=["query", "feed"])
def test_the_code_runs_on_a_lake(block: str, drive_lake: Lake) -> None:
    code = block.replace("/lakes/waymo", drive_lake.store.root).replace("epochs=None", "epochs=1")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert ("VEHICLE" in printed.getvalue()) == ("duckdb" in block)


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"(?:python |\]\()((?:pipelines|docs)/[\w./]+)", README)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_make_target_that_it_names_is_there() -> None:
    targets = set(re.findall(r"make (\w+)", README))
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= rules
    assert shutil.which("make")
