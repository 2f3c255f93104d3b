"""A cluster of several nodes, and jobs on it, that lose a node, the driver or whoever asked for them.

    python -m benchmarks.cluster

Starts nodes with `ray start`, each in processes of its own and with one CPU, builds a lake on them and trains a
student. A build that loses a node has to end with the same lake; a training that loses the node of a worker, or its
driver, with the same losses; a job that `ray job stop` ends leaves lake and checkpoint whole, and the next one goes
on. Exit status 1 where something does not hold. It ends only processes that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import tyro
from rich.console import Console
from rich.table import Table

from datalake.commit import LakeError
from datalake.lake import Lake, list_commits, open_lake, read_commits, read_points_mode
from datalake.store import Store
from datalake.synthetic import DriveConfig, write_drives
from datalake.verify import verify
from training.checkpoint import load_checkpoint
from training.metrics_log import HISTORY_FILE
from training.run_dir import RunDir

_ROOT = Path(__file__).resolve().parents[1]
_HEAD = "127.0.0.1"
_PATIENCE_S = 900.0
# What the clock says differs from run to run.
_CLOCK = {"images_per_second", "wait/data", "wait/teachers"}
# Two workers add the same two gradients. One process adds them in another order, which proposals, being kept or not,
# enlarge: after a few steps losses are alike, but not the same.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-7


@dataclass(frozen=True, kw_only=True)
class ClusterStudy:
    """Lose nodes, drivers and jobs in the middle of builds and trainings."""

    segments: int = 6
    frames: int = 40
    steps: int = 8
    out: Path = Path("out/bench/cluster.json")


@dataclass(slots=True)
class Outcome:
    """What one scenario came to: `problems` must be empty."""

    name: str
    seconds: float = 0.0
    seen: str = ""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster: what `ray start --block` started, and all that this started."""

    address: str
    process: subprocess.Popen[bytes]

    def processes(self) -> list[int]:
        """Return the node's processes, the first one first."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (parent := _parent(int(entry.name))):
                children.setdefault(parent, []).append(int(entry.name))
        found = [self.process.pid]
        for process in found:
            found += children.get(process, [])
        return found

    def workers(self, title: str) -> list[int]:
        """Return those of the node's processes that are Ray's workers with such a title."""
        return [process for process in self.processes() if _title(process).startswith(f"ray::{title}")]

    def lose(self) -> None:
        """End all of it at once, as a power cut would."""
        _signal(self.processes(), signal.SIGKILL)
        self.process.wait()


class RayNodes:
    """A Ray cluster of nodes on one machine, each with an address of its own; the head has no CPU for tasks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._dashboard = _free_port(), _free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self.nodes: list[Node] = []
        # Ray's sockets have names of at most 107 bytes.
        self._start(_HEAD, "--head", f"--port={self._port}", "--num-cpus=0", "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={self._dashboard}", f"--temp-dir={folder}")  # fmt: skip

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes):
            node.lose()

    @property
    def driver(self) -> dict[str, str]:
        """The environment in which a program joins the cluster."""
        return {**self.environment, "RAY_ADDRESS": f"{_HEAD}:{self._port}"}

    @property
    def client(self) -> dict[str, str]:
        """The environment of who submits jobs."""
        return {**self.environment, "RAY_ADDRESS": f"http://127.0.0.1:{self._dashboard}"}

    def add(self) -> Node:
        """Start a node with one CPU, wait until it is there, and return it."""
        number = int(self.nodes[-1].address.rsplit(".", 1)[1]) + 1
        return self._start(f"127.0.0.{number}", f"--address={_HEAD}:{self._port}", "--num-cpus=1")

    def lose(self, node: Node) -> None:
        """Lose a node at once."""
        node.lose()
        self.nodes.remove(node)

    def _start(self, address: str, *words: str) -> Node:
        command = ["ray", "start", "--block", f"--node-ip-address={address}", "--object-store-memory=100000000", *words]
        ports = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        command += [f"--{name}-port={_free_port()}" for name in ports]
        log = self._folder.parent / f"node-{address}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=self.environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        node = Node(address, process)
        self.nodes.append(node)
        try:
            _wait(lambda: "--block" in log.read_text(), f"node {address}", process)
        except RuntimeError:
            # Whoever waits for it will not be there to end it.
            self.lose(node)
            raise
        return node


def build_words(sources: str, lake: Path | str) -> list[str]:
    """Return the build's command, from the checkout."""
    return ["python", "pipelines/build_lake.py", "--source", sources, "--lake", str(lake), "--cameras", "FRONT"]


