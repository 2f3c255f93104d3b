"""The tables agree with whoever defined the numbers."""

from __future__ import annotations

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_Weights

from datalake.sources.frame import OBJECT_TYPES
from datalake.sources.waymo_v1.protos import camera_segmentation_pb2, segmentation_pb2
from teachers.classes import (
    CAMERA_CLASSES,
    CAMERA_TO_MASK,
    COCO_LABELS,
    COCO_TO_TYPE,
    IGNORED,
    LIDAR_CLASSES,
    LIDAR_TO_SEMANTICKITTI,
    MASK_CLASSES,
    lidar_truth_table,
)
from teachers.spvnas.classes import CLASSES


def test_coco_labels_are_those_of_torchvisions_weights() -> None:
    for weights in (MaskRCNN_ResNet50_FPN_Weights.COCO_V1, MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1):
        categories = weights.meta["categories"]
        assert {name: categories.index(name) for name in COCO_LABELS} == dict(COCO_LABELS)
    assert COCO_TO_TYPE.keys() == COCO_LABELS.keys()


def test_masks_speak_of_types_of_the_lake() -> None:
    assert set(MASK_CLASSES[1:]) < set(OBJECT_TYPES)
    assert set(COCO_TO_TYPE.values()) == set(MASK_CLASSES[1:])


def test_camera_classes_are_the_official_ones_in_order() -> None:
    official = camera_segmentation_pb2.CameraSegmentation.Type
    assert [(f"TYPE_{name}", number) for number, name in enumerate(CAMERA_CLASSES)] == list(official.items())
    of_name = dict(zip(CAMERA_CLASSES, CAMERA_TO_MASK, strict=True))
    assert of_name["UNDEFINED"] == IGNORED
    assert [name for name, mask in of_name.items() if mask == MASK_CLASSES.index("CYCLIST")] == ["BICYCLE", "CYCLIST"]
    assert [name for name, mask in of_name.items() if mask == MASK_CLASSES.index("PEDESTRIAN")] == ["PEDESTRIAN"]


def test_lidar_classes_are_the_official_ones_in_order() -> None:
    official = segmentation_pb2.Segmentation.Type
    assert [(f"TYPE_{name}", number) for number, name in enumerate(LIDAR_CLASSES)] == list(official.items())
    assert {name for name in LIDAR_TO_SEMANTICKITTI.values() if name is not None} < set(CLASSES)


def test_labelled_points_are_compared_under_the_names_the_teacher_uses() -> None:
    table = lidar_truth_table(CLASSES)
    assert table[LIDAR_CLASSES.index("BICYCLIST")] == CLASSES.index("bicyclist")
    assert table[LIDAR_CLASSES.index("CURB")] == CLASSES.index("sidewalk")
    assert table[LIDAR_CLASSES.index("TRAFFIC_LIGHT")] == IGNORED
    some = ("ROAD", "CAR")
    expected = {"ROAD": 0, "CAR": 1}
    assert lidar_truth_table(some) == tuple(expected.get(name, IGNORED) for name in LIDAR_CLASSES)


def test_undefined_points_are_never_a_truth() -> None:
    assert lidar_truth_table(LIDAR_CLASSES)[0] == IGNORED
