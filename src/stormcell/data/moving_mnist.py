"""Moving MNIST: handwritten digits that drift over a small frame and bounce off its edges, made as they are asked for.

As in Srivastava et al. 2015 and the benchmarks since: a digit starts anywhere inside, keeps its speed, stops at the edge and
turns; where digits overlap the brighter pixel shows. Shi et al. 2015 draw speeds from [3, 5) pixels a frame.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from ..errors import InputError
from .windows import Sample

SIZE = 64  # pixels, of a frame's side
FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
PROTOCOLS = ("paper", "benchmark")
_SUBSET = 500  # digits that the paper's sequences are made of
_IDX_IMAGES = 0x0803  # unsigned bytes, three dimensions

Images = npt.NDArray[np.uint8]


# --- digits ---


@dataclass(frozen=True)
class Digits:
    """Images (N, Y, X) of handwritten digits, of which training and test share none.

    Attributes:
        train, test: uint8, 0 = paper.
        source: which they are, for the tables.
    """

    train: Images
    test: Images
    source: str


def mnist_digits(folder: str | Path) -> Digits:
    """MNIST's own digits from a folder with its IDX files, packed (.gz) or not.

    Raises InputError if a file is missing or is no IDX file of images.
    """
    found = {part: _read_idx(_find(Path(folder), name)) for part, name in FILES.items()}
    return Digits(found["train"], found["test"], "MNIST")


def bundled_digits() -> Digits:
    """The 1797 digits of 8×8 pixels that come with scikit-learn, enlarged to 24×24: for want of MNIST."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "without --mnist DIR the digits are scikit-learn's: pip install 'stormcell[forecast]'"
        ) from error
    small = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(small))
    large = small[order].repeat(3, axis=1).repeat(3, axis=2)
    return Digits(large[:-_SUBSET], large[-_SUBSET:], "scikit-learn's digits, 8×8 enlarged (not MNIST)")


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if path.is_file():
            return path
    raise InputError(f"{folder} has no {name} or {name}.gz: --mnist takes the folder of MNIST's IDX files")


def _read_idx(path: Path) -> Images:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read: it is damaged, or not packed with gzip") from error
    header = np.frombuffer(data[:16], ">i4")
    if len(header) < 4 or header[0] != _IDX_IMAGES:
        raise InputError(f"{path} is not an IDX file of images")
    count, height, width = map(int, header[1:])
    if len(data) != 16 + count * height * width or min(count, height, width) < 1 or max(height, width) > SIZE // 2:
        raise InputError(f"{path} is damaged: its header promises {count} images of {height}×{width} pixels")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width)


# --- sequences ---


