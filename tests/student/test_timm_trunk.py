"""Trunks of timm: their grid, given weights, what is frozen, and which optimizer has what."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from student.config import StudentConfig, StudentError
from student.detector import Student
from student.timm_trunk import TimmTrunk
from student.trunk import build_trunk, resolved
from tests.student.students import HEIGHT, TAUGHT, TINY, WIDTH, build, generators, samples
from training.objective import ParameterGroup
from training.optimizer import OptimizerConfig, build_optimizer

RESNET = replace(TAUGHT, trunk="timm:resnet18")
GIVEN = replace(RESNET, trunk_weights_sha256="5" * 64, freeze_norms=False)
# Convolutions in groups of one channel, and what stands beside them.
DEPTHWISE = replace(TAUGHT, trunk="timm:tf_efficientnet_lite0")


def trunk_of(config: StudentConfig) -> TimmTrunk:
    torch.manual_seed(0)
    trunk = build_trunk(config)
    assert isinstance(trunk, TimmTrunk)
    return trunk


def network_of(student: Student) -> nn.Module:
    trunk = student.backbone.trunk
    assert isinstance(trunk, TimmTrunk)
    return trunk.network


def random_state(network: nn.Module) -> dict[str, Tensor]:
    """Return weights of all kinds that nothing starts with: also norms are other than 1 and 0."""
    torch.manual_seed(5)
    return {
        name: torch.rand_like(value) / 4 + 0.1 if value.is_floating_point() and value.ndim == 1 else value.clone()
        for name, value in network.state_dict().items()
    }


@pytest.fixture(scope="module")
def torchvisions() -> nn.Module:
    """A ResNet-18 of torchvision's."""
    network = resnet18(weights=None)
    network.load_state_dict(random_state(network))
    return network.eval()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_lite0"])
