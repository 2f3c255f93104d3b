"""A Python process in which packages cannot be imported, as on a machine where they are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Python imports a module of this name by itself when it starts, in processes that are started from there, too.
_SITE = """
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {packages!r} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def run_without(
    packages: Sequence[str], folder: Path, words: Sequence[str], timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` where none of the packages can be imported, on one thread; nothing is checked.

    folder: an empty one, for what makes them missing
    """
    (folder / "sitecustomize.py").write_text(_SITE.format(packages=tuple(packages)))
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
