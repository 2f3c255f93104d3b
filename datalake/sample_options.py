"""What a sample holds, and which columns of which tables are read for it."""

from __future__ import annotations

from dataclasses import dataclass

from datalake.commit import LakeError
from datalake.sources.frame import LASERS

# Columns by table, each read where what needs it is asked for.
_IMAGE = ["timestamp_us", "camera", "jpeg", "width", "height", "intrinsic", "camera_to_vehicle"]
_PANOPTIC = ["panoptic", "panoptic_divisor"]
_LABEL = ["timestamp_us", "camera", "type", "x0", "y0", "x1", "y1", "depth_m", "difficulty"]
POINT = ["x_m", "y_m", "z_m", "intensity", "laser", "semantic_class"]
_DEPTH = ["u", "v", "depth_m", "point"]
BOX_3D = ["center_x_m", "center_y_m", "center_z_m", "length_m", "width_m", "height_m", "heading_rad"]
_LABEL_3D = ["timestamp_us", "object_id", "type", *BOX_3D, "speed_x_mps", "speed_y_mps", "lidar_points", "difficulty"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What a sample holds. What is not asked for is not read.

    image_size: (width, height) to resize everything to, or None for the size of the record
    points: the lidar points of the frame
    projections: where each camera sees them
    panoptic: panoptic labels of the images
    lasers: whose points are wanted, e.g. ("TOP",); all where empty
    boxes_3d: the 3D labels of the frame
    poses: of the vehicle in the world, at the frame's time and at each image's exposure
    sweeps: how many frames before this one give their points as well, moved to where the vehicle is now

    Raises LakeError for an unknown laser, and for sweeps without points.
    """

    image_size: tuple[int, int] | None = None
    points: bool = True
    projections: bool = True
    panoptic: bool = False
    lasers: tuple[str, ...] = ()
    boxes_3d: bool = False
    poses: bool = False
    sweeps: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.lasers) - set(LASERS[1:])):
            raise LakeError(f"unknown lasers: {', '.join(unknown)}; there are {', '.join(LASERS[1:])}")
        if self.sweeps < 0 or (self.sweeps and not self.points):
            raise LakeError(f"Expected sweeps of at least 0, and 0 without points, got: {self.sweeps}")

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns to read for images, by table."""
        poses = ["vehicle_to_world"] if self.poses else []
        image = [*_IMAGE, *poses, *(_PANOPTIC if self.panoptic else [])]
        depth = {"depth": _DEPTH} if self.points and self.projections else {}
        return {"image": image, "label": _LABEL} | self.frame_columns | depth

    @property
    def frame_columns(self) -> dict[str, list[str]]:
        """The columns to read for frames without any image, by table."""
        columns = {}
        if self.points or self.poses:
            poses = ["vehicle_to_world"] if self.poses or self.sweeps else []
            columns["point"] = ["timestamp_us", *(POINT if self.points else []), *poses]
        if self.boxes_3d:
            columns["label_3d"] = _LABEL_3D
        return columns
