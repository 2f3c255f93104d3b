"""Mapping of classes: COCO, Waymo's camera and lidar segmentations, the lake's types and the teachers' classes."""

from __future__ import annotations

from types import MappingProxyType

IGNORED = 255

# The classes that a mask teacher predicts. The names are those of the lake's types
# (`datalake.sources.frame.OBJECT_TYPES`); its fourth, SIGN, is no class of masks: COCO has stop signs only.
MASK_CLASSES = ("BACKGROUND", "VEHICLE", "PEDESTRIAN", "CYCLIST")

# The classes that ClassroomNet keeps of COCO, by torchvision's detection label (COCO's own category id, 1 … 90).
COCO_LABELS = MappingProxyType({"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "truck": 8})

# COCO -> the lake's types.
# person: COCO marks whoever rides as a person as well, so a rider's upper body comes out as PEDESTRIAN.
# bicycle: the lake's CYCLIST is a rider with his bicycle and COCO has no rider. The bicycle's mask is the part of him
#   that COCO can tell from a pedestrian; a parked one, which the lake does not label, comes out as CYCLIST too.
# motorcycle: Waymo labels motorcycles, with their riders, as VEHICLE.
COCO_TO_TYPE = MappingProxyType(
    {
        "person": "PEDESTRIAN",
        "bicycle": "CYCLIST",
        "car": "VEHICLE",
        "motorcycle": "VEHICLE",
        "bus": "VEHICLE",
        "truck": "VEHICLE",
    }
)

# Waymo's CameraSegmentation.Type, in the order of its numbers, each with the mask class it is part of.
_CAMERA_TO_MASK = (
    ("UNDEFINED", None),
    ("EGO_VEHICLE", "BACKGROUND"),  # our own bonnet is nothing that a detector should find
    ("CAR", "VEHICLE"),
    ("TRUCK", "VEHICLE"),
    ("BUS", "VEHICLE"),
    ("OTHER_LARGE_VEHICLE", "VEHICLE"),
    ("BICYCLE", "CYCLIST"),  # without its rider; as COCO's bicycle
    ("MOTORCYCLE", "VEHICLE"),
    ("TRAILER", "VEHICLE"),
    ("PEDESTRIAN", "PEDESTRIAN"),
    ("CYCLIST", "CYCLIST"),
    ("MOTORCYCLIST", "VEHICLE"),
    ("BIRD", "BACKGROUND"),
    ("GROUND_ANIMAL", "BACKGROUND"),
    ("CONSTRUCTION_CONE_POLE", "BACKGROUND"),
    ("POLE", "BACKGROUND"),
    ("PEDESTRIAN_OBJECT", "BACKGROUND"),
    ("SIGN", "BACKGROUND"),
    ("TRAFFIC_LIGHT", "BACKGROUND"),
    ("BUILDING", "BACKGROUND"),
    ("ROAD", "BACKGROUND"),
    ("LANE_MARKER", "BACKGROUND"),
    ("ROAD_MARKER", "BACKGROUND"),
    ("SIDEWALK", "BACKGROUND"),
    ("VEGETATION", "BACKGROUND"),
    ("SKY", "BACKGROUND"),
    ("GROUND", "BACKGROUND"),
    ("DYNAMIC", "BACKGROUND"),
    ("STATIC", "BACKGROUND"),
)
CAMERA_CLASSES = tuple(name for name, _ in _CAMERA_TO_MASK)
# The mask class of each camera class, or IGNORED: index it with `Panoptic.semantic_class`.
CAMERA_TO_MASK = tuple(IGNORED if mask is None else MASK_CLASSES.index(mask) for _, mask in _CAMERA_TO_MASK)

# Waymo's Segmentation.Type of lidar points, in the order of its numbers, each with the class of SemanticKITTI
# (`teachers.spvnas.classes`) that means the same, None where there is none. SemanticKITTI counts kerbs as sidewalk.
_LIDAR_TO_SEMANTICKITTI = (
    ("UNDEFINED", None),
    ("CAR", "car"),
    ("TRUCK", "truck"),
    ("BUS", "other-vehicle"),
    ("OTHER_VEHICLE", "other-vehicle"),
    ("MOTORCYCLIST", "motorcyclist"),
    ("BICYCLIST", "bicyclist"),
    ("PEDESTRIAN", "person"),
    ("SIGN", "traffic-sign"),
    ("TRAFFIC_LIGHT", None),
    ("POLE", "pole"),
    ("CONSTRUCTION_CONE", None),
    ("BICYCLE", "bicycle"),
    ("MOTORCYCLE", "motorcycle"),
    ("BUILDING", "building"),
    ("VEGETATION", "vegetation"),
    ("TREE_TRUNK", "trunk"),
    ("CURB", "sidewalk"),
    ("ROAD", "road"),
    ("LANE_MARKER", "road"),
    ("OTHER_GROUND", "other-ground"),
    ("WALKABLE", "terrain"),
    ("SIDEWALK", "sidewalk"),
)
LIDAR_CLASSES = tuple(name for name, _ in _LIDAR_TO_SEMANTICKITTI)
LIDAR_TO_SEMANTICKITTI = MappingProxyType(dict(_LIDAR_TO_SEMANTICKITTI))

# The class of masks that a point's class is part of; the names are Waymo's and SemanticKITTI's. All others are
# background.
_LIDAR_TO_MASK = MappingProxyType(
    {
        **dict.fromkeys(("CAR", "TRUCK", "BUS", "OTHER_VEHICLE", "MOTORCYCLIST", "MOTORCYCLE"), "VEHICLE"),
        **dict.fromkeys(("car", "truck", "other-vehicle", "motorcyclist", "motorcycle"), "VEHICLE"),
        **dict.fromkeys(("PEDESTRIAN", "person"), "PEDESTRIAN"),
        **dict.fromkeys(("BICYCLIST", "BICYCLE", "bicyclist", "bicycle"), "CYCLIST"),
    }
)


def lidar_to_mask(class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Return, for each class of a lidar teacher, the number of the mask class that its points are part of."""
    return tuple(MASK_CLASSES.index(_LIDAR_TO_MASK.get(name, "BACKGROUND")) for name in class_names)


def lidar_truth_table(class_names: tuple[str, ...]) -> tuple[int, ...]:
    """Return, for each of LIDAR_CLASSES, which of `class_names` a point labelled so should be called, or IGNORED.

    A teacher's classes are Waymo's or SemanticKITTI's, all or some of them, in any order. UNDEFINED is never a truth.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    return (
        IGNORED,
        *(numbers.get(name, numbers.get(LIDAR_TO_SEMANTICKITTI[name] or "", IGNORED)) for name in LIDAR_CLASSES[1:]),
    )
