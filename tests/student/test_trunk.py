"""How much of an image a cell sees, and on which grid."""

from __future__ import annotations

from dataclasses import replace

import torch

from student.config import AnchorShapes, StudentConfig
from student.trunk import build_trunk
from tests.student.students import TINY


def test_the_classroom_trunk_comes_back_up_to_its_stride() -> None:
    trunk = build_trunk(TINY)
    view = trunk(torch.rand(2, 3, 64, 96))
    assert view.fine.shape == (2, trunk.width, 16, 24)
    coarse = [(8, 12), (4, 6), (2, 3)]
    assert [level.shape for level in view.coarse] == [
        (2, width, *size) for width, size in zip(trunk.coarse_widths, coarse, strict=True)
    ]


def test_the_paper_trunk_keeps_the_resolution() -> None:
    config = StudentConfig.paper((), AnchorShapes())
    view = build_trunk(config)(torch.rand(1, 3, 16, 24))
    assert view.fine.shape == (1, 96, 16, 24)
    assert view.coarse == ()


def seen_px(config: StudentConfig) -> tuple[int, int]:
    """Return how high and wide the part of an image is that decides about the cell in its middle."""
    torch.manual_seed(0)
    # A group norm looks at the whole image; what layers see is what batch norms, at rest, leave.
    trunk = build_trunk(replace(config, norm="batch")).eval()
    side = 384 if config.trunk == "fpn" else 96
    image = torch.rand(1, 3, side, side, requires_grad=True)
    fine = trunk(image).fine
    fine[0, :, fine.shape[2] // 2, fine.shape[3] // 2].sum().backward()
    assert image.grad is not None
    touched = image.grad[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def test_a_cell_of_the_classroom_trunk_sees_the_largest_objects() -> None:
    assert min(seen_px(StudentConfig())) >= 200


def test_a_cell_of_the_paper_trunk_sees_no_more_than_its_layers_reach() -> None:
    # 7 x 7, and four blocks of two 3 x 3.
    assert seen_px(StudentConfig.paper((), AnchorShapes())) == (23, 23)
