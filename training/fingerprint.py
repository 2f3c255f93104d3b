"""What decides about a run's result: two runs that share it do the same, and only they may continue each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from training.errors import TrainingError

Plain = str | int | float | bool | None


def flatten(config: Any) -> dict[str, Plain]:
    """Return the settings in a configuration, a dataclass, by their names; those of its parts as `loop.steps`."""
    return _flat(asdict(config), "")


def check_same_run(place: str, found: Mapping[str, Plain], expected: Mapping[str, Plain]) -> None:
    """Raise TrainingError, naming what differs, unless the checkpoint at `place` is of the run to be continued."""
    differing = [
        f"{name} {found.get(name)} instead of {expected.get(name)}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differing:
        raise TrainingError(
            f"{place}: a run with other settings is under way here: {', '.join(differing)};"
            " repeat its settings to continue it, or give another folder"
        )


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Plain]:
    flat: dict[str, Plain] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | None) else str(value)
    return flat
