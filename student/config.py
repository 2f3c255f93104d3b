"""The configuration of a student."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

import tyro
from torch import nn

from datalake.errors import UserError
from student.detections import CLASS_NAMES
from teachers.card import Kind, TeacherCard

Feed = Literal["imitation", "both"]
Norm = Literal["group", "batch"]

# Our own trunks by the number of their stages with the stem; `timm:NAME` are timm's.
_OWN_TRUNKS = {"fpn": 5, "stride1": 3}
_TIMM = "timm:"

Value = TypeVar("Value")
# What a training derives from teachers, boxes and files; it is no option of a command line.
Derived = Annotated[Value, tyro.conf.Fixed, tyro.conf.Suppress]
# What version 0.1 did not write down: it followed from the name of the preset.
_OF_PRESET = ("trunk", "branch_kernel", "rpn_positive_iou", "depth_sees_box", "depth_beta")


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
    half_cells: each of them also half a cell further right and below. Between neighbours there are then 0.7 cells
        instead of one: a box of two cells has an anchor that overlaps it by half wherever it lies
    """

    sizes: tuple[tuple[float, ...], ...] = ((8, 12), (18, 27), (40, 60), (90, 136))
    ratios: tuple[float, ...] = (0.8, 2.8)
    half_cells: bool = False

    def __post_init__(self) -> None:
        numbers = [*self.ratios, *(size for level in self.sizes for size in level)]
        if not self.sizes or not all(self.sizes) or not self.ratios or not all(0 < n < math.inf for n in numbers):
            raise StudentError(f"anchors: expected positive sizes on every level and positive ratios, got: {self}")
        if len({len(level) for level in self.sizes}) > 1:
            raise StudentError(f"anchors: expected as many sizes on every level, got: {self.sizes}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """Everything that decides about a student's weights and what they mean; the defaults are ClassroomNet's."""

    # One for each teacher, in the order in which they are fused.
    branches: Derived[tuple[BranchSpec, ...]] = ()
    # `fpn` goes down to 1/32 of the resolution and up again to a quarter; `timm:NAME` does so with a model of timm's,
    # such as timm:resnet50; `stride1` keeps the resolution (paper).
    trunk: str = "fpn"
    # Path or URL of the weights that a trunk of timm's starts from: a state dict of timm's or torchvision's names, as
    # safetensors or as torch.save writes it.
    trunk_weights: str | None = None
    # SHA-256 of their file.
    trunk_weights_sha256: Derived[str | None] = None
    # The licence of these weights, for the model card of an exported student.
    trunk_weights_license: str | None = None
    # Stages of a trunk of timm's that stay as they are, from the image on: 1 is all that leads to stride 4, 2 to 8 …
    freeze_stages: int = 0
    # The batch norms of a trunk of timm's stay as they are, statistics and all; by default where it starts from given
    # weights: statistics of a few images are worse than those of the data that these were trained on.
    freeze_norms: bool | None = None
    # Mean of red, green and blue, within 0 … 1, by which images are normalized; by default that which the published
    # weights of a trunk of timm's were trained with, and .45 for our own.
    image_mean: tuple[float, float, float] | None = None
    # Their standard deviation; by default likewise, and .25 for our own.
    image_std: tuple[float, float, float] | None = None
    # Channels of our own trunks' stages. `fpn`: the stem's, then from stride 4 on one for each halving; `stride1`: the
    # stem's and those of two stages.
    stages: tuple[int, ...] = (24, 32, 64, 128, 160)
    # Residual blocks in each of the stages after the stem.
    blocks: tuple[int, ...] = (1, 2, 2, 1)
    # Channels of the map that the branches see, and of the pyramid.
    width: int = 48
    # Channels that each branch contributes to the fusion.
    branch_width: int = 32
    # Side in cells of the convolutions behind a branch's stem, odd.
    branch_kernel: int = 1
    # What a branch passes on: what it predicts of its teacher's target, or the features behind that as well.
    feed: Feed = "both"
    # Group norms do not depend on the batch; batch norms are the paper's.
    norm: Norm = "group"
    # Neurons of the box head.
    head_width: int = 256
    # The region proposal network's anchors.
    anchors: Derived[AnchorShapes] = AnchorShapes()
    # Anchors that overlap an object by this IoU are to propose it.
    rpn_positive_iou: float = 0.5
    # The depth head sees where in the image a box is, and how large.
    depth_sees_box: bool = True
    # Error of an encoded depth from which on its loss is linear.
    depth_beta: float = 0.05
    # Larger depths are clamped to this.
    max_depth_m: float = 75.0
    # Anchors per image that are sampled for the losses.
    rpn_batch: int = 256
    # Proposals per image that are sampled for the losses.
    roi_batch: int = 64
    # Proposals per image that reach the heads.
    proposals: int = 200
    # Detections below this confidence are dropped.
    min_score: float = 0.02
    # Detections per image that are kept, the most confident.
    detections: int = 100

    def __post_init__(self) -> None:
        names = [branch.name for branch in self.branches]
        if len(set(names)) < len(names):
            raise StudentError(f"branches: expected different names, got: {', '.join(names)}")
        if taken := [name for name in names if hasattr(nn.ModuleDict, name)]:
            raise StudentError(f"branches: {taken[0]!r} is a name that torch needs itself; call the teacher otherwise")
        if len(self.stages) != len(self.blocks) + 1:
            raise StudentError(f"expected blocks for each stage after the stem, got: {self.stages} and {self.blocks}")
        if self.trunk not in _OWN_TRUNKS and not self.timm_name:
            raise StudentError(f"trunk: expected {', '.join(_OWN_TRUNKS)} or {_TIMM}NAME, got: {self.trunk!r}")
        if (stages := _OWN_TRUNKS.get(self.trunk, len(self.stages))) != len(self.stages):
            raise StudentError(f"trunk {self.trunk}: expected {stages} stages with the stem, got: {self.stages}")
        self._check_pretraining()
        if self.branch_kernel < 1 or self.branch_kernel % 2 == 0:
            raise StudentError(f"branch_kernel {self.branch_kernel}: expected an odd number of cells")
        for name, value, known in (("feed", self.feed, Feed), ("norm", self.norm, Norm)):
            if value not in get_args(known):
                raise StudentError(f"{name}: expected one of {', '.join(get_args(known))}, got: {value!r}")

    @staticmethod
    def resnet50() -> StudentConfig:
        """Return a student for images of 960 x 640 pixels, with the trunk that most detectors are compared by."""
        return StudentConfig(
            trunk="timm:resnet50",
            width=128,
            branch_width=64,
            head_width=1024,
            anchors=AnchorShapes(sizes=((20, 30), (45, 68), (100, 150), (225, 340))),
            roi_batch=128,
            proposals=500,
        )

    def _check_pretraining(self) -> None:
        """Raise where something is to be kept that is not there."""
        if not self.timm_name and (self.is_pretrained or self.freeze_stages or self.freeze_norms):
            raise StudentError(f"trunk {self.trunk}: weights are given to, and parts frozen of, timm's trunks alone")
        if not self.is_pretrained and (self.freeze_stages or self.freeze_norms):
            raise StudentError("freeze_stages and freeze_norms: expected trunk_weights, or frozen parts mean nothing")

    @property
    def timm_name(self) -> str | None:
        """The trunk's name in timm; None: it is one of ours."""
        return self.trunk.removeprefix(_TIMM) or None if self.trunk.startswith(_TIMM) else None

    @property
    def is_pretrained(self) -> bool:
        """Whether the trunk starts from given weights."""
        return self.trunk_weights is not None or self.trunk_weights_sha256 is not None

    @staticmethod
    def paper(branches: tuple[BranchSpec, ...] = (), anchors: AnchorShapes | None = None) -> StudentConfig:
        """Return the paper's student (section 3): a trunk that never reduces the resolution, and batch norms."""
        return StudentConfig(
            branches=branches,
            anchors=anchors or AnchorShapes(),
            trunk="stride1",
            stages=(64, 64, 96),
            blocks=(2, 2),
            width=96,
            branch_width=48,
            branch_kernel=3,
            feed="imitation",
            norm="batch",
            head_width=1024,
            rpn_positive_iou=0.7,
            depth_sees_box=False,
            depth_beta=1.0,
            roi_batch=512,
            proposals=1000,
            min_score=0.05,
        )

    @property
    def stride(self) -> int:
        """Pixels per cell of the grid on which teachers are imitated."""
        return 1 if self.trunk == "stride1" else 4

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
        coarsest = max(self.stride << (self.levels - 1), 1 if self.trunk == "stride1" else 32)
        return grid_of(height, width, self.stride, coarsest)

    def to_json(self) -> str:
        """Return the configuration as JSON, for the file beside the weights."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> StudentConfig:
        """Return the configuration that `to_json` gave, also that of version 0.1.

        Raises StudentError where it is not one.
        """
        try:
            values: Mapping[str, Any] = json.loads(text)
            if "preset" in values:
                values = _of_version_0_1(values)
            shapes = values["anchors"]
            anchors = AnchorShapes(
                sizes=tuple(map(tuple, shapes["sizes"])),
                ratios=tuple(shapes["ratios"]),
                # Students before this field have none.
                half_cells=shapes.get("half_cells", False),
            )
            branches = tuple(
                BranchSpec(**{**branch, "kind": _OLD_KINDS.get(branch["kind"], branch["kind"])})
                for branch in values["branches"]
            )
            lists = {name: tuple(values[name]) for name in ("stages", "blocks")}
            colors = {name: tuple(values[name]) for name in ("image_mean", "image_std") if values.get(name)}
            return StudentConfig(**{**values, **lists, **colors, "anchors": anchors, "branches": branches})
        except (ValueError, KeyError, TypeError) as error:
            raise StudentError(f"not a student's configuration: {error}") from error


def grid_of(height: int, width: int, stride: int, coarsest: int) -> tuple[int, int]:
    """Return height and width in cells of `stride` pixels for images of `height` x `width` pixels.

    Raises StudentError where an image does not divide into cells of `coarsest` pixels.
    """
    if height % coarsest or width % coarsest:
        raise StudentError(
            f"images of {width} x {height} pixels do not divide into cells of {coarsest}; choose an image size"
            f" like {-(-width // coarsest) * coarsest} x {-(-height // coarsest) * coarsest}"
        )
    return height // stride, width // stride


def _of_version_0_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of now for those that version 0.1 wrote; raises StudentError for what is no longer there."""
    rest = dict(values)
    preset, stride = rest.pop("preset"), rest.pop("stride")
    like = {"classroom": StudentConfig(), "paper": StudentConfig.paper()}[preset]
    if stride != like.stride or rest["feed"] == "hidden":
        raise StudentError(
            f"stride {stride} and feed {rest['feed']}: students of stride 8, and of branches that pass on hidden"
            " features alone, are not read any more; use version 0.1"
        )
    return {**{name: getattr(like, name) for name in _OF_PRESET}, **rest}
