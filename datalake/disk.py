"""A disk that is full, told in one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from datalake.retry import StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoSpaceError(StoreError):
    """A disk is full or a quota used up: waiting does not help, but what is there already stays as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # By its number callers tell it from what may pass.
        self.errno = errno.ENOSPC


@contextmanager
def room_in(place: str) -> Iterator[None]:
    """Raise NoSpaceError, naming `place`, where the block finds no room to write there."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NoSpaceError) or error.errno not in _FULL:
            raise
        raise NoSpaceError(f"{place}: no space left there; make room, then run the same command again") from error
