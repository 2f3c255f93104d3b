"""The names of segments, which become names of files."""

from __future__ import annotations

import re

from datalake.sources.frame import FrameError

# One path component, nothing hidden, nothing a shell or a store reads its way.
_SEGMENT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


def check_segment_name(name: str) -> None:
    """Raise FrameError unless `name` is safe as one component of a path on any store."""
    # protobuf hands out the bytes of a string that is not UTF-8.
    if not isinstance(name, str) or not _SEGMENT_NAME.fullmatch(name):
        raise FrameError(
            f"segment name {name[:80]!r} is not 1 to 200 letters, digits, '_', '-' or '.', not starting with '-' or '.'"
        )
