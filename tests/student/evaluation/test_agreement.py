"""Views of the branches agree where they put them in one order."""

from __future__ import annotations

import pytest

from student.evaluation.agreement import agreement
from student.evaluation.attribution import EVERY_CLASS, Attribution
from student.evaluation.branches import ALL, Ablation
from student.evaluation.responses import Contrast, Response

BRANCHES = ("free", "lidar", "masks")


def responses(*values: float) -> list[Response]:
    return [
        Response(branch=name, share=value, contrasts={"VEHICLE": Contrast(value, 1.0, 1.0, 2)}, maps=[])
        for name, value in zip(BRANCHES, values, strict=True)
    ]


def ablations(*lost: float) -> list[Ablation]:
    def one(branch: str | None, ap50: float) -> Ablation:
        metrics = {"AP50": ap50, "AP50/VEHICLE": ap50}
        replacement = None if branch is None else "mean"
        return Ablation(
            branch=branch,
            replacement=replacement,  # type: ignore[arg-type]
            images=2,
            objects=2,
            metrics=metrics,
            examples=[],
        )

    return [one(None, 0.5), *(one(name, 0.5 - each) for name, each in zip(BRANCHES, lost, strict=True)), one(ALL, 0.0)]


def attributions(*values: float) -> list[Attribution]:
    parts = dict(zip(BRANCHES, values, strict=True))
    return [
        Attribution(class_name=name, objects=2, before=0.0, after=1.0, branches=parts)
        for name in (EVERY_CLASS, "VEHICLE")
    ]


@pytest.mark.parametrize(
    ("lost", "gradients", "verdict"),
    [
        ((0.1, 0.3, 0.2), (0.0, 2.0, 1.0), "the same order"),
        ((0.2, 0.3, 0.1), (1.0, 2.0, 0.0), "ablation and gradient the same order"),
        ((0.3, 0.1, 0.2), (0.0, 2.0, 1.0), "response and gradient the same order"),
        ((0.3, 0.1, 0.2), (0.1, 0.2, 0.3), "different orders"),
    ],
)
def test_the_views_are_compared(lost: tuple[float, ...], gradients: tuple[float, ...], verdict: str) -> None:
    found = agreement(responses(0.2, 0.5, 0.3), ablations(*lost), attributions(*gradients))
    assert [(one.class_name, one.verdict) for one in found] == [(EVERY_CLASS, verdict), ("VEHICLE", verdict)]
    assert found[0].orders["response"] == ["lidar", "masks", "free"]


def test_a_view_that_tells_no_branch_from_another_is_left_out() -> None:
    (every,) = agreement(responses(0.2, 0.5, 0.3), ablations(0.0, 0.0, 0.0), attributions(1.0, 1.0, 1.0))
    assert every.orders.keys() == {"response"}
    assert every.verdict == "too little to compare"
