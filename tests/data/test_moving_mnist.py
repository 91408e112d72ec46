"""Moving MNIST: what a seed fixes, where digits go, which part has which, and the files that people have."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from stormcell import InputError
from stormcell.data.moving_mnist import (
    SIZE,
    Digits,
    MovingMnist,
    bundled_digits,
    mnist_digits,
    moving_mnist,
)

DOT = np.full((1, 8, 8), 255, np.uint8)


def made(**options: object) -> MovingMnist:
    return MovingMnist(DOT, 50, **options)  # type: ignore[arg-type]


def places(frames: np.ndarray) -> np.ndarray:
    """Upper left corner (T, 2) of the one digit of each frame."""
    return np.array([[np.flatnonzero(frame.any(axis=1))[0], np.flatnonzero(frame.any(axis=0))[0]] for frame in frames])


def write_idx(path: Path, images: np.ndarray) -> None:
    data = np.array([0x0803, *images.shape], ">i4").tobytes() + images.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# --- sequences ---


def test_a_sequence_follows_from_seed_and_number_alone() -> None:
    a, b = made(seed=3), MovingMnist(DOT, 7, seed=3)
    np.testing.assert_array_equal(a.frames(6), b.frames(6))
    assert (a.frames(6) != a.frames(5)).any()
    assert (a.frames(6) != made(seed=4).frames(6)).any()


def test_samples_are_past_and_future_in_the_unit_range() -> None:
    sample = made(past=4, future=3)[0]
    assert sample["x"].shape == (4, 1, SIZE, SIZE)
    assert sample["y"].shape == sample["valid"].shape == (3, 1, SIZE, SIZE)
    assert sample["valid"].all()
    assert (float(sample["x"].min()), float(sample["x"].max())) == (0.0, 1.0)
    frames = made(past=4, future=3).frames(0)
    torch.testing.assert_close(torch.cat([sample["x"], sample["y"]])[:, 0], torch.from_numpy(frames) / 255)


def test_an_epoch_ends_and_sequences_do_not() -> None:
    data = made()
    assert len(data) == 50
    with pytest.raises(IndexError):
        data[50]
    assert data.frames(10**12).shape == (20, SIZE, SIZE)


def test_digits_keep_their_speed_until_they_meet_an_edge() -> None:
    data = made(number=1, speed=(3.0, 5.0), past=30, future=30)
    room, bounced = SIZE - 8, 0
    for k in range(20):
        where = places(data.frames(k))
        assert where.min() >= 0
        assert where.max() <= room
        steps = np.diff(where, axis=0)
        inside = ((where[1:] > 0) & (where[1:] < room) & (where[:-1] > 0) & (where[:-1] < room)).all(axis=1)
        speeds = np.hypot(*steps[inside].T)
        assert (speeds > 3 - 1.5).all()  # places are whole pixels
        assert (speeds < 5 + 1.5).all()
        assert 3 - 0.2 <= speeds.mean() <= 5.2 or inside.sum() < 8
        bounced += int((np.abs(np.diff(np.sign(steps), axis=0)) == 2).any())
    assert bounced >= 15  # in 60 frames nearly every digit turns


def test_speeds_are_uniform_between_their_bounds() -> None:
    data = MovingMnist(np.full((1, 1, 1), 255, np.uint8), 10, number=1, speed=(3.0, 5.0), past=8, future=0)
    means = []
    for k in range(300):
        where = places(data.frames(k))
        if where.min() > 5 and where.max() < SIZE - 6:
            means.append(np.hypot(*(where[-1] - where[0])) / 7)
    assert len(means) > 20
    assert 2.8 < min(means) < 3.3
    assert 4.6 < max(means) < 5.2
    assert abs(np.mean(means) - 4) < 0.25


def test_where_digits_overlap_the_brighter_pixel_shows() -> None:
    images = np.stack([np.full((40, 40), 100, np.uint8), np.full((40, 40), 200, np.uint8)])
    data = MovingMnist(images, 10, number=12, past=3, future=0)
    assert set(np.unique(data.frames(0))) <= {0, 100, 200}
    assert int(data.frames(0).max()) == 200


def test_sequences_are_the_same_alone_and_together() -> None:
    data = made()
    for sample, index in zip(data.__getitems__([5, 2, 40]), (5, 2, 40)):
        torch.testing.assert_close(sample, data[index], rtol=0, atol=0)
    with pytest.raises(IndexError):
        data.__getitems__([0, 50])


# --- parts ---


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize("protocol", ["paper", "benchmark"])
def test_parts_share_no_digit(protocol: str) -> None:
    sets = moving_mnist(protocol=protocol)
    parts = [rows(part.images) for part in (sets.train, sets.validation, sets.test)]
    doubles = sum(len(part.images) - len(rows(part.images)) for part in (sets.train, sets.validation, sets.test))
    assert doubles == 0
    assert len(set.union(*parts)) == sum(map(len, parts))
    seeds = {part.seed for part in (sets.train, sets.validation, sets.test)}
    assert len(seeds) == 3


def test_the_papers_protocol() -> None:
    sets = moving_mnist()
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [10_000, 2_000, 3_000]
    assert [len(part.images) for part in (sets.train, sets.validation, sets.test)] == [500] * 3
    assert sets.train.speed == (3.0, 5.0)
    assert (sets.train.number, sets.train.past, sets.train.future) == (2, 10, 10)
    assert "not MNIST" in sets.source
    other = moving_mnist(seed=1)
    assert rows(other.train.images) != rows(sets.train.images)
    three = moving_mnist(test_number=3)
    assert (three.train.number, three.validation.number, three.test.number) == (2, 2, 3)
    assert rows(three.test.images) == rows(sets.test.images)


def test_the_benchmarks_protocol() -> None:
    sets = moving_mnist(protocol="benchmark")
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [10_000, 2_000, 10_000]
    assert sets.train.speed == pytest.approx((4.0, 4.0))  # a tenth of the room, which digits of 24 pixels leave
    with pytest.raises(InputError, match="protocol must be one of paper, benchmark"):
        moving_mnist(protocol="mine")


def test_the_benchmarks_training_sequences_are_other_ones_in_each_epoch() -> None:
    for protocol, other in (("benchmark", True), ("paper", False)):
        train = moving_mnist(protocol=protocol).train
        first = train[3]["x"]
        train.epoch = 1
        assert bool((train[3]["x"] != first).any()) == other
        train.epoch = 0
        torch.testing.assert_close(train[3]["x"], first)


# --- files ---


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    images = {
        "train-images-idx3-ubyte": rng.integers(256, size=(1100, 28, 28), dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(256, size=(600, 28, 28), dtype=np.uint8),
    }
    for name, values in images.items():
        write_idx(tmp_path / f"{name}{suffix}", values)
    found = mnist_digits(tmp_path)
    np.testing.assert_array_equal(found.train, images["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(found.test, images["t10k-images-idx3-ubyte"])
    assert moving_mnist(tmp_path).source == "MNIST"
    assert moving_mnist(tmp_path, protocol="benchmark").train.speed == pytest.approx((3.6, 3.6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file of images"),
        (np.array([0x0801, 1, 2, 2], ">i4").tobytes(), "is not an IDX file of images"),
        (np.array([0x0803, 2, 28, 28], ">i4").tobytes() + bytes(28 * 28), "is damaged"),
        (np.array([0x0803, 1, 90, 90], ">i4").tobytes() + bytes(90 * 90), "is damaged"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=message):
        mnist_digits(tmp_path)


def test_what_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no train-images-idx3-ubyte"):
        mnist_digits(tmp_path)
    whole = gzip.compress(bytes(5000))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged, or not packed with gzip"):
        mnist_digits(tmp_path)


def test_the_bundled_digits_are_whole() -> None:
    digits = bundled_digits()
    assert isinstance(digits, Digits)
    assert digits.train.shape[1:] == digits.test.shape[1:] == (24, 24)
    assert len(digits.train) + len(digits.test) == 1797
    assert digits.train.dtype == np.uint8
    assert (digits.train.max(), digits.train.min()) == (255, 0)


def test_mnist_itself(real_data: Path) -> None:
    digits = mnist_digits(real_data / "mnist")
    assert digits.train.shape == (60_000, 28, 28)
    assert digits.test.shape == (10_000, 28, 28)
    frames = moving_mnist(real_data / "mnist").test.frames(0)
    assert 0.01 < (frames > 0).mean() < 0.2
