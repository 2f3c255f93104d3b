"""One class per pixel, by ClassroomNet's rule."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from teachers.mask_rcnn.class_map import class_map


def by_the_rule(classes: Tensor, scores: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes and confidence [H, W] as the paper says it: paint one detection over the other."""
    painted, confidence = torch.zeros(masks.shape[1:], dtype=torch.int64), torch.ones(masks.shape[1:])
    doubt = torch.zeros(masks.shape[1:])
    for i in sorted(range(len(scores)), key=lambda i: (float(scores[i]), -i)):
        inside = masks[i] > 0.5
        painted[inside] = classes[i]
        confidence[inside] = scores[i]
        doubt = torch.maximum(doubt, masks[i] * scores[i])
    return painted, torch.where(painted > 0, confidence, 1 - doubt)


@given(st.integers(0, 10_000), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_the_most_confident_is_painted_last(seed: int, detections: int) -> None:
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(1, 4, (detections,), generator=random)
    scores = torch.randint(1, 5, (detections,), generator=random) / 5  # with ties
    masks = torch.rand(detections, 5, 6, generator=random)
    found = class_map(classes, scores, masks)
    expected_classes, expected_confidence = by_the_rule(classes, scores, masks)
    assert torch.equal(found.classes, expected_classes)
    torch.testing.assert_close(found.confidence, expected_confidence)


def test_where_nothing_is_detected_all_is_background_for_sure() -> None:
    found = class_map(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 2, 3))
    assert found.classes.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert found.confidence.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_background_beside_a_faint_mask_is_less_sure() -> None:
    found = class_map(torch.tensor([2]), torch.tensor([0.8]), torch.tensor([[[0.9, 0.5, 0.0]]]))
    assert found.classes.tolist() == [[2, 0, 0]]
    torch.testing.assert_close(found.confidence, torch.tensor([[0.8, 0.6, 1.0]]))


def test_images_with_fewer_detections_are_filled_up_with_empty_masks() -> None:
    random = torch.Generator().manual_seed(0)
    classes = torch.randint(1, 4, (2, 3), generator=random)
    scores = torch.tensor([[0.9, 0.4, 0.4], [0.3, 0.0, 0.0]])
    masks = torch.rand(2, 3, 4, 5, generator=random)
    masks[1, 1:] = 0
    together = class_map(classes, scores, masks)
    for image, count in enumerate((3, 1)):
        alone = class_map(classes[image, :count], scores[image, :count], masks[image, :count])
        assert torch.equal(together.classes[image], alone.classes)
        assert torch.equal(together.confidence[image], alone.confidence)
