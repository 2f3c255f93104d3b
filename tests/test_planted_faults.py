"""The patches of `benchmarks.planted_faults`: each can be planted in the code as it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import planted_faults
from benchmarks.planted_faults import Fault

_ROOT = Path(planted_faults.__file__).parents[1]
_PATCHES = sorted((_ROOT / "benchmarks/planted_faults").glob("*.patch"))


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("patch", _PATCHES, ids=lambda patch: patch.stem)
def test_patch_applies_to_the_code_as_it_is(patch: Path) -> None:
    done = subprocess.run(
        ["git", "apply", "--check", str(patch)], cwd=_ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_patch_names_tests_that_there_are() -> None:
    assert all(Fault.read(patch).tests for patch in _PATCHES)
    assert _PATCHES


def test_patch_that_names_a_missing_test_is_refused(tmp_path: Path) -> None:
    patch = tmp_path / "moved.patch"
    patch.write_text("# Something is wrong.\n# tests: tests/test_planted_faults.py tests/test_gone.py::test_a\ndiff \n")
    with pytest.raises(ValueError, match=r"moved\.patch: there is no tests/test_gone\.py::test_a; name the file"):
        Fault.read(patch)
