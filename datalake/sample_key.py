"""What names an image of a lake."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Which image it is."""

    segment: str
    timestamp_us: int
    camera: str

    def __str__(self) -> str:
        return f"{self.segment} {self.timestamp_us} {self.camera}"
