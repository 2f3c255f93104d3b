"""One owner of a run's folder at a time: two trainings in one would overwrite each other's history and checkpoints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datalake.disk import room_in
from datalake.retry import StoreError
from datalake.store import Store
from training.errors import TrainingError

# After this silence an owner in a store is taken for dead.
LEASE_S = 60.0
_FILE = ".owner"
_FOLDER = "_owner"
# What file systems say that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A process may lock a file twice: it is not asked about its own locks.
_held: set[Path] = set()


@contextmanager
def run_lock(url: str, lease_s: float = LEASE_S) -> Iterator[None]:
    """Own the run's folder at `url` during the block.

    On a local disk the lock dies with its process. In a store, and on a disk without locks, it is a lease that is
    renewed all the time; an owner that was not heard of for `lease_s` seconds loses it, and if it is alive after all,
    as when it lost its network, it is ended with SIGTERM.

    Raises TrainingError, naming the owner, where there is one.
    """
    try:
        store = Store(url)
    except StoreError:
        # To train without is what one could do before; but whoever does should know.
        line = f"{url}: this kind of store cannot keep two trainings apart; see that no other has this folder"
        print(line, file=sys.stderr)
        yield
        return
    with _file_lock(store, lease_s) if store.is_local else _lease(store, lease_s):
        yield


@contextmanager
def _file_lock(store: Store, lease_s: float) -> Iterator[None]:
    folder = Path(store.root)
    path, new = folder / _FILE, [each for each in (folder, *folder.parents) if not each.exists()]
    with room_in(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    if descriptor is None:
        with _lease(store, lease_s):
            yield
        return
    _held.add(path)
    try:
        with room_in(str(folder)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _dump(_myself()), 0)
        yield
    finally:
        _held.remove(path)
        # Gone before it is unlocked: whoever has it open finds out, and makes another.
        with contextlib.suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)
        # Of a run that nothing came of no folder is left either.
        with contextlib.suppress(OSError):
            for each in new:
                each.rmdir()


def _locked(path: Path) -> int | None:
    """Return a descriptor of the file, which is locked; None where the file system has no locks.

    Raises TrainingError where another process has it.
    """
    if path in _held:
        raise TrainingError(_refusal(str(path.parent), _myself()))
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise TrainingError(_refusal(str(path.parent), _load(owner))) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink()
            return None
        if _is_at(descriptor, path):
            return descriptor
        # The owner before has just deleted it.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _lease(store: Store, lease_s: float) -> Iterator[None]:
    """Own the folder by the object of the highest number below `_owner/`.

    Each owner creates the next number, which only one can, and writes its object again and again. Numbers are never
    used twice, so that whoever finds a higher one than its own knows that it has lost.
    """
    me = _myself()
    number = _take(store, me, lease_s)
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(store, number, me, lease_s, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        # A lease that is not given back ends by itself.
        with contextlib.suppress(OSError):
            store.write(_name(number), _dump({**me, "ended": True}))


def _take(store: Store, me: dict[str, Any], lease_s: float) -> int:
    while True:
        last = max(_numbers(store), default=0)
        if last:
            try:
                owner = _load(store.read(_name(last)))
                silence_s = _silence_s(store, _name(last))
            except FileNotFoundError:
                continue  # the next owner has just swept it
            if not owner.get("ended") and silence_s <= lease_s:
                raise TrainingError(
                    f"{_refusal(store.url, owner)}; it was heard of {max(0.0, silence_s):.0f} s ago, and loses the"
                    f" folder {lease_s:.0f} s after that"
                )
        if not store.create(_name(last + 1), _dump(me)):
            continue
        numbers = _numbers(store)
        if max(numbers) > last + 1:
            # The number was free again: others had it, and have gone, since the listing.
            store.delete(_name(last + 1))
            continue
        for number in numbers:
            if number <= last:
                store.delete(_name(number))
        return last + 1


def _renew(store: Store, number: int, me: dict[str, Any], lease_s: float, ended: threading.Event) -> None:
    while not ended.wait(lease_s / 4):
        try:
            if max(_numbers(store), default=0) > number:
                break
            store.write(_name(number), _dump(me))
        except OSError:
            continue  # perhaps it is there again before the lease ends
    else:
        return
    line = f"{store.url}: another training has taken over, since nothing was heard of this one for {lease_s:.0f} s\n"
    os.write(2, line.encode())
    os.kill(os.getpid(), signal.SIGTERM)


def _silence_s(store: Store, name: str) -> float:
    """Return how long ago an object was written, by the store's own clock."""
    probe = f"{_FOLDER}/{uuid.uuid4().hex}.probe"
    store.write(probe, b"now")
    try:
        written_s, now_s = store.age(name), store.age(probe)
    finally:
        store.delete(probe)
    if written_s is None or now_s is None:
        raise FileNotFoundError(name)
    return written_s - now_s


def _numbers(store: Store) -> list[int]:
    names = [name.rsplit("/", 1)[-1].removesuffix(".json") for name in store.listing(_FOLDER) if name.endswith(".json")]
    return [int(name) for name in names if name.isdecimal()]


def _name(number: int) -> str:
    return f"{_FOLDER}/{number}.json"


def _myself() -> dict[str, Any]:
    return {
        "program": Path(sys.argv[0]).name,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "id": uuid.uuid4().hex,
    }


def _refusal(place: str, owner: dict[str, Any]) -> str:
    if "process" not in owner:
        told = "another training"
    else:
        told = f"{owner.get('program')}, process {owner['process']} on {owner.get('host')} since {owner.get('since')},"
    return f"{place}: {told} is at work here; wait for it, stop it, or give another --out"


def _dump(owner: dict[str, Any]) -> bytes:
    return json.dumps(owner).encode() + b"\n"


def _load(data: bytes) -> dict[str, Any]:
    """Return who wrote `data`; nobody is known where it is not all there yet."""
    try:
        owner = json.loads(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
