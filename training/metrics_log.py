"""What a run did, step by step: a line of JSON each, and the same for TensorBoard."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tensorboard.compat import tf  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from datalake.disk import room_in
from training.run_dir import RunDir

HISTORY_FILE, TENSORBOARD_FOLDER = "history.jsonl", "tensorboard"
_VERSION = "brain.Event:2"


class MetricsLog:
    """Writes the metrics of each step, from a given step on.

    What an interrupted run had logged beyond its last checkpoint is removed, since it is about to be done again. In an
    object store the lines appear with every checkpoint, elsewhere at once. Raises NoSpaceError where the disk is full.
    """

    def __init__(self, run_dir: RunDir, step: int) -> None:
        self._run_dir = run_dir
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if run_dir.local is None:
            self._scratch = tempfile.TemporaryDirectory()
            self._path = Path(self._scratch.name) / HISTORY_FILE
            self._path.write_bytes(run_dir.read(HISTORY_FILE) or b"")
            tensorboard = run_dir.place(TENSORBOARD_FOLDER)
        else:
            self._path = run_dir.local / HISTORY_FILE
            tensorboard = str(run_dir.local / TENSORBOARD_FOLDER)
        with room_in(run_dir.url):
            self._history = _History(self._path, step)
            self._events = _Events(tensorboard, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with room_in(self._run_dir.url), ExitStack() as stack:
            if self._scratch is not None:
                stack.callback(self._scratch.cleanup)
            stack.callback(self._events.close)
            self._history.close()

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of step number `step`."""
        with room_in(self._run_dir.url):
            self._history.append(step, metrics)
            self._events.append(step, metrics)

    def sync(self) -> None:
        """Make all lines last. Before a checkpoint, so that no step it has done is missing here."""
        with room_in(self._run_dir.url):
            self._history.sync()
            if self._run_dir.local is None:
                self._run_dir.write(HISTORY_FILE, self._path.read_bytes())
            self._events.flush()


def read_history(run_dir: RunDir) -> list[dict[str, float]]:
    """Return the metrics of a run's steps, oldest first, without a half-written line; [] where there are none."""
    content = run_dir.read(HISTORY_FILE) or b""
    return [json.loads(line) for line in content.decode().split("\n")[:-1]]


class _History:
    """Appends to a JSONL file; lines of `step` and later are removed first."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _lines_before(path, step) if step else []
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text("".join(kept))
        unfinished.replace(path)
        self._file = path.open("a")

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        # For others to follow at once.
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Events:
    """Writes an event file for TensorBoard into a folder, any that TensorBoard can read.

    What an earlier file has of `step` and later is not shown any more. All is written in the caller's thread: torch's
    own writer leaves it to another, which on a full disk prints a traceback and dies.
    """

    def __init__(self, url: str, step: int) -> None:
        tf.io.gfile.makedirs(url)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._file = tf.io.gfile.GFile(f"{url}/{name}", "wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version=_VERSION))
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _lines_before(path: Path, step: int) -> list[str]:
    kept = []
    with path.open() as file:
        for line in file:
            # The process may have died within a line, which then is the last and of a step to be repeated.
            if not line.endswith("\n") or json.loads(line)["step"] >= step:
                break
            kept.append(line)
    return kept
