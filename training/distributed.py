"""The workers that train together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Distributed:
    """This worker's place among `size` of them; torch.distributed is initialized where there is more than one."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def share(self, total: int, what: str) -> int:
        """Return this worker's share of `total`; raises TrainingError where it cannot be cut evenly."""
        if total % self.size:
            raise TrainingError(
                f"{total} {what} cannot be cut among {self.size} workers; give a multiple of {self.size}"
            )
        return total // self.size

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients that are means over all workers."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # An objective may leave parameters out of a step, on every worker the same.
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def mean(self, values: Tensor) -> list[float]:
        """Return the means over all workers, who all call this with as many values [N]: one copy from the device."""
        together = values.detach().double()
        if self.size > 1:
            dist.all_reduce(together)
            together /= self.size
        means: list[float] = together.tolist()
        return means

    def gather(self, names: Sequence[str]) -> list[str]:
        """Return all workers' names, who all call this."""
        if self.size == 1:
            return list(names)
        everyone: list[Sequence[str]] = [()] * self.size
        dist.all_gather_object(everyone, list(names))
        return [name for theirs in everyone for name in theirs]
