"""Asking a remote store again: after which errors, how often, and with which pauses.

Transient is what may be gone a moment later:

- answers with status 429, 500, 502, 503 or 504, or whose code says the same (SlowDown, RequestTimeout, …); and the 409
  of a conditional write, which asks for another try
- connections that are refused, reset, closed or time out, names that do not resolve, bodies that end too early

Everything else (not found, no permission, no credentials, a certificate that fails, …) passes at once.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Result = TypeVar("Result")

_STATUSES = {429, 500, 502, 503, 504}
_CODES = {
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_ERRNOS = {
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
}
# By name, with their subclasses: a lake on a disk works without the packages that have them.
_CLASSES = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
}
_CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google"}
_NEVER = {"aiohttp.client_exceptions.ClientSSLError", "botocore.exceptions.SSLError"}


class StoreError(OSError):
    """The store cannot do what a lake needs of it."""


class UnavailableError(StoreError):
    """The store went on failing; asking it for longer is for whoever runs it to decide."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a request is made, and the pauses in between: each twice the one before, half of it by chance.

    attempts: requests in all
    """

    attempts: int = 6
    first_pause_s: float = 0.25
    longest_pause_s: float = 4.0

    def pauses_s(self) -> Iterator[float]:
        """Yield the pause behind each attempt but the last."""
        for number in range(self.attempts - 1):
            pause_s = min(self.longest_pause_s, self.first_pause_s * 2**number)
            # What many processes were refused at one moment must not come back at one moment.
            yield pause_s * random.uniform(0.5, 1.0)

    def call(self, action: Callable[[], Result], what: Callable[[], str]) -> Result:
        """Return what `action` returns; it is called again where it fails and `is_transient`.

        what: gives the work and its place, for the message ("read s3://lake/_lake.json")

        Raises UnavailableError after the last attempt, and at once what `explain` makes of any other error.
        """
        start = time.monotonic()
        pauses = self.pauses_s()
        while True:
            try:
                return action()
            except Exception as error:
                pause_s = next(pauses, None) if is_transient(error) else None
                if pause_s is None:
                    attempts = f"{self.attempts} attempts in {time.monotonic() - start:.1f} s"
                    if (told := explain(error, what(), attempts)) is error:
                        raise
                    raise told from error
            time.sleep(pause_s)


def explain(error: Exception, what: str, attempts: str) -> Exception:
    """Return the error to raise for one that is not to be waited for any more: of its kind, with the place in its line.

    attempts: how often it was tried, for an error that is transient; that becomes an UnavailableError. What is no
    OSError becomes a StoreError where it is of a client's package; else it is a bug, and returned as it is.
    """
    if is_transient(error):
        return UnavailableError(f"cannot {what}: given up after {attempts}: {one_line(error)}")
    if isinstance(error, StoreError) or not (
        isinstance(error, OSError) or _class_names(error, packages=True) & _CLIENTS
    ):
        return error
    for kind in (FileNotFoundError, FileExistsError, PermissionError):
        if isinstance(error, kind):
            return kind(f"cannot {what}: {one_line(error)}")
    return StoreError(f"cannot {what}: {one_line(error)}")


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later (see the module's list)."""
    names = _class_names(error)
    if names & _NEVER:
        return False
    if "aiohttp.client_exceptions.ClientResponseError" in names:
        return getattr(error, "status", None) in _STATUSES
    if (answer := _answer(error)) is not None:
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in _STATUSES or answer.get("Error", {}).get("Code") in _CODES
    if names & _CLASSES or isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return isinstance(error, OSError) and error.errno in _ERRNOS


def is_taken(error: BaseException) -> bool:
    """Return whether a write was refused because the object is there already.

    s3fs knows that of stores that name the condition which failed, as Amazon's does; Ceph's says only that one did.
    """
    if isinstance(error, FileExistsError):
        return True
    answer = _answer(error)
    return answer is not None and answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412


def was_refused(error: BaseException) -> bool:
    """Return whether the store itself said no: what was asked for has certainly not been done."""
    return not is_transient(error) and _answer(error) is not None


def one_line(error: BaseException) -> str:
    """Return the error's kind and text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _answer(error: BaseException) -> dict[str, Any] | None:
    """Return the store's answer where the error is one; s3fs turns it into an OSError, and keeps it as the cause."""
    for known in (error, error.__cause__):
        answer = getattr(known, "response", None)
        if isinstance(answer, dict):
            return answer
    return None


def _class_names(error: BaseException, packages: bool = False) -> set[str]:
    kinds = type(error).__mro__
    return {kind.__module__.split(".")[0] if packages else f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
