"""What TensorBoard shows of a run."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping

from tensorboard.compat import tf  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

_VERSION = "brain.Event:2"


class Board:
    """Writes figures for TensorBoard into a folder, any that TensorBoard can read, from a given step on.

    What an earlier file has of later steps is not shown any more. All is written by whoever calls: torch's own writer
    leaves it to a thread, which on a full disk prints a traceback and dies. Raises OSError where it cannot write.
    """

    def __init__(self, url: str, step: int) -> None:
        tf.io.gfile.makedirs(url)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._file = tf.io.gfile.GFile(f"{url}/{name}", "wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version=_VERSION))
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Show `values` of step number `step`."""
        figures = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=figures)))

    def flush(self) -> None:
        """Make all that was written readable."""
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
