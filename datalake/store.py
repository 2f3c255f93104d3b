"""A lake's place on a disk or an object store: few operations, each either done or not.

The one that matters is `create`: it writes a whole object only if none is there, and of two callers exactly one
succeeds. S3 and GCS have a precondition for it. A local disk gets a complete, synced temporary file that then takes its
name (`datalake.exclusive`); fsspec's own local "create" tests and writes in two steps, which is a race.

What fails for a moment on a remote store is tried again, in one place only. A single request is repeated here
(`datalake.retry`), and its client told not to: s3fs and botocore together make 26 requests of one that is throttled.
Uploads in parts and listings are many requests, which only the client sees: there the client repeats each, and nobody
else. gcsfs cannot be told, so it alone repeats. aiohttp, below all, sends a request once more where a kept connection
turns out to be closed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from datalake.disk import room_in
from datalake.exclusive import take_name
from datalake.place import file_system
from datalake.retry import Retry, StoreError, explain, is_taken, is_transient, was_refused

Result = TypeVar("Result")

_READ_BYTES = 8 << 20
# A part of an upload; each open file of a build has one in memory. S3 takes 10,000 of at least 5 MB.
_PART_BYTES = 16 << 20
# botocore's pauses are longer than ours: these many attempts take about eight seconds.
_CLIENT_ATTEMPTS = 5
# s3fs would keep ten, fewer than a loader has reads in flight.
_CONNECTIONS = 64
_EXCLUSIVE = {"s3", "s3a", "gs", "gcs", "memory"}
_WEB = {"http", "https"}
# What a web server may answer of a file that it does not have: to who may not list, S3 does not say that it is not.
_ABSENT = {403, 410}
_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR, errno.EACCES}
_TEMPORARY = re.compile(r"(?:.*/)?\.[^/]+\.json\.(?:[0-9a-f]{32}\.tmp|[0-9]+\.lock)")


class UnknownOutcomeError(StoreError):
    """A write may or may not have happened: the store stopped answering in the middle."""


class Range(NamedTuple):
    """The bytes from `start` up to `stop` of object `name`."""

    name: str
    start: int
    stop: int


class Store:
    """The objects below one fsspec URL, named by paths relative to it.

    A plain web server is one for readers alone: nothing is written there, nothing listed, and it has to answer ranges.
    A store may be pickled, and used by several threads. Every operation on a remote one raises UnavailableError where
    it went on failing, and else the error that the store reports, each in a line that names the object.
    """

    def __init__(self, url: str, retry: Retry | None = None, read_only: bool = False) -> None:
        """Open the place at `url`; nothing is asked of it yet. Raises StoreError for a kind that cannot hold a lake.

        read_only: a reader opens it, for whom a web server will do
        """
        self._retry = retry or Retry()
        self.fs, root = _file_system(url, attempts=1)
        self.root = root.rstrip("/")
        self.url = self.fs.unstrip_protocol(self.root)
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self.is_local = "file" in protocols
        self.is_web = bool(protocols & _WEB)
        if not self.is_local and not protocols & _EXCLUSIVE and not (self.is_web and read_only):
            raise StoreError(
                f"{url}: a lake needs create-if-absent, which {sorted(protocols)} is not known to have;"
                " use a local path, s3:// or gs://"
            )
        # For what is many requests at once: its client repeats each.
        self._client_attempts = min(_CLIENT_ATTEMPTS, self._retry.attempts)
        self._patient_fs, _ = _file_system(url, self._client_attempts)
        if protocols & {"gs", "gcs"}:
            self._retry = Retry(attempts=1)

    def __reduce__(self) -> tuple[type[Store], tuple[str, Retry, bool]]:
        return Store, (self.url, self._retry, self.is_web)

    def path(self, name: str) -> str:
        """Return the path of `name` in the terms of `fs`."""
        return f"{self.root}/{name}"

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` as object `name` unless it exists; return whether this call wrote it.

        On a remote store the bytes have to name their author: whoever finds his own there has written them.

        Raises UnknownOutcomeError where the store failed in between and cannot be asked what it has.
        """
        self._refuse_web("written to")
        path = self.path(name)
        if self.is_local:
            with room_in(self.url):
                return _create_local(Path(path), data)
        # Whether a request may have written the object, its answer lost.
        unsure = False

        def put() -> bool:
            nonlocal unsure
            try:
                self.fs.pipe_file(path, data, mode="create")
            except (PermissionError, FileNotFoundError):
                raise  # the store said no
            except Exception as error:
                if is_taken(error):
                    # It may be ours even at the first attempt: aiohttp itself repeats what a kept connection lost.
                    return self.read(name) == data
                unsure = unsure or (not was_refused(error) and (is_transient(error) or isinstance(error, OSError)))
                raise
            return True

        try:
            return self._ask(put, "create", name)
        except Exception as error:
            # Also where the last answer was a plain no: an earlier request may have gone through.
            if not unsure:
                raise
            # The bytes settle it; but where there are none, the write may still be on its way.
            try:
                return bool(self.fs.cat_file(path, start=0) == data)
            except Exception:
                raise UnknownOutcomeError(f"{self.url}/{name}: created or not, unknown: {error}") from error

    def read(self, name: str) -> bytes:
        """Return the bytes of object `name`, which is not empty; raises FileNotFoundError."""
        try:
            # Without a start s3fs asks for the size first, and lists where there is none.
            return bytes(self._ask(lambda: self.fs.cat_file(self.path(name), start=0), "read", name))
        except StoreError as error:
            if self._is_absent(error):
                raise FileNotFoundError(str(error)) from error
            raise

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, all asked for at the same time; raises StoreError where an object ends early.

        Only those that fail are asked for again.
        """
        found: dict[Range, bytes] = {}
        failed = ""

        def ask() -> None:
            nonlocal failed
            missing = [piece for piece in dict.fromkeys(ranges) if piece not in found]
            answers = self.fs.cat_ranges(
                [self.path(piece.name) for piece in missing],
                [piece.start for piece in missing],
                [piece.stop for piece in missing],
                on_error="return",
            )
            found.update((piece, data) for piece, data in zip(missing, answers, strict=True) if _is_whole(piece, data))
            errors = [(piece, data) for piece, data in zip(missing, answers, strict=True) if piece not in found]
            for piece, answer in errors:
                failed = piece.name
                if not isinstance(answer, Exception) and len(answer) > piece.stop - piece.start:
                    raise StoreError(
                        f"{self.url}/{piece.name}: the server answers with the whole file where a range of it was asked"
                        " for; serve the lake by one that knows ranges (nginx, Apache, Caddy), or copy it to a disk"
                    )
                if not isinstance(answer, Exception):
                    raise StoreError(
                        f"{self.url}/{piece.name}: cut off: {len(answer)} of the {piece.stop - piece.start} bytes from"
                        f" byte {piece.start} on are there"
                    )
                if not is_transient(answer):
                    raise answer
            for _, answer in errors:
                raise answer

        if ranges:
            self._retry.call(ask, lambda: f"read {self.url}/{failed}")
        return [found[piece] for piece in ranges]

    def write(self, name: str, data: bytes) -> None:
        """Write object `name`, replacing it if it is there."""
        self._refuse_web("written to")
        path = self.path(name)
        with room_in(self.url):
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._ask(lambda: self.fs.pipe_file(path, data), "write", name)

    def exists(self, name: str) -> bool:
        """Return whether object `name`, which is not empty, is there."""
        if self.is_local:
            return Path(self.path(name)).exists()
        # Asked for what it knows of a missing object, s3fs lists.
        try:
            self.read_ranges([Range(name, 0, 1)])
        except FileNotFoundError:
            return False
        except StoreError as error:
            if self._is_absent(error):
                return False
            raise
        return True

    def _is_absent(self, error: StoreError) -> bool:
        """Return whether a web server has refused what it does not have."""
        return self.is_web and getattr(error.__cause__, "status", None) in _ABSENT

    def size(self, name: str) -> int:
        """Return the size of object `name` in bytes; raises FileNotFoundError."""
        size = self._ask(lambda: self.fs.size(self.path(name)), "read", name)
        if size is None:
            raise StoreError(f"{self.url}/{name}: the server does not say how large it is")
        return int(size)

    def age(self, name: str) -> float | None:
        """Return how many seconds ago object `name` was last written, None where there is none."""
        try:
            info = self._ask(lambda: self.fs.info(self.path(name)), "read", name)
        except FileNotFoundError:
            return None
        return time.time() - _modified(info)

    def is_linked(self, name: str) -> bool:
        """Return whether object `name`, or a folder on the way to it from the root, is a symbolic link.

        What it stands for may lie outside of this store, and be somebody else's.
        """
        if not self.is_local:
            return False
        path = Path(self.path(name))
        below_root = [path, *list(path.parents)[: name.count("/")]]
        return any(each.is_symlink() for each in below_root)

    def delete(self, name: str) -> None:
        """Delete object `name`; one that is gone already is fine."""
        self._refuse_web("written to")
        try:
            self._ask(lambda: self.fs.rm_file(self.path(name)), "delete", name)
        except FileNotFoundError:
            return

    def listing(self, folder: str) -> dict[str, float]:
        """Return every object below `folder`, by name relative to the root, with its age in seconds.

        Raises OSError where a folder cannot be read: what is not listed would be taken for what is not there.
        """
        self._refuse_web("listed")
        now = time.time()
        if self.is_local:
            ages = _list_local(Path(self.path(folder)), now)
            return {str(path)[len(self.root) + 1 :]: age_s for path, age_s in ages.items()}
        found = self._ask_once(lambda: self._patient_fs.find(self.path(folder), detail=True), "list", folder)
        return {path[len(self.root) + 1 :]: now - _modified(info) for path, info in found.items()}

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders directly below `folder`, or below the root."""
        return [name for name, kind in self._entries(folder) if kind == "directory"]

    def entries(self) -> list[str]:
        """Return the names of all that lies directly below the root, folders included."""
        return [name for name, _ in self._entries("")]

    def _entries(self, folder: str) -> list[tuple[str, str]]:
        self._refuse_web("listed")
        path = self.path(folder) if folder else self.root
        try:
            found = self._ask_once(lambda: self._patient_fs.ls(path, detail=True), "list", folder)
        except FileNotFoundError:
            return []
        # Some tools leave an object of no bytes in the folder's own name.
        paths = [(entry["name"].rstrip("/"), entry["type"]) for entry in found]
        return sorted((name.rsplit("/", 1)[-1], kind) for name, kind in paths if self.is_local or name != path)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of object `name` in blocks of a few MB."""
        if self.is_local:
            with Path(self.path(name)).open("rb") as stream:
                while block := stream.read(_READ_BYTES):
                    yield block
            return
        size = self.size(name)
        for start in range(0, size, _READ_BYTES):
            yield from self.read_ranges([Range(name, start, min(start + _READ_BYTES, size))])

    def sink(self, name: str) -> Sink:
        """Return a stream that writes object `name`."""
        self._refuse_web("written to")
        path = self.path(name)
        with room_in(self.url):
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                return Sink(self.fs.open(path, "wb"), self.url, folder=Path(path).parent)
            stream = _Upload(self, name, self._patient_fs.open(path, "wb", block_size=_PART_BYTES))
            return Sink(stream, self.url, folder=None)

    def _refuse_web(self, what: str) -> None:
        if self.is_web:
            raise StoreError(f"{self.url}: a lake on a web server cannot be {what}; do that where its files are")

    def _ask(self, action: Callable[[], Result], verb: str, name: str) -> Result:
        """Return what a single request returns, repeated where it helps."""
        return action() if self.is_local else self._retry.call(action, lambda: f"{verb} {self.url}/{name}")

    def _ask_once(self, action: Callable[[], Result], verb: str, name: str) -> Result:
        """Return what an action of many requests returns, each of which its client repeats."""
        if self.is_local:
            return action()
        try:
            return action()
        except Exception as error:
            told = explain(error, f"{verb} {self.url}/{name}", f"{self._client_attempts} attempts at a request")
            if told is error:
                raise
            raise told from error


class _Upload:
    """A client's stream for one object, which appears when it is closed; its errors name the object."""

    def __init__(self, store: Store, name: str, stream: Any) -> None:
        self._store, self._name, self._stream = store, name, stream
        self._bytes = 0

    def write(self, data: memoryview) -> None:
        self._store._ask_once(lambda: self._stream.write(data), "write", self._name)
        self._bytes += data.nbytes

    def close(self) -> None:
        try:
            self._store._ask_once(self._stream.close, "write", self._name)
        except FileNotFoundError:
            # The upload is gone: given up by somebody, or complete, and only the answer that said so was lost.
            if self._store.size(self._name) != self._bytes:
                raise
        finally:
            # s3fs leaves it open, and would try to flush its missing buffer when it is collected.
            self._stream.closed = True

    def discard(self) -> None:
        try:
            self._store._ask_once(self._stream.discard, "give up", self._name)
        finally:
            self._stream.closed = True


