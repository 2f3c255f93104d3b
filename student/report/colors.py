"""The colors of all images and charts: Okabe and Ito's, which color-blind readers can distinguish."""

from __future__ import annotations

from types import MappingProxyType

# By name, because the lake's types and the teachers' classes number them differently.
CLASS_COLORS = MappingProxyType(
    {
        "BACKGROUND": "#000000",
        "VEHICLE": "#56b4e9",
        "PEDESTRIAN": "#e69f00",
        "SIGN": "#f0e442",
        "CYCLIST": "#d55ea0",  # their purple with more of it: the original is pale on a street
    }
)

# The same in words, for captions.
COLOR_WORDS = MappingProxyType(
    {"BACKGROUND": "black", "VEHICLE": "blue", "PEDESTRIAN": "orange", "SIGN": "yellow", "CYCLIST": "pink"}
)

# For the lines of charts, on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# Cells that are not valid.
INVALID = "#2b2b2b"


def rgb(color: str) -> tuple[int, int, int]:
    """Return the three numbers within 0 … 255 of a color written as #rrggbb."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
