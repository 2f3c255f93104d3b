"""What must hold for every SPVCNN."""

from __future__ import annotations

import pytest
import torch

from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.voxels import VoxelBatch, voxelize_scans
from tests.teachers.spvnas.clouds import SMALL, small_network, small_scan

CPU = torch.device("cpu")


def voxels(*seeds: int) -> VoxelBatch:
    return voxelize_scans([small_scan(seed) for seed in seeds], SMALL.voxel_m, CPU)


@torch.no_grad()
def test_permuting_the_points_permutes_the_outputs() -> None:
    network, cloud = small_network(), voxels(1)
    order = torch.randperm(len(cloud.batch), generator=torch.Generator().manual_seed(2))
    straight = network(cloud.features, cloud.positions, cloud.batch)
    mixed = network(cloud.features[order], cloud.positions[order], cloud.batch[order])
    torch.testing.assert_close(mixed.logits, straight.logits[order])
    torch.testing.assert_close(mixed.features, straight.features[order])


@torch.no_grad()
def test_a_batch_of_two_is_each_alone() -> None:
    network = small_network()
    both, one, two = (voxels(*seeds) for seeds in ((1, 2), (1,), (2,)))
    together = network(both.features, both.positions, both.batch)
    alone = [network(cloud.features, cloud.positions, cloud.batch) for cloud in (one, two)]
    torch.testing.assert_close(together.logits, torch.cat([answer.logits for answer in alone]))
    torch.testing.assert_close(together.features, torch.cat([answer.features for answer in alone]))


@torch.no_grad()
def test_moving_a_cloud_by_whole_coarse_voxels_changes_nothing() -> None:
    network, cloud = small_network(), voxels(1)
    here = network(cloud.features, cloud.positions, cloud.batch)
    there = network(cloud.features, cloud.positions - 16 * torch.tensor([5, 0, 3]), cloud.batch)
    torch.testing.assert_close(there.logits, here.logits)


@torch.no_grad()
def test_points_between_voxel_centers_are_welcome() -> None:
    network, cloud = small_network(), voxels(1)
    shift = torch.rand(cloud.positions.shape, generator=torch.Generator().manual_seed(3))
    answer = network(cloud.features, cloud.positions + shift, cloud.batch)
    assert bool(answer.logits.isfinite().all())


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    network = SPVCNN(SMALL, "plain").train()
    cloud = voxels(1, 2)
    answer = network(cloud.features, cloud.positions, cloud.batch)
    target = (cloud.features[:, 2] > 0).long()
    torch.nn.functional.cross_entropy(answer.logits, target).backward()
    unmoved = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert unmoved == []


@pytest.mark.integration
def test_a_few_steps_fit_a_simple_target() -> None:
    torch.manual_seed(0)
    network = SPVCNN(SMALL, "plain").train()
    cloud = voxels(1)
    target = (cloud.features[:, 0] > 0).long()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(cloud.features, cloud.positions, cloud.batch).logits, target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_spvcnn_distils_96_channels_times_its_width() -> None:
    assert NetworkConfig.spvcnn().feature_width == 96
    assert NetworkConfig.spvcnn(0.5).feature_width == 48
    cloud = voxels(1)
    answer = small_network()(cloud.features, cloud.positions, cloud.batch)
    assert answer.logits.shape == (len(cloud.batch), 19)
    assert answer.features.shape == (len(cloud.batch), 12)
