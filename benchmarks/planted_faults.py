"""Small wrong changes, one at a time: does a test fail for each of them?

    python -m benchmarks.planted_faults [--only norms_decay …] [--all]

Each patch below `benchmarks/planted_faults/` is a mistake that somebody could make, of a line or two. Its first lines
say what is wrong then, and which test files (of slow ones, which tests) are expected to fail. It is applied to a
temporary worktree of HEAD, and these are run there; with `--all` the whole suite, which takes minutes a fault. Ends
with 1 where no test fails, where a patch no longer applies, or where the tests fail without any fault.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console

from datalake.signals import stoppable

_ROOT = Path(__file__).resolve().parents[1]
_PATCHES = Path(__file__).with_suffix("")
_HEADER = re.compile(r"# (?P<says>.+)\n# tests: (?P<tests>.+)\ndiff ")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_TESTS_PASSED, _TESTS_FAILED = 0, 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Plant faults and see whether tests find them."""

    # Names of the patches; by default all of them.
    only: tuple[str, ...] = ()
    # The whole suite, not the files that are expected to fail.
    all: bool = False
    # Tests that take longer have found nothing.
    timeout_s: float = 1800.0
    out: Path = Path("out/bench/planted_faults.json")


@dataclass(frozen=True, slots=True)
class Fault:
    """A patch, what is wrong with it, and the test files, or tests, that are to fail."""

    patch: Path
    says: str
    tests: tuple[str, ...]

    @staticmethod
    def read(patch: Path) -> Fault:
        """Return the fault in a file; raises ValueError where it does not begin as all do, or a test is missing."""
        header = _HEADER.match(patch.read_text())
        if header is None:
            raise ValueError(f"{patch}: expected '# what is wrong', '# tests: FILE …', and then the diff")
        tests = tuple(header["tests"].split())
        if missing := [test for test in tests if not (_ROOT / test.partition("::")[0]).is_file()]:
            raise ValueError(f"{patch}: there is no {missing[0]}; name the file that the test is in now")
        return Fault(patch, header["says"], tests)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a fault: `caught`, `NOT CAUGHT`, or what kept it from being tried; the first test that failed."""

    fault: str
    outcome: str
    by: str
    seconds: float


@contextmanager
def worktree() -> Iterator[Path]:
    """Yield a temporary worktree of HEAD, beside what lies beside this one."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        if (shared := _ROOT.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(shared)
        _git(_ROOT, "worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
        try:
            yield tree
        finally:
            _git(_ROOT, "worktree", "remove", "--force", str(tree))


def run_tests(tree: Path, files: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Run these test files, or the whole suite, up to the first failure; return pytest's status and output.

    The status is None where they did not end in time.
    """
    # Properties are tried with the same examples every time.
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CI": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, f"no end within {timeout_s:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output


def try_fault(tree: Path, fault: Fault, options: Options) -> Outcome:
    """Apply one fault to the worktree, run the tests, and take it back."""
    started = time.monotonic()

    def outcome(told: str, by: str = "") -> Outcome:
        return Outcome(fault.patch.stem, told, by, time.monotonic() - started)

    try:
        _git(tree, "apply", "--3way", str(fault.patch))
        if not _git(tree, "diff", "HEAD"):
            return outcome("no longer applies", "the tree has it already")
    except subprocess.CalledProcessError as error:
        _git(tree, "reset", "--quiet", "--hard")
        return outcome("no longer applies", error.stderr.strip().splitlines()[0])
    status, output = run_tests(tree, () if options.all else fault.tests, options.timeout_s)
    _git(tree, "reset", "--quiet", "--hard")
    if status == _TESTS_FAILED:
        return outcome("caught", next(iter(_FAILED.findall(output)), "?"))
    if status == _TESTS_PASSED:
        return outcome("NOT CAUGHT", " ".join(fault.tests))
    last = output.strip().rpartition("\n")[2]
    return outcome("tests did not run", f"exit status {status}: {last}")


def run(options: Options, console: Console) -> int:
    """Try every fault, print a line for each, and return exit status 0 only if all were caught."""
    try:
        faults = [Fault.read(patch) for patch in sorted(_PATCHES.glob("*.patch"))]
    except ValueError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 2
    if unknown := sorted(set(options.only) - {fault.patch.stem for fault in faults}):
        console.print(f"--only {unknown[0]}: no such patch in {_PATCHES}", soft_wrap=True)
        return 2
    faults = [fault for fault in faults if fault.patch.stem in options.only or not options.only]
    outcomes = []
    with worktree() as tree:
        files = () if options.all else sorted({file for fault in faults for file in fault.tests})
        status, output = run_tests(tree, files, options.timeout_s)
        if status != _TESTS_PASSED:
            console.print(f"without any fault: exit status {status}\n{output[-2000:]}", markup=False, soft_wrap=True)
            return 1
        for fault in faults:
            outcomes.append(try_fault(tree, fault, options))
            line = f"{outcomes[-1].outcome:<17} {fault.patch.stem:<32} {outcomes[-1].seconds:>5.0f} s  "
            console.print(line + outcomes[-1].by, markup=False, highlight=False, soft_wrap=True)
    caught = sum(outcome.outcome == "caught" for outcome in outcomes)
    console.print(f"{caught} of {len(outcomes)} faults are caught")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return 0 if caught == len(outcomes) else 1


def _git(tree: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=tree, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    given = tyro.cli(Options, description=__doc__)
    # Stopped, it takes its worktree away.
    with stoppable("planted_faults"):
        sys.exit(run(given, Console()))
