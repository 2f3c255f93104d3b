"""The teacher answers for every point, and learns nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from teachers.spvnas.point_teacher import LidarTeacher, load_network
from teachers.spvnas.scan import Scan
from tests.teachers.spvnas.clouds import SMALL, small_network, small_scan


def test_a_saved_network_comes_back_in_eval_mode(tmp_path: Path) -> None:
    trained = small_network(1)
    torch.save({"model": trained.state_dict()}, tmp_path / "init")
    loaded = load_network(SMALL, str(tmp_path / "init"), "plain")
    assert not loaded.training
    ours, theirs = (LidarTeacher(network).predict([small_scan(1)])[0] for network in (loaded, trained))
    assert torch.equal(ours.logits, theirs.logits)


def test_every_point_of_every_scan_gets_its_voxels_answer() -> None:
    scans = [small_scan(1), small_scan(2, points=300)]
    together = LidarTeacher(small_network()).predict(scans)
    assert [answer.logits.shape for answer in together] == [(400, 19), (300, 19)]
    alone = LidarTeacher(small_network()).predict(scans[1:])[0]
    torch.testing.assert_close(together[1].features, alone.features)
    voxel = np.round(scans[0].xyz_m / np.float32(0.05)).astype(int)
    same = (voxel[:, None] == voxel[None]).all(-1)
    i, j = np.nonzero(np.triu(same, 1))
    assert len(i) > 0
    assert torch.equal(together[0].logits[i], together[0].logits[j])


def test_a_teacher_stays_frozen() -> None:
    network = small_network().train()
    teacher = LidarTeacher(network)
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    answer = teacher.predict([small_scan(1)])[0]
    assert not answer.logits.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_no_scans_and_no_points_are_answered_too() -> None:
    teacher = LidarTeacher(small_network())
    assert teacher.predict([]) == []
    nothing = Scan(np.zeros((0, 3), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert [answer.logits.shape for answer in teacher.predict([nothing])] == [(0, 19)]
    assert [answer.features.shape for answer in teacher.predict([nothing, nothing])] == [(0, 12), (0, 12)]
    assert [answer.features.shape for answer in teacher.predict([nothing, small_scan(1)])] == [(0, 12), (400, 12)]
