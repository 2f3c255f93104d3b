"""What things are made of and what they are called, for both sensors and both label sets."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from datalake.sources.waymo_v1.protos import camera_segmentation_pb2, segmentation_pb2

_CAMERA = camera_segmentation_pb2.CameraSegmentation
_LIDAR = segmentation_pb2.Segmentation


class Material(IntEnum):
    """The surface of a part: decides its texture in the image and its echo in the range image."""

    PLAIN = 0
    PAINT = 1  # vehicle body: lamps and plates at its ends
    CABIN = 2  # vehicle cabin: windows below a painted roof
    COACH = 3  # bus or van body: a band of windows
    TYRE = 4
    CLOTH = 5
    SKIN = 6
    SPOKES = 7  # a ring: rays pass through its middle
    FACADE = 8
    FOLIAGE = 9  # rays pass through holes near the silhouette
    BARK = 10
    METAL = 11
    SIGN = 12
    LAMP = 13
    SIGNAL = 14


class Kind(IntEnum):
    """What a part or a patch of ground is. Ground regions are kinds as well; SKY is what no ray meets."""

    SKY = 0
    CAR = 1
    TRUCK = 2
    BUS = 3
    PEDESTRIAN = 4
    CYCLIST = 5
    BICYCLE = 6
    SIGN = 7
    TRAFFIC_LIGHT = 8
    POLE = 9
    CONE = 10
    BUILDING = 11
    VEGETATION = 12
    TRUNK = 13
    OBJECT = 14
    ROAD = 15
    WHITE_PAINT = 16
    YELLOW_PAINT = 17
    KERB = 18
    SIDEWALK = 19
    YARD = 20


def _table(classes: dict[Kind, int], dtype: type) -> np.ndarray:
    return np.array([classes[kind] for kind in Kind], dtype)


# Kind -> CameraSegmentation.Type. A rider and the bicycle below are one CYCLIST, as in the 2D labels.
CAMERA_CLASS = _table(
    {
        Kind.SKY: _CAMERA.TYPE_SKY,
        Kind.CAR: _CAMERA.TYPE_CAR,
        Kind.TRUCK: _CAMERA.TYPE_TRUCK,
        Kind.BUS: _CAMERA.TYPE_BUS,
        Kind.PEDESTRIAN: _CAMERA.TYPE_PEDESTRIAN,
        Kind.CYCLIST: _CAMERA.TYPE_CYCLIST,
        Kind.BICYCLE: _CAMERA.TYPE_BICYCLE,
        Kind.SIGN: _CAMERA.TYPE_SIGN,
        Kind.TRAFFIC_LIGHT: _CAMERA.TYPE_TRAFFIC_LIGHT,
        Kind.POLE: _CAMERA.TYPE_POLE,
        Kind.CONE: _CAMERA.TYPE_CONSTRUCTION_CONE_POLE,
        Kind.BUILDING: _CAMERA.TYPE_BUILDING,
        Kind.VEGETATION: _CAMERA.TYPE_VEGETATION,
        Kind.TRUNK: _CAMERA.TYPE_VEGETATION,
        Kind.OBJECT: _CAMERA.TYPE_STATIC,
        Kind.ROAD: _CAMERA.TYPE_ROAD,
        Kind.WHITE_PAINT: _CAMERA.TYPE_LANE_MARKER,
        Kind.YELLOW_PAINT: _CAMERA.TYPE_LANE_MARKER,
        Kind.KERB: _CAMERA.TYPE_SIDEWALK,
        Kind.SIDEWALK: _CAMERA.TYPE_SIDEWALK,
        Kind.YARD: _CAMERA.TYPE_GROUND,
    },
    np.uint16,
)

# Kind -> Segmentation.Type of lidar points.
LIDAR_CLASS = _table(
    {
        Kind.SKY: _LIDAR.TYPE_UNDEFINED,
        Kind.CAR: _LIDAR.TYPE_CAR,
        Kind.TRUCK: _LIDAR.TYPE_TRUCK,
        Kind.BUS: _LIDAR.TYPE_BUS,
        Kind.PEDESTRIAN: _LIDAR.TYPE_PEDESTRIAN,
        Kind.CYCLIST: _LIDAR.TYPE_BICYCLIST,
        Kind.BICYCLE: _LIDAR.TYPE_BICYCLE,
        Kind.SIGN: _LIDAR.TYPE_SIGN,
        Kind.TRAFFIC_LIGHT: _LIDAR.TYPE_TRAFFIC_LIGHT,
        Kind.POLE: _LIDAR.TYPE_POLE,
        Kind.CONE: _LIDAR.TYPE_CONSTRUCTION_CONE,
        Kind.BUILDING: _LIDAR.TYPE_BUILDING,
        Kind.VEGETATION: _LIDAR.TYPE_VEGETATION,
        Kind.TRUNK: _LIDAR.TYPE_TREE_TRUNK,
        Kind.OBJECT: _LIDAR.TYPE_UNDEFINED,
        Kind.ROAD: _LIDAR.TYPE_ROAD,
        Kind.WHITE_PAINT: _LIDAR.TYPE_LANE_MARKER,
        Kind.YELLOW_PAINT: _LIDAR.TYPE_LANE_MARKER,
        Kind.KERB: _LIDAR.TYPE_CURB,
        Kind.SIDEWALK: _LIDAR.TYPE_SIDEWALK,
        Kind.YARD: _LIDAR.TYPE_OTHER_GROUND,
    },
    np.int32,
)
