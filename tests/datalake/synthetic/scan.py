"""Reads a simulated frame back through its official record, independently of the code that wrote it."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datalake.sources.waymo_v1.protos import dataset_pb2


def matrix(compressed: bytes, message: type) -> np.ndarray:
    """Return a compressed `MatrixFloat` or `MatrixInt32` as an array."""
    decoded = message()
    decoded.ParseFromString(zlib.decompress(compressed))
    return np.array(decoded.data).reshape(list(decoded.shape.dims))


def transform(message: dataset_pb2.Transform) -> np.ndarray:
    """Return float64 [4, 4]."""
    return np.array(message.transform).reshape(4, 4)


@dataclass(frozen=True)
class Cloud:
    """N points of one return: position in the vehicle frame (m), class, instance and first projection."""

    xyz: np.ndarray
    semantic_class: np.ndarray
    instance: np.ndarray
    projection: np.ndarray


def cloud(frame: dataset_pb2.Frame, index: int = 0) -> Cloud:
    """Return the points of return 0 or 1, following recipes of the Waymo range image format."""
    laser, calibration = frame.lasers[0], frame.context.laser_calibrations[0]
    found = (laser.ri_return1, laser.ri_return2)[index]
    image = matrix(found.range_image_compressed, dataset_pb2.MatrixFloat)
    extrinsic = transform(calibration.extrinsic)
    columns = image.shape[1]
    inclination = np.array(calibration.beam_inclinations)[::-1, None]
    share = (columns - np.arange(columns) - 0.5) / columns
    azimuth = ((2 * share - 1) * np.pi - np.arctan2(extrinsic[1, 0], extrinsic[0, 0]))[None, :]
    ray = np.stack(
        [
            np.cos(inclination) * np.cos(azimuth),
            np.cos(inclination) * np.sin(azimuth),
            np.sin(inclination) + 0 * azimuth,
        ],
        -1,
    )
    vehicle = (ray * image[..., :1]) @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    pose = matrix(laser.ri_return1.range_image_pose_compressed, dataset_pb2.MatrixFloat)
    roll, pitch, yaw = pose[..., 0], pose[..., 1], pose[..., 2]
    for angle, (i, j) in ((roll, (1, 2)), (pitch, (2, 0)), (yaw, (0, 1))):
        turned = vehicle.copy()
        turned[..., i] = np.cos(angle) * vehicle[..., i] - np.sin(angle) * vehicle[..., j]
        turned[..., j] = np.sin(angle) * vehicle[..., i] + np.cos(angle) * vehicle[..., j]
        vehicle = turned
    now = transform(frame.pose)
    xyz = (vehicle + pose[..., 3:] - now[:3, 3]) @ now[:3, :3]
    labels = matrix(found.segmentation_label_compressed, dataset_pb2.MatrixInt32)
    projection = matrix(found.camera_projection_compressed, dataset_pb2.MatrixInt32)
    valid = image[..., 0] > 0
    return Cloud(xyz[valid], labels[valid][:, 1], labels[valid][:, 0], projection[valid])


def panoptic(frame: dataset_pb2.Frame, camera: int = 0) -> np.ndarray:
    """Return the panoptic image of the frame's image number `camera`, int [H, W]."""
    label = frame.images[camera].camera_segmentation_label
    return np.array(Image.open(io.BytesIO(label.panoptic_label))).astype(int)
