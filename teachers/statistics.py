"""Mean and variance of a teacher's channels over a data set, one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from teachers.card import ChannelStatistics, TeacherError
from teachers.target import Target
from teachers.transfer import on_device

# A channel that moves less than this is constant but for rounding; dividing by it would make noise of it.
_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of D channels; the sum of two is that of both data sets together.

    Merging is exact but for float64 rounding, in any grouping and order (Chan, Golub and LeVeque 1979).

    mean, squares: float64 [D], on the CPU
    """

    count: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def empty(channels: int) -> Moments:
        """Return the moments of no data."""
        return Moments(0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))

    @staticmethod
    def of(rows: Tensor) -> Moments:
        """Return the moments of rows [n, D], on any device."""
        if not len(rows):
            return Moments.empty(rows.shape[1])
        exact = rows.double()
        mean = exact.mean(0)
        return Moments(len(rows), mean.cpu(), (exact - mean).square().sum(0).cpu())

    @staticmethod
    def of_target(target: Target) -> Moments:
        """Return the moments of the target's valid cells."""
        if target.kind != "regression":
            raise TeacherError("classes have no mean and variance; only regression targets do")
        return Moments.of(target.values.permute(0, 2, 3, 1)[target.valid[:, 0]])

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise TeacherError(f"cannot merge moments of {len(self.mean)} and {len(other.mean)} channels")
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart.square() * (self.count * other.count / count),
        )

    def statistics(self) -> ChannelStatistics:
        """Return mean and (population) variance; raises TeacherError where there is no data."""
        if not self.count:
            raise TeacherError("no statistics: not one valid cell was seen")
        return ChannelStatistics(mean=tuple(self.mean.tolist()), variance=tuple((self.squares / self.count).tolist()))


def standardize(target: Target, statistics: ChannelStatistics) -> Target:
    """Return the target with (value - mean) / deviation per channel in its valid cells, and 0 in the others.

    A channel that is constant in the data set the statistics are of is only shifted.
    """
    mean = torch.tensor(statistics.mean, dtype=torch.float32)
    deviation = torch.tensor(statistics.variance, dtype=torch.float64).sqrt()
    deviation[deviation < _SMALLEST_DEVIATION] = 1
    if len(mean) != target.values.shape[1]:
        raise TeacherError(f"statistics of {len(mean)} channels cannot standardize {target.values.shape[1]}")
    mean, deviation = on_device(torch.stack([mean, deviation.float()]), target.values.device)[..., None, None]
    values = (target.values - mean) / deviation
    return replace(target, values=values.where(target.valid, values.new_zeros(())))
