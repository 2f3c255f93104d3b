"""The frozen lidar teacher."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import fsspec
import torch

from teachers.sparse.choice import BackendName
from teachers.spvnas.checkpoint import read_state_dict
from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN, PointPrediction
from teachers.spvnas.scan import Scan
from teachers.spvnas.state_dict_adapter import adapt, load_strictly
from teachers.spvnas.voxels import VoxelBatch, voxelize_scans

_log = logging.getLogger(__name__)


def load_network(config: NetworkConfig, weights_url: str, backend: BackendName = "auto") -> SPVCNN:
    """Return the network with the weights of a public or own checkpoint, in eval mode, on the CPU.

    Raises CheckpointError, in one line, where the checkpoint is not one of this configuration.
    """
    network = SPVCNN(config, backend)
    load_strictly(network, adapt(read_state_dict(weights_url)), weights_url)
    _log.info("SPVCNN with %d point features from %s", config.feature_width, weights_url)
    return network.eval()


def read_net_config(url: str) -> NetworkConfig:
    """Return the configuration in a public net.config file. Raises NetConfigError where it is not one."""
    with fsspec.open(url, "rb") as file:
        return NetworkConfig.from_net_config(json.loads(file.read()))


class LidarTeacher:
    """A frozen network: eval mode, no gradients, a prediction for every point of every scan."""

    def __init__(self, network: SPVCNN) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def predict(self, scans: Sequence[Scan]) -> list[PointPrediction]:
        """Return for each scan logits [P, classes] and features [P, D]; points of one voxel share theirs.

        The scans go through together: several are faster than one by one on a GPU, and take that much more memory.
        A scan without points gets an empty prediction.
        """
        if not scans:
            return []
        device = next(self.network.parameters()).device
        voxels = voxelize_scans(scans, self.network.config.voxel_m, device)
        answer = self.ask(voxels)
        logits = answer.logits[voxels.voxel].split(voxels.points)
        features = answer.features[voxels.voxel].split(voxels.points)
        return [PointPrediction(*pair) for pair in zip(logits, features, strict=True)]

    @torch.no_grad()
    def ask(self, voxels: VoxelBatch) -> PointPrediction:
        """Return logits [V, classes] and features [V, D] of the voxels."""
        if not len(voxels.taken):
            # torchsparse cannot build maps of nothing on a GPU.
            config, empty = self.network.config, voxels.features.new_zeros
            return PointPrediction(empty(0, config.classes), empty(0, config.feature_width))
        self.network.eval()
        answer: PointPrediction = self.network(voxels.features, voxels.positions, voxels.batch)
        return answer
