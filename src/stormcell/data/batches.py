"""The samples of each update, and the share of them that one of several processes has.

Every batch is split, not the data: so an update sees the same samples in the same order on any number of processes. An epoch
has each sample once; where the last batch is smaller than the number of processes, some have no share of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from .windows import Sample, Windows


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
        return DataLoader(self.windows, batch_sampler=self, collate_fn=self._collated)

    def _collated(self, samples: list[Sample]) -> Sample:
        """Who has no share takes part all the same, with a sample without a valid pixel."""
        if samples:
            return default_collate(samples)
        blank: Sample = default_collate([self.windows[0]])
        return {**blank, "valid": torch.zeros_like(blank["valid"])}
