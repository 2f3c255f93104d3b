"""How long threads spin at OpenMP's barriers, as libgomp itself tells it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data import ROOT
from tests.support.programs import environment

# Builds of a lake load no torch.
COMMANDS = [
    path
    for path in sorted((ROOT / "pipelines").glob("*.py"))
    if "run_command(" in path.read_text() and path.stem != "build_lake"
]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, 10_000), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)],
    ids=["by default", "as the user says", "not where the user has another policy"],
)
def test_torchs_threads_spin_for_a_short_time(given: dict[str, str], spins: int) -> None:
    unset = {name: value for name, value in environment().items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    told = subprocess.run(
        [sys.executable, "-c", "import training.openmp, torch"],
        cwd=ROOT,
        env={**unset, "OMP_DISPLAY_ENV": "verbose", **given},
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told) == [str(spins)]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_sets_that_before_it_imports_anything(path: Path) -> None:
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next(node for node in imports if getattr(node, "module", None) != "__future__")
    assert isinstance(first, ast.Import)
    assert [alias.name for alias in first.names] == ["training.openmp"]
