"""Packages that come with an extra of the installation, because only some commands need them."""

from __future__ import annotations

from importlib.util import find_spec

from datalake.errors import UserError

# What every module of `training`, `teachers` and `student` is written with.
TRAIN = ("torch", "torchvision", "safetensors")


class MissingPackageError(UserError, ModuleNotFoundError):
    """Something needs packages that are not installed; the message says which, and how they are installed."""


def need(extra: str, packages: tuple[str, ...], what: str = "this") -> None:
    """Raise MissingPackageError unless all these packages are installed; nothing is imported.

    extra: of `pyproject.toml`, that installs them
    packages: by the names under which they are imported
    what: needs them, for the message
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise MissingPackageError(
            f"{what} needs {', '.join(missing)}, not installed here: pip install 'classroomnet[{extra}]'"
        )