class Sink:
    """A write-only stream that counts and hashes what passes; on a local disk `close` waits for the platter.

    `write` and `close` raise NoSpaceError where the disk is full.
    """

    def __init__(self, stream: Any, place: str, folder: Path | None) -> None:
        self._stream = stream
        self._place = place
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
        with room_in(self._place):
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
        if self._folder is None:
            self._stream.close()
            return
        try:
            with room_in(self._place):
                self._stream.flush()
                os.fsync(self._stream.fileno())
                _sync_folder(self._folder)
                self._stream.close()
        except OSError:
            self._give_up()
            raise

    def discard(self) -> None:
        """Give up the object; whatever the store already has of it is the caller's to delete."""
        if self.closed:
            return
        self.closed = self._discarded = True
        if self._folder:
            self._give_up()
        else:
            # On an object store closing would publish what is written so far.
            self._stream.discard()

    def _give_up(self) -> None:
        # A full disk fails here a second time, over bytes that nobody wants any more.
        with contextlib.suppress(OSError):
            self._stream.close()

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


def _file_system(url: str, attempts: int) -> tuple[Any, str]:
    """Return the file system of `url` and the path in it; if it can be told, a request is made `attempts` times."""
    # Cached listings would show a lake as it was, not as it is.
    options: dict[str, Any] = {"use_listings_cache": False}
    is_s3 = url.startswith(("s3://", "s3a://"))
    if is_s3:
        retries = {"mode": "standard", "total_max_attempts": attempts}
        options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, "retries": retries}
    if url.startswith(("http://", "https://")):
        # A server that compresses its answers gives no ranges of them.
        options["client_kwargs"] = {"headers": {"Accept-Encoding": "identity"}}
    fs, path = file_system(url, **options)
    if is_s3:
        # s3fs repeats what botocore has repeated in vain.
        fs.retries = 1
    return fs, path


