"""Backbones of timm for Mask R-CNN."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from training.timm_model import TimmModel

_PYRAMID = 256


class TimmBackbone(nn.Module):
    """A model of timm with torchvision's feature pyramid on it: levels `0` … `3` at strides 4 … 32, `pool` at 64.

    It has random weights; `load` gives its body others.

    out_channels: of each level
    """

    body: Any

    def __init__(self, name: str) -> None:
        """Build it; raises TimmError where timm is missing, has no such model, or one that does not fit."""
        super().__init__()
        self._model = TimmModel(name)
        self.body = self._model.network
        self.fpn = FeaturePyramidNetwork(self._model.widths, _PYRAMID, LastLevelMaxPool())
        self.out_channels = _PYRAMID
        self._frozen: list[nn.Module] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels of images float32 [B, 3, H, W]; H and W are multiples of 32."""
        maps = self._model.maps(self.body(images))
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(level), one) for level, one in enumerate(maps)))
        return levels

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode of all but frozen norms."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def load(self, state: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
        """Take a whole model's weights and freeze its batch norms, see `TimmModel.load` for what is returned.

        A few images' statistics are worse than those of the data that the weights were trained on.
        """
        left_out = self._model.load(state, source)
        self._frozen = self._model.freeze(0, norms=True)
        return left_out
