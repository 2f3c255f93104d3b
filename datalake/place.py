"""The file system of a URL."""

from __future__ import annotations

from typing import Any

import fsspec

from datalake.commit import LakeError

# Protocols whose client is an extra of this package.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Return the fsspec file system of `url` and the path in it; nothing is asked of it yet but for archives.

    Raises LakeError where the protocol is unknown or its client is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        protocol = url.partition("::")[0].partition("://")[0]
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'classroomnet[{extra}]'" if extra else " ".join(str(error).split())
        raise LakeError(f"{url}: the client of {protocol}:// is not installed: {remedy}") from error
    except ValueError as error:
        raise LakeError(f"{url}: {' '.join(str(error).split())}; use a local path, s3://, gs:// or https://") from error
    return fs, path


def file_version(info: dict[str, object]) -> str:
    """Return what tells one content of a file from another: the store's etag, else the time of modification."""
    for key in ("ETag", "etag", "mtime", "LastModified", "updated", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""
