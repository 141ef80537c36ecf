"""Feeds: resident or streamed, the examples come in the same order and train to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import DATASET, dense, trained

from objectives.data.arrays import read_only
from objectives.training import plan
from objectives.training.compiled.feed import ResidentFeed, StreamedFeed, make_feed, to_tensor
from objectives.training.seeds import epoch_order


@pytest.mark.parametrize("how", ["xla", "graph"])
def test_streamed_examples_come_to_the_same_bits(
    how: plan.How, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.training.compiled.feed._PIECE_BYTES", 64 * 20)
    resident, resident_weights = trained(lambda: dense(0.3), how, monkeypatch)
    streamed, streamed_weights = trained(lambda: dense(0.3), how, monkeypatch, resident_limit=100)
    assert streamed.history == resident.history
    for one, other in zip(streamed_weights, resident_weights, strict=True):
        assert np.array_equal(one, other)


def test_pieces_hold_every_example_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order = epoch_order(0, 0, 170)
    monkeypatch.setattr("objectives.training.compiled.feed._PIECE_BYTES", 64 * 20)
    for source in (ResidentFeed(DATASET.train), StreamedFeed(DATASET.train, 32)):
        pieces = list(source.pieces(order))
        seen = [np.take(p.y, p.order[: p.n], axis=0) for p in pieces]
        assert np.array_equal(np.concatenate(seen), DATASET.train.y[order])
    assert [piece.n for piece in pieces] == [64, 64, 42]


def test_examples_within_the_limit_are_resident() -> None:
    size = DATASET.train.x.nbytes + DATASET.train.y.nbytes
    assert isinstance(make_feed(DATASET.train, 32, limit=size), ResidentFeed)
    assert isinstance(make_feed(DATASET.train, 32, limit=size - 1), StreamedFeed)


def test_the_device_reads_the_memory_of_the_array_itself() -> None:
    memory = np.zeros(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    aligned = memory[start : start + 4096]
    shared, copied = to_tensor(read_only(aligned)), to_tensor(read_only(memory[start + 1 :]))
    memory[:] = 7
    assert set(shared.numpy()) == {7}
    assert set(copied.numpy()) == {0}


def test_memory_that_cannot_be_written_is_copied() -> None:
    array = np.frombuffer(bytes(range(200)), np.uint8)
    assert np.array_equal(to_tensor(array).numpy(), array)
