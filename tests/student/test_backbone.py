"""The pyramid, who is heard in it, and its number format."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from student.backbone import Backbone
from student.config import AnchorShapes, StudentConfig
from tests.student.students import COLORS, SHADES, TAUGHT, TINY, build


@pytest.mark.parametrize("config", [TAUGHT, TINY], ids=["taught", "untaught"])
def test_each_level_is_half_the_one_before(config: StudentConfig) -> None:
    features = Backbone(config)(torch.rand(2, 3, 64, 128))
    sizes = [(64 // config.stride >> level, 128 // config.stride >> level) for level in range(4)]
    assert [level.shape for level in features.pyramid] == [(2, config.width, *size) for size in sizes]
    assert {name: branch_outputs.shape for name, branch_outputs in features.branch_outputs.items()} == {
        spec.name: (2, spec.channels, *sizes[0]) for spec in config.branches
    }


def test_the_paper_student_imitates_at_the_resolution_of_the_image() -> None:
    config = replace(StudentConfig.paper((COLORS, SHADES), AnchorShapes()), stages=(8, 8, 8), width=8, branch_width=8)
    features = Backbone(config)(torch.rand(1, 3, 16, 24))
    assert [branch_outputs.shape for branch_outputs in features.branch_outputs.values()] == [(1, 3, 16, 24)] * 2
    assert [level.shape[2:] for level in features.pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("name", ["colors", "shades"])
def test_every_level_has_heard_what_a_branch_says(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(replace(TAUGHT, feed="imitation"))
    images = torch.rand(1, 3, 64, 96)
    before = backbone(images).pyramid
    with torch.no_grad():
        backbone.get_parameter(f"branches.{name}.predictor.weight").mul_(-1)
    after = backbone(images).pyramid
    assert not any(torch.equal(*levels) for levels in zip(before, after, strict=True))


def test_a_image_looks_the_same_in_any_batch() -> None:
    torch.manual_seed(0)
    backbone = Backbone(TAUGHT)
    images = torch.rand(2, 3, 64, 96)
    together, alone = backbone(images), backbone(images[1:])
    for both, one in zip(together.pyramid, alone.pyramid, strict=True):
        assert torch.allclose(both[1:], one, atol=1e-4)


def test_features_and_anchors_are_float32_under_bfloat16_autocast() -> None:
    student = build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        features = student.features(torch.zeros(1, 3, 64, 96))
    assert {level.dtype for level in features.pyramid} == {torch.float32}


def test_a_branch_is_selected_by_as_much_as_its_columns_of_the_fusion_weigh() -> None:
    torch.manual_seed(0)
    backbone = Backbone(TAUGHT)
    assert backbone.selection().keys() == {"free/weight", "colors/weight", "shades/weight"}
    backbone(torch.rand(1, 3, 64, 96)).pyramid[0].square().sum().backward()
    found = {name: float(share) for name, share in backbone.selection().items()}
    weight = backbone.get_parameter("fuse.0.weight")
    # What multiplies the features has mean 0 and norm 1 in each filter.
    used = weight.detach() - weight.detach().mean((1, 2, 3), keepdim=True)
    used = used / used.square().sum((1, 2, 3), keepdim=True).sqrt()
    for number, name in enumerate(("free", "colors", "shades")):
        columns = slice(number * TAUGHT.branch_width, (number + 1) * TAUGHT.branch_width)
        for what, matrix in (("weight", used), ("gradient", weight.grad)):
            assert matrix is not None
            share = float(matrix[:, columns].norm() ** 2 / matrix.norm() ** 2)
            assert found[f"{name}/{what}"] == pytest.approx(share, rel=1e-3)
