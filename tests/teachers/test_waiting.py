"""Teachers have a GPU waited for a fixed number of times a batch, however many images there are.

Nothing here runs on a GPU: tensors that would lie on one are marked, and so is all that is computed from them. Where
the host looks at a marked value, or has to know how many there are, a GPU would be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datalake.sample import Sample
from teachers import pool, statistics
from teachers.card import ChannelStatistics
from teachers.mask_rcnn import batched_boxes
from teachers.mask_rcnn import teacher as mask_rcnn
from teachers.pool import LocalPool
from teachers.sparse import kernel_map, level, points, triton_backend
from teachers.sparse.level import Level
from teachers.sparse.triton_backend import TritonGrid
from teachers.spvnas import network, projection, voxels
from teachers.spvnas import teacher as lidar
from teachers.transfer import joined_on_device, on_device
from tests.teachers.cards import CONFIG, lidar_teacher
from tests.teachers.mask_rcnn.test_teacher import slim_teacher
from training import suppression
from training.pooling import LevelPool

# What looks at a tensor's values, or makes a tensor whose size depends on them.
_LOOKS = {
    *(Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.cpu),
    *(Tensor.nonzero, torch.nonzero, torch.equal, torch.unique, Tensor.unique, torch.bincount, Tensor.bincount),
    *(torch.masked_select, Tensor.masked_select, Tensor.new_tensor),
}
_INDEXES = {Tensor.__getitem__, Tensor.__setitem__}
_REPEATS = {torch.repeat_interleave, Tensor.repeat_interleave}
_SIZES = (2, 4)


class OnGpu(Tensor):
    """A tensor that would lie on a GPU; the waits of all of them are noted."""

    waits: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU, and note what a GPU would be waited for."""
        masked = func in _INDEXES and any(
            isinstance(part, Tensor) and part.dtype == torch.bool
            for part in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        where = func is torch.where and len(args) == 1
        if func in _LOOKS or func in _REPEATS or masked or where:
            cls.waits.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


class Gathering:
    """In place of the backend for a GPU: its maps, and for its kernel as many products as there are offsets."""

    def open(self, voxels: Tensor | Level) -> TritonGrid:
        """Start a pass."""
        assert isinstance(voxels, Level)
        return TritonGrid(SimpleNamespace(implicit_gemm=self._multiply), voxels)

    def _multiply(self, features: Tensor, kernel: Tensor, neighbours: Tensor) -> Tensor:
        padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
        return sum(
            (padded[rows] @ matrix for rows, matrix in zip(neighbours.long(), kernel, strict=True)), torch.zeros(())
        )


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the host would have waited for; all is computed as on a GPU."""
    OnGpu.waits = []

    def moved(values: Tensor, device: torch.device) -> Tensor:
        return on_device(values, device).as_subclass(OnGpu)

    def joined(parts: Sequence[Tensor], device: torch.device, dim: int = 0) -> Tensor:
        return joined_on_device(parts, device, dim).as_subclass(OnGpu)

    for module in (batched_boxes, kernel_map, lidar, mask_rcnn, points, projection, statistics, triton_backend, voxels):
        monkeypatch.setattr(module, "on_device", moved, raising=False)
        monkeypatch.setattr(module, "joined_on_device", joined, raising=False)
    monkeypatch.setattr(suppression, "kept_one_by_one", suppression.kept_in_rounds)
    monkeypatch.setattr(LevelPool, "by_choice", LevelPool.by_distance)
    monkeypatch.setattr(Level, "occupied", partial(level.occupied, strides=(2, 4, 8, 16)))
    monkeypatch.setattr(network, "choose_backend", lambda *_: Gathering())
    # It looks at answers on a CPU alone.
    monkeypatch.setattr(pool, "_check_classes", lambda *_: None)
    return OnGpu.waits


@pytest.mark.parametrize("images", _SIZES)
def test_a_mask_teacher_has_a_gpu_waited_for_three_times(
    drive_samples: list[Sample], waits: list[str], images: int
) -> None:
    target = slim_teacher().predict(drive_samples[:images], 16, 24)
    assert isinstance(target.values, OnGpu)
    # Whether more is to be suppressed, of the proposals and of the detections; and how many of these there are.
    assert waits == ["equal", "equal", "tolist"]


@pytest.mark.parametrize("images", _SIZES)
def test_a_lidar_teacher_has_a_gpu_waited_for_twice(drive_samples: list[Sample], waits: list[str], images: int) -> None:
    told = ChannelStatistics(mean=(0.5,) * CONFIG.feature_width, variance=(4.0,) * CONFIG.feature_width)
    target = lidar_teacher(told).predict(drive_samples[:images], 16, 24)
    assert isinstance(target.values, OnGpu)
    # How many points stand for a voxel each, and how many voxels there are of every stride.
    assert waits == ["tolist", "tolist"]


def test_a_lidar_teacher_says_what_it_says_on_a_cpu(
    drive_samples: list[Sample], request: pytest.FixtureRequest
) -> None:
    expected = lidar_teacher().predict(drive_samples[:2], 16, 24)
    request.getfixturevalue("waits")
    found = lidar_teacher().predict(drive_samples[:2], 16, 24)
    assert torch.equal(found.valid, expected.valid)
    torch.testing.assert_close(found.values.as_subclass(Tensor), expected.values, atol=1e-4, rtol=1e-4)


def test_all_teachers_answers_are_looked_at_once(drive_samples: list[Sample], waits: list[str]) -> None:
    ((_, targets),) = LocalPool({"lidar": lidar_teacher(), "masks": slim_teacher()}, (16, 24)).follow(
        [drive_samples[:2]]
    )
    assert targets.keys() == {"lidar", "masks"}
    assert len(waits) == 3 + 2 + 1
