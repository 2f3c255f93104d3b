"""net.config files name a network, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from teachers.spvnas.config import NetConfigError, NetworkConfig
from teachers.spvnas.point_teacher import read_net_config


@pytest.fixture
def entries(real_data: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((real_data / "spvnas_65gmacs_net_config.json").read_text())
    return loaded


def test_a_public_file_is_read_from_a_url(real_data: Path, net_config: NetworkConfig) -> None:
    assert read_net_config(f"file://{real_data}/spvnas_65gmacs_net_config.json") == net_config


def test_the_selected_widths_are_the_networks(net_config: NetworkConfig) -> None:
    assert net_config.stem == 32
    assert [stage.width for stage in (*net_config.down, *net_config.up)] == [24, 52, 188, 232, 140, 152, 96, 76]
    assert [len(stage.blocks) for stage in net_config.up] == [2, 1, 2, 1]
    assert net_config.feature_width == 76
    assert net_config.voxel_m == 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample.3.transition": None}, "the entry 'upsample.3.transition' is missing"),
        ({"output_channels": [32, 24]}, "expected 9 output_channels, got: 2"),
        ({"pres": 0.1}, "pres and vres differ"),
        ({"downsample.0.feature": 0}, "downsample.0.feature: expected at least one block"),
        ({"downsample.0.feature.layers.0.net": 1}, "expected 2 convolutions, got: 1"),
    ],
)
def test_what_is_not_a_specialised_network_is_refused(
    entries: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    entries = {key: value for key, value in (entries | change).items() if value is not None}
    with pytest.raises(NetConfigError, match=message):
        NetworkConfig.from_net_config(entries)


def test_full_spvcnn_is_that_of_the_paper() -> None:
    config = NetworkConfig.spvcnn()
    assert [stage.width for stage in (*config.down, *config.up)] == [32, 64, 128, 256, 256, 128, 96, 96]
    assert [[block.convolved_shortcut for block in stage.blocks] for stage in config.down[:2]] == [
        [False, False],
        [True, False],
    ]