class MovingMnist(Dataset[Sample]):
    """Sequences of moving digits: x (past, 1, Y, X) and y (future, 1, Y, X) in [0, 1], and `valid`, all True.

    Sequence k follows from (seed, k) alone, and there is one for every k ≥ 0: `count` only says how many make an epoch.

    Args:
        images: the digits (N, Y, X), uint8.
        count: length of the data set.
        number: digits in a sequence.
        speed: bounds of the speed in pixels a frame, drawn for each digit.
        past, future: frames.
        anew: other sequences in each `epoch`, which is set from outside.
    """

    epoch = 0

    def __init__(
        self,
        images: Images,
        count: int,
        *,
        number: int = 2,
        speed: tuple[float, float] = (3.0, 5.0),
        past: int = 10,
        future: int = 10,
        seed: int = 0,
        anew: bool = False,
    ) -> None:
        self.images, self.count, self.number, self.speed = images, count, number, speed
        self.past, self.future, self.seed, self.anew = past, future, seed, anew

    def __len__(self) -> int:
        return self.count

    def frames(self, index: int) -> Images:
        """Sequence `index` as (past + future, Y, X), uint8."""
        return self._sequences([index])[0]

    def _sequences(self, indices: Sequence[int]) -> Images:
        """(N, past + future, Y, X): digits of all sequences move together, which is faster."""
        length = self.past + self.future
        height, width = self.images.shape[1:]
        room = np.array([SIZE - height, SIZE - width], dtype=np.float64)
        which, starts, steps = zip(*(self._drawn(index, room) for index in indices))
        place, step = np.stack(starts), np.stack(steps)
        places = np.empty((length, *place.shape), dtype=np.int64)
        for moment in places:
            place += step
            np.negative(step, out=step, where=(place <= 0) | (place >= room))
            np.clip(place, 0, room, out=place)
            moment[...] = place
        sequences = np.zeros((len(indices), length, SIZE, SIZE), dtype=np.uint8)
        for sequence, chosen, way in zip(sequences, which, places.transpose(1, 0, 2, 3).tolist()):
            digits = [self.images[one] for one in chosen]
            for frame, corners in zip(sequence, way):
                for digit, (y, x) in zip(digits, corners):
                    spot = frame[y : y + height, x : x + width]
                    np.maximum(spot, digit, out=spot)
        return sequences

    def _drawn(self, index: int, room: npt.NDArray[np.float64]) -> tuple[npt.NDArray[Any], ...]:
        """Which digits, where they start, and how they move: (number,), (number, 2) and (number, 2)."""
        rng = np.random.default_rng([self.seed, index])
        which = rng.integers(len(self.images), size=self.number)
        place = rng.uniform(0, room, (self.number, 2))
        angle = rng.uniform(0, 2 * np.pi, self.number)
        step = rng.uniform(*self.speed, self.number)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
        return which, place, step

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several at once, as DataLoader asks for them."""
        for index in indices:
            if not 0 <= index < self.count:
                raise IndexError(index)
        first = self.epoch * self.count if self.anew else 0
        frames = torch.from_numpy(self._sequences([first + index for index in indices])).unsqueeze(2).float().div_(255)
        found = []
        for sequence in frames:
            x, y = sequence.split((self.past, self.future))
            found.append({"x": x, "y": y, "valid": torch.ones_like(y, dtype=torch.bool)})
        return found


@dataclass(frozen=True)
class MovingMnistSets:
    """Training, validation and test sequences of digits that the others have not."""

    train: MovingMnist
    validation: MovingMnist
    test: MovingMnist
    source: str


def moving_mnist(
    mnist: str | Path | None = None,
    *,
    protocol: str = "paper",
    number: int = 2,
    test_number: int | None = None,
    past: int = 10,
    future: int = 10,
    seed: int = 0,
) -> MovingMnistSets:
    """Sequences by a protocol, of MNIST's digits in the folder `mnist`, or without one of scikit-learn's.

    "paper" (Shi et al. 2015): 10,000, 2,000 and 3,000 sequences, each part of 500 digits of its own, at 3 to 5 pixels a frame.
    "benchmark" (Srivastava et al. 2015, and tables since): training sequences made anew in each epoch from all
    training digits but the last 5,000 (a tenth of few), which make 2,000 to choose by; 10,000 of the test digits;
    3.6 pixels a frame.

    Parts and digits follow from `seed`. `number` digits make a sequence, and `test_number` a test sequence: with 3, nets that
    have learnt two are tested out of their domain, as in the paper.

    Raises InputError for another protocol or what `mnist_digits` finds wrong.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    digits = bundled_digits() if mnist is None else mnist_digits(mnist)
    rng = np.random.default_rng([seed, 2015])
    shape: dict[str, Any] = {"past": past, "future": future}
    seeds = [int(part) for part in rng.integers(2**62, size=3)]
    if protocol == "paper":
        drawn = rng.permutation(len(digits.train))
        images = [digits.train[drawn[:_SUBSET]], digits.train[drawn[_SUBSET : 2 * _SUBSET]]]
        images.append(digits.test[rng.permutation(len(digits.test))[:_SUBSET]])
        counts = (10_000, 2_000, 3_000)
    else:
        last = min(5_000, len(digits.train) // 10)
        images = [digits.train[:-last], digits.train[-last:], digits.test]
        counts = (10_000, 2_000, 10_000)
        shape["speed"] = (0.1 * (SIZE - digits.train.shape[1]),) * 2
    numbers = (number, number, number if test_number is None else test_number)
    train, validation, test = (
        MovingMnist(part, count, number=each, seed=own, **shape)
        for part, count, each, own in zip(images, counts, numbers, seeds)
    )
    train.anew = protocol == "benchmark"
    return MovingMnistSets(train, validation, test, digits.source)
