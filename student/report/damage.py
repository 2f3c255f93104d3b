"""How much of a metric is lost, on one scale for all of them."""

from __future__ import annotations


def damage(clean: float, damaged: float, more_is_better: bool) -> float:
    """Return what is lost of a metric: 0 nothing, 1 all of it; negative, down to -1, where it has become better.

    Of an error or a loss, 1 - clean / damaged: .5 where it has doubled, .9 at ten times.
    """
    good, bad = (damaged, clean) if more_is_better else (clean, damaged)
    if bad == good:
        return 0.0
    return max(-1.0, 1 - good / bad) if bad > 0 else -1.0
