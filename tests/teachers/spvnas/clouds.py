"""Small clouds and networks."""

from __future__ import annotations

import numpy as np
import torch

from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.scan import Scan

SMALL = NetworkConfig.spvcnn(0.125)


def small_scan(seed: int, points: int = 400) -> Scan:
    """Return points on a wavy sheet of 4 m by 4 m."""
    random = np.random.default_rng(seed)
    xyz = random.uniform(-2, 2, (points, 3))
    xyz[:, 2] = 0.3 * np.sin(2 * xyz[:, 0]) + random.normal(0, 0.02, points)
    return Scan(xyz.astype(np.float32), random.uniform(0, 1, points).astype(np.float32), np.arange(points))


def small_network(seed: int = 0) -> SPVCNN:
    """Return a narrow SPVCNN in eval mode, whose norms have seen data."""
    torch.manual_seed(seed)
    network = SPVCNN(SMALL, "plain")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()
