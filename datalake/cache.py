"""A folder on a local disk that keeps what was read of remote lakes, up to a number of bytes.

Only what never changes may be kept. Any number of processes may share the folder, and it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from datalake.retry import StoreError

_CHECKSUM_BYTES = 4
_TOTAL = ".total"
_TEMPORARY = ".tmp"
_NAME = re.compile(r"[0-9a-f]{40}(\.tmp)?")
# Making room frees a tenth more than is needed, so that the folder is seldom listed.
_ROOM = 0.9


@dataclass(frozen=True, slots=True)
class RangeCache:
    """Pieces of bytes by key, the least recently used ones deleted first.

    folder: created when something is kept
    max_bytes: what all files in it take together at most, at any moment
    """

    folder: str
    max_bytes: int = 32 << 30

    def get(self, key: str, size: int) -> bytes | None:
        """Return the `size` bytes kept under `key`, or None. A damaged file is deleted, and counts as none."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        kept, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(kept) != size or _checksum(kept) != checksum:
            path.unlink(missing_ok=True)
            return None
        # Another process may just have made room.
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        return kept

    def put(self, key: str, data: bytes) -> None:
        """Keep `data` under `key`, unless it is larger than all that may be kept.

        Raises StoreError where the folder cannot be written.
        """
        size = len(data) + _CHECKSUM_BYTES
        if size > self.max_bytes:
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._total() as total:
                if path.exists():
                    return
                kept = total.read()
                if kept is None or kept + size > self.max_bytes:
                    kept = self._make_room(size)
                # Counted first: killed now, the total is too large, and is put right when room is made.
                total.write(kept + size)
                temporary = path.with_suffix(_TEMPORARY)
                temporary.write_bytes(data + _checksum(data))
                temporary.rename(path)
        except OSError as error:
            if isinstance(error, FileNotFoundError | FileExistsError) and not path.parent.is_file():
                return  # somebody deletes the folder this very moment: then this is not kept
            raise StoreError(f"cache {self.folder}: cannot keep {len(data)} bytes: {error}") from error

    def _path(self, key: str) -> Path:
        return Path(self.folder, hashlib.sha256(key.encode()).hexdigest()[:40])

    @contextlib.contextmanager
    def _total(self) -> Iterator[_Total]:
        """Yield the total, while no other thread or process writes here."""
        descriptor = os.open(Path(self.folder, _TOTAL), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Total(descriptor)
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> int:
        """Delete what was not used for the longest time until `size` bytes fit; return how many are left."""
        found = []
        for entry in os.scandir(self.folder):
            # What is not called as this cache calls its files is somebody else's, and stays.
            if not _NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            if entry.name.endswith(_TEMPORARY):
                Path(entry).unlink()  # of a process that was killed: nobody else writes now
            else:
                # Another process may delete what it finds damaged.
                with contextlib.suppress(FileNotFoundError):
                    about = entry.stat()
                    found.append((about.st_mtime_ns, about.st_size, entry.path))
        kept = sum(each for _, each, _ in found)
        if kept + size > self.max_bytes:
            for _, each, path in sorted(found):
                if kept + size <= self.max_bytes * _ROOM or kept == 0:
                    break
                Path(path).unlink(missing_ok=True)
                kept -= each
        return kept


@dataclass(frozen=True, slots=True)
class _Total:
    """How many bytes the folder holds, as written in a locked file; None where that is not known."""

    descriptor: int

    def read(self) -> int | None:
        text = os.pread(self.descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else None

    def write(self, value: int) -> None:
        os.pwrite(self.descriptor, b"%-31d\n" % value, 0)


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CHECKSUM_BYTES, "big")
