"""The order in which an epoch visits its samples: pure arithmetic on numpy arrays.

Samples lie in chunks (a row group with about eight images), and a chunk is read at once. The chunks are
shuffled, the samples within each chunk are shuffled, and the long line that results is cut into `streams` equal
pieces; position p of the epoch is then sample p // streams of stream p % streams. So neighbors in a batch come
from different places of the lake, while each stream still reads its chunks one after another. That holds as long as
there is a chunk for each stream: with more streams than chunks, pieces are shorter than chunks, and neighbors in a
batch are neighbors in time.

Where `streams` is a multiple of global batch x workers per rank, every chunk is read by one worker of one rank
alone, once; with other numbers the order is as valid, only chunks are read by several.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_order(chunk_sizes: NDArray[np.int64], streams: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the shuffled order int64 [N] of the N = sum(chunk_sizes) samples, numbered chunk by chunk.

    The same arguments give the same order on every machine, for ever.
    """
    total = int(chunk_sizes.sum())
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    rank_of_chunk = random.permutation(len(chunk_sizes))
    chunk_of_sample = np.repeat(np.arange(len(chunk_sizes)), chunk_sizes)
    line = np.lexsort((random.random(total), rank_of_chunk[chunk_of_sample]))
    return line[deal(total, streams)]


def deal(total: int, streams: int) -> NDArray[np.int64]:
    """Return int64 [total]: for each position of an epoch, its place in the line that the streams cut up.

    The first total % streams streams hold one sample more than the others.
    """
    position = np.arange(total)
    stream, step = position % streams, position // streams
    shorter, longer = divmod(total, streams)
    return stream * shorter + np.minimum(stream, longer) + step


def share(
    start: int, stop: int, global_batch: int, rank: int, world_size: int, worker: int, workers: int
) -> NDArray[np.int64]:
    """Return the positions in [start, stop) that one worker of one rank reads, in order.

    A global batch is cut among the ranks in equal, consecutive parts; a rank's batches go round its workers,
    the way a torch DataLoader collects them.
    """
    part = global_batch // world_size
    first = start // global_batch
    last = -(-stop // global_batch)
    batches = np.arange(first + worker, last, workers)
    positions = batches[:, None] * global_batch + rank * part + np.arange(part)
    flat = positions.ravel()
    return flat[flat < stop]
