"""Commands as users start them: in processes of their own, or through their `main` in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import pytest

from tests.support.data import ROOT


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a program of this checkout that computes on one thread.

    more: beside that of the tests
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(more or {})}


def start(script: str, words: Sequence[str], more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a script of `pipelines/` on one thread; both of its outputs can be read.

    more: environment beside that of the tests
    """
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines" / script), *words],
        cwd=ROOT,
        env=environment(more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Call:
    """Calls a command's `main` in this process, as the shell would start the command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, main: Callable[[], None], words: Sequence[str]) -> tuple[int, str, str]:
        """Return the exit status, and what was said on stdout and on stderr."""
        program = main.__module__.removesuffix(".__main__").rpartition(".")[2]
        self._monkeypatch.setattr(sys, "argv", [program, *words])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = self._capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    def refused(self, main: Callable[[], None], words: Sequence[str]) -> str:
        """Return the one line on stderr with which the command refuses its arguments, in status 2."""
        status, _, errors = self(main, words)
        assert status == 2, errors
        (line,) = errors.strip().splitlines()
        return str(line)
