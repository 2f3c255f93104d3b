"""What Mask R-CNN is told about images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from datalake.sample import Panoptic, Sample
from teachers.classes import MASK_CLASSES
from teachers.mask_rcnn.instances import instances_of
from teachers.mask_rcnn.objective import MaskRcnnObjective, has_panoptic
from teachers.mask_rcnn.teacher import MaskRcnnConfig, build_network
from tests.teachers.samples import losses_of, panoptic, sample

CAR, TRUCK, BICYCLE, PEDESTRIAN, ROAD = 2, 3, 6, 9, 20
LABELS = panoptic(
    [
        [CAR, CAR, CAR, ROAD, TRUCK, TRUCK],
        [CAR, CAR, CAR, ROAD, TRUCK, PEDESTRIAN],
        [ROAD, CAR, BICYCLE, BICYCLE, ROAD, PEDESTRIAN],
    ],
    [
        [1, 1, 2, 0, 1, 1],
        [1, 1, 2, 3, 1, 1],
        [0, 1, 0, 0, 0, 1],
    ],
)


def test_instances_are_boxes_around_their_own_pixels() -> None:
    found = instances_of(LABELS, min_pixels=1)
    got = {
        (MASK_CLASSES[label], *map(int, box)): int(mask.sum())
        for box, label, mask in zip(found.boxes, found.labels.tolist(), found.masks, strict=True)
    }
    # Car 1, car 2, truck 1 and pedestrian 1; neither the road's number 3 nor the bicycles, which have none.
    assert got == {
        ("VEHICLE", 0, 0, 2, 3): 5,
        ("VEHICLE", 2, 0, 3, 2): 2,
        ("VEHICLE", 4, 0, 6, 2): 3,
        ("PEDESTRIAN", 5, 1, 6, 3): 2,
    }
    assert torch.equal(found.masks[0], (LABELS.semantic_class == CAR) & (LABELS.instance == 1))


def test_small_instances_are_left_out() -> None:
    assert len(instances_of(LABELS, min_pixels=3).labels) == 2
    nothing = instances_of(LABELS, min_pixels=100)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks.shape == (0, 3, 6)


class _Listener(nn.Module):
    """Stands for a detector, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.transform = _Unscaled()
        self.backbone = _Colors()
        self.rpn, self.roi_heads = nn.Module(), nn.Module()
        self.rpn.head, self.roi_heads.box_predictor = nn.Identity(), nn.Identity()
        self.heard: list[tuple[list[Tensor], list[dict[str, Tensor]]]] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.heard.append((images, targets))
        self.backbone(self.transform(images, targets)[0].tensors)
        return {"loss": self.weight}


class _Unscaled(nn.Module):
    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        return ImageList(torch.stack(images), [(p.shape[1], p.shape[2]) for p in images]), targets


class _Colors(nn.Module):
    out_channels = 3

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": images}


def labelled(labels: Panoptic) -> Sample:
    height, width = labels.semantic_class.shape
    shade = torch.linspace(0, 200, width).byte().expand(3, height, width)
    return sample(image=shade, panoptic=labels)


def test_a_mirrored_image_has_mirrored_boxes_and_masks() -> None:
    listener = _Listener()
    objective = MaskRcnnObjective(listener, {}, min_pixels=1, light=0.0)
    for step in range(20):
        losses_of(objective, labelled(LABELS), step=step)
    rising = []
    for (image,), (target,) in listener.heard:
        rising.append(bool(image[0, 0, -1] > image[0, 0, 0]))
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            x0, y0, x1, y1 = box.int().tolist()
            rows, columns = mask.nonzero(as_tuple=True)
            assert (int(columns.min()), int(rows.min())) == (x0, y0)
            assert (int(columns.max()) + 1, int(rows.max()) + 1) == (x1, y1)
        car = target["masks"][0].bool()
        expected = (LABELS.semantic_class == CAR) & (LABELS.instance == 1)
        assert torch.equal(car if rising[-1] else car.flip(-1), expected)
    assert 4 < sum(rising) < 16


def test_light_varies_and_stays_within_the_image() -> None:
    listener = _Listener()
    objective = MaskRcnnObjective(listener, {}, light=0.5)
    torch.manual_seed(0)
    losses_of(objective, *[labelled(LABELS)] * 20)
    images = torch.stack(listener.heard[0][0])
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert float(images.mean((1, 2, 3)).std()) > 0.05


def test_every_pixel_is_asked_for_the_class_that_it_shows() -> None:
    listener = _Listener()
    objective = MaskRcnnObjective(listener, {}, light=0.0)
    red = torch.zeros(3, 3, 6, dtype=torch.uint8)
    # The image is red where there are vehicles: a layer that reads red as VEHICLE is right there and nowhere else.
    red[0] = ((LABELS.semantic_class == CAR) | (LABELS.semantic_class == TRUCK)).byte() * 255
    no_people = panoptic(
        LABELS.semantic_class.where(LABELS.semantic_class != PEDESTRIAN, ROAD).tolist(), LABELS.instance.tolist()
    )
    no_people.semantic_class[LABELS.semantic_class == BICYCLE] = 0
    layer = objective.pixels
    with torch.no_grad():
        layer.weight.zero_()[1, 0] = 100
        layer.bias = nn.Parameter(torch.tensor([50.0, 0, -50, -50]))
    for step in range(6):
        assert losses_of(objective, sample(image=red, panoptic=no_people), step=step)["pixels"] < 1e-6
    assert losses_of(objective, sample(image=red.flip(1), panoptic=no_people))["pixels"] > 5


def test_padding_and_unlabelled_pixels_do_not_matter() -> None:
    torch.manual_seed(0)
    objective = MaskRcnnObjective(build_network(MaskRcnnConfig(min_size=48, max_size=72)), {}, min_pixels=1)
    blank = panoptic([[0] * 72] * 48, [[0] * 72] * 48)
    small = sample(image=torch.zeros(3, 48, 72, dtype=torch.uint8), panoptic=blank)
    assert losses_of(objective, small)["pixels"] == 0


def test_only_images_with_panoptic_labels_are_learnt_from() -> None:
    assert has_panoptic(labelled(LABELS))
    assert not has_panoptic(sample())


def test_boxes_are_computed_in_float32_under_bfloat16() -> None:
    torch.manual_seed(0)
    network = build_network(MaskRcnnConfig(min_size=64, max_size=96))
    objective = MaskRcnnObjective(network, {}, min_pixels=1)
    seen: list[Any] = []
    generator, pool = network.rpn.anchor_generator, network.roi_heads.box_roi_pool
    generator.register_forward_hook(lambda _m, _i, anchors: seen.extend(anchors))
    pool.register_forward_pre_hook(lambda _m, inputs: seen.extend(inputs[1]))
    big = panoptic([[CAR] * 96] * 32 + [[ROAD] * 96] * 32, [[1] * 96] * 32 + [[0] * 96] * 32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(objective, labelled(big))
    assert seen
    assert {values.dtype for values in seen} == {torch.float32}
    assert all(map(math.isfinite, losses.values()))
    assert set(losses) == {
        "classifier", "box_reg", "mask", "objectness", "rpn_box_reg", "pixels",
    }  # fmt: skip
