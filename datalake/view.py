"""A segment as a recording for the Rerun viewer: images, boxes, depths and points on one timeline.

    vehicle                          with `world`: where the vehicle is at the frame's time, relative to the first frame
    vehicle/points                   all returns; vehicle/boxes the 3D boxes
    vehicle/<camera>                 calibration; below it image, boxes (2D, with depth), depth (points on the image),
                                     and a student's detections
    maps/<camera>/<teacher>          target, and the student's prediction of it

Frames of reference are the lake's: x forward, y left, z up. Lens distortion is not part of Rerun's cameras: in 3D an
image's edge is off by it, in 2D all is where the record has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datalake.commit import Commit, LakeError
from datalake.lake import Lake
from datalake.layers import ImageLayers, LayersOf
from datalake.missing_package import need
from datalake.segment_files import SegmentFiles
from datalake.show import TYPE_COLORS, find_segment

PointColor = Literal["class", "depth", "intensity"]
Coordinates = Literal["vehicle", "world"]

_COLUMNS = {
    "image": ["timestamp_us", "camera", "jpeg", "width", "height", "intrinsic", "camera_to_vehicle"],
    "point": ["timestamp_us", "x_m", "y_m", "z_m", "intensity", "semantic_class"],
    "label": ["timestamp_us", "camera", "object_id", "type", "x0", "y0", "x1", "y1", "depth_m"],
    "label_3d": [
        "timestamp_us", "object_id", "type", "center_x_m", "center_y_m", "center_z_m", "length_m", "width_m",
        "height_m", "heading_rad",
    ],
    "depth": ["u", "v", "depth_m"],
}  # fmt: skip
# As in `show`: the same colors mean the same.
_DEPTH_COLORS, _CLASS_COLORS, _INTENSITY_COLORS = "turbo", "tab20", "viridis"
_MAX_DEPTH_M = 60.0
_POINT_RADIUS_M, _DOT_RADIUS = 0.04, 1.5
_BACKGROUND = (20, 22, 26)
_IMAGE_PLANE_M = 2.0


class _Recording:
    """An open recording of one segment.

    maps: the entities of images that get a view of their own
    """

    def __init__(self, stream: Any, rerun: ModuleType, frames: dict[int, int]) -> None:
        self._stream, self.rerun, self._frames = stream, rerun, frames
        self.maps: dict[str, None] = {}

    def at(self, timestamp_us: int) -> None:
        """Let what is logged from now on belong to the frame of this time."""
        self._stream.set_time("frame", sequence=self._frames[timestamp_us])
        self._stream.set_time("time", timestamp=np.datetime64(timestamp_us, "us"))

    def log(self, entity: str, *values: Any, static: bool = False) -> None:
        """Log Rerun's archetypes; static: for all times."""
        self._stream.log(entity, *values, static=static)


def write_recording(
    lake: Lake,
    split: str,
    segment: str,
    out: Path,
    *,
    color: PointColor | None = None,
    coordinates: Coordinates = "vehicle",
    frames: int | None = None,
    layers: LayersOf | None = None,
) -> int:
    """Write the first `frames` frames of a segment, all by default, of the images that the lake has kept; return them.

    color: of points; by default their class in frames whose points are labelled, in others their distance
    layers: what models say of the images

    Raises LakeError where there is no such segment, or poses are asked for and missing, MissingPackageError without
    rerun-sdk.
    """
    rerun = _import_rerun()
    commit = find_segment(lake, split, segment)
    lake = lake.of_commits(commit)
    times = sorted(set(lake.images(["timestamp_us"], split).column(0).to_pylist()))[:frames]
    if frames is not None:
        lake = lake.where(f"timestamp_us <= {times[-1]}", split)
    (commit,) = lake.commits
    numbers = {time: number for number, time in enumerate(times)}
    with _saved(rerun, out, segment) as stream:
        recording = _Recording(stream, rerun, numbers)
        cameras = _log_segment(recording, lake, commit, numbers, color, coordinates)
        for one in layers(lake) if layers is not None else ():
            _log_layers(recording, one)
        stream.send_blueprint(_blueprint(cameras, list(recording.maps), coordinates))
    return len(times)


def _type_colors(types: Iterable[str]) -> NDArray[np.uint8]:
    """Return the color of each type of object, uint8 [N, 4]."""
    return _bytes(mpl.colors.to_rgba_array([TYPE_COLORS[name] for name in types]))


def _import_rerun() -> ModuleType:
    need("view", ("rerun",), "a recording")
    import rerun

    # Otherwise what it cannot read is left out of the recording with a warning.
    rerun.set_strict_mode(True)
    module: ModuleType = rerun
    return module


