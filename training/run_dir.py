"""The folder of a run: a local one, or a place in an object store."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec

from datalake.disk import room_in


class RunDir:
    """Files below one fsspec URL, each replaced as a whole: a reader finds the old or the new one."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)

    @property
    def local(self) -> Path | None:
        """The folder, where it is one of this machine."""
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        return Path(self._root) if "file" in protocols else None

    def place(self, name: str) -> str:
        """Return the URL of a file, for messages."""
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file. On a disk it is there when this returns, whatever happens to the machine.

        Raises NoSpaceError where the disk is full; the file before is then there as it was.
        """
        folder = self.local
        if folder is None:
            # An object appears when all of it has arrived.
            self._fs.pipe_file(f"{self._root}/{name}", content)
            return
        with room_in(self.url):
            _replace(folder / name, content)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        # On a full disk, half a file would be in the way of the history, which is small.
        unfinished.unlink(missing_ok=True)
        raise
    entry = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
