"""The samples of each update, and the share of them that one of several processes has.

Every batch is split, not the data: so an update sees the same samples in the same order on any number of processes. An epoch
has each sample once; where the last batch is smaller than the number of processes, some have no share of it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from .windows import Sample, Windows

_MOST_WORKERS = 4


class _Loader(DataLoader[Sample]):
    """Whose workers begin with the first batch that is asked for: by then windows and batches know their epoch, which Lightning
    tells after it has asked for an iterator.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()


def _workers() -> int:
    """Processes that read ahead of the one that computes: as many as it has cores beside one, which is what torch takes for its
    threads; none where processes cannot be forked. What is in memory is at hand sooner than another process could send it.
    """
    return min(torch.get_num_threads() - 1, _MOST_WORKERS) if sys.platform == "linux" else 0


def _begin(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that they read for, which ends them


class Batches(Sampler[list[int]]):
    """Indices into windows: of each batch of `size` every `count`-th, from `rank` on.

    Args:
        shuffled: in an order that follows from the windows' seed and epoch alone, not from 0 on.

    `done` batches of the next epoch are left out: those that an interrupted training had before.
    """

    def __init__(self, windows: Windows, size: int, *, shuffled: bool = False, rank: int = 0, count: int = 1) -> None:
        self.windows, self.size, self.shuffled, self.rank, self.count = windows, size, shuffled, rank, count
        self.done = 0

    def __len__(self) -> int:
        return -(-len(self.windows) // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.windows))
        if self.shuffled:
            order = np.random.default_rng([self.windows.seed, self.windows.epoch]).permutation(order)
        first, self.done = self.done, 0
        for k in range(first, len(self)):
            yield order[k * self.size : (k + 1) * self.size][self.rank :: self.count].tolist()

    def loader(self) -> DataLoader[Sample]:
        workers = _workers() if self.shuffled and self.windows.places is not None else 0
        told: dict[str, Any] = {"multiprocessing_context": "fork", "worker_init_fn": _begin} if workers else {}
        return _Loader(self.windows, batch_sampler=self, collate_fn=self._collated, num_workers=workers, **told)

    def _collated(self, samples: list[Sample]) -> Sample:
        """Who has no share takes part all the same, with a sample without a valid pixel."""
        if samples:
            return default_collate(samples)
        blank: Sample = default_collate([self.windows[0]])
        return {**blank, "valid": torch.zeros_like(blank["valid"])}
