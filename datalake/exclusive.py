"""Names on a local disk that a file gets only where nobody has them.

A complete file is hard-linked to its name, which fails where the name is taken. exFAT and some file systems of FUSE
have no hard links: there the file is renamed without replacing, where the system can (Linux, `renameat2`), and else
renamed under a lock.

The lock is made of files `.<name>.<number>.lock`. Each owner creates the next number, which only one can, and holds it
for the moment of a look and a rename. A dead owner's lock expires, by the clock of those who wait: no clock of another
machine is asked. Numbers are not used again before the name is taken, so that whoever was late finds a higher one than
its own. Two would get the name only if a process stood still for ten seconds between its last look and its rename.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path

# A lock that was there for so long is that of a dead process. An owner acts in less than half of it, or not at all.
LOCK_S = 20.0
_POLL_S = 0.05
# What file systems and kernels say of an operation that they do not have.
_MISSING = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def take_name(temporary: Path, path: Path) -> bool:
    """Give the complete file `temporary` the name `path` unless it is taken; return whether this call did.

    Afterwards `temporary` may be there or not.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network's file system says so also where only the answer to the first request was lost.
        return _is_same(temporary, path)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
    else:
        return True
    try:
        return _rename_without_replacing(temporary, path)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
    return _rename_under_lock(temporary, path)


def _is_same(temporary: Path, path: Path) -> bool:
    try:
        return temporary.samefile(path)
    except FileNotFoundError:
        return False


def _rename_without_replacing(temporary: Path, path: Path) -> bool:
    if (renameat2 := _renameat2()) is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST:
        return False
    raise OSError(number, os.strerror(number), str(path))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """Return the C library's renameat2, None where it has none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _rename_under_lock(temporary: Path, path: Path) -> bool:
    while (number := _await_number(path)) is not None:
        lock, locked_s = _lock_at(path, number), time.monotonic()
        try:
            lock.open("xb").close()
        except FileExistsError:
            continue
        # Somebody may have taken the name, and its locks away, since.
        if path.exists():
            lock.unlink(missing_ok=True)
            return False
        if _numbers(path)[-1:] == [number] and time.monotonic() - locked_s < LOCK_S / 2:
            temporary.rename(path)
            for each in _numbers(path):
                _lock_at(path, each).unlink(missing_ok=True)
            return True
        # Too late: others may take this lock for a dead one's. It stays, lest its number be used again.
    return False


def _await_number(path: Path) -> int | None:
    """Return the number of the next lock as soon as the owner of the last is gone or dead, None for a taken name."""
    numbers, since_s = _numbers(path), time.monotonic()
    while not path.exists():
        if not numbers:
            return 0
        if time.monotonic() - since_s > LOCK_S:
            return numbers[-1] + 1
        time.sleep(_POLL_S)
        if (found := _numbers(path)) != numbers:
            numbers, since_s = found, time.monotonic()
    return None


def _lock_at(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.{number}.lock")


def _number(lock: Path) -> int:
    return int(lock.name.rsplit(".", 2)[1])


def _numbers(path: Path) -> list[int]:
    """Return the numbers of the locks for `path` that are there, ascending."""
    locks = path.parent.glob(f".{path.name}.*.lock")
    return sorted(_number(lock) for lock in locks if lock.name.rsplit(".", 2)[1].isdecimal())
