"""The versions that a card or a report names."""

from __future__ import annotations

import importlib.metadata
import platform

from training.versions import installed_versions


def test_a_package_that_is_not_installed_has_an_unknown_version() -> None:
    assert installed_versions(("torch", "no_such_package_anywhere")) == {
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "no_such_package_anywhere": "unknown",
    }
