"""Mask R-CNN on trunks of timm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from datalake.sample import Sample
from teachers.card import TeacherCard, TeacherError, read_card, write_card, write_weights
from teachers.classes import MASK_CLASSES
from teachers.load import load_teacher
from teachers.mask_rcnn.objective import MaskRcnnObjective
from teachers.mask_rcnn.teacher import ARCHITECTURE, MaskRcnnConfig, MaskRcnnTeacher, build_network
from teachers.mask_rcnn.timm_backbone import TimmBackbone
from teachers.mask_rcnn.train import _load_trunk
from tests.teachers.samples import losses_of, panoptic, sample
from training.timm_model import TimmError

ON_TIMM = MaskRcnnConfig(backbone="timm:resnet18", min_size=64, max_size=96).resolved()
CAR = 2


def torchvisions() -> nn.Module:
    """Return torchvision's ResNet-18 with norms that do something."""
    torch.manual_seed(3)
    network = resnet18(weights=None)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand_like(value) / 4 + (0.5 if name.endswith("var") else 0.1))
    return network.eval()


def backbone_of(network: nn.Module) -> TimmBackbone:
    backbone = network.backbone
    assert isinstance(backbone, TimmBackbone)
    return backbone


def test_given_weights_make_torchvisions_maps_on_every_level() -> None:
    given = torchvisions()
    backbone = TimmBackbone("resnet18").eval()
    assert backbone.load(given.state_dict(), "there") == ("fc.weight", "fc.bias")
    image = torch.rand(1, 3, 64, 96)
    features, seen = image, {}
    for name, layer in list(given.named_children())[:-2]:
        features = layer(features)
        seen[name] = features
    found = backbone._model.maps(backbone.body(image))
    for one, name in zip(found, ("layer1", "layer2", "layer3", "layer4"), strict=True):
        torch.testing.assert_close(one, seen[name])
    levels = backbone(image)
    assert [(name, level.shape[1:]) for name, level in levels.items()] == [
        ("0", (256, 16, 24)),
        ("1", (256, 8, 12)),
        ("2", (256, 4, 6)),
        ("3", (256, 2, 3)),
        ("pool", (256, 1, 2)),
    ]


def test_norms_of_given_weights_stay_as_they_are_and_the_trunk_has_a_rate_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvisions().state_dict(), path)
    network = build_network(ON_TIMM)
    assert len(_load_trunk(network, str(path))) == 64
    objective = MaskRcnnObjective(network, ON_TIMM.to_options(), min_pixels=1, pretrained=True).train()
    body = backbone_of(network).body
    before = {name: value.clone() for name, value in body.named_buffers()}
    labels = panoptic([[CAR] * 96] * 64, [[1] * 96] * 64)
    one = sample(image=torch.randint(255, (3, 64, 96), dtype=torch.uint8), panoptic=labels)
    assert all(loss == loss for loss in losses_of(objective, one).values())
    assert all(torch.equal(value, before[name]) for name, value in body.named_buffers())
    (group,) = objective.parameter_groups()
    assert {id(p) for p in group.pretrained} == {id(p) for p in body.parameters()}
    assert body.conv1.weight.requires_grad
    assert not body.bn1.weight.requires_grad
    assert not any(weight is body.conv1.weight for weight in group.hidden)


def test_a_folder_is_all_it_takes_and_knows_how_images_are_normalized(
    tmp_path: Path, drive_samples: list[Sample]
) -> None:
    torch.manual_seed(0)
    config = replace(ON_TIMM, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6), score=0.0)
    network = build_network(config)
    assert (network.transform.image_mean, network.transform.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    card = TeacherCard(
        name="mask_rcnn",
        kind="classification",
        architecture=ARCHITECTURE,
        options=config.to_options(),
        channels=len(MASK_CLASSES),
        class_names=MASK_CLASSES,
        weights_sha256=write_weights(str(tmp_path), network.state_dict()),
    )
    write_card(str(tmp_path), card)
    teacher = load_teacher(str(tmp_path))
    assert isinstance(teacher, MaskRcnnTeacher)
    assert MaskRcnnConfig.from_options(read_card(str(tmp_path)).options) == config
    found, expected = (one.class_maps(drive_samples[:1])[0] for one in (teacher, MaskRcnnTeacher(card, network)))
    assert torch.equal(found.classes, expected.classes)
    assert torch.equal(found.confidence, expected.confidence)


def test_images_are_normalized_as_the_published_weights_want_it() -> None:
    assert ON_TIMM.image_mean == pytest.approx((0.485, 0.456, 0.406))
    assert MaskRcnnConfig(backbone="timm:tf_efficientnet_lite0").resolved().image_mean == (0.5, 0.5, 0.5)


def test_cards_from_before_these_options_are_read() -> None:
    options = MaskRcnnConfig().to_options()
    del options["image_mean"], options["image_std"]
    assert MaskRcnnConfig.from_options(json.loads(json.dumps(options))) == MaskRcnnConfig()


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="backbone timm:resnet18: only variant small takes one; slim has its own"):
        MaskRcnnConfig(variant="slim", backbone="timm:resnet18")
    with pytest.raises(TimmError, match=r"timm .* has no such model; it has resnet18"):
        MaskRcnnConfig(backbone="timm:resnet18x").resolved()
    with pytest.raises(TeacherError, match="only for a trunk of timm's"):
        _load_trunk(build_network(MaskRcnnConfig()), "nowhere")
    with pytest.raises(TeacherError, match=r"weights\.pth: no such file"):
        _load_trunk(build_network(ON_TIMM), str(tmp_path / "weights.pth"))
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(TimmError, match="not the weights of timm's resnet18: other are none of its weights"):
        _load_trunk(build_network(ON_TIMM), str(tmp_path / "other.pth"))
