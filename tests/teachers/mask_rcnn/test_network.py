"""The slim Mask R-CNN."""

from __future__ import annotations

from typing import Literal

import torch

from teachers.mask_rcnn.teacher import MaskRcnnConfig, build_network

SIZES: tuple[Literal["slim", "small"], ...] = ("slim", "small")
SLIM = MaskRcnnConfig(variant="slim", min_size=64, max_size=96)


def test_it_answers_in_torchvisions_form() -> None:
    torch.manual_seed(0)
    (answer,) = build_network(SLIM).eval()([torch.rand(3, 64, 96)])
    assert set(answer) == {"boxes", "labels", "scores", "masks"}
    assert answer["masks"].shape[1:] == (1, 64, 96)
    assert len(answer["boxes"]) == len(answer["masks"]) <= SLIM.detections


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    network = build_network(SLIM).train()
    mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
    mask[0, 16:48, 24:72] = 1
    target = {"boxes": torch.tensor([[24.0, 16.0, 72.0, 48.0]]), "labels": torch.tensor([1]), "masks": mask}
    sum(network([torch.rand(3, 64, 96)] * 2, [target] * 2).values()).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_it_is_a_fifth_of_the_small_one() -> None:
    slim, small = (
        sum(value.numel() for value in build_network(MaskRcnnConfig(variant=variant)).parameters()) for variant in SIZES
    )
    assert slim < small / 5
