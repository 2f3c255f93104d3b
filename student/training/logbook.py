"""What a run did, for those who follow it and those who read it later."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from datalake.space import room_in
from student.training.board import Board
from student.training.checkpoint import HISTORY_FILE
from student.training.folder import RunFolder
from teachers.training.history import History

BOARD_FOLDER = "tensorboard"


class Logbook:
    """Writes each step as a line of JSON and to TensorBoard, from a given step on.

    What an interrupted run had logged beyond its last checkpoint is removed, since it is about to be done again. In an
    object store the lines appear with every checkpoint, elsewhere at once. Raises NoSpaceError where the disk is full.
    """

    def __init__(self, folder: RunFolder, step: int) -> None:
        self._folder = folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if folder.local is None:
            self._scratch = tempfile.TemporaryDirectory()
            self._path = Path(self._scratch.name) / HISTORY_FILE
            self._path.write_bytes(folder.read(HISTORY_FILE) or b"")
        else:
            self._path = folder.local / HISTORY_FILE
        board = folder.place(BOARD_FOLDER) if folder.local is None else str(folder.local / BOARD_FOLDER)
        with room_in(folder.url):
            self._history = History(self._path, step)
            self._board = Board(board, step)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with room_in(self._folder.url), ExitStack() as stack:
            if self._scratch is not None:
                stack.callback(self._scratch.cleanup)
            stack.callback(self._board.close)
            self._history.__exit__(kind, error, trace)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` of step number `step`."""
        with room_in(self._folder.url):
            self._history.append(step, values)
            self._board.append(step, values)

    def sync(self) -> None:
        """Make all lines last. Before a checkpoint, so that no step it has done is missing here."""
        with room_in(self._folder.url):
            self._history.sync()
            if self._folder.local is None:
                self._folder.write(HISTORY_FILE, self._path.read_bytes())
            self._board.flush()
