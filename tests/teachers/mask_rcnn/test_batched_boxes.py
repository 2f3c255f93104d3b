"""The boxes of all images at once are those that torchvision finds in one after the other."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torchvision.models.detection import MaskRCNN

from teachers.mask_rcnn.batched_boxes import batch_boxes
from teachers.mask_rcnn.teacher import MaskRcnnConfig, build_network
from training import suppression
from training.pooling import LevelPool


@pytest.fixture(scope="module")
def networks() -> tuple[MaskRCNN, MaskRCNN]:
    """The same untrained network twice, the second with its boxes batched."""
    torch.manual_seed(3)
    network = build_network(MaskRcnnConfig(variant="slim", min_size=64, max_size=96, score=0.8, detections=60)).eval()
    # Untrained, it gives every class the same score.
    torch.nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.5)
    torch.nn.init.normal_(network.rpn.head.cls_logits.weight, std=0.5)
    batched = deepcopy(network)
    batch_boxes(batched)
    return network, batched


@pytest.fixture(params=["CPU", "GPU"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes are suppressed and pooled on the CPU, as there or as on a GPU."""
    if request.param == "GPU":
        monkeypatch.setattr(suppression, "kept_one_by_one", suppression.kept_in_rounds)
        monkeypatch.setattr(LevelPool, "by_choice", LevelPool.by_distance)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("most", [60, 12])
@pytest.mark.parametrize("seed", range(2))
def test_detections_are_those_of_one_image_after_the_other(
    networks: tuple[MaskRCNN, MaskRCNN], seed: int, most: int
) -> None:
    for network in networks:
        network.roi_heads.detections_per_img = most
    random = torch.Generator().manual_seed(seed)
    # Of two sizes, so that some are padded.
    images = [torch.rand(3, 64, width, generator=random) for width in (96, 80, 96, 96)]
    with torch.no_grad():
        theirs, ours = (network(images) for network in networks)
    counts = [len(found["scores"]) for found in theirs]
    assert counts == [12] * 4 if most == 12 else len(set(counts)) > 1
    for left, right in zip(ours, theirs, strict=True):
        assert torch.equal(left["labels"], right["labels"])
        for name in ("boxes", "scores", "masks"):
            torch.testing.assert_close(left[name], right[name])


def test_images_in_which_nothing_is_found_have_no_detections(networks: tuple[MaskRCNN, MaskRCNN]) -> None:
    sure = deepcopy(networks[1])
    sure.roi_heads.score_thresh = 1.1
    with torch.no_grad():
        found = sure([torch.rand(3, 64, 96) for _ in range(2)])
    assert [len(each["boxes"]) for each in found] == [0, 0]


def test_a_image_with_few_proposals_has_boxes_without_sides_behind_them(networks: tuple[MaskRCNN, MaskRCNN]) -> None:
    network = deepcopy(networks[1])
    network.rpn.nms_thresh = 0.05
    images, _ = network.transform([torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1)) for _ in range(2)])
    with torch.no_grad():
        proposals, _ = network.rpn(images, network.backbone(images.tensors))
    assert len({len(of_image) for of_image in proposals}) == 1
    sides = [(boxes[:, 2:] - boxes[:, :2]).amin(1) for boxes in proposals]
    assert any(bool((of_image == 0).any()) for of_image in sides)
    for of_image in sides:
        found = int((of_image > 0).sum())
        assert bool((of_image[:found] > 0).all())
