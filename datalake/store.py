"""A lake's place on a disk or an object store: few operations, each either done or not.

The one that matters is `create`: it writes a whole object only if none is there, and of two callers exactly one
succeeds. S3 and GCS have a precondition for it. A local disk gets a complete, synced temporary file that is then
hard-linked to its name; fsspec's own local "create" tests and writes in two steps, which is a race.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec

_READ_BYTES = 8 << 20
_EXCLUSIVE = {"s3", "s3a", "gs", "gcs", "memory"}


class StoreError(OSError):
    """The store cannot do what a lake needs of it."""


class UnknownOutcomeError(StoreError):
    """A write may or may not have happened: the store stopped answering in the middle."""


class Store:
    """The objects below one fsspec URL, named by paths relative to it."""

    def __init__(self, url: str) -> None:
        # Cached listings would show a lake as it was, not as it is.
        self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.root = root.rstrip("/")
        self.url = self.fs.unstrip_protocol(self.root)
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self.is_local = "file" in protocols
        if not self.is_local and not protocols & _EXCLUSIVE:
            raise StoreError(
                f"{url}: a lake needs create-if-absent, which {sorted(protocols)} is not known to have;"
                " use a local path, s3:// or gs://"
            )

    def path(self, name: str) -> str:
        """Return the path of `name` in the terms of `fs`."""
        return f"{self.root}/{name}"

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` as object `name` unless it exists; return whether this call wrote it.

        Raises UnknownOutcomeError where the store failed in between and cannot be asked what it has.
        """
        path = self.path(name)
        if self.is_local:
            return _create_local(Path(path), data)
        try:
            self.fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except (PermissionError, FileNotFoundError):
            raise  # the store said no
        except OSError as error:
            # The answer was lost, not necessarily the write. The bytes name their author, so they settle it; but
            # where there are none, the write may still be on its way.
            try:
                return bool(self.fs.cat_file(path) == data)
            except OSError:
                raise UnknownOutcomeError(f"{self.url}/{name}: created or not, unknown: {error}") from error
        return True

    def read(self, name: str) -> bytes:
        """Return the bytes of object `name`; raises FileNotFoundError."""
        return bytes(self.fs.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write object `name`, replacing it if it is there."""
        path = self.path(name)
        self.fs.makedirs(self.fs._parent(path), exist_ok=True)
        self.fs.pipe_file(path, data)

    def exists(self, name: str) -> bool:
        """Return whether object `name` is there."""
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Return the size of object `name` in bytes; raises FileNotFoundError."""
        return int(self.fs.size(self.path(name)))

    def delete(self, name: str) -> None:
        """Delete object `name`; one that is gone already is fine."""
        try:
            self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def listing(self, folder: str) -> dict[str, float]:
        """Return every object below `folder`, by name relative to the root, with its age in seconds."""
        now = time.time()
        found = self.fs.find(self.path(folder), detail=True)
        return {path[len(self.root) + 1 :]: now - _modified(info) for path, info in found.items()}

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders directly below `folder`, or below the root."""
        try:
            entries = self.fs.ls(self.path(folder) if folder else self.root, detail=True)
        except FileNotFoundError:
            return []
        names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]
        return sorted(names)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of object `name` in blocks of a few MB."""
        with self.fs.open(self.path(name), "rb") as stream:
            while block := stream.read(_READ_BYTES):
                yield block

    def sink(self, name: str) -> Sink:
        """Return a stream that writes object `name`."""
        path = self.path(name)
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Sink(self.fs.open(path, "wb"), folder=Path(path).parent if self.is_local else None)


class Sink:
    """A write-only stream that counts and hashes what passes; on a local disk `close` waits for the platter."""

    def __init__(self, stream: Any, folder: Path | None) -> None:
        self._stream = stream
        self._folder = folder
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._discarded = False
        self.closed = False

    def write(self, data: Any) -> int:
        """Write `data` (anything with the buffer protocol); a discarded sink lets it fall."""
        view = memoryview(data)
        if self._discarded:
            return view.nbytes
        self._stream.write(view)
        self._hash.update(view)
        self._bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Do nothing: bytes are flushed once, on close."""

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._bytes

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Finish the object. On object stores it appears only now."""
        if self.closed:
            return
        self.closed = True
        if self._folder:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            _sync_folder(self._folder)
        self._stream.close()

    def discard(self) -> None:
        """Give up the object; whatever the store already has of it is the caller's to delete."""
        if self.closed:
            return
        self.closed = self._discarded = True
        if self._folder:
            # A full disk fails here a second time, over bytes that nobody wants any more.
            with contextlib.suppress(OSError):
                self._stream.close()
        else:
            # On an object store closing would publish what is written so far.
            self._stream.discard()
            # s3fs leaves it open, and would try to flush its missing buffer when it is collected.
            self._stream.closed = True

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._bytes

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes written so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """Make the folder's new entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified(info: dict[str, Any]) -> float:
    """Return the time an object was last written, in seconds since the epoch, as its store reports it."""
    for key in ("mtime", "LastModified", "updated", "last_modified", "created"):
        if (value := info.get(key)) is not None:
            return float(value.timestamp() if hasattr(value, "timestamp") else value)
    raise StoreError(f"{info.get('name')}: the store reports no modification time")