def test_any_model_comes_back_up_to_a_quarter_of_the_resolution(name: str) -> None:
    trunk = trunk_of(replace(TINY, trunk=f"timm:{name}"))
    features = trunk.eval()(torch.rand(2, 3, HEIGHT, WIDTH))
    assert features.fine.shape == (2, TINY.width, 16, 24)
    assert [one.shape for one in features.coarse] == [
        (2, TINY.width, 8, 12), (2, TINY.width, 4, 6), (2, TINY.width, 2, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt18", r"timm .* has no such model; it has resnet18, "),
        ("hf-hub:someone/resnet18", "has no such model"),
        ("resnet18.nonsense", "Invalid pretrained tag"),
        ("vit_tiny_patch16_224", "maps at strides 16, 16, 16 and none at 4, 8, 32"),
        ("swin_tiny_patch4_window7_224", "does not take images of any size that 32 divides: Input height"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(StudentError, match=f"trunk timm:{name}: .*{message}") as refused:
        Student(replace(TINY, trunk=f"timm:{name}"))
    assert "\n" not in str(refused.value)


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(StudentError, match=re.escape("pip install 'classroomnet[timm]'")):
        build(RESNET)
    # Nobody else needs it.
    build(TINY)


def test_torchvisions_weights_make_torchvisions_maps(torchvisions: nn.Module) -> None:
    trunk = trunk_of(RESNET)
    assert trunk.load(torchvisions.state_dict(), "there") == ("fc.weight", "fc.bias")
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    expected = []
    features = image
    for name, layer in list(torchvisions.named_children())[:-2]:
        features = layer(features)
        if name.startswith("layer"):
            expected.append(features)
    for found, truth in zip(trunk.network.eval()(image)[-4:], expected, strict=True):
        torch.testing.assert_close(found, truth)


def test_timms_weights_make_timms_maps() -> None:
    # A model that timm takes apart, and whose names it changes then.
    whole = timm.create_model("convnext_atto", num_classes=7)
    whole.load_state_dict(random_state(whole))
    trunk = trunk_of(replace(TINY, trunk="timm:convnext_atto"))
    left_out = trunk.load(whole.state_dict(), "there")
    assert set(left_out) == {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(trunk.network.eval()(image)[-1], whole.eval().forward_features(image))  # type: ignore[operator]


def test_weights_of_another_number_of_classes_or_of_none_are_taken(torchvisions: nn.Module) -> None:
    state = torchvisions.state_dict()
    few = {**state, "fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    headless = {name: value for name, value in state.items() if not name.startswith("fc.")}
    trunk = trunk_of(RESNET)
    assert len(trunk.load(few, "there")) == 2
    assert trunk.load(headless, "there") == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weights": torch.zeros(1)}, "fc.weights are none of its weights$"),
        ({"layer1.2.conv1.weight": torch.zeros(1)}, "layer1.2.conv1.weight are none"),
        ({"layer1.0.conv1.weight": None}, "layer1.0.conv1.weight are missing$"),
        ({"bn1.running_var": None, "bn1.weight": None}, "bn1.weight, bn1.running_var are missing"),
        ({"conv1.weight": torch.zeros(64, 4, 7, 7)}, r"conv1.weight is \[64, 4, 7, 7\] instead of \[64, 3, 7, 7\]$"),
    ],
)
def test_wrong_weights_are_refused_by_name_and_change_nothing(
    torchvisions: nn.Module, change: dict[str, Tensor | None], message: str
) -> None:
    state = {**torchvisions.state_dict(), **change}
    trunk = trunk_of(RESNET)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(StudentError, match=f"^there: not the weights of timm's resnet18: {message}") as refused:
        trunk.load({name: value for name, value in state.items() if value is not None}, "there")
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(StudentError, match=r"stem\.0\.weight, .* and \d+ more are none of its weights; conv1\.weight"):
        trunk_of(RESNET).load(timm.create_model("convnext_atto").state_dict(), "there")


def changed_by_training(config: StudentConfig) -> set[str]:
    """Return the first parts of the names of what a training step changes in a ResNet-18."""
    student = build(config).train()
    network = network_of(student)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # timm starts the last of a residual block at zero: what is before it would not learn in the first step.
            nn.init.ones_(module.weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    some = samples(2)
    output = student.training_output(
        torch.stack([one.image for one in some]), [one.objects for one in some], generators(2)
    )
    torch.stack(list(output.losses.values())).sum().backward()
    torch.optim.SGD([p for p in student.parameters() if p.grad is not None], lr=0.1).step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_frozen_stages_keep_weights_and_statistics() -> None:
    changed = changed_by_training(replace(GIVEN, freeze_stages=2))
    assert {name.partition(".")[0] for name in changed} == {"layer3", "layer4"}
    assert {name for name in changed if name.startswith("layer3.0.bn1")} == {
        f"layer3.0.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }


def test_frozen_norms_keep_all_of_theirs_and_nothing_else_does() -> None:
    changed = changed_by_training(replace(GIVEN, freeze_norms=True))
    kinds = {name: value.ndim for name, value in network_of(build(GIVEN)).state_dict().items()}
    assert changed == {name for name, dimensions in kinds.items() if dimensions == 4}


def test_frozen_stages_drop_nothing_out() -> None:
    trunk = trunk_of(replace(GIVEN, trunk="timm:convnext_atto", freeze_stages=2)).train()
    for module in trunk.network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    pairs = zip(trunk.network(image), trunk.network(image), strict=True)
    assert [torch.equal(one, other) for one, other in pairs] == [True, True, False, False]


@pytest.mark.parametrize("freeze_norms", [False, True])
def test_norms_without_parameters_are_frozen_where_norms_are(
    monkeypatch: pytest.MonkeyPatch, freeze_norms: bool
) -> None:
    create = timm.create_model
    plain = partial(nn.BatchNorm2d, affine=False)
    monkeypatch.setattr(timm, "create_model", partial(create, norm_layer=plain, zero_init_last=False))
    trunk = trunk_of(replace(GIVEN, freeze_norms=freeze_norms)).train()
    trunk.network(torch.rand(2, 3, HEIGHT, WIDTH))
    counts = {int(value) for name, value in trunk.network.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {0 if freeze_norms else 1}


def test_nothing_is_frozen_where_nobody_asks() -> None:
    assert changed_by_training(RESNET) == set(network_of(build(RESNET)).state_dict())


def test_norms_are_frozen_by_default_where_weights_are_given() -> None:
    assert build(RESNET).config.freeze_norms is False
    assert build(replace(RESNET, trunk_weights_sha256="5" * 64)).config.freeze_norms is True
    assert build(GIVEN).config.freeze_norms is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": "resnet18"}, "trunk: expected fpn, stride1 or timm:NAME, got: 'resnet18'"),
        ({"trunk": "timm:"}, "got: 'timm:'"),
        ({"trunk_weights": "there"}, "trunk fpn: weights are given to"),
        ({"freeze_stages": 1}, "trunk fpn: .*, timm's trunks alone"),
        ({"trunk": "timm:resnet18", "freeze_stages": 1}, "expected trunk_weights"),
        ({"trunk": "timm:resnet18", "freeze_norms": True}, "expected trunk_weights"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudentError, match=message):
        replace(TINY, **changes)  # type: ignore[arg-type]


def test_images_are_normalized_as_the_published_weights_want_it() -> None:
    seen: list[Tensor] = []
    for config, mean, std in (
        (TINY, (0.45,) * 3, (0.25,) * 3),
        (RESNET, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (DEPTHWISE, (0.5,) * 3, (0.5,) * 3),
        (replace(RESNET, image_mean=(0.1, 0.2, 0.3)), (0.1, 0.2, 0.3), (0.229, 0.224, 0.225)),
    ):
        student = build(config).eval()
        student.backbone.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        image = torch.rand(1, 3, HEIGHT, WIDTH)
        student.features(image)
        for channel in range(3):
            expected = (image[0, channel] - mean[channel]) / std[channel]
            torch.testing.assert_close(seen[-1][0, channel], expected)


def test_a_students_own_configuration_needs_neither_timm_nor_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    given = replace(RESNET, trunk_weights="/gone/resnet18.pth", trunk_weights_sha256="5" * 64)
    config = resolved(given)
    monkeypatch.setitem(sys.modules, "timm", None)
    again = StudentConfig.from_json(config.to_json())
    assert again == config == resolved(again)
    assert again.trunk_weights is None
    assert (again.image_mean, again.freeze_norms) == ((0.485, 0.456, 0.406), True)


def test_muon_has_whole_matrices_that_are_trained_alone() -> None:
    student = build(DEPTHWISE)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    hidden = {names[id(weight)].removeprefix("backbone.trunk.network.") for weight in student.hidden_weights()}
    assert {"blocks.1.0.conv_pw.weight", "blocks.1.0.conv_pwl.weight", "heads.box_head.fc6.weight"} <= hidden
    assert not [name for name in hidden if "conv_dw" in name or name == "conv_stem.weight"]
    frozen = build(replace(GIVEN, freeze_stages=1))
    names = {id(parameter): name for name, parameter in frozen.named_parameters()}
    stages = {names[id(weight)].split(".")[3] for weight in frozen.hidden_weights() if "network" in names[id(weight)]}
    assert stages == {"layer2", "layer3", "layer4"}


def rates(student: Student) -> Iterator[tuple[str, float]]:
    """Yield name and rate of each parameter at a learning rate of 1, where Muon's is twice AdamW's."""
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    group = ParameterGroup(
        "student", list(student.parameters()), student.hidden_weights(), student.pretrained_weights()
    )
    optimizer = build_optimizer([group], OptimizerConfig(pretrained_lr_factor=0.25), bfloat16=False)
    optimizer.set_lr(1.0)
    for part in optimizer.param_groups:
        for parameter in part["params"]:
            yield names[id(parameter)], part["lr"]


def test_given_weights_are_trained_at_a_rate_of_their_own() -> None:
    found = dict(rates(build(GIVEN)))
    assert found["backbone.trunk.network.conv1.weight"] == found["backbone.trunk.network.bn1.bias"] == 0.25
    assert found["backbone.trunk.network.layer1.0.conv1.weight"] == 0.5
    assert found["backbone.trunk.laterals.0.0.weight"] == found["backbone.fuse.0.weight"] == 2.0
    assert found["backbone.fuse.1.weight"] == 1.0
    from_scratch = dict(rates(build(RESNET)))
    assert set(from_scratch.values()) == {1.0, 2.0}
    assert found.keys() == from_scratch.keys()


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_activations_that_are_computed_twice_give_the_same_gradients(name: str) -> None:
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    gradients, sizes = [], []
    for twice in (False, True):
        trunk = trunk_of(replace(TINY, trunk=f"timm:{name}")).train()
        network = trunk.network
        if twice:
            trunk.recompute_activations()
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(keep_in(kept), lambda value: value):
            maps = network(images)
        torch.stack([one.square().sum() for one in maps]).sum().backward()
        gradients.append({parameter: value.grad for parameter, value in network.named_parameters()})
        weights = {value.data_ptr() for value in network.state_dict().values()}
        sizes.append(sum(value.numel() for value in kept if value.data_ptr() not in weights))
    assert sizes[1] < sizes[0] / 2
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient)


def keep_in(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that puts a tensor into the list and returns it."""

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    return keep
