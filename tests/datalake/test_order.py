"""The order of an epoch, and how ranks and workers share it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datalake.order import deal, epoch_order, share

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=40).map(lambda sizes: np.array(sizes, np.int64))


@given(sizes, st.integers(1, 70), st.integers(0, 2**31), st.integers(0, 9))
def test_an_epoch_visits_every_sample_once(sizes: np.ndarray, streams: int, seed: int, epoch: int) -> None:
    order = epoch_order(sizes, streams, seed, epoch)
    assert sorted(order) == list(range(sizes.sum()))


def test_the_order_is_the_same_for_ever() -> None:
    order = epoch_order(np.array([3, 2, 4]), 2, seed=1, epoch=0)
    assert order.tolist() == [1, 5, 0, 6, 2, 7, 3, 8, 4]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    sizes = np.full(20, 8)
    orders = [epoch_order(sizes, 16, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@given(st.integers(0, 300), st.integers(1, 80))
def test_each_stream_is_a_consecutive_piece_of_the_line(total: int, streams: int) -> None:
    places = deal(total, streams)
    for stream in range(min(streams, total)):
        piece = places[stream::streams]
        assert (np.diff(piece) == 1).all()


def test_the_samples_of_a_chunk_are_not_neighbors_in_a_batch() -> None:
    order = epoch_order(np.full(64, 8), streams=64, seed=0, epoch=0)
    chunk_of = order // 8
    assert all(len(set(batch)) == 16 for batch in chunk_of.reshape(-1, 16))


def test_a_chunk_is_read_by_one_worker_alone_where_streams_fit_batch_and_workers() -> None:
    order = epoch_order(np.full(64, 8), streams=64, seed=0, epoch=0)
    readers: dict[int, set[tuple[int, int]]] = {}
    for rank in range(2):
        for worker in range(4):
            positions = share(0, len(order), 16, rank, 2, worker, 4)
            for chunk in order[positions] // 8:
                readers.setdefault(int(chunk), set()).add((rank, worker))
    assert all(len(of_chunk) == 1 for of_chunk in readers.values())


@given(
    world_size=st.sampled_from([1, 2, 3, 6]),
    workers=st.integers(1, 4),
    batches=st.integers(1, 9),
    done=st.integers(0, 8),
    tail=st.integers(0, 11),
)
def test_ranks_and_workers_share_the_positions_without_loss_or_overlap(
    world_size: int, workers: int, batches: int, done: int, tail: int
) -> None:
    start, stop = 12 * min(done, batches), 12 * batches + tail
    shares = [
        share(start, stop, 12, rank, world_size, worker, workers)
        for rank in range(world_size)
        for worker in range(workers)
    ]
    assert sorted(np.concatenate(shares)) == list(range(start, stop))


@given(world_size=st.sampled_from([1, 2, 4]), workers=st.integers(1, 3), step=st.integers(0, 7))
def test_a_batch_is_the_same_set_of_positions_at_any_world_size(world_size: int, workers: int, step: int) -> None:
    found = []
    for rank in range(world_size):
        own = share(0, 64, 8, rank, world_size, step % workers, workers).reshape(-1, 8 // world_size)
        found += own[step // workers].tolist()
    assert found == list(range(8 * step, 8 * step + 8))