def is_temporary(name: str) -> bool:
    """Return whether a file's name is one that `create` takes on a local disk for a JSON object that is still to be.

    Of the object itself, or of the lock for its name.
    """
    return _TEMPORARY.fullmatch(name) is not None


def _is_whole(piece: Range, answer: Any) -> bool:
    return not isinstance(answer, Exception) and len(answer) == piece.stop - piece.start


def _list_local(folder: Path, now: float) -> dict[Path, float]:
    # fsspec's own way to list a disk passes over folders that it cannot read.
    ages: dict[Path, float] = {}
    waiting = [folder]
    while waiting:
        # What others delete meanwhile is gone.
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                else:
                    with contextlib.suppress(FileNotFoundError):
                        ages[Path(entry.path)] = now - entry.stat().st_mtime
    return ages


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    # As `is_temporary` knows it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if not take_name(temporary, path):
            return False
        try:
            _sync_folder(path.parent)
        except OSError as error:
            raise UnknownOutcomeError(f"{path}: created, but perhaps not for good: {error}") from error
    finally:
        # A left-over is swept later; that it cannot be deleted must not hide what became of the object.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _sync_folder(folder: Path) -> None:
    """Make the folder's new entries survive a power cut, on file systems that can be asked for that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Network and FUSE file systems refuse it for folders; their entries are as safe as their server makes them.
        if error.errno not in _NOT_FOR_FOLDERS:
            raise


def _modified(info: dict[str, Any]) -> float:
    """Return the time an object was last written, in seconds since the epoch, as its store reports it."""
    for key in ("mtime", "LastModified", "updated", "last_modified", "created"):
        if (value := info.get(key)) is not None:
            return float(value.timestamp() if hasattr(value, "timestamp") else value)
    raise StoreError(f"{info.get('name')}: the store reports no modification time")
