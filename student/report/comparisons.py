"""A student's metrics beside those of trivial predictors, which need no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ERRORS_EXPLAINED = (
    "Of each class as many detections are judged as it has objects, the most confident: wrong by the place of the box"
    " (IoU below 0.5, or a second one of the same object), by its class, or on background (no object by IoU 0.1). All"
    " are shares of the number of objects, and so are the objects that none of these detections is about."
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric, and that of a trivial predictor.

    trivial: the trivial predictor's value, `answer` what it predicts; None where there is no such predictor
    """

    name: str
    value: float
    trivial: float | None = None
    answer: str = ""
    less_is_better: bool = False

    @property
    def better(self) -> bool:
        """Whether the student beats the trivial predictor; true where there is none."""
        if self.trivial is None:
            return True
        return self.value < self.trivial if self.less_is_better else self.value > self.trivial


_ALONE = ("AP", "AP50", "AP75", "waymo/LEVEL_1", "waymo/LEVEL_2", "recall@100", "recall@100/>16px")


def comparisons(metrics: Mapping[str, float]) -> list[Comparison]:
    """Return the chief metrics of an evaluation, those of them that it has, in the order to read them in."""
    rows = [Comparison(name, metrics[name]) for name in _ALONE if name in metrics]
    if "depth/AbsRel" in metrics:
        rows.append(
            Comparison(
                "depth/AbsRel",
                metrics["depth/AbsRel"],
                metrics["depth/AbsRel/constant"],
                "the best single distance",
                less_is_better=True,
            )
        )
    rows += [Comparison(name, metrics[name]) for name in ("depth/delta1", "depth/recall") if name in metrics]
    for teacher in teachers_in(metrics):
        rows += _of_teacher(teacher, metrics)
    return rows


def teacher_of(name: str) -> str | None:
    """Return the teacher that a metric compares the student with; None where it compares with the labels."""
    return name.split("/")[1] if name.startswith("imitation/") else None


def teachers_in(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the teachers that the metrics compare the student with."""
    return list(dict.fromkeys(teacher for name in metrics if (teacher := teacher_of(name)) is not None))


def _of_teacher(teacher: str, metrics: Mapping[str, float]) -> list[Comparison]:
    prefix = f"imitation/{teacher}/"
    # R² is relative to a mean: of that mean itself it is 0, and of the training's mean it may be lower.
    position_helps = metrics.get(f"{prefix}R2/position", 0.0) > 0
    rows = (
        ("R2", "R2/position", "the training mean of each cell")
        if position_helps
        else ("R2", 0.0, "the mean of each channel"),
        ("R2/foreground", 0.0, "the mean of each channel on objects"),
        ("cosine", "cosine/mean", "the mean of each channel"),
        ("mIoU", "trivial/mIoU", "background everywhere"),
        ("accuracy", "trivial/accuracy", "background everywhere"),
    )
    return [
        Comparison(
            prefix + name,
            metrics[prefix + name],
            metrics[prefix + trivial] if isinstance(trivial, str) else trivial,
            answer,
        )
        for name, trivial, answer in rows
        if prefix + name in metrics
    ]