def train_words(lake: Path, out: Path | str, steps: int, workers: int) -> list[str]:
    """Return the command of a small training, from the checkout."""
    return [
        "python", "pipelines/train.py", "--lake", str(lake), "--out", str(out), "--image-size", "96", "64",
        "--batch", "2", "--unlabelled", "0", "--min-anchor-recall", "0", "--device", "cpu", "--workers", str(workers),
        "--loop.steps", str(steps), "--loop.checkpoint-every", "2", "--loop.precision", "float32",
    ]  # fmt: skip


def start(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program that writes into a log."""
    with log.open("ab") as file:
        return subprocess.Popen(words, env=environment, cwd=_ROOT, stdout=file, stderr=subprocess.STDOUT)


def contents(lake: Lake) -> dict[tuple[str, str], str]:
    """Return the checksum of each table of each segment."""
    return {(commit.segment, table): file.sha256 for commit in lake.commits for table, file in commit.files.items()}


def committed(lake: Path) -> Lake:
    """Return all that is committed to a lake, in a snapshot or not."""
    store = Store(str(lake))
    mode = read_points_mode(store)
    if mode is None:
        raise RuntimeError(f"{lake}: no lake")
    return Lake(store, 0, mode, tuple(read_commits(store, list_commits(store))))


def damages(lake: Lake) -> list[str]:
    """Return what is wrong with what is committed."""
    return [problem for _, problems in verify(lake) for problem in problems]


def history(out: Path) -> list[dict[str, float]]:
    """Return a training's log without what the clock says."""
    lines = [json.loads(line) for line in (out / HISTORY_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _CLOCK} for line in lines]


def differences(found: list[dict[str, float]], expected: list[dict[str, float]]) -> list[str]:
    """Return how a training's log differs from that of an undisturbed one, apart from rounding."""
    if [line["step"] for line in found] != list(range(len(expected))):
        return [f"steps in the history: {[line['step'] for line in found]}"]
    return [
        f"step {line['step']:.0f}: {name} is {line.get(name)}, undisturbed {value}"
        for line, other in zip(found, expected, strict=True)
        for name, value in other.items()
        if name not in line or abs(line[name] - value) > _ABSOLUTE + _RELATIVE * abs(value)
    ]


class Study:
    """The scenarios, each on the same drives."""

    def __init__(self, config: ClusterStudy, folder: Path, nodes: RayNodes, console: Console) -> None:
        self._config, self._folder, self._nodes, self._console = config, folder, nodes, console
        self._sources = f"{folder}/drives/*.tfrecord"
        self._expected: dict[tuple[str, str], str] = {}
        self._undisturbed: list[dict[str, float]] = []
        self.outcomes: list[Outcome] = []

    @property
    def lake(self) -> Path:
        """The lake that nothing has disturbed."""
        return self._folder / "lake-one"

    def run(self) -> None:
        """Run all scenarios."""
        self._nodes.add()
        with self._scenario("build on one node") as outcome:
            one = self._build("lake-one", outcome)
            self._expected = contents(open_lake(str(self.lake)))
        spare = self._nodes.add()
        with self._scenario("build on two nodes") as outcome:
            two = self._build("lake-two", outcome)
            outcome.seen += f", {two / one:.2f} times one node's ({os.cpu_count()} cores here)"
        with self._scenario("build, a node lost") as outcome:
            self._build_losing(spare, outcome)
        for _ in range(2):
            self._nodes.add()
        with self._scenario("training on two nodes") as outcome:
            self._train(outcome)
        with self._scenario("training, a worker's node lost") as outcome:
            self._train_losing_node(outcome)
        with self._scenario("training, driver killed") as outcome:
            self._train_losing_driver(outcome)
        with self._scenario("job build, stopped") as outcome:
            self._stop_build(outcome)
        with self._scenario("job training, stopped") as outcome:
            self._stop_training(outcome)
        for name, words in (
            ("job build, relative lake", build_words(self._sources, "lake")),
            ("job training, relative out", train_words(self.lake, "run", 2, 0)),
        ):
            with self._scenario(name) as outcome:
                self._refuse(words, outcome)

    @contextlib.contextmanager
    def _scenario(self, name: str) -> Iterator[Outcome]:
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        self._console.print(f"{name} …", highlight=False)
        started = time.monotonic()
        try:
            yield outcome
        except (RuntimeError, OSError, LakeError) as error:
            # The others can still be tried.
            outcome.problems.append(str(error))
        outcome.seconds = round(time.monotonic() - started, 1)

    def _log(self, outcome: Outcome) -> Path:
        return self._folder / f"{outcome.name.replace(' ', '-').replace(',', '')}.log"

    def _build(self, name: str, outcome: Outcome) -> float:
        """Build undisturbed, and return the frames per second that the build tells."""
        words = build_words(self._sources, self._folder / name)
        output = self._finish(words, self._nodes.driver, outcome)
        self._compare(self._folder / name, outcome)
        told = re.search(r"\(([\d,.]+) frames/s\)", output)
        if told is None:
            outcome.problems.append("no frames/s in the closing table")
            return 0.0
        outcome.seen = f"{told[1]} frames/s"
        return float(told[1].replace(",", ""))

    def _build_losing(self, victim: Node, outcome: Outcome) -> None:
        lake = self._folder / "lake-node-lost"
        build = start(build_words(self._sources, lake), self._nodes.driver, self._log(outcome))
        _wait(lambda: _commits(lake) and victim.workers("attempt"), "segments built on both nodes", build)
        before = _commits(lake)
        self._nodes.lose(victim)
        self._await(build, outcome)
        outcome.seen = f"{before} of {self._config.segments} segments committed when the node was lost"
        self._compare(lake, outcome)

    def _compare(self, lake: Path, outcome: Outcome) -> None:
        opened = open_lake(str(lake))
        outcome.problems += damages(opened)
        if self._expected and contents(opened) != self._expected:
            outcome.problems.append("the lake differs from that of the undisturbed build")

    def _train(self, outcome: Outcome) -> None:
        out = self._folder / "run-undisturbed"
        self._finish(train_words(self.lake, out, self._config.steps, 2), self._nodes.driver, outcome)
        self._undisturbed = history(out)
        outcome.seen = f"{len(self._undisturbed)} steps"
        if len(self._undisturbed) != self._config.steps:
            outcome.problems.append(f"expected {self._config.steps} steps")

    def _train_losing_node(self, outcome: Outcome) -> None:
        out = self._folder / "run-node-lost"
        words = train_words(self.lake, out, self._config.steps, 2)
        training = start(words, self._nodes.driver, self._log(outcome))
        _wait(lambda: _steps(out) >= 3, "three steps of training", training)
        victim = next(node for node in reversed(self._nodes.nodes) if node.workers("RayTrainWorker"))
        self._nodes.lose(victim)
        at = _steps(out)
        self._await(training, outcome)
        outcome.seen = f"node lost after {at} of {self._config.steps} steps"
        outcome.problems += differences(history(out), self._undisturbed)

    def _train_losing_driver(self, outcome: Outcome) -> None:
        out = self._folder / "run-driver-killed"
        words = train_words(self.lake, out, self._config.steps, 2)
        training = start(words, self._nodes.driver, self._log(outcome))
        _wait(lambda: _steps(out) >= 3, "three steps of training", training)
        training.kill()
        training.wait()
        _wait(lambda: not self._workers("RayTrainWorker"), "the end of its workers")
        outcome.seen = f"driver killed after {_steps(out)} steps, checkpoint of {_checkpoint(out)}"
        self._finish(words, self._nodes.driver, outcome)
        outcome.problems += differences(history(out), self._undisturbed)

    def _stop_build(self, outcome: Outcome) -> None:
        lake = self._folder / "lake-stopped"
        words = build_words(self._sources, lake)
        self._stop(words, "attempt", lambda: 0 < _commits(lake) < self._config.segments, outcome)
        stopped = committed(lake)
        outcome.seen += f"; {len(stopped.commits)} of {self._config.segments} segments committed"
        outcome.problems += damages(stopped)
        self._submit(words, outcome)
        self._compare(lake, outcome)

    def _stop_training(self, outcome: Outcome) -> None:
        out = self._folder / "run-stopped"
        words = train_words(self.lake, out, self._config.steps, 2)
        self._stop(words, "RayTrainWorker", lambda: _steps(out) >= 3, outcome)
        outcome.seen += f"; checkpoint of {_checkpoint(out)} steps"
        self._submit(words, outcome)
        outcome.problems += differences(history(out), self._undisturbed)

    def _refuse(self, words: list[str], outcome: Outcome) -> None:
        done = self._job("submit", "--working-dir", ".", "--", *words)
        if done.returncode == 0:
            outcome.problems.append("the job succeeded")
        # Ray itself repeats the log of a job that failed.
        told = {line for line in done.stdout.splitlines() if "throw-away folder" in line}
        if len(told) != 1 or "Traceback" in done.stdout:
            outcome.problems.append(f"expected one line about the throw-away folder, got: {done.stdout}")
        outcome.seen = f"exit status {done.returncode}: {', '.join(told)}"

    def _workers(self, title: str) -> list[int]:
        return [process for node in self._nodes.nodes for process in node.workers(title)]

    def _stop(self, words: list[str], title: str, when: Callable[[], bool], outcome: Outcome) -> None:
        """Submit a job, stop it when it is time, and look at what it says.

        title: of its workers, which are halted as long as `ray job stop` itself needs to start
        """
        name = f"stopped-{secrets.token_hex(4)}"
        submitted = self._job("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--", *words)
        if submitted.returncode:
            told = (submitted.stdout + submitted.stderr).strip().splitlines()
            raise RuntimeError(f"the job was not taken: {told[-1] if told else submitted.returncode}")
        _wait(when, f"{outcome.name}: the middle")
        halted = self._workers(title)
        _signal(halted, signal.SIGSTOP)
        stopped = self._job("stop", name)
        _signal(halted, signal.SIGCONT)
        if stopped.returncode:
            outcome.problems.append(f"ray job stop ended with {stopped.returncode}")
        status = self._job("status", name).stdout
        logs = self._job("logs", name).stdout
        self._log(outcome).write_text(logs)
        if f"Job '{name}' was stopped" not in status:
            outcome.problems.append(f"expected that the job was stopped, got: {status}")
        told = [line for line in _plain(logs).splitlines() if ": stopped by SIGTERM; run the same command" in line]
        if len(told) != 1 or "Traceback" in logs:
            outcome.problems.append(f"expected one line in its log that it was stopped, got: {told}")
        outcome.seen = ", ".join(told)

    def _submit(self, words: list[str], outcome: Outcome) -> None:
        """Submit a job and wait for its end; it has to succeed."""
        name = f"next-{secrets.token_hex(4)}"
        done = self._job("submit", "--submission-id", name, "--working-dir", ".", "--", *words)
        with self._log(outcome).open("a") as log:
            log.write(done.stdout + done.stderr)
        # A client that loses its connection ends before its job.
        _wait(lambda: re.search("succeeded|failed|stopped", self._job("status", name).stdout), f"the end of job {name}")
        status = self._job("status", name).stdout
        if f"Job '{name}' succeeded" not in status:
            outcome.problems.append(f"the next job did not succeed: {status}")

    def _job(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Call `ray job`, as soon as the cluster takes jobs: its agent starts later than the server that answers."""
        give_up = time.monotonic() + 60
        while True:
            done = subprocess.run(
                ["ray", "job", *words],
                env=self._nodes.client,
                cwd=_ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=_PATIENCE_S,
            )
            if "No available agent" not in done.stderr or time.monotonic() > give_up:
                return done
            time.sleep(1)

    def _finish(self, words: list[str], environment: dict[str, str], outcome: Outcome) -> str:
        """Run a program to its end, which has to be a good one, and return what it said."""
        return self._await(start(words, environment, self._log(outcome)), outcome)

    def _await(self, process: subprocess.Popen[bytes], outcome: Outcome) -> str:
        try:
            process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired as late:
            process.kill()
            process.wait()
            raise RuntimeError(f"not done after {_PATIENCE_S:.0f} s") from late
        output = self._log(outcome).read_text()
        if process.returncode:
            raise RuntimeError(f"{outcome.name}: ended with {process.returncode}:\n{output[-4000:]}")
        return output


def _wait(ready: Callable[[], object], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until something is there; raises RuntimeError where it does not come, or its process ends first."""
    give_up = time.monotonic() + _PATIENCE_S
    while not ready():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{what}: its process ended before with {process.returncode}")
        if time.monotonic() > give_up:
            if process is not None:
                process.kill()
                process.wait()
            raise RuntimeError(f"{what}: not there after {_PATIENCE_S:.0f} s")
        time.sleep(0.05)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _commits(lake: Path) -> int:
    return len(list(lake.glob("_commits/*/*.json")))


def _steps(out: Path) -> int:
    path = out / HISTORY_FILE
    return path.read_text().count("\n") if path.exists() else 0


def _checkpoint(out: Path) -> int:
    checkpoint = load_checkpoint(RunDir(str(out)))
    return checkpoint.step if checkpoint else 0


def _plain(text: str) -> str:
    """Return the text without what colors it on a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(config: ClusterStudy, console: Console) -> int:
    """Run the study, print its table, and return exit status 0 only if everything held."""
    with tempfile.TemporaryDirectory(prefix="cl") as name:
        folder = Path(name)
        drives = DriveConfig(image_width=96, image_height=64, beams=16, columns=80)
        console.print("simulating drives …")
        write_drives(str(folder / "drives"), drives, segments=config.segments, frames=config.frames, seed=4)
        with RayNodes(folder / "r") as nodes:
            study = Study(config, folder, nodes, console)
            study.run()
    table = Table("scenario", "seconds", "seen", "holds")
    for outcome in study.outcomes:
        table.add_row(outcome.name, f"{outcome.seconds:.0f}", outcome.seen, "no" if outcome.problems else "yes")
    console.print(table)
    problems = [f"{outcome.name}: {problem}" for outcome in study.outcomes for problem in outcome.problems]
    for problem in problems:
        console.print(problem, soft_wrap=True, highlight=False, markup=False)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps({"scenarios": [asdict(outcome) for outcome in study.outcomes]}, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(ClusterStudy, description=__doc__), Console()))
