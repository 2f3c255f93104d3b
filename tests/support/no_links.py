"""A file system without hard links, made of the one that is there by a preloaded library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("no_links.c")


def without_links(folder: Path, *, renames: bool) -> dict[str, str]:
    """Return the environment of a process for which no file system has hard links; skips where there is no gcc.

    folder: where the library is built
    renames: whether the file systems have rename-without-replacing
    """
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("no gcc to build the library that refuses hard links")
    library = folder / "no_links.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(_SOURCE)], check=True)
    return {"LD_PRELOAD": str(library), **({} if renames else {"NO_RENAMEAT2": "1"})}
