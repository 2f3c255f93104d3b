"""Public checkpoints load whole or not at all."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from teachers.spvnas.config import NetworkConfig
from teachers.spvnas.network import SPVCNN
from teachers.spvnas.state_dict_adapter import CheckpointError, adapt, load_strictly
from tests.teachers.spvnas.clouds import SMALL, small_network


def public_spvcnn_names(network: SPVCNN) -> dict[str, Tensor]:
    """Return the network's state dict under the names of the authors' SPVCNN, spelled out by position."""
    names = {
        "stem.0.convolution": "stem.0",
        "stem.0.norm": "stem.1",
        "stem.1.convolution": "stem.3",
        "stem.1.norm": "stem.4",
    }
    for stage in range(4):
        down, up = f"stage{stage + 1}", f"up{stage + 1}"
        for side, transition, first in (
            ("down", f"{down}.0", [f"{down}.1", f"{down}.2"]),
            ("up", f"{up}.0", [f"{up}.1.0", f"{up}.1.1"]),
        ):
            names[f"{side}.{stage}.transition.convolution"] = f"{transition}.net.0"
            names[f"{side}.{stage}.transition.norm"] = f"{transition}.net.1"
            for block, public in enumerate(first):
                own = f"{side}.{stage}.blocks.{block}"
                names |= {
                    f"{own}.first.convolution": f"{public}.net.0",
                    f"{own}.first.norm": f"{public}.net.1",
                    f"{own}.second.convolution": f"{public}.net.3",
                    f"{own}.second.norm": f"{public}.net.4",
                    f"{own}.shortcut.convolution": f"{public}.downsample.0",
                    f"{own}.shortcut.norm": f"{public}.downsample.1",
                }
    for block in range(3):
        names |= {f"point_blocks.{block}.linear": f"point_transforms.{block}.0"}
        names |= {f"point_blocks.{block}.norm": f"point_transforms.{block}.1"}
    names["classifier"] = "classifier.0"
    split = (key.rpartition(".") for key in network.state_dict())
    return {f"{names[module]}.{leaf}": network.state_dict()[f"{module}.{leaf}"] for module, _, leaf in split}


def assert_equal(one: SPVCNN, two: SPVCNN) -> None:
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_spvcnn_loads(prefix: str) -> None:
    trained, fresh = small_network(1), SPVCNN(SMALL)
    public = {prefix + key: value for key, value in public_spvcnn_names(trained).items()}
    assert f"{prefix}stage4.1.downsample.0.kernel" in public
    load_strictly(fresh, adapt(public), "public")
    assert_equal(fresh, trained)


def test_public_spvnas_loads_and_its_classifier_is_cut_to_the_inputs_in_use(
    net_config: NetworkConfig, public_state: dict[str, Tensor]
) -> None:
    network = SPVCNN(net_config)
    load_strictly(network, adapt(public_state), "public")
    state = network.state_dict()
    assert len(state) == len(public_state)
    assert torch.equal(state["classifier.weight"], public_state["classifier.linear.weight"][:, :76])
    own, public = "up.1.blocks.0.shortcut", "upsample.1.feature.0.downsample.net"
    assert torch.equal(state[f"{own}.convolution.kernel"], public_state[f"{public}.conv.kernel"])
    assert torch.equal(state[f"{own}.norm.running_var"], public_state[f"{public}.bn.running_var"])


def test_our_own_state_dict_passes_unchanged() -> None:
    trained, fresh = small_network(1), SPVCNN(SMALL)
    load_strictly(fresh, adapt(trained.state_dict()), "own")
    assert_equal(fresh, trained)


def test_all_faults_are_named_in_one_line_and_nothing_is_loaded() -> None:
    state = {key: value + 1 for key, value in small_network(1).state_dict().items()}
    del state["stem.0.norm.weight"]
    state["extra"] = torch.zeros(1)
    state["down.0.transition.convolution.kernel"] = torch.zeros(8, 1, 1)
    fresh = small_network(2)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}

    with pytest.raises(CheckpointError) as error:
        load_strictly(fresh, adapt(state), "weights.pt")

    assert str(error.value) == (
        "weights.pt does not fit the network: missing stem.0.norm.weight; unexpected extra; "
        "mis-shaped down.0.transition.convolution.kernel is [8, 1, 1] instead of [8, 4, 4]; "
        "was it made with this configuration?"
    )
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_a_key_of_no_module_is_unexpected_and_many_are_counted() -> None:
    public = public_spvcnn_names(small_network(1)) | {f"stage1.0.net.9.odd{i}": torch.zeros(1) for i in range(11)}
    with pytest.raises(CheckpointError, match=re.escape("stage1.0.net.9.odd6 and 3 more")):
        load_strictly(small_network(), adapt(public), "public")


def test_a_checkpoint_of_another_network_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"neither SPVNAS nor SPVCNN: expected keys downsample.*got: layer1\.weight"
    ):
        adapt({"layer1.weight": torch.zeros(1)})
