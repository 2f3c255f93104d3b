"""What passes inside a detector while it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList


class CapturedFeatures:
    """Inner features of a detector while it runs, and boxes computed in float32 whatever the rest is.

    torchvision computes boxes in whatever format it finds features in, and bfloat16 resolves the columns of an image to
    within two pixels only: small boxes lose their size, and the regression loss becomes NaN.

    images: scaled and padded, [B, 3, H, W] and the size of each
    finest: the pyramid's features of stride 4, [B, C, H / 4, W / 4]
    """

    def __init__(self, detector: MaskRCNN) -> None:
        self._detector = detector
        self._hooks = ExitStack()
        self.images: ImageList
        self.finest: Tensor

    def __enter__(self) -> CapturedFeatures:
        detector = self._detector
        for module in (detector.backbone, detector.rpn.head, detector.roi_heads.box_predictor):
            self._hooks.enter_context(module.register_forward_hook(lambda _m, _i, outputs: _in_float32(outputs)))
        self._hooks.enter_context(detector.transform.register_forward_hook(self._hear_images))
        self._hooks.enter_context(detector.backbone.register_forward_hook(self._hear_features))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _hear_images(self, _module: nn.Module, _inputs: Any, outputs: tuple[ImageList, Any]) -> None:
        self.images = outputs[0]

    def _hear_features(self, _module: nn.Module, _inputs: Any, outputs: Mapping[str, Tensor]) -> None:
        self.finest = next(iter(outputs.values()))


def _in_float32(outputs: Any) -> Any:
    """Return a tensor, or the tensors in dictionaries, lists and tuples, as float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, Mapping):
        return {name: _in_float32(value) for name, value in outputs.items()}
    return type(outputs)(_in_float32(value) for value in outputs)
