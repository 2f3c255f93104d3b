"""Public checkpoints of SPVCNN and SPVNAS, renamed to this package's modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from datalake.errors import UserError


class CheckpointError(UserError):
    """A checkpoint is not one of the network it is loaded into, or of no known format."""


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict under our names; one of ours passes unchanged.

    Known are the public formats of SPVNAS (specialised; keys start with downsample.0) and SPVCNN (stage1.0), with or
    without the `module.` that data-parallel training puts in front. A key that neither knows keeps its name, for
    `load_strictly` to complain about. Raises CheckpointError for anything else.
    """
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("down.") for key in plain):
        return plain
    if any(key.startswith("downsample.") for key in plain):
        rename: Callable[[str], str] = _rename_spvnas
    elif any(key.startswith("stage1.") for key in plain):
        rename = _rename_spvcnn
    else:
        raise CheckpointError(
            "a checkpoint of neither SPVNAS nor SPVCNN: expected keys downsample.*, stage1.* or down.*, "
            f"got: {_some(plain)}"
        )
    return {rename(key): value for key, value in plain.items()}


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict of ours into the network, everything or nothing.

    The classifier of a specialised SPVNAS keeps all inputs of the super-network, of which only the first are used:
    it is sliced. Raises CheckpointError naming `source` and all missing, unexpected and mis-shaped keys in one line.
    """
    own = network.state_dict()
    state = dict(state)
    weight = "classifier.weight"
    if weight in state and weight in own and state[weight].ndim == 2:
        state[weight] = state[weight][:, : own[weight].shape[1]]
    # Counters have no part in what a network computes, and older checkpoints lack them.
    for key in own.keys() - state.keys():
        if key.endswith("num_batches_tracked"):
            state[key] = own[key]
    faults: list[str] = []
    if missing := own.keys() - state.keys():
        faults.append(f"missing {_some(missing)}")
    if unexpected := state.keys() - own.keys():
        faults.append(f"unexpected {_some(unexpected)}")
    shapes = [
        f"{key} is {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]
    if shapes:
        faults.append(f"mis-shaped {_some(shapes)}")
    if faults:
        raise CheckpointError(
            f"{source} does not fit the network: {'; '.join(faults)}; was it made with this configuration?"
        )
    network.load_state_dict(state)


def _some(names: Iterable[str]) -> str:
    """Return at most eight names and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return f"{', '.join(listed[:8])}{more}"


def _rename_spvnas(key: str) -> str:
    if match := _STEM.fullmatch(key):
        return _rename_stem(match)
    for pattern, replacement in _SPVNAS_WORDS:
        key = pattern.sub(replacement, key)
    return key


def _rename_spvcnn(key: str) -> str:
    if match := _STEM.fullmatch(key):
        return _rename_stem(match)
    for pattern, side in ((_SPVCNN_DOWN, "down"), (_SPVCNN_UP, "up")):
        if match := pattern.fullmatch(key):
            stage = f"{side}.{int(match['stage']) - 1}"
            if match["block"] is None:
                return f"{stage}.transition.{_PAIR[match['layer']]}.{match['leaf']}"
            # Down, the transition is module 0 of the stage and the blocks follow; up, they count from 0.
            block = int(match["block"]) - (1 if side == "down" else 0)
            part = f"shortcut.{_PAIR[match['layer']]}" if match["part"] == "downsample" else _RESIDUAL[match["layer"]]
            return f"{stage}.blocks.{block}.{part}.{match['leaf']}"
    if match := _SPVCNN_POINT.fullmatch(key):
        return f"point_blocks.{match['block']}.{'linear' if match['layer'] == '0' else 'norm'}.{match['leaf']}"
    return key.replace("classifier.0.", "classifier.")


def _rename_stem(match: re.Match[str]) -> str:
    layer = _RESIDUAL[match["layer"]].replace("first", "0").replace("second", "1")
    return f"stem.{layer}.{match['leaf']}"


# Positions in the public networks' nn.Sequential of convolution, norm, ReLU, convolution, norm.
_PAIR = {"0": "convolution", "1": "norm"}
_RESIDUAL = {"0": "first.convolution", "1": "first.norm", "3": "second.convolution", "4": "second.norm"}

_STEM = re.compile(r"stem\.(?P<layer>[0134])\.(?P<leaf>\w+)")
_SPVCNN_DOWN = re.compile(
    r"stage(?P<stage>\d)\.(?:0\.net|(?P<block>[1-9])\.(?P<part>net|downsample))\.(?P<layer>[0134])\.(?P<leaf>\w+)"
)
_SPVCNN_UP = re.compile(
    r"up(?P<stage>\d)\.(?:0\.net|1\.(?P<block>\d)\.(?P<part>net|downsample))\.(?P<layer>[0134])\.(?P<leaf>\w+)"
)
_SPVCNN_POINT = re.compile(r"point_transforms\.(?P<block>\d)\.(?P<layer>[01])\.(?P<leaf>\w+)")

# A specialised SPVNAS says the same things in other words; each replacement works on what the one before has left.
_SPVNAS_WORDS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^downsample\.", "down."),
        (r"^upsample\.", "up."),
        (r"^point_transforms\.(\d)\.net\.conv\.", r"point_blocks.\1.linear."),
        (r"^point_transforms\.(\d)\.net\.bn\.", r"point_blocks.\1.norm."),
        (r"^classifier\.linear\.", "classifier."),
        (r"\.feature\.(\d)\.downsample\.net\.", r".blocks.\1.shortcut."),
        (r"\.feature\.(\d)\.net\.0\.net\.", r".blocks.\1.first."),
        (r"\.feature\.(\d)\.net\.1\.net\.", r".blocks.\1.second."),
        (r"\.transition\.net\.", ".transition."),
        (r"\.conv\.kernel$", ".convolution.kernel"),
        (r"\.bn\.(\w+)$", r".norm.\1"),
    )
)
