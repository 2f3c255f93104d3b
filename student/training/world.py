"""The workers that train one student together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class World:
    """This worker's place among `size` of them; torch.distributed is initialised where there is more than one."""

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
        # What a branch says is not always normalised: then that norm gets no gradient, on any worker.
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the means over all workers, who all call this with the same names."""
        if self.size == 1:
            return dict(values)
        together = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(together)
        return dict(zip(values, (together / self.size).tolist(), strict=True))

    def gather(self, names: Sequence[str]) -> list[str]:
        """Return all workers' names, who all call this."""
        if self.size == 1:
            return list(names)
        everyone: list[Sequence[str]] = [()] * self.size
        dist.all_gather_object(everyone, list(names))
        return [name for theirs in everyone for name in theirs]
