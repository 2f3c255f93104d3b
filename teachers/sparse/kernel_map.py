"""Which input voxel meets which output voxel under each offset of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from teachers.sparse.level import Level, distinct, key_step, pack, unpack
from teachers.sparse.window import kernel_index
from teachers.transfer import on_device


@dataclass(frozen=True, slots=True)
class KernelMap:
    """P pairs of rows, grouped by kernel offset: output[o] += input[i] @ kernel[k] for every pair (i, o) of group k.

    inputs, outputs: int64 [P]; within a group no output row comes twice
    groups: (kernel index, number of pairs) in the order of the pairs
    identity: the kernel index under which every row meets itself (the center of an odd kernel; not among the
        groups), or None
    input_rows, output_rows: numbers of voxels on both sides
    """

    inputs: Tensor
    outputs: Tensor
    groups: tuple[tuple[int, int], ...]
    identity: int | None
    input_rows: int
    output_rows: int

    def reversed(self) -> KernelMap:
        """Return the map of the transposed convolution, which leads back under the same kernel indices."""
        return KernelMap(self.outputs, self.inputs, self.groups, self.identity, self.output_rows, self.input_rows)


def submanifold_map(level: Level, stride: int, size: int) -> KernelMap:
    """Return the map of an odd kernel that keeps the voxels of `level`.

    Voxel a sees b under an offset exactly if b sees a under the opposite one, so only half of the offsets are
    searched: all columns of them at once.
    """
    reach = size // 2
    columns = [(x, y) for x in range(reach + 1) for y in range(-reach, reach + 1) if (x, y) > (0, 0)]
    heights = range(-reach, reach + 1)
    steps = torch.tensor([key_step(x * stride, y * stride, -reach * stride) for x, y in columns])
    around = level.find_columns(level.keys + on_device(steps, level.keys.device)[:, None], size, stride)
    above = level.find_columns(level.keys + key_step(0, 0, stride), reach, stride)
    offsets = [*((x, y, z) for x, y in columns for z in heights), *((0, 0, z) for z in range(1, reach + 1))]
    neighbors = torch.cat([around.transpose(0, 1).flatten(0, 1), above])
    hits = neighbors >= 0
    counts = hits.sum(1).tolist()
    place = hits.flatten().nonzero()[:, 0]
    there = neighbors.flatten()[place]
    here = place % max(len(level), 1)
    if level.rows is not None:
        here = level.rows[here]
    half = torch.tensor(offsets)
    groups = zip(kernel_index(size, torch.cat([half, -half])).tolist(), counts * 2, strict=True)
    return KernelMap(
        inputs=torch.cat([there, here]),
        outputs=torch.cat([here, there]),
        groups=tuple(groups),
        identity=size**3 // 2,
        input_rows=len(level),
        output_rows=len(level),
    )


def strided_map(level: Level, stride: int, size: int) -> tuple[Level, KernelMap]:
    """Return the coarser level that blocks of `size`³ voxels make, in ascending order, and the map that leads there."""
    coarse, parent, index = coarser_level(level, stride, size)
    inputs = index.argsort(stable=True)
    counts = torch.bincount(index, minlength=size**3).tolist()
    kernel_map = KernelMap(
        inputs=inputs,
        outputs=parent[inputs],
        groups=tuple(enumerate(counts)),
        identity=None,
        input_rows=len(level),
        output_rows=len(coarse),
    )
    return coarse, kernel_map


def coarser_level(level: Level, stride: int, size: int) -> tuple[Level, Tensor, Tensor]:
    """Return the level that blocks of `size`³ voxels make, in ascending order, and where the N finer voxels lie in it.

    Of each voxel: int64 [N], the row of its block, and int64 [N], the kernel index of its place in there.
    """
    fine = level.coordinates
    coarse = fine.clone()
    coarse[:, 1:] = torch.div(fine[:, 1:], stride * size, rounding_mode="floor") * (stride * size)
    keys, parent = distinct(pack(coarse), level.counts.get(stride * size))
    index = kernel_index(size, (fine[:, 1:] - coarse[:, 1:]) // stride)
    return Level(unpack(keys), keys, None, level.counts), parent, index