@contextlib.contextmanager
def _saved(rerun: ModuleType, out: Path, name: str) -> Iterator[Any]:
    """Yield a stream into a file that has its name once it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        with rerun.RecordingStream("classroomnet", recording_id=name) as stream:
            stream.save(unfinished)
            stream.log("vehicle", rerun.ViewCoordinates.FLU, static=True)
            yield stream
            stream.flush()
            stream.disconnect()
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)


def _log_segment(
    recording: _Recording,
    lake: Lake,
    commit: Commit,
    numbers: dict[int, int],
    color: PointColor | None,
    coordinates: Coordinates,
) -> list[str]:
    """Log everything that the lake has of these frames; return the cameras."""
    files = SegmentFiles(lake, commit)
    cameras: dict[str, None] = {}
    poses = _poses(lake, commit) if coordinates == "world" else {}
    origin: NDArray[np.float64] | None = None
    try:
        for group, chunk in enumerate(commit.chunks):
            if not chunk.strip("0"):
                continue
            tables = {table: _table(columns) for table, columns in files.read(group, _COLUMNS).items()}
            # `depth` has a row for each row of `image`.
            images = [
                {**image, "depth": depth}
                for image, depth, number in zip(tables["image"].to_pylist(), _rows(tables["depth"]), chunk, strict=True)
                if number != "0"
            ]
            for point in _rows(tables["point"]):
                time = point["timestamp_us"].as_py()
                of_frame = [image for image in images if image["timestamp_us"] == time]
                if time not in numbers or not of_frame:
                    continue
                recording.at(time)
                if coordinates == "world":
                    pose = _pose(poses, time, commit.segment)
                    to_here = np.linalg.inv(pose).astype(np.float64)
                    origin = to_here if origin is None else origin
                    recording.log("vehicle", _transform(recording.rerun, origin @ pose))
                _log_points(recording, point, color)
                _log_boxes(recording, _at(tables["label_3d"], time))
                labels = _at(tables["label"], time)
                for image in of_frame:
                    if image["camera"] not in cameras:
                        _log_camera(recording, image)
                        cameras[image["camera"]] = None
                    _log_image(recording, image, [row for row in labels if row["camera"] == image["camera"]])
    finally:
        files.close()
    return list(cameras)


def _log_points(recording: _Recording, point: dict[str, Any], color: PointColor | None) -> None:
    xyz = np.stack([_numbers(point[name]) for name in ("x_m", "y_m", "z_m")], 1)
    labelled = point["semantic_class"].is_valid
    chosen = color or ("class" if labelled else "depth")
    if chosen == "class":
        classes = _numbers(point["semantic_class"]) if labelled else np.zeros(len(xyz), np.int8)
        colors = mpl.colormaps[_CLASS_COLORS](classes % 20)
    elif chosen == "depth":
        colors = mpl.colormaps[_DEPTH_COLORS](np.linalg.norm(xyz, axis=1) / _MAX_DEPTH_M)
    else:
        # The sensor's own units: most of them are far below 1, few far above.
        colors = mpl.colormaps[_INTENSITY_COLORS](np.tanh(_numbers(point["intensity"])))
    recording.log("vehicle/points", recording.rerun.Points3D(xyz, colors=_bytes(colors), radii=_POINT_RADIUS_M))


def _log_boxes(recording: _Recording, boxes: list[dict[str, Any]]) -> None:
    rerun = recording.rerun
    half = np.array([box["heading_rad"] for box in boxes]) / 2
    zeros = np.zeros_like(half)
    recording.log(
        "vehicle/boxes",
        rerun.Boxes3D(
            centers=_floats(boxes, "center_x_m", "center_y_m", "center_z_m"),
            sizes=_floats(boxes, "length_m", "width_m", "height_m"),
            quaternions=np.stack([zeros, zeros, np.sin(half), np.cos(half)], 1),
            colors=_type_colors(box["type"] for box in boxes),
            labels=[box["type"] for box in boxes],
            show_labels=False,
        ),
        rerun.AnyValues(object_id=[box["object_id"] for box in boxes]),
    )


def _log_camera(recording: _Recording, image: dict[str, Any]) -> None:
    rerun, entity = recording.rerun, f"vehicle/{image['camera']}"
    if image["camera_to_vehicle"] is not None:
        transform = np.array(image["camera_to_vehicle"]).reshape(4, 4)
        recording.log(entity, _transform(rerun, transform), static=True)
    if image["intrinsic"] is not None:
        f_u, f_v, c_u, c_v = image["intrinsic"][:4]
        recording.log(
            entity,
            rerun.Pinhole(
                image_from_camera=[[f_u, 0, c_u], [0, f_v, c_v], [0, 0, 1]],
                resolution=[image["width"], image["height"]],
                camera_xyz=rerun.ViewCoordinates.FLU,
                image_plane_distance=_IMAGE_PLANE_M,
            ),
            static=True,
        )


def _log_image(recording: _Recording, image: dict[str, Any], labels: list[dict[str, Any]]) -> None:
    rerun, entity = recording.rerun, f"vehicle/{image['camera']}"
    recording.log(f"{entity}/image", rerun.EncodedImage(contents=image["jpeg"], media_type="image/jpeg"))
    texts = ["no point" if row["depth_m"] is None else f"{row['depth_m']:.0f} m" for row in labels]
    recording.log(
        f"{entity}/boxes",
        rerun.Boxes2D(
            array=_floats(labels, "x0", "y0", "x1", "y1"),
            array_format=rerun.Box2DFormat.XYXY,
            colors=_type_colors(row["type"] for row in labels),
            # The color says of which type it is.
            labels=texts,
        ),
        rerun.AnyValues(object_id=[row["object_id"] for row in labels]),
    )
    depth = image["depth"]
    depth_m = _numbers(depth["depth_m"])
    recording.log(
        f"{entity}/depth",
        rerun.Points2D(
            # A projection names a pixel; its center is half a pixel further.
            np.stack([_numbers(depth["u"]), _numbers(depth["v"])], 1) + np.float32(0.5),
            colors=_bytes(mpl.colormaps[_DEPTH_COLORS](depth_m / _MAX_DEPTH_M)),
            radii=rerun.Radius.ui_points(_DOT_RADIUS),
        ),
    )


def _log_layers(recording: _Recording, layers: ImageLayers) -> None:
    rerun, camera = recording.rerun, layers.key.camera
    recording.at(layers.key.timestamp_us)
    if layers.boxes is not None:
        recording.log(
            f"vehicle/{camera}/detections",
            rerun.Boxes2D(
                array=layers.boxes,
                array_format=rerun.Box2DFormat.XYXY,
                colors=_type_colors(layers.types),
                labels=list(layers.texts),
            ),
        )
    for name, image in layers.maps.items():
        entity = f"maps/{camera}/{name}"
        recording.log(entity, rerun.Image(image))
        recording.maps[entity] = None


def _blueprint(cameras: list[str], maps: list[str], coordinates: Coordinates) -> Any:
    """Return how the viewer begins: the scene at the left; cameras with boxes, depths and maps at the right."""
    from rerun import blueprint

    scene = blueprint.Spatial3DView(
        origin="/" if coordinates == "world" else "vehicle",
        contents=["+ /vehicle", "+ /vehicle/points", "+ /vehicle/boxes"],
        name="points and 3D boxes",
        background=_BACKGROUND,
        line_grid=False,
        eye_controls=blueprint.EyeControls3D(position=(-16, 0, 11), look_target=(14, 0, 0), eye_up=(0, 0, 1)),
    )
    boxes = [
        blueprint.Spatial2DView(
            origin=f"vehicle/{camera}", name=camera, contents=["$origin/**", "- $origin/depth"], background=_BACKGROUND
        )
        for camera in cameras
    ]
    others = [
        *(
            blueprint.Spatial2DView(
                origin=f"vehicle/{camera}",
                name=f"{camera} depth",
                contents=["$origin/image", "$origin/depth"],
                background=_BACKGROUND,
            )
            for camera in cameras
        ),
        *(blueprint.Spatial2DView(origin=entity, name=entity, background=_BACKGROUND) for entity in maps),
    ]
    right = blueprint.Vertical(blueprint.Grid(*boxes), blueprint.Grid(*others) if maps else blueprint.Tabs(*others))
    return blueprint.Blueprint(blueprint.Horizontal(scene, right, column_shares=[3, 2]), collapse_panels=True)


def _poses(lake: Lake, commit: Commit) -> dict[int, list[float] | None]:
    """Return vehicle to world, 4 x 4 row-major, at each frame's time, which points and 3D boxes are of.

    None where a record had none, or the lake is from before poses of frames were kept.
    """
    columns = lake.dataset("point", commit.split).to_table(columns=["timestamp_us", "vehicle_to_world"])
    return {row["timestamp_us"]: row["vehicle_to_world"] for row in columns.to_pylist()}


def _pose(poses: dict[int, list[float] | None], timestamp_us: int, segment: str) -> NDArray[np.float64]:
    """Return the frame's pose as float64 [4, 4]; raises LakeError where it has none."""
    pose = poses[timestamp_us]
    if pose is None:
        raise LakeError(f"segment {segment} has no pose at {timestamp_us}: leave out --coordinates world")
    return np.array(pose).reshape(4, 4)


def _transform(rerun: ModuleType, matrix: NDArray[np.float64]) -> Any:
    return rerun.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3])


def _table(columns: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array(values) if isinstance(values, np.ndarray) else values
                     for name, values in columns.items()})  # fmt: skip


def _rows(table: pa.Table) -> Iterator[dict[str, pa.Scalar]]:
    """Yield rows whose lists stay Arrow's: as Python's a frame's points would take 100 times the memory."""
    for row in range(len(table)):
        yield {name: table.column(name)[row] for name in table.column_names}


def _at(table: pa.Table, timestamp_us: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.filter(pa.compute.field("timestamp_us") == timestamp_us).to_pylist()
    # A null number has become NaN on its way.
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def _numbers(values: pa.ListScalar) -> NDArray[Any]:
    return values.values.to_numpy(zero_copy_only=False)


def _floats(rows: list[dict[str, Any]], *names: str) -> NDArray[np.float32]:
    return np.array([[row[name] for name in names] for row in rows], np.float32).reshape(-1, len(names))


def _bytes(colors: NDArray[np.float64]) -> NDArray[np.uint8]:
    return (colors * 255).round().astype(np.uint8)
