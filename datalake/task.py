"""One task of a build: bad input and stores that fail become its answer, whoever runs it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

from datalake.errors import UserError
from datalake.retry import UnavailableError, explain

# A store that fails is asked again after these pauses; what will not change by waiting is not.
_BACKOFF_S = (1.0, 4.0, None)
# A lake's store was asked often enough when it is called unavailable.
_PERMANENT = (
    UnavailableError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)
_PERMANENT_CODES = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` returns, or what it says of its input or its store; a store gets a few chances.

    Exceptions of other kinds are bugs, and pass.
    """
    for delay_s in _BACKOFF_S:
        try:
            return function(*arguments)
        except UserError as error:
            return error
        except Exception as error:
            # Of the sources' clients some errors are no OSError.
            told = error if isinstance(error, OSError) else explain(error, "read the sources", "several attempts")
            if not isinstance(told, OSError):
                raise
            if delay_s is None or isinstance(error, _PERMANENT) or told.errno in _PERMANENT_CODES:
                return told
            time.sleep(delay_s)
    raise AssertionError("the last attempt returns")
