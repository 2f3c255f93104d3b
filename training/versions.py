"""Which versions of packages a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return Python's version and each package's; `unknown` where one is only on the path, not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
