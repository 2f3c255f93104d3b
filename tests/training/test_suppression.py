"""What is suppressed is what torchvision's operator suppresses in each group by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from training.suppression import NOTHING, kept_in_rounds, kept_one_by_one, suppressed

Way = Callable[..., Tensor]
WAYS = pytest.mark.parametrize("way", [kept_one_by_one, kept_in_rounds], ids=["CPU", "GPU"])


def crowds(groups: int, boxes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return boxes [G, N, 4] that overlap a lot, and their scores [G, N], all different."""
    random = torch.Generator().manual_seed(seed)
    corners = 40 * torch.rand(groups, boxes, 2, generator=random)
    sides = 10 + 20 * torch.rand(groups, boxes, 2, generator=random)
    order = torch.rand(groups, boxes, generator=random).argsort(1)
    return torch.cat([corners, corners + sides], 2), (order + 1) / (boxes + 1)


def by_torchvision(boxes: Tensor, scores: Tensor, most_iou: float) -> Tensor:
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(len(boxes)):
        kept[group, nms(boxes[group], scores[group], most_iou)] = True
    return kept


@WAYS
@given(seed=st.integers(0, 1000), most_iou=st.sampled_from([0.3, 0.5, 0.7]), boxes=st.sampled_from([1, 2, 40, 150]))
def test_what_stays_is_what_torchvision_keeps(way: Way, seed: int, most_iou: float, boxes: int) -> None:
    crowd = crowds(3, boxes, seed)
    assert torch.equal(way(*crowd, most_iou), by_torchvision(*crowd, most_iou))


@WAYS
def test_of_a_long_chain_every_other_box_stays(way: Way) -> None:
    # Each overlaps the next by 0.67 and the one after that by 0.43; the scores fall along the chain.
    left = 10.0 * torch.arange(101)
    boxes = torch.stack([left, torch.zeros(101), left + 50, torch.full((101,), 50.0)], 1)[None]
    scores = torch.linspace(1, 0.5, 101)[None]
    assert way(boxes, scores, 0.6)[0].tolist() == [place % 2 == 0 for place in range(101)]


@WAYS
def test_of_boxes_with_the_same_score_the_first_stays(way: Way) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10]]])
    assert way(boxes, torch.full((1, 4), 0.5), 0.5).tolist() == [[True, False, True, False]]


def test_under_autocast_rounds_decide_the_same() -> None:
    crowd = crowds(2, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept_in_rounds(*crowd, 0.5), by_torchvision(*crowd, 0.5))


def test_what_is_not_there_suppresses_nothing_and_stays_nothing() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 0, 0]]])
    scores = torch.tensor([[NOTHING, 0.25, NOTHING]])
    assert suppressed(boxes, scores, 0.5).tolist() == [[NOTHING, 0.25, NOTHING]]


def test_groups_may_stand_in_several_dimensions() -> None:
    boxes, scores = crowds(6, 30)
    expected = torch.where(by_torchvision(boxes, scores, 0.5), scores, NOTHING)
    assert torch.equal(suppressed(boxes.view(2, 3, 30, 4), scores.view(2, 3, 30), 0.5), expected.view(2, 3, 30))


@WAYS
@given(seed=st.integers(0, 1000))
def test_boxes_of_another_kind_suppress_nothing(way: Way, seed: int) -> None:
    boxes, scores = crowds(3, 60, seed)
    kinds = torch.randint(0, 4, (3, 60), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros_like(scores, dtype=torch.bool)
    for kind in range(4):
        for group in range(3):
            (rows,) = torch.where(kinds[group] == kind)
            expected[group, rows[nms(boxes[group, rows], scores[group, rows], 0.4)]] = True
    assert torch.equal(way(boxes, scores, 0.4, kinds), expected)
