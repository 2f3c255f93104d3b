"""The same frames as logs of py123d: raw Arrow IPC by its own writer, read by its own scenes.

Its parser of Waymo's records needs TensorFlow; here its writer is given what that parser gives it. The points are, as
there, those of the first returns alone, with intensities in 8 bits and the number of the lidar.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from py123d.api.scene.arrow.arrow_log_writer import ArrowLogWriter
from py123d.api.scene.arrow.arrow_scene_builder import ArrowSceneBuilder
from py123d.api.scene.arrow.utils.log_writer_config import LogWriterConfig
from py123d.api.scene.scene_filter import SceneFilter
from py123d.common.execution.sequential_executor import SequentialExecutor
from py123d.datatypes import LogMetadata, Timestamp
from py123d.datatypes.sensors.lidar import Lidar, LidarFeature, LidarID
from py123d.geometry import Vector3D
from py123d.parser.base_dataset_parser import ModalitiesSync, ParsedCamera
from py123d.parser.wod.utils.wod_constants import WOD_PERCEPTION_CAMERA_IDS, WOD_PERCEPTION_LIDAR_IDS
from waymo_open_dataset.protos import map_pb2

from datalake.sources.frame import ALL_CAMERAS
from datalake.sources.waymo_v1.parse import parse_frame
from datalake.sources.waymo_v1.protos import dataset_pb2
from datalake.sources.waymo_v1.tfrecord import RecordFile, Slot

# Both bring Waymo's protocol buffers, and a process takes them once.
sys.modules["py123d.parser.wod.waymo_open_dataset.protos.map_pb2"] = map_pb2
parser: Any = importlib.import_module("py123d.parser.wod.wod_perception_parser")

_SPLIT = "wod-perception_val"
_SWEEP_US = 100_000


def write(target: Path, sources: list[str]) -> None:
    """Write each TFRecord file as a log, uncompressed."""
    config = LogWriterConfig(
        camera_store_option="jpeg_binary", lidar_store_option="binary", lidar_codec="ipc", write_route=False
    )
    for source in sources:
        with RecordFile(source) as file:
            payloads = [file.read(slot) for slot in file.slots() if isinstance(slot, Slot)]
        first = dataset_pb2.Frame.FromString(payloads[0])
        writer = ArrowLogWriter(config, logs_root=target, sensors_root=target)
        writer.reset(LogMetadata(dataset="wod-perception", split=_SPLIT, log_name=first.context.name, location="sf"))
        cameras = parser._get_wod_perception_camera_metadata(first)
        lidars = parser._get_wod_perception_lidar_merged_metadata(first)
        for payload in payloads:
            writer.write_sync(_modalities(payload, cameras, lidars))
        writer.close()


def reader(target: Path) -> tuple[int, Callable[[int, bool], Any]]:
    """Return the number of frames, and a function that reads one of them, with FRONT's image or without."""
    builder = ArrowSceneBuilder(logs_root=target, maps_root=target)
    scenes = builder.get_scenes(SceneFilter(split_names=[_SPLIT]), SequentialExecutor())
    places = [(scene, number) for scene in scenes for number in range(len(scene.get_all_iteration_timestamps()))]

    def read(number: int, image: bool) -> Any:
        scene, iteration = places[number]
        return (
            scene.get_camera_at_iteration(iteration, WOD_PERCEPTION_CAMERA_IDS[1]) if image else None,
            scene.get_lidar_at_iteration(iteration, LidarID.LIDAR_MERGED),
            scene.get_box_detections_se3_at_iteration(iteration),
            scene.get_ego_state_se3_at_iteration(iteration),
        )

    return len(places), read


def points_of(sample: Any) -> int:
    """Return how many points a sample has."""
    return len(sample[1].point_cloud_3d)


def _modalities(payload: bytes, cameras: dict[Any, Any], lidars: Any) -> ModalitiesSync:
    record, frame = dataset_pb2.Frame.FromString(payload), parse_frame(payload, frozenset(ALL_CAMERAS))
    origin, now = Vector3D(0.0, 0.0, 0.0), Timestamp.from_us(record.timestamp_micros)
    ego = parser._extract_wod_perception_ego_state(record, origin, parser.WOD_PERCEPTION_EGO_STATE_SE3_METADATA, now)
    boxes = parser._extract_wod_perception_box_detections(
        record, origin, parser.WOD_PERCEPTION_BOX_DETECTIONS_SE3_METADATA, timestamp=now
    )
    points = frame.points
    first = points.return_index == 1
    ids = np.array([0, *(int(WOD_PERCEPTION_LIDAR_IDS[number]) for number in range(1, 6))], np.uint8)
    cloud = Lidar(
        timestamp=now,
        timestamp_end=Timestamp.from_us(record.timestamp_micros + _SWEEP_US),
        metadata=lidars,
        point_cloud_3d=points.xyz_m[:, first].T,
        point_cloud_features={
            LidarFeature.INTENSITY.serialize(): (points.intensity[first] * 255).astype(np.uint8),
            LidarFeature.IDS.serialize(): ids[points.laser[first]],
        },
    )
    images = [
        ParsedCamera(cameras[WOD_PERCEPTION_CAMERA_IDS[image.name]], now, None, byte_string=image.image)
        for image in record.images
    ]
    return ModalitiesSync(timestamp=now, modalities=[ego, boxes, cloud, *images])
