"""Rerun recordings, read back by Rerun's own reader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rerun.chunk import RrdReader


def logged_rows(path: Path) -> Counter[str]:
    """Return how often each entity was logged, for all times not counted."""
    counts: Counter[str] = Counter()
    for chunk in RrdReader(str(path)).stream().to_chunks():
        counts[chunk.entity_path] += 0 if chunk.is_static else chunk.num_rows
    return +counts


def logged_values(path: Path, entity: str, component: str) -> dict[int, list[Any]]:
    """Return frame -> what was logged of the component whose name ends so."""
    found: dict[int, list[Any]] = {}
    for chunk in RrdReader(str(path)).stream().to_chunks():
        if chunk.entity_path != entity or chunk.is_static:
            continue
        batch = chunk.to_record_batch()
        for name in (name for name in batch.schema.names if name.endswith(component)):
            pairs = zip(batch.column("frame").to_pylist(), batch.column(name).to_pylist(), strict=True)
            found |= {frame: values for frame, values in pairs if values is not None}
    return found
