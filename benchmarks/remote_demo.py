"""The whole demo against an S3 endpoint that is slow and fails: does it end as on a disk?

    python -m benchmarks.remote_demo

Runs the demo, at a reduced size, on this machine's disk, and once more with everything in a bucket behind
`benchmarks.faulty_store`: 1 % of the requests end in a fault, connections that drop included, and each waits 100 ms.
Lake, student and metrics have to be the same, up to what the clock says. Ends with 1 where they are
not.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console

from benchmarks.faulty_store import Faults, FaultyStore, moto_server
from datalake.lake import Lake, open_lake
from student.checkpoint import read_student

_ROOT = Path(__file__).resolve().parents[1]
_BUCKET = "demo"
_SIZES = (
    *("--teach-segments", "12", "--train-segments", "16", "--val-segments", "6"),
    *("--lidar-steps", "20", "--mask-steps", "40", "--student-steps", "20"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    # Share of the requests that end in a fault, and what each waits.
    share: float = 0.01
    latency_ms: float = 100.0
    # An S3 endpoint that is there already, with credentials from the environment; by default one of our own (moto).
    endpoint: str | None = None
    # Demos, logs and metrics go here.
    output: Path = Path("out/bench/remote_demo")


def run_demo(out: Path, log: Path, *words: str) -> float:
    """Run the demo and return its seconds; raises RuntimeError, with the end of its log, where it fails."""
    started = time.monotonic()
    command = [sys.executable, str(_ROOT / "pipelines/demo.py"), "--out", str(out), *_SIZES, *words]
    with log.open("wb") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise RuntimeError(f"the demo ended with {status}: {log.read_text()[-3000:]}")
    return time.monotonic() - started


@contextlib.contextmanager
def endpoint_of(options: Options) -> Iterator[str]:
    """Yield the endpoint to stand in front of."""
    if options.endpoint:
        yield options.endpoint
        return
    os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "benchmark")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    with moto_server() as upstream:
        yield upstream


def contents(lake: Lake) -> dict[tuple[str, str], str]:
    """Return the checksum of each table of each segment."""
    return {(commit.segment, table): file.sha256 for commit in lake.commits for table, file in commit.files.items()}


def differences(local: str, remote: str, metrics: tuple[bytes, bytes]) -> list[str]:
    """Return how two demos differ."""
    problems = []
    if contents(open_lake(f"{local}/lake")) != contents(open_lake(f"{remote}/lake")):
        problems.append("the lakes differ")
    one, other = (read_student(f"{place}/student")[0].state_dict() for place in (local, remote))
    if differing := [name for name, value in one.items() if not bool((value == other[name]).all())]:
        problems.append(f"{len(differing)} of {len(one)} of the students' tensors differ, e.g. {differing[0]}")
    here, there = (json.loads(content)["metrics"] for content in metrics)
    problems += [
        f"{name} is {there.get(name)}, on the disk {value}"
        for name, value in here.items()
        if name != "images_per_second" and there.get(name) != value
    ]
    return problems


def run(options: Options, console: Console) -> int:
    """Run both demos, print what was seen, and return 0 only where they end alike."""
    import s3fs

    out = options.output.absolute()
    out.mkdir(parents=True, exist_ok=True)
    # A run before this one would be gone on with.
    fresh = out / f"{int(time.time())}"
    seconds = {"disk": run_demo(fresh / "local", out / "local.log")}
    with endpoint_of(options) as upstream, FaultyStore(upstream, Faults()) as store:
        os.environ["AWS_ENDPOINT_URL"] = store.url
        s3fs.S3FileSystem().makedirs(_BUCKET, exist_ok=True)
        store.faults = Faults(share=options.share, latency_s=options.latency_ms / 1e3, seed=1)
        remote = f"s3://{_BUCKET}/{fresh.name}"
        seconds["store"] = run_demo(fresh / "remote", out / "remote.log", "--store", remote)
        requests, store.faults = list(store.log), Faults()
        metrics = (fresh / "local/metrics.json").read_bytes(), s3fs.S3FileSystem().cat_file(f"{remote}/metrics.json")
        problems = differences(str(fresh / "local"), remote, metrics)
    faults = Counter(request.fault for request in requests if request.fault)
    told = ", ".join(f"{count} {kind}" for kind, count in faults.most_common())
    console.print(
        f"on the disk {seconds['disk']:.0f} s; in the store {seconds['store']:.0f} s, {len(requests):,} requests of"
        f" {options.latency_ms:g} ms, {sum(faults.values())} faults ({told})",
        soft_wrap=True,
        highlight=False,
    )
    for problem in problems:
        console.print(problem, soft_wrap=True, highlight=False, markup=False)
    console.print("the same lake, student and metrics" if not problems else "not the same", highlight=False)
    settings = {name: str(value) for name, value in asdict(options).items()}
    values = {
        "options": settings,
        "seconds": seconds,
        "requests": len(requests),
        "faults": faults,
        "problems": problems,
    }
    (out / "metrics.json").write_text(json.dumps(values, indent=1))
    return 1 if problems or not faults else 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, description=__doc__), Console()))
