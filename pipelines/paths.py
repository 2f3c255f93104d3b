"""Where a job reads and writes."""

from __future__ import annotations

import os

from datalake.commit import LakeError


def cluster_address() -> str | None:
    """Return the address of the Ray cluster whose job this process is; None where it is of no job.

    RAY_ADDRESS may also say where `ray job submit` sends jobs to, over HTTP: that is no cluster to join.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    return None if not address or address.startswith(("http://", "https://")) else address


def absolute(url: str) -> str:
    """Return `url`, with a local path made absolute; '~' is the home folder, also where the shell has left it.

    Raises LakeError for a relative path inside a Ray job: the job's folder is a copy that is thrown away.
    """
    url = os.path.expanduser(url)  # noqa: PTH111 - a URL is no Path
    if "://" in url or os.path.isabs(url):  # noqa: PTH117 - a URL is no Path
        return url
    if os.environ.get("RAY_JOB_ID") or cluster_address():
        raise LakeError(
            f"{url}: a relative path would lie in the job's throw-away folder; give an absolute path or URL"
        )
    return os.path.abspath(url)  # noqa: PTH100
