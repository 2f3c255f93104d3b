"""The official network's inputs, weights and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.scan import Scan


@pytest.fixture(scope="session")
def net_config(real_data: Path) -> NetworkConfig:
    """SPVNAS@65G."""
    return NetworkConfig.from_net_config(json.loads((real_data / "spvnas_65gmacs_net_config.json").read_text()))


@pytest.fixture(scope="session")
def scan(real_data: Path) -> Scan:
    """A real scan of 123,389 points."""
    return Scan.from_semantickitti(real_data / "semantickitti_000000.bin")
