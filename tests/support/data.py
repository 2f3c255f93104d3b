"""Where real inputs lie: beside the checkout, or in the folder that is carried to a machine with nothing beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".dev"
_PLACES = (CARRIED, ROOT.parent / "shared/data", ROOT.parent / "shared/tools")


def find_data(name: str) -> Path | None:
    """Return the file of this name, or None where it is in none of the places."""
    return next((place / name for place in _PLACES if (place / name).is_file()), None)


def data(name: str) -> Path:
    """Return the file of this name; raises FileNotFoundError, saying where it was looked for."""
    if (path := find_data(name)) is None:
        raise FileNotFoundError(f"{name}: not in {', '.join(map(str, _PLACES))}; run benchmarks/gpu/carry.sh")
    return path
