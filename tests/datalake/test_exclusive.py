"""Objects that are created if absent on file systems without hard links, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datalake.store import is_temporary
from tests.support.no_links import without_links
from tests.support.programs import environment

pytestmark = pytest.mark.integration

RACE = """
import os, sys
from datalake.store import Store

store, pipes = Store(sys.argv[1]), []
for number in range(6):
    read, write = os.pipe()
    if os.fork() == 0:
        won = [name for name in range(25) if store.create(f"_commits/{name}.json", f"author {number}".encode())]
        os.write(write, repr(won).encode())
        os._exit(0)
    os.close(write)
    pipes.append(read)
for number, pipe in enumerate(pipes):
    for name in eval(os.fdopen(pipe).read()):
        print(name, number)
"""
CREATE = """
import sys
from datalake import exclusive
from datalake.store import Store

exclusive.LOCK_S = 0.3
print(Store(sys.argv[1]).create("_commits/a.json", sys.argv[2].encode()))
"""
BOTH = pytest.mark.parametrize("renames", [True, False], ids=["rename", "lock"])


def _run(program: str, words: list[str], more: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, env=environment(more), capture_output=True, text=True, timeout=200)


@BOTH
def test_one_process_of_many_creates_an_object_without_hard_links(renames: bool, tmp_path: Path) -> None:
    ended = _run(RACE, [str(tmp_path / "lake")], without_links(tmp_path, renames=renames))
    assert ended.returncode == 0, ended.stderr
    authors = [tuple(map(int, line.split())) for line in ended.stdout.splitlines()]
    assert sorted(name for name, _ in authors) == list(range(25))
    for name, author in authors:
        assert (tmp_path / f"lake/_commits/{name}.json").read_text() == f"author {author}"
    assert len(list((tmp_path / "lake/_commits").iterdir())) == 25


@BOTH
def test_a_creator_that_dies_before_it_is_done_blocks_nobody(renames: bool, tmp_path: Path) -> None:
    more = without_links(tmp_path, renames=renames)
    lake, folder = str(tmp_path / "lake"), tmp_path / "lake/_commits"
    died = _run(CREATE, [lake, "first"], {**more, "DIE_BEFORE": "/_commits/a.json"})
    assert died.returncode == -signal.SIGKILL
    left = [path.name for path in folder.iterdir()]
    assert "a.json" not in left
    # What is left is known as such: a vacuum takes it.
    assert all(is_temporary(f"_commits/{name}") for name in left)
    assert len(left) == (1 if renames else 2)
    assert _run(CREATE, [lake, "second"], more).stdout == "True\n"
    assert _run(CREATE, [lake, "third"], more).stdout == "False\n"
    assert (folder / "a.json").read_text() == "second"
    assert [path.name for path in folder.iterdir() if path.name.endswith(".lock")] == []
