"""Overlaps and box deltas are torchvision's to the last bit, for any number of images at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from training.boxes import Weights, decode_boxes, encode_boxes, pairwise_iou, shorter_sides


def some_boxes(*shape: int, seed: int = 0) -> Tensor:
    """Return boxes [*shape, 4] of 1 to 60 pixels a side, near one another."""
    random = torch.Generator().manual_seed(seed)
    corners = 100 * torch.rand(*shape, 2, generator=random) - 10
    return torch.cat([corners, corners + 1 + 59 * torch.rand(*shape, 2, generator=random)], -1)


def test_overlaps_of_every_image_are_those_of_torchvision() -> None:
    boxes, others = some_boxes(3, 7), some_boxes(3, 11, seed=1)
    found = pairwise_iou(boxes, others)
    for image in range(3):
        assert torch.equal(found[image], box_iou(boxes[image], others[image]))


def test_one_set_of_anchors_does_for_all_images() -> None:
    boxes, anchors = some_boxes(3, 7), some_boxes(11, seed=1)
    assert torch.equal(pairwise_iou(boxes, anchors)[2], box_iou(boxes[2], anchors))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas_are_those_of_torchvision(weights: Weights) -> None:
    boxes, anchors = some_boxes(2, 9), some_boxes(2, 9, seed=1)
    found = encode_boxes(boxes, anchors, weights)
    for image in range(2):
        assert torch.equal(found[image], BoxCoder(weights).encode_single(boxes[image], anchors[image]))


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoded_boxes_are_those_of_torchvision(weights: Weights, size: float) -> None:
    deltas = size * torch.randn(2, 9, 3, 4, generator=torch.Generator().manual_seed(2))
    anchors = some_boxes(2, 9, seed=1)
    found = decode_boxes(deltas, anchors[:, :, None], weights)
    for image in range(2):
        expected = BoxCoder(weights).decode_single(deltas[image].flatten(1), anchors[image])
        assert torch.equal(found[image].flatten(1), expected)


def test_decoding_leads_back_to_what_was_encoded() -> None:
    boxes, anchors = some_boxes(5), some_boxes(5, seed=1)
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors, weights), anchors, weights), boxes)


def test_the_shorter_side_of_a_box_counts() -> None:
    assert shorter_sides(torch.tensor([[[0.0, 0, 5, 3], [1, 1, 2, 9]]])).tolist() == [[3, 1]]
