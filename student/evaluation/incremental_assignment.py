"""The matching of detections with objects whose overlaps have the largest sum, as detections come one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class IncrementalAssignment:
    """An assignment of maximum weight between detections, added one by one, and objects, known from the start.

    After every `add` the matching is the best for all detections so far, as the Hungarian algorithm finds it for them
    at once: an optimum differs from the one without the new detection by an alternating path that begins there. So one
    pass from the most confident detection on gives the matching at every cutoff on the score. No library has this, and
    scipy's assignment would be solved a hundred times an image. Weights are integers: no rounding decides.
    """

    def __init__(self) -> None:
        self._weights: list[dict[int, int]] = []
        # Object -> the detection that is matched with it, and the other way round.
        self._detection: dict[int, int] = {}
        self._object: dict[int, int] = {}

    @property
    def pairs(self) -> dict[int, int]:
        """Detection -> object of the present matching."""
        return dict(self._object)

    def add(self, weights: Sequence[tuple[int, int]]) -> tuple[int | None, int | None]:
        """Match one more detection; weights: the objects that it may be matched with, and the weight above 0 of each.

        Returns the object that is now matched and was not before, and the detection that now is not: the new one or
        one that it displaces. One of the two is None. Neither ever changes back as detections are added.
        """
        new = len(self._weights)
        self._weights.append(dict(weights))
        gain, taker = self._gains(new)
        # Where no path gains, the new detection stays alone.
        best, last, displaced = 0, None, None
        for number, gained in gain.items():
            holder = self._detection.get(number)
            total = gained if holder is None else gained - self._weights[holder][number]
            if total > best:
                best, last, displaced = total, number, holder
        if last is None:
            return None, new
        if displaced is not None:
            del self._object[displaced]
        found, number = last, last
        while True:
            detection = taker[number]
            previous = self._object.get(detection)
            self._detection[number], self._object[detection] = detection, number
            if detection == new:
                break
            assert previous is not None, "only the new detection and the path's end have no object"
            number = previous
        return (found, None) if displaced is None else (None, displaced)

    def _gains(self, new: int) -> tuple[dict[int, int], dict[int, int]]:
        """Return how much the sum grows on the best path from the new detection to each object, and who takes it then.

        Paths of alternating edges, by Bellman and Ford: no cycle gains, since the matching so far is the best.
        """
        gain: dict[int, int] = {}
        taker: dict[int, int] = {}
        waiting = deque([(new, 0)])
        while waiting:
            detection, before = waiting.popleft()
            for number, weight in self._weights[detection].items():
                if before + weight <= gain.get(number, 0):
                    continue
                gain[number], taker[number] = before + weight, detection
                if (holder := self._detection.get(number)) is not None:
                    waiting.append((holder, gain[number] - self._weights[holder][number]))
        return gain, taker
