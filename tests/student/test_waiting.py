"""A GPU is waited for once in the detection losses of a step, however many images there are.

Nothing here runs on a GPU: torch's fake tensors say that they lie on one, refuse to be mixed with the CPU's, and cannot
be looked at, which is what the host would have to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from datalake.sample import Objects
from student import detector
from student.config import StudentConfig
from student.detector import Student
from student.labels import Labels
from student.roi_heads import BatchDetections
from student.trunk import TrunkFeatures
from tests.student.students import HEIGHT, TAUGHT, WIDTH, generators, objects_of

GPU = torch.device("cuda", 0)
SIZE = (HEIGHT, WIDTH)


class Copies(TorchDispatchMode):
    """Notes what is copied from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            if source.device != result.device:
                self.shapes.append(tuple(source.shape))
        return result


@dataclass
class FakeGpu:
    """Students and images on a GPU that is not there; `waits` counts how often somebody looks at a value."""

    mode: FakeTensorMode
    waits: list[str] = field(default_factory=list)

    def student(self, config: StudentConfig) -> Student:
        with self.mode, GPU:
            return Student(config).train()

    def images(self, count: int) -> Tensor:
        with self.mode:
            return torch.empty(count, 3, HEIGHT, WIDTH, dtype=torch.uint8, device=GPU)

    def losses(self, student: Student, count: int) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
        """Return the losses of so many images, and the shapes of what was copied from device to device."""
        with self.mode, Copies() as copies:
            labels = [objects_of((10, 10, 34, 28, 1, 20.0)), objects_of()] * (count // 2)
            return student.training_output(self.images(count), labels, generators(count)).losses, copies.shapes


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """What is drawn and packed on the host is replaced: torch cannot pin memory without a driver."""
    fake = FakeGpu(FakeTensorMode())

    def equal(one: Tensor, other: Tensor) -> bool:
        assert one.device == other.device == GPU
        fake.waits.append("torch.equal")
        return True

    def packed(device: torch.device, objects: Sequence[Objects]) -> Labels:
        assert device == GPU
        counts = tuple(len(one.boxes) for one in objects)
        places = (len(counts), max(1, *counts))
        classes = torch.empty(places, dtype=torch.int64, device=GPU)
        boxes, depths = torch.empty(*places, 4, device=GPU), torch.empty(places, device=GPU)
        return Labels(boxes, classes, depths, counts, finite=True)

    def keys(counts: list[int], drawn_by: list[torch.Generator], device: torch.device) -> Tensor:
        assert len(counts) == len(drawn_by)
        return torch.empty(len(counts), max(counts), dtype=torch.int64, device=device)

    monkeypatch.setattr(torch, "equal", equal)
    monkeypatch.setattr(detector, "labels_on", packed)
    monkeypatch.setattr(detector, "draw_keys", keys)
    return fake


@pytest.mark.parametrize("count", [2, 8])
def test_the_detection_losses_of_a_step_wait_for_a_gpu_once(gpu: FakeGpu, count: int) -> None:
    losses, _ = gpu.losses(gpu.student(TAUGHT), count)
    assert {loss.device for loss in losses.values()} == {GPU}
    assert gpu.waits == ["torch.equal"]


def test_after_the_first_step_nothing_but_labels_and_keys_is_copied_to_a_gpu(gpu: FakeGpu) -> None:
    student = gpu.student(TAUGHT)
    _, first = gpu.losses(student, 2)
    _, second = gpu.losses(student, 2)
    # torchvision's generator of anchors keeps its shapes on the CPU until it is asked.
    assert len(first) == TAUGHT.levels
    assert second == []


def test_what_is_found_lies_on_a_gpu_in_shapes_that_are_known_before(gpu: FakeGpu) -> None:
    student = gpu.student(TAUGHT).eval()
    with gpu.mode, torch.no_grad():
        levels = student.features(gpu.images(3)).pyramid
        objectness, deltas = student.rpn(levels)
        proposals = student.rpn.propose(objectness, deltas, student.rpn.anchors(levels, SIZE), levels, SIZE)
        found: BatchDetections = student.heads.find(levels, proposals, SIZE)
    assert found.boxes.shape == (3, TAUGHT.detections, 4)
    assert found.boxes.device == GPU


def test_under_autocast_on_a_gpu_activations_stay_bfloat16(gpu: FakeGpu) -> None:
    student = gpu.student(TAUGHT)
    # `torch.autocast` asks for a driver; the dispatcher does not.
    was = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with gpu.mode:
            images = torch.empty(1, 3, HEIGHT, WIDTH, device=GPU)
            view: TrunkFeatures = student.backbone.trunk(images)
    finally:
        torch.set_autocast_enabled("cuda", was)
    assert {view.fine.dtype, *(one.dtype for one in view.coarse)} == {torch.bfloat16}
