"""The configuration of a student."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from datalake.errors import UserError
from student.detections import CLASS_NAMES
from teachers.card import Kind, TeacherCard

Feed = Literal["imitation", "hidden", "both"]
Norm = Literal["group", "batch"]
Preset = Literal["classroom", "paper"]


# As version 0.1 called them.
_OLD_KINDS = {"continuous": "regression", "classes": "classification"}


class StudentError(UserError):
    """A student cannot be built, read or used as configured; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSpec:
    """What one branch predicts.

    kind: `regression`: numbers; `classification`: a class of each cell
    channels: numbers or classes per cell
    """

    name: str
    kind: Kind
    channels: int

    @staticmethod
    def of(name: str, card: TeacherCard) -> BranchSpec:
        """Return the branch for the teacher of `card`, which the student calls `name`."""
        return BranchSpec(name=name, kind=card.kind, channels=card.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorShapes:
    """The region proposal network's anchors.

    sizes: for each level of the pyramid, sides in pixels of the squares that the anchors are as large as
    ratios: height over width, the same on every level
    """

    sizes: tuple[tuple[float, ...], ...] = ((8, 12), (18, 27), (40, 60), (90, 136))
    ratios: tuple[float, ...] = (0.8, 2.8)

    def __post_init__(self) -> None:
        numbers = [*self.ratios, *(size for level in self.sizes for size in level)]
        if not self.sizes or not all(self.sizes) or not self.ratios or not all(0 < n < math.inf for n in numbers):
            raise StudentError(f"anchors: expected positive sizes on every level and positive ratios, got: {self}")
        if len({len(level) for level in self.sizes}) > 1:
            raise StudentError(f"anchors: expected as many sizes on every level, got: {self.sizes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """Everything that decides about a student's weights and what they mean.

    branches: one for each teacher, in the order in which they are fused
    stride: pixels per cell of the grid on which teachers are imitated
    stages: channels of the trunk's stages; `classroom`: the stem's, then from half the imitation's stride on one for
        each halving; `paper`: the stem's and those of the two stages, all at stride 1
    blocks: residual blocks in each of the stages after the stem
    width: channels of the map that the branches take, and of the pyramid
    branch_width: channels that each branch contributes to the fusion
    feed: what a branch passes on: its prediction, the features before it, or both
    norm: group norms do not depend on the batch; batch norms are the paper's
    head_width: neurons of the box head
    max_depth_m: larger depths are encoded as this
    """

    preset: Preset = "classroom"
    branches: tuple[BranchSpec, ...] = ()
    stride: int = 4
    stages: tuple[int, ...] = (24, 32, 64, 128, 160)
    blocks: tuple[int, ...] = (1, 2, 2, 1)
    width: int = 48
    branch_width: int = 32
    feed: Feed = "both"
    norm: Norm = "group"
    head_width: int = 256
    anchors: AnchorShapes = AnchorShapes()
    max_depth_m: float = 75.0
    # Anchors and proposals per image that are sampled for the losses.
    rpn_batch: int = 256
    roi_batch: int = 64
    # Proposals that reach the heads.
    proposals: int = 200
    min_score: float = 0.02
    detections: int = 100

    def __post_init__(self) -> None:
        names = [branch.name for branch in self.branches]
        if len(set(names)) < len(names):
            raise StudentError(f"branches: expected different names, got: {', '.join(names)}")
        if taken := [name for name in names if hasattr(nn.ModuleDict, name)]:
            raise StudentError(f"branches: {taken[0]!r} is a name that torch needs itself; call the teacher otherwise")
        if len(self.stages) != len(self.blocks) + 1:
            raise StudentError(f"expected blocks for each stage after the stem, got: {self.stages} and {self.blocks}")
        if self.preset == "paper" and (self.stride != 1 or len(self.stages) != 3):
            raise StudentError("the paper's trunk keeps stride 1 and has a stem and two stages")
        if self.preset == "classroom" and (self.stride not in (4, 8) or len(self.stages) != 5):
            raise StudentError(f"classroom: expected stride 4 or 8 and five stages, got: {self.stride}, {self.stages}")

    @staticmethod
    def paper(branches: tuple[BranchSpec, ...], anchors: AnchorShapes) -> StudentConfig:
        """Return the paper's student (section 3): a trunk that never reduces the resolution, and batch norms."""
        return StudentConfig(
            preset="paper",
            branches=branches,
            anchors=anchors,
            stride=1,
            stages=(64, 64, 96),
            blocks=(2, 2),
            width=96,
            branch_width=48,
            feed="imitation",
            norm="batch",
            head_width=1024,
            roi_batch=512,
            proposals=1000,
            min_score=0.05,
        )

    @property
    def levels(self) -> int:
        """Levels of the pyramid, each at half the resolution of the one before; the first is the imitation's grid."""
        return len(self.anchors.sizes)

    @property
    def classes(self) -> int:
        """Classes, with the background."""
        return len(CLASS_NAMES)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width in cells of the imitation's grid for images of `height` x `width` pixels.

        Raises StudentError where an image does not divide into the cells of the coarsest level.
        """
        coarsest = max(self.stride << (self.levels - 1), 32 if self.preset == "classroom" else 1)
        if height % coarsest or width % coarsest:
            raise StudentError(
                f"images of {width} x {height} pixels do not divide into cells of {coarsest}; choose an image size"
                f" like {-(-width // coarsest) * coarsest} x {-(-height // coarsest) * coarsest}"
            )
        return height // self.stride, width // self.stride

    def to_json(self) -> str:
        """Return the configuration as JSON, for the file beside the weights."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> StudentConfig:
        """Return the configuration that `to_json` gave; raises StudentError where it is not one."""
        try:
            values: Mapping[str, Any] = json.loads(text)
            anchors = AnchorShapes(
                sizes=tuple(map(tuple, values["anchors"]["sizes"])), ratios=tuple(values["anchors"]["ratios"])
            )
            branches = tuple(
                BranchSpec(**{**branch, "kind": _OLD_KINDS.get(branch["kind"], branch["kind"])})
                for branch in values["branches"]
            )
            lists = {name: tuple(values[name]) for name in ("stages", "blocks")}
            return StudentConfig(**{**values, **lists, "anchors": anchors, "branches": branches})
        except (ValueError, KeyError, TypeError) as error:
            raise StudentError(f"not a student's configuration: {error}") from error
