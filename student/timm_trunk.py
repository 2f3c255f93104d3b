"""Trunks of timm: any `features_only` model of it that has maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from student.config import StudentConfig, StudentError
from student.trunk import TopDownTrunk, TrunkFeatures
from training import timm_model
from training.timm_model import TimmError, TimmModel


class TimmTrunk(TopDownTrunk):
    """A model of timm without its classifier, from whose maps a way leads up again.

    It has random weights; `load` gives it others. Stages and batch norms that the configuration freezes are never
    trained, and are in eval mode always, with whatever is random in them.
    """

    network: Any

    def __init__(self, config: StudentConfig) -> None:
        """Build it; raises StudentError where timm is missing, has no such model, or one that does not fit."""
        super().__init__()
        assert config.timm_name is not None
        with _of_a_student():
            self._model = TimmModel(config.timm_name)
        self.network = self._model.network
        self.add_top_down(config, self._model.widths)
        self._frozen: list[nn.Module] = self._model.freeze(config.freeze_stages, bool(config.freeze_norms))

    def forward(self, images: Tensor) -> TrunkFeatures:
        """Return the features of images float32 [B, 3, H, W]; H and W are multiples of 32."""
        return self.top_down(self._model.maps(self.network(images)))

    def train(self, mode: bool = True) -> TimmTrunk:
        """Set the mode of all that is not frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def load(self, state: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
        """Take the weights of a whole model; return the names of those without a place, see `TimmModel.load`.

        Raises StudentError, naming what is wrong with `source`.
        """
        with _of_a_student():
            return self._model.load(state, source)

    def recompute_activations(self) -> None:
        """Keep only some of the activations for the backward pass, and compute the others again."""
        self.network.set_grad_checkpointing(True)


def published_normalization(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and deviation of the images that the published weights of a model were trained with.

    Raises StudentError where timm is missing, has no such model, or publishes no weights of it.
    """
    with _of_a_student():
        return timm_model.published_normalization(name)


@contextmanager
def _of_a_student() -> Iterator[None]:
    try:
        yield
    except TimmError as error:
        raise StudentError(str(error)) from error
