"""A detector of torchvision as a teacher, beside torchvision's own modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from student.distillation.detector_teacher import DetectorTeacher
from student.distillation.fitnet import FitNet, FitNetConfig
from student.distillation.kd import KD, KDConfig
from student.distillation.objective import DetectionObjective, LossWeights
from student.distillation.torchvision_detector import TorchvisionDetector, folded
from student.rpn import Proposals
from teachers.card import TeacherError
from tests.student.distillation.taught import batch, of_method
from tests.student.students import HEIGHT, TINY, WIDTH, build
from training.objective import Loss

# COCO's labels by the student's classes, but for the background's, written out.
VEHICLE, PEDESTRIAN, SIGN, CYCLIST = (3, 4, 6, 8), (1,), (), (2,)
V1, V2 = "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"


@pytest.fixture(scope="module")
def network() -> Iterator[FasterRCNN]:
    """torchvision's second network, its heads far from saying the same of everything, its norms far from idle."""
    torch.manual_seed(3)
    network = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=91)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.mul_(30)
        network.roi_heads.box_predictor.bbox_pred.weight.mul_(30)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def detector(network: FasterRCNN) -> TorchvisionDetector:
    return TorchvisionDetector.load(V2, network.state_dict(), "here").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def levels_of(network: FasterRCNN, images: Tensor) -> dict[str, Tensor]:
    """Return all five levels, as torchvision makes them of images of their own size."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    levels: dict[str, Tensor] = network.backbone((images - mean) / deviation)
    return levels


def some_boxes(images: int, count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(images, count, 2, generator=generator) * torch.tensor([WIDTH / 2, HEIGHT / 2])
    sides = 4 + 40 * torch.rand(images, count, 2, generator=generator)
    return torch.cat([corners, corners + sides], 2)


@torch.no_grad()
def test_the_pyramid_is_torchvisions_on_normalized_images_without_its_last_level(
    network: FasterRCNN, detector: TorchvisionDetector, images: Tensor
) -> None:
    expected = list(levels_of(network, images).values())[:4]
    pyramid = DetectorTeacher(detector).predict(images).pyramid
    assert [level.shape[-2:] for level in pyramid] == [(HEIGHT >> n, WIDTH >> n) for n in (2, 3, 4, 5)]
    torch.testing.assert_close(list(pyramid), expected)
    whole = (images * 255).to(torch.uint8)
    torch.testing.assert_close(detector.features(whole).pyramid[0], detector.features(whole.float() / 255).pyramid[0])


@torch.no_grad()
def test_the_box_head_says_what_torchvisions_own_modules_say(
    network: FasterRCNN, detector: TorchvisionDetector, images: Tensor
) -> None:
    boxes = some_boxes(2)
    heads = network.roi_heads
    pooled = heads.box_roi_pool(levels_of(network, images), list(boxes), [(HEIGHT, WIDTH)] * 2)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    found = DetectorTeacher(detector).predict(images).predict(boxes)
    probabilities = logits.softmax(1)
    vehicles, walkers, cyclists = (probabilities[:, list(of)].sum(1) for of in (VEHICLE, PEDESTRIAN, CYCLIST))
    rest = 1 - vehicles - walkers - cyclists
    expected = torch.stack([rest, vehicles, walkers, torch.zeros_like(rest), cyclists], 1)
    torch.testing.assert_close(found.logits.flatten(0, 1).softmax(1), expected, rtol=1e-4, atol=1e-6)
    assert float(vehicles.std()) > 1e-4
    torch.testing.assert_close(found.deltas.flatten(0, 1)[:, 8:12], deltas[:, 4:8])
    torch.testing.assert_close(found.deltas.flatten(0, 1)[:, 16:20], deltas[:, 8:12])


@torch.no_grad()
def test_proposals_are_those_of_torchvisions_network(
    network: FasterRCNN, detector: TorchvisionDetector, images: Tensor
) -> None:
    levels = levels_of(network, images)
    expected, _ = network.rpn(ImageList(images, [(HEIGHT, WIDTH)] * 2), levels)
    proposals = DetectorTeacher(detector).predict(images).proposals
    for boxes, valid, own in zip(proposals.boxes, proposals.valid, expected, strict=True):
        assert len(own) > 10
        torch.testing.assert_close(boxes[valid], own, rtol=1e-4, atol=1e-3)
        assert not boxes[~valid].any()


@torch.no_grad()
def test_detections_are_of_the_students_classes_and_lie_in_the_image(
    detector: TorchvisionDetector, images: Tensor
) -> None:
    boxes = some_boxes(2, 20)
    proposals = Proposals(boxes, torch.ones(2, 20, dtype=torch.bool))
    found = detector.heads.find(detector.features(images).pyramid, proposals, (HEIGHT, WIDTH))
    assert found.valid.any()
    assert set(found.classes[found.valid].tolist()) <= {1, 2, 4}
    assert found.boxes.min() >= 0
    assert bool((found.boxes <= torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).all())


def test_folding_adds_probabilities_and_takes_the_box_of_the_likeliest_member() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(5, 91, generator=generator) * 3, torch.randn(5, 364, generator=generator)
    of_classes, of_boxes = folded(logits, deltas)
    rest = [n for n in range(91) if n not in (*VEHICLE, *PEDESTRIAN, *CYCLIST)]
    for row in range(5):
        exponentials = [float(value) for value in logits[row].double().exp()]
        total = sum(exponentials)
        found = of_classes[row].double().softmax(0).tolist()
        for number, members in enumerate((rest, VEHICLE, PEDESTRIAN, SIGN, CYCLIST)):
            assert found[number] == pytest.approx(sum(exponentials[n] for n in members) / total, rel=1e-5, abs=1e-12)
            box = of_boxes[row, 4 * number : 4 * number + 4].tolist()
            if members:
                best = max(members, key=lambda n: exponentials[n])
                assert box == deltas[row, 4 * best : 4 * best + 4].tolist()
            else:
                assert box == [0, 0, 0, 0]
    assert of_classes.isfinite().all()


def test_a_student_learns_from_it_by_fitnet_and_kd_and_it_never_changes(detector: TorchvisionDetector) -> None:
    before = {name: value.clone() for name, value in detector.network.state_dict().items()}
    teachers = {"coco": DetectorTeacher(detector, "0" * 64)}
    methods = {"fitnet": FitNet(FitNetConfig(), TINY, teachers), "kd": KD(KDConfig())}
    objective = DetectionObjective(build(), LossWeights(), methods, detectors=teachers).train()
    losses = of_method(objective(batch([0, 1, 2], labelled=2), 0.5))
    assert losses.keys() == {"fitnet/coco", "kd/coco"}
    for loss in losses.values():
        assert isinstance(loss, Loss)
        assert bool(loss.value.isfinite())
        assert bool(loss.value > 0)
    sum((loss.value for loss in losses.values()), torch.zeros(())).backward()
    assert objective.student.heads.box_predictor.cls_score.weight.grad is not None
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.network.state_dict().items())
    assert not [name for name in objective.state_dict() if "network" in name]
    assert objective.fingerprint()["teacher.coco"] == "0" * 64


def test_its_head_passes_gradients_on_to_the_students_pyramid(detector: TorchvisionDetector, images: Tensor) -> None:
    teacher = DetectorTeacher(detector).predict(images)
    levels = [level.clone().requires_grad_() for level in teacher.pyramid]
    teacher.detector.heads.predict(levels, some_boxes(2)).deltas.square().sum().backward()
    assert levels[0].grad is not None
    assert bool(levels[0].grad.any())


def test_who_asks_it_for_depths_is_told_that_it_knows_none(detector: TorchvisionDetector, images: Tensor) -> None:
    teacher = DetectorTeacher(detector).predict(images)
    with pytest.raises(TeacherError, match=r"without a depth head .* leave --kd.depth out"):
        teacher.depths_m(teacher.predict(some_boxes(2)), some_boxes(2))


def test_weights_of_another_network_are_refused_by_name(network: FasterRCNN) -> None:
    with pytest.raises(TeacherError, match=rf"^coco\.pth: these are not the weights of {V1} on COCO: .*box_head"):
        TorchvisionDetector.load(V1, network.state_dict(), "coco.pth")
    with pytest.raises(
        TeacherError, match=r"^coco\.pth: no network 'ssd300'; expected one of fasterrcnn_resnet50_fpn, "
    ):
        TorchvisionDetector.load("ssd300", network.state_dict(), "coco.pth")


@torch.no_grad()
def test_of_a_mask_rcnn_all_but_the_masks_is_taken(images: Tensor) -> None:
    torch.manual_seed(1)
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    detector = TorchvisionDetector.load("maskrcnn_resnet50_fpn", network.state_dict(), "here").eval()
    assert detector.name == V1
    assert not [name for name in detector.network.state_dict() if "mask" in name]
    expected = list(levels_of(network, images).values())[:4]
    # The norms of the published weights add nothing to the variance, those of a new network do.
    torch.testing.assert_close(list(detector.features(images).pyramid), expected, rtol=1e-2, atol=1e-2)
