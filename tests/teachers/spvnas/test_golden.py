"""The network gives what the authors' own code gave on a real scan (torchsparse 1.4, CPU, seeded weights)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.point_teacher import LidarTeacher
from teachers.spvnas.scan import Scan
from teachers.spvnas.state_dict_adapter import adapt, load_strictly
from teachers.spvnas.voxels import voxelize_scans

Golden = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def golden(real_data: Path) -> Golden:
    with np.load(real_data / "spvnas_official_golden.npz") as file:
        return dict(file)


def test_the_same_voxels_and_the_same_point_in_each(scan: Scan, golden: Golden) -> None:
    voxels = voxelize_scans([scan], 0.05, torch.device("cpu"))
    assert np.array_equal(voxels.positions.numpy(), golden["voxel_coords"])
    assert np.array_equal(voxels.taken.numpy(), golden["point_index"])
    assert np.array_equal(voxels.features[:, :3].numpy(), scan.xyz_m[golden["point_index"]])


def test_the_same_logits_and_features(
    scan: Scan, golden: Golden, net_config: NetworkConfig, public_state: dict[str, Tensor]
) -> None:
    network = SPVCNN(net_config)
    load_strictly(network, adapt(public_state), "seeded weights")

    prediction = LidarTeacher(network).predict([scan])[0]

    assert prediction.features.shape == (len(scan), 76)
    points = golden["point_index"][golden["rows"]]
    for ours, theirs in ((prediction.logits, golden["logits"]), (prediction.features, golden["features"])):
        rows = ours[points].numpy()
        error = np.linalg.norm(rows - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        assert error.max() < 1e-3
        assert np.abs(rows - theirs).max() < 1e-3 * np.abs(theirs).max()
