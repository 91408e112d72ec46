"""Every sample of an epoch is seen once by all processes together, and each update sees what one process would."""

from __future__ import annotations

import itertools

import pytest
import torch
import xarray as xr

from stormcell.data.batches import Batches
from stormcell.data.units import Transform
from stormcell.data.windows import Windows, split_at_gaps


@pytest.fixture(scope="module")
def windows(rain: xr.DataArray) -> Windows:
    """Eleven samples."""
    runs = [run.isel(time=slice(0, length)) for run, length in zip(split_at_gaps(rain), (8, 9, 10))]
    found = Windows(runs, Transform(zr=(200.0, 1.6)), past=3, future=2, crop=32, seed=5)
    assert len(found) == 15
    found.windows = found.windows[:11]
    return found


@pytest.mark.parametrize(("size", "count"), [(4, 1), (4, 2), (5, 2), (5, 3), (4, 4), (11, 3), (20, 7)])
@pytest.mark.parametrize("shuffled", [True, False])
def test_shares_are_the_batches_of_one_process(windows: Windows, size: int, count: int, shuffled: bool) -> None:
    whole = list(Batches(windows, size, shuffled=shuffled))
    shares = [Batches(windows, size, shuffled=shuffled, rank=rank, count=count) for rank in range(count)]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, *parts in zip(whole, *shares):
        dealt = itertools.zip_longest(*parts)  # one to each, in turns
        assert [index for turn in dealt for index in turn if index is not None] == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(itertools.chain(*whole)) == list(range(11))


def test_the_order_follows_from_seed_and_epoch(windows: Windows) -> None:
    batches = Batches(windows, 4, shuffled=True)
    first = list(batches)
    assert list(batches) == first
    windows.epoch = 1
    second = list(batches)
    windows.epoch = 0
    assert second != first
    assert list(Batches(windows, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_what_was_seen_before_an_interruption_is_left_out_once(windows: Windows) -> None:
    batches = Batches(windows, 4, shuffled=True)
    whole = list(batches)
    batches.done = 2
    assert list(batches) == whole[2:]
    assert list(batches) == whole


def test_who_has_no_share_takes_part_with_nothing_valid(windows: Windows) -> None:
    last = list(Batches(windows, 10, rank=1, count=2).loader())[-1]
    assert not last["valid"].any()
    assert last["x"].shape == (1, 3, 2, 32, 32)
    assert torch.isfinite(last["y"]).all()
