"""The same samples in MosaicML's MDS shards, read by `streaming.StreamingDataset`, as its documentation has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.samples import SHAPES, Record, tensors

# MDS cannot hold an array without elements, which an image without labels or points has: these travel as bytes.
_ARRAYS = ("points", "laser")


def write(folder: Path, records: Iterable[Record], compression: str | None) -> None:
    """Write shards of the default 64 MB; `compression` is None or such as `zstd`."""
    columns = {"jpeg": "bytes"}
    for name, (dtype, _) in SHAPES.items():
        columns[name] = f"ndarray:{np.dtype(dtype).name}" if name in _ARRAYS else "bytes"
    with MDSWriter(out=str(folder), columns=columns, compression=compression) as writer:
        for record in records:
            arrays = {
                name: array if name in _ARRAYS else np.ascontiguousarray(array).tobytes()
                for name, array in record.arrays.items()
            }
            writer.write({"jpeg": record.jpeg, **arrays})


def batches(folder: Path, batch: int, workers: int, epochs: int) -> Iterator[list[Any]]:
    """Yield the decoded samples of `epochs` shuffled epochs."""
    # Compressed shards are unpacked beside themselves and then kept; every run pays for it anew.
    for shard in folder.glob("*.mds"):
        if shard.with_name(f"{shard.name}.zstd").exists():
            shard.unlink()
    dataset = _Samples(local=str(folder), shuffle=True, batch_size=batch)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=batch, num_workers=workers, collate_fn=list, persistent_workers=workers > 0
    )
    try:
        for _ in range(epochs):
            yield from loader
    finally:
        del loader, dataset
        clean_stale_shared_memory()


class _Samples(StreamingDataset):
    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        fields = super().__getitem__(at)
        jpeg = torch.frombuffer(fields.pop("jpeg"), dtype=torch.uint8)
        arrays: dict[str, NDArray[Any]] = {
            name: value if name in _ARRAYS else np.frombuffer(value, SHAPES[name][0]).reshape(SHAPES[name][1])
            for name, value in fields.items()
        }
        return {"image": decode_jpeg(jpeg, ImageReadMode.RGB), **tensors(arrays)}
