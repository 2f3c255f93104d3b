"""The mask teacher: torchvision's networks, the lake's classes, the student's grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from datalake.sample import Panoptic, Sample
from teachers.card import TeacherCard, TeacherError, read_card, write_card, write_weights
from teachers.classes import CAMERA_CLASSES, MASK_CLASSES
from teachers.load import load_teacher
from teachers.mask_rcnn.class_map import class_map
from teachers.mask_rcnn.teacher import ARCHITECTURE, MaskRcnnConfig, MaskRcnnTeacher, build_network

SMALL = MaskRcnnConfig(min_size=64, max_size=96, score=0.0, detections=5)
PERSON, BICYCLE, CAR, MOTORCYCLE, DOG = 1, 2, 3, 4, 18


def mask_card(config: MaskRcnnConfig) -> TeacherCard:
    """Return the card of a network of this configuration."""
    return TeacherCard(
        name="masks",
        kind="classification",
        architecture=ARCHITECTURE,
        options=config.to_options(),
        channels=4,
        class_names=MASK_CLASSES,
        weights_sha256="0" * 64,
    )


def small_network(seed: int = 0) -> MaskRCNN:
    """Return a network that finds something everywhere, with seeded weights."""
    torch.manual_seed(seed)
    return build_network(SMALL)


def slim_teacher(**changes: Any) -> MaskRcnnTeacher:
    """Return a fast teacher that finds something everywhere, with seeded weights."""
    torch.manual_seed(2)
    config = replace(SMALL, variant="slim", **changes)
    return MaskRcnnTeacher(mask_card(config), build_network(config))


class Scripted(nn.Module):
    """The parts of a Mask R-CNN that always finds the same; it remembers the images.

    found: label, score, rows and columns; where these reach the image's edge the box reaches a pixel beyond, for
        towards the edge of its box a mask fades
    """

    def __init__(self, found: list[tuple[int, float, tuple[slice, slice]]]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.transform = GeneralizedRCNNTransform(64, 96, [0.0] * 3, [1.0] * 3)
        self.rpn, self.roi_heads = Proposals(), Heads(found)
        self.images = list[Tensor]()

    def backbone(self, images: Tensor) -> dict[str, Tensor]:
        """Return no features."""
        self.images += images
        return {}


class Proposals(nn.Module):
    """The part that proposes boxes, and here does not."""

    anchor_generator, box_coder = nn.Identity(), nn.Identity()

    def forward(self, images: ImageList, features: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return no proposals."""
        assert len(images.tensors)
        return [], features


