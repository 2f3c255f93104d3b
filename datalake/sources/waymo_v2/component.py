"""The components of Waymo 2.x: where they lie, and which of their columns are read.

Source: `waymo_open_dataset/v2/perception` of the official package. A column of a component is called
`[CameraImageComponent].image`, a key `key.camera_name`; the published files have a column `index` besides.
"""

from __future__ import annotations

from dataclasses import dataclass

SEGMENT_KEY = "key.segment_context_name"
TIME_KEY = "key.frame_timestamp_micros"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component.

    folder: the name of its folder
    tag: what its columns begin with, in brackets
    keys: beside segment and time
    columns, optional: those that are read; a file without one of `columns` is not of this component
    absence: what a segment without it lacks
    of_frame: whether its rows belong to frames, not to the segment as a whole
    batch_rows: how many rows are in memory at a time
    """

    folder: str
    tag: str
    absence: str
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    of_frame: bool = True
    batch_rows: int = 512

    def column(self, name: str) -> str:
        """Return the full name of a column."""
        return f"[{self.tag}].{name}"

    @property
    def required(self) -> list[str]:
        """The full names of all columns that a file of this component has."""
        keys = [SEGMENT_KEY, *([TIME_KEY] if self.of_frame else []), *(f"key.{key}" for key in self.keys)]
        return keys + [self.column(name) for name in self.columns]


_RETURN_1 = ("range_image_return1.values", "range_image_return1.shape")
_RETURN_2 = ("range_image_return2.values", "range_image_return2.shape")
_INTRINSIC = tuple(f"intrinsic.{name}" for name in ("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3"))
VELOCITY = tuple(f"velocity.{kind}_velocity.{axis}" for kind in ("linear", "angular") for axis in "xyz")
# Of `Exposure`, where each field is.
EXPOSURE = {
    "pose_time_s": "pose_timestamp",
    "trigger_time_s": "rolling_shutter_params.camera_trigger_time",
    "readout_done_time_s": "rolling_shutter_params.camera_readout_done_time",
    "shutter_s": "rolling_shutter_params.shutter",
}
# Of `Keypoint`, where each field is.
KEYPOINT_FIELDS = {
    "u_px": "keypoint_2d.location_px.x",
    "v_px": "keypoint_2d.location_px.y",
    "occluded_2d": "keypoint_2d.visibility.is_occluded",
    "x_m": "keypoint_3d.location_m.x",
    "y_m": "keypoint_3d.location_m.y",
    "z_m": "keypoint_3d.location_m.z",
    "occluded_3d": "keypoint_3d.visibility.is_occluded",
}
_BOX_3D = (*(f"box.{part}.{axis}" for part in ("center", "size") for axis in "xyz"), "box.heading")
# A frame has five cameras and five lasers; their rows are the large ones.
_SENSORS = 5

COMPONENTS = {
    component.folder: component
    for component in (
        Component(
            folder="camera_image",
            tag="CameraImageComponent",
            absence="no images",
            keys=("camera_name",),
            columns=("image",),
            optional=("pose.transform", *VELOCITY, *EXPOSURE.values()),
            batch_rows=_SENSORS,
        ),
        Component(
            folder="camera_calibration",
            tag="CameraCalibrationComponent",
            absence="no camera calibrations, and no depths",
            keys=("camera_name",),
            columns=(*_INTRINSIC, "extrinsic.transform", "width", "height"),
            optional=("rolling_shutter_direction",),
            of_frame=False,
        ),
        Component(
            folder="camera_box",
            tag="CameraBoxComponent",
            absence="no 2D labels",
            keys=("camera_name", "camera_object_id"),
            columns=("box.center.x", "box.center.y", "box.size.x", "box.size.y", "type"),
            optional=("difficulty_level.detection", "difficulty_level.tracking"),
        ),
        Component(
            folder="camera_segmentation",
            tag="CameraSegmentationLabelComponent",
            absence="no panoptic labels",
            keys=("camera_name",),
            columns=("panoptic_label", "panoptic_label_divisor"),
            batch_rows=_SENSORS,
        ),
        Component(
            folder="lidar",
            tag="LiDARComponent",
            absence="no points",
            keys=("laser_name",),
            columns=_RETURN_1,
            optional=_RETURN_2,
            batch_rows=_SENSORS,
        ),
        Component(
            folder="lidar_calibration",
            tag="LiDARCalibrationComponent",
            absence="no points",
            keys=("laser_name",),
            columns=("extrinsic.transform",),
            optional=("beam_inclination.min", "beam_inclination.max", "beam_inclination.values"),
            of_frame=False,
        ),
        Component(
            folder="lidar_pose",
            tag="LiDARPoseComponent",
            absence="no points of TOP, whose ego motion cannot be compensated",
            keys=("laser_name",),
            columns=_RETURN_1,
            batch_rows=1,
        ),
        Component(
            folder="lidar_camera_projection",
            tag="LiDARCameraProjectionComponent",
            absence="no projections of points, and no depths",
            keys=("laser_name",),
            columns=_RETURN_1,
            optional=_RETURN_2,
            batch_rows=_SENSORS,
        ),
        Component(
            folder="lidar_segmentation",
            tag="LiDARSegmentationLabelComponent",
            absence="no classes of points",
            keys=("laser_name",),
            columns=_RETURN_1,
            optional=_RETURN_2,
            batch_rows=1,
        ),
        Component(
            folder="lidar_box",
            tag="LiDARBoxComponent",
            absence="no 3D labels",
            keys=("laser_object_id",),
            columns=(*_BOX_3D, "type"),
            optional=(
                "num_lidar_points_in_box",
                "num_top_lidar_points_in_box",
                *(f"{kind}.{axis}" for kind in ("speed", "acceleration") for axis in "xyz"),
                "difficulty_level.detection",
                "difficulty_level.tracking",
            ),
        ),
        Component(
            folder="lidar_camera_synced_box",
            tag="LiDARCameraSyncedBoxComponent",
            absence="no camera-synced boxes",
            keys=("laser_object_id",),
            columns=("most_visible_camera_name", *(f"camera_synced_{name}" for name in _BOX_3D)),
        ),
        Component(
            folder="camera_to_lidar_box_association",
            tag="CameraToLiDARBoxAssociationComponent",
            absence="no associations of 2D labels with 3D labels",
            keys=("camera_name", "camera_object_id", "laser_object_id"),
            columns=(),
        ),
        Component(
            folder="projected_lidar_box",
            tag="ProjectedLiDARBoxComponent",
            absence="no projected boxes",
            keys=("camera_name", "laser_object_id"),
            columns=("box.center.x", "box.center.y", "box.size.x", "box.size.y", "type"),
        ),
        Component(
            folder="camera_hkp",
            tag="CameraHumanKeypointsComponent",
            absence="no keypoints of 2D labels",
            keys=("camera_name", "camera_object_id"),
            columns=("camera_keypoints[*].type",),
            optional=tuple(f"camera_keypoints[*].{name}" for name in KEYPOINT_FIELDS.values()),
        ),
        Component(
            folder="lidar_hkp",
            tag="LiDARHumanKeypointsComponent",
            absence="no keypoints of 3D labels",
            keys=("laser_object_id",),
            columns=("lidar_keypoints[*].type",),
            optional=tuple(f"lidar_keypoints[*].{name}" for name in KEYPOINT_FIELDS.values()),
        ),
        Component(
            folder="vehicle_pose",
            tag="VehiclePoseComponent",
            absence="no poses of frames, and no points of TOP, whose ego motion cannot be compensated",
            columns=("world_from_vehicle.transform",),
        ),
        Component(
            folder="stats",
            tag="StatsComponent",
            absence="no location, time of day and weather",
            columns=("location", "time_of_day", "weather"),
        ),
    )
}
# Any of these tells of a frame; labels alone are none.
FRAME_COMPONENTS = ("vehicle_pose", "camera_image", "lidar")


def component_of(uri: str) -> Component | None:
    """Return the component that a file belongs to, by the name of its folder."""
    return COMPONENTS.get(uri.rstrip("/").rsplit("/", 2)[-2] if "/" in uri else "")
