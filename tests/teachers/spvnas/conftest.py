"""The official network's inputs, weights and outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.scan import Scan


@pytest.fixture(scope="session")
def net_config(real_data: Path) -> NetworkConfig:
    """SPVNAS@65G."""
    return NetworkConfig.from_net_config(json.loads((real_data / "spvnas_65gmacs_net_config.json").read_text()))


@pytest.fixture(scope="session")
def public_state(real_data: Path) -> dict[str, Tensor]:
    """A state dict as the authors publish it, with seeded weights."""
    path = real_data.parent / "tools/seeded_weights.py"
    if not path.is_file():
        pytest.skip(f"the seeded weights are missing: no file {path}")
    spec = importlib.util.spec_from_file_location("seeded_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes = json.loads((real_data / "spvnas_65gmacs_state_dict_shapes.json").read_text())
    return {key: torch.from_numpy(value) for key, value in module.seeded_weights(shapes).items()}


@pytest.fixture(scope="session")
def scan(real_data: Path) -> Scan:
    """A real scan of 123,389 points."""
    return Scan.from_semantickitti(real_data / "semantickitti_000000.bin")