class Heads(nn.Module):
    """The part that decides."""

    box_roi_pool, mask_roi_pool = nn.Identity(), nn.Identity()

    def __init__(self, found: list[tuple[int, float, tuple[slice, slice]]]) -> None:
        super().__init__()
        self.found = found

    def forward(
        self, _features: dict[str, Tensor], _proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return labels, scores, boxes and masks for each image."""
        answers = []
        for height, width in sizes:
            boxes = [
                [start - (start == 0), top - (top == 0), stop + (stop == width), bottom + (bottom == height)]
                for _, _, (rows, columns) in self.found
                for (top, bottom, _), (start, stop, _) in [(rows.indices(height), columns.indices(width))]
            ]
            answers.append(
                {
                    "labels": torch.tensor([label for label, _, _ in self.found], dtype=torch.int64),
                    "scores": torch.tensor([score for _, score, _ in self.found]),
                    "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
                    "masks": torch.full((len(boxes), 1, 28, 28), 0.9),
                }
            )
        return answers, {}


def scripted_teacher(found: list[tuple[int, float, tuple[slice, slice]]]) -> MaskRcnnTeacher:
    """Return a COCO teacher whose detections (label, score, rows and columns) are given."""
    network: Any = Scripted(found)
    return MaskRcnnTeacher(mask_card(MaskRcnnConfig.coco("v1")), network)


def test_coco_labels_become_the_lakes_classes_where_they_are(drive_samples: list[Sample]) -> None:
    left, right = slice(0, 32), slice(64, 96)
    upper, lower = slice(0, 32), slice(32, 64)
    teacher = scripted_teacher(
        [
            (PERSON, 0.9, (upper, left)),
            (BICYCLE, 0.8, (upper, right)),
            (MOTORCYCLE, 0.7, (lower, left)),
            (CAR, 0.6, (upper, left)),
            (DOG, 0.95, (lower, right)),
        ]
    )
    target = teacher.predict(drive_samples[:2], 4, 6)
    names = [[MASK_CLASSES[number] for number in row] for row in target.values[0, 0].tolist()]
    assert names[0] == ["PEDESTRIAN"] * 2 + ["BACKGROUND"] * 2 + ["CYCLIST"] * 2
    assert names[3] == ["VEHICLE"] * 2 + ["BACKGROUND"] * 4
    assert target.kind == "classification"
    assert target.valid.all()
    assert target.keys == (drive_samples[0].key, drive_samples[1].key)
    assert target.confidence is not None
    torch.testing.assert_close(target.confidence[0, 0, 0], torch.tensor([0.9, 0.9, 1, 1, 0.8, 0.8]))
    torch.testing.assert_close(target.confidence[0, 0, 3], torch.tensor([0.7, 0.7, 1, 1, 1, 1]))


def test_the_network_sees_colors_between_0_and_1(drive_samples: list[Sample]) -> None:
    teacher = scripted_teacher([])
    teacher.predict(drive_samples[:1], 4, 6)
    network: Any = teacher.network
    torch.testing.assert_close(network.images[0] * 255, drive_samples[0].image.float())


def test_a_cell_takes_the_pixel_at_its_center(drive_samples: list[Sample]) -> None:
    # Cells are 16 x 16 pixels, their centers at 8, 24 …: a mask up to column 25 has the second cell's, one to 24 not.
    for edge, cells in ((25, [1, 1, 0]), (24, [1, 0, 0])):
        teacher = scripted_teacher([(CAR, 0.9, (slice(None), slice(0, edge)))])
        assert teacher.predict(drive_samples[:1], 4, 6).values[0, 0, 0, :3].tolist() == cells


def _by_torchvision(network: MaskRCNN, images: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return classes and confidence [B, height, width]: torchvision's masks as large as the images, then resized.

    SMALL's network names the classes by their own numbers.
    """
    maps = []
    with torch.no_grad():
        for found in network.eval()([image.float() / 255 for image in images]):
            maps.append(class_map(found["labels"], found["scores"], found["masks"][:, 0]))
    classes, confidence = (
        torch.stack(
            [interpolate(values[None, None].float(), (height, width), mode="nearest-exact")[0, 0] for values in each]
        )
        for each in zip(*((one.classes, one.confidence) for one in maps), strict=True)
    )
    return classes.long(), confidence


@pytest.mark.parametrize("grid", [(16, 24), (11, 25)])
def test_cells_are_those_of_masks_pasted_into_whole_images(drive_samples: list[Sample], grid: tuple[int, int]) -> None:
    # The images are scaled up and padded; nine detections overlap in each.
    teacher = slim_teacher(min_size=70, max_size=100, detections=9)
    target = teacher.predict(drive_samples[:3], *grid)
    classes, confidence = _by_torchvision(teacher.network, [sample.image for sample in drive_samples[:3]], *grid)
    assert len(classes.unique()) > 1
    assert torch.equal(target.values[:, 0], classes)
    assert target.confidence is not None
    torch.testing.assert_close(target.confidence[:, 0], confidence)


def test_cells_of_images_of_several_sizes_are_each_of_their_own(drive_samples: list[Sample]) -> None:
    samples = [drive_samples[0], replace(drive_samples[1], image=drive_samples[1].image[:, :48]), drive_samples[2]]
    teacher = slim_teacher()
    target = teacher.predict(samples, 16, 24)
    classes, confidence = _by_torchvision(teacher.network, [sample.image for sample in samples], 16, 24)
    assert torch.equal(target.values[:, 0], classes)
    assert target.confidence is not None
    torch.testing.assert_close(target.confidence[:, 0], confidence)


def test_boxes_stay_float32_where_layers_are_bfloat16(
    drive_samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teachers.mask_rcnn.teacher._is_lowered", lambda _device: True)
    teacher = slim_teacher()
    heard: dict[str, torch.dtype] = {}
    for name in ("backbone.body.layer1", "rpn", "roi_heads"):
        teacher.network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: heard.__setitem__(name, _first_of(output).dtype)
        )
    target = teacher.predict(drive_samples[:2], 16, 24)
    assert heard == {"backbone.body.layer1": torch.bfloat16, "rpn": torch.float32, "roi_heads": torch.float32}
    assert target.confidence is not None
    assert target.confidence.dtype == torch.float32


def _first_of(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def test_pixels_are_compared_with_the_panoptic_labels(drive_samples: list[Sample]) -> None:
    semantic = torch.full((64, 96), CAMERA_CLASSES.index("ROAD"), dtype=torch.uint8)
    semantic[:, 48:] = CAMERA_CLASSES.index("BUS")
    semantic[0] = CAMERA_CLASSES.index("UNDEFINED")
    panoptic = Panoptic(semantic, torch.zeros(64, 96, dtype=torch.int32))
    samples = [replace(drive_samples[0], panoptic=panoptic), replace(drive_samples[1], panoptic=None)]
    counts = scripted_teacher([(CAR, 0.9, (slice(None), slice(0, 72)))]).confusion(samples).counts
    assert counts[:2, :2].tolist() == [[0, 63 * 48], [63 * 24, 63 * 24]]
    assert int(counts.sum()) == 63 * 96


def test_a_folder_is_all_it_takes(tmp_path: Path, drive_samples: list[Sample]) -> None:
    network = small_network()
    sha256 = write_weights(str(tmp_path), network.state_dict())
    write_card(str(tmp_path), replace(mask_card(SMALL), weights_sha256=sha256))
    teacher = load_teacher(str(tmp_path))
    assert isinstance(teacher, MaskRcnnTeacher)
    assert MaskRcnnConfig.from_options(read_card(str(tmp_path)).options) == SMALL
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    found = teacher.class_maps(drive_samples[:1])[0].classes
    assert torch.equal(found, MaskRcnnTeacher(mask_card(SMALL), network).class_maps(drive_samples[:1])[0].classes)
    assert len(found.unique()) > 1


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    state = {name: value for name, value in small_network().state_dict().items() if "mask_head" not in name}
    sha256 = write_weights(str(tmp_path), state)
    write_card(str(tmp_path), replace(mask_card(SMALL), weights_sha256=sha256))
    with pytest.raises(TeacherError, match=r"does not fit the network.*mask_head") as caught:
        load_teacher(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("published_in", [2019, 2022])
def test_a_file_of_torch_save_makes_a_teacher(tmp_path: Path, drive_samples: list[Sample], published_in: int) -> None:
    network = small_network(1)
    state = dict(network.state_dict())
    if published_in == 2019:
        # The names that torchvision's older files still have.
        for new, old in (
            (r"(\w+_blocks\.\d)\.0\.", r"\1."),
            (r"rpn\.head\.conv\.0\.0\.", r"rpn.head.conv."),
            (r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}."),
        ):
            state = {re.sub(new, old, name): value for name, value in state.items()}
        assert "roi_heads.mask_head.mask_fcn4.bias" in state
    torch.save(state, tmp_path / "weights.pth")
    teacher = MaskRcnnTeacher.load_coco(str(tmp_path / "weights.pth"), SMALL)
    assert MaskRcnnConfig.from_options(teacher.card.options) == SMALL
    ours, theirs = (each.state_dict() for each in (teacher.network, network))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert teacher.predict(drive_samples[:1], 4, 6).values.shape == (1, 1, 4, 6)


@pytest.mark.parametrize(("variant", "official"), [("v1", maskrcnn_resnet50_fpn), ("v2", maskrcnn_resnet50_fpn_v2)])
def test_the_variants_take_torchvisions_coco_weights(
    variant: Literal["v1", "v2"], official: Callable[..., MaskRCNN]
) -> None:
    with torch.device("meta"):
        network = build_network(MaskRcnnConfig.coco(variant))
        published = official(weights=None, weights_backbone=None).state_dict()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    if variant == "v1":
        # They are published out of frozen norms, which keep no counters.
        published = {name: value for name, value in published.items() if not name.endswith("num_batches_tracked")}
    assert shapes == {name: value.shape for name, value in published.items()}
    assert network.transform.min_size == (800,)


def test_v1_has_the_norms_its_weights_were_trained_with() -> None:
    with torch.device("meta"):
        network = build_network(MaskRcnnConfig.coco("v1"))
    norms = [module for module in network.backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {0.0}


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(TeacherError, match=r"weights\.pth"):
        MaskRcnnTeacher.load_coco(str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"meaning": ["VEHICLE"]}, "label 0 is the network's background"),
        ({"meaning": [None, "TRAM"]}, "unknown classes TRAM"),
        ({"anchor_sizes": [8, 16]}, "expected 5, got: 2"),
        ({"variant": "v3"}, "expected v1, v2, small or slim, got: 'v3'"),
        ({"depth": 3}, "not those of a Mask R-CNN"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TeacherError, match=complaint):
        build_network(MaskRcnnConfig.from_options({**SMALL.to_options(), **change}))
