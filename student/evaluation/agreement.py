"""Whether three views of the branches put them in the same order: responses, ablation, integrated gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from student.detections import CLASS_NAMES
from student.evaluation.attribution import EVERY_CLASS, Attribution
from student.evaluation.branches import ALL, Ablation
from student.evaluation.responses import Response

RESPONSE, ABLATION, GRADIENT = "response", "ablation", "gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The branches by what they contribute, the most first.

    class_name: of the objects, or EVERY_CLASS
    orders: by view; without a view that tells no branch from another, such as AP50 where nothing was found
    """

    class_name: str
    orders: dict[str, list[str]]

    @property
    def verdict(self) -> str:
        """Say in a few words whether the views agree."""
        orders = list(self.orders.values())
        if len(orders) < 2:
            return "too little to compare"
        if all(order == orders[0] for order in orders):
            return "the same order"
        pairs = [f"{one} and {other}" for one, other in combinations(self.orders, 2) if self._same(one, other)]
        if pairs:
            return f"{pairs[0]} the same order"
        if all(order[0] == orders[0][0] for order in orders):
            return f"{orders[0][0]} first, then not"
        return "different orders"

    def _same(self, one: str, other: str) -> bool:
        return self.orders[one] == self.orders[other]


def agreement(
    responses: Sequence[Response], ablations: Sequence[Ablation], attributions: Sequence[Attribution]
) -> list[Agreement]:
    """Return the branches' orders of all objects, and of each class.

    Response: its share, or its mean where objects of the class are. Ablation: what is lost of AP50 with the branch's
    mean over images in its place. Gradient: the integrated gradient of objectness.
    """
    branches = [one.branch for one in responses]
    clean = next(one.metrics for one in ablations if one.branch is None)
    without = {
        one.branch: one.metrics for one in ablations if one.replacement == "mean" and one.branch not in (None, ALL)
    }
    by_class = {one.class_name: one.branches for one in attributions}
    found = []
    for name in (EVERY_CLASS, *CLASS_NAMES[1:]):
        metric = "AP50" if name == EVERY_CLASS else f"AP50/{name}"
        views: dict[str, Mapping[str, float]] = {
            RESPONSE: {
                one.branch: one.share if name == EVERY_CLASS else one.contrasts[name].inside
                for one in responses
                if name == EVERY_CLASS or name in one.contrasts
            },
            ABLATION: {
                branch: clean[metric] - without[branch][metric]
                for branch in branches
                if metric in clean and branch in without and metric in without[branch]
            },
            GRADIENT: by_class.get(name, {}),
        }
        orders = {
            view: sorted(values, key=values.__getitem__, reverse=True)
            for view, values in views.items()
            if len(values) == len(branches) and len(set(values.values())) > 1
        }
        # Of a class that is not detected at all, such as signs, there is nothing to compare.
        if len(orders) > 1 or name == EVERY_CLASS:
            found.append(Agreement(class_name=name, orders=orders))
    return found
