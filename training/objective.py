"""What the training loop minimizes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from datalake.sample import Sample
from training.fingerprint import Plain
from training.generators import Chance


class Loss(NamedTuple):
    """A loss, a scalar, which is logged as it is; and its share in the sum that is minimized."""

    value: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One worker's samples of one step.

    samples: the labels of the first `labelled` of them are used; the others are for losses that need none
    cursor: where the stream that they come from goes on after them
    """

    samples: Sequence[Sample]
    labelled: int
    cursor: int

    def subset(self, chosen: Sequence[int]) -> Batch:
        """Return the chosen samples, ascending numbers, alone."""
        samples = [self.samples[i] for i in chosen]
        return Batch(samples, sum(i < self.labelled for i in chosen), self.cursor)


@dataclass(frozen=True, slots=True, eq=False)
class ParameterGroup:
    """Parameters whose gradient is clipped by one norm.

    hidden: those among them that Muon may optimize (`training.optimizer`); AdamW optimizes the others
    pretrained: those among them that start from given weights, and have a rate of their own
    """

    name: str
    parameters: list[nn.Parameter]
    hidden: list[nn.Parameter]
    pretrained: list[nn.Parameter] = field(default_factory=list)


class Objective(nn.Module):
    """A network and its losses. Data-parallel training wraps it whole, a checkpoint holds its state dict whole."""

    @abstractmethod
    def collate(self, batch: Batch, targets: Mapping[str, Any], chance: Chance) -> Any:
        """Return what `forward` takes, on the device.

        targets: the teachers' targets of the samples, in their order, by the teachers' names; indexed by a list of
            numbers each gives those of some samples
        chance: all randomness of the samples
        """

    @abstractmethod
    def forward(self, batch: Any, progress: float) -> dict[str, Loss]:
        """Return the losses by name, in every step and on every worker the same names in the same order.

        progress: how much of the training is done, 0 … 1
        """

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters to train; the first group is the product's."""

    @abstractmethod
    def product(self) -> nn.Module:
        """Return what the training is for: the part of a checkpoint that evaluation and export read."""

    @abstractmethod
    def config(self) -> str:
        """Return JSON from which the product can be built again."""

    def fingerprint(self) -> dict[str, Plain]:
        """Return what a run that continues this one must share with it, beside the data and the loop's settings."""
        return {}

    def diagnostics(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Return scalars worth knowing of a step, too expensive for each; on every worker the same names.

        Called after the step's backward pass, whose gradients it must leave as they are.
        """
        del batch, progress
        return {}

    def after_step(self, progress: float) -> None:
        """Follow an optimizer step: moving averages and the like."""
