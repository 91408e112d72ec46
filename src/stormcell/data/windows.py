"""Frames → windows of past and future that never cross a gap; splits by time with a guard between them; tensors.

A run is a stretch of frames without a gap. What a network sees of a frame is two channels: the value (0 where missing) and
whether the pixel is valid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from .axes import Step, advance, follows, step_text, time_step
from .channels import channels_of
from .contract import coarsen as coarsened
from .contract import in_memory, values, zr_pair
from .places import WEIGHTS, places_of
from .store import stretch_of
from .units import Transform

MEMORY_LIMIT = 4 * 2**30  # bytes of float32 frames that are kept in memory; above it windows are read from disk
VALIDATION_SHARE = 0.2
WET = 0.1  # encoded rain at 7 dBZ, 0.1 mm/h: what verification calls wet
_CROP_TRIES = 4
_ALL = slice(None)


# --- runs ---


def split_at_gaps(frames: xr.DataArray) -> list[xr.DataArray]:
    """Runs of consecutive frames. A single frame between gaps is a run of one."""
    times = frames.time.values
    step = time_step(times)
    if step is None:
        return [frames]
    cuts = [k + 1 for k in range(len(times) - 1) if not follows(times[k], times[k + 1], step)]
    return [frames.isel(time=slice(a, b)) for a, b in zip([0, *cuts], [*cuts, len(times)])]


def runs_of(series: Sequence[xr.DataArray], *, coarsen: int = 1) -> list[xr.DataArray]:
    """Series of frames → runs, of means over coarsen × coarsen pixels; in memory where they fit.

    Read at once, since picking one frame out of a long series on disk costs as much as the frame itself.
    """
    series = [coarsened(frames, coarsen) for frames in series]
    if fits_memory(series):
        series = [in_memory(frames) for frames in series]
    return [run for frames in series for run in split_at_gaps(frames)]


def common_step(runs: Sequence[xr.DataArray]) -> Step:
    """The one step of all runs. Raises InputError if there are two, naming both groups, or if no run has two frames."""
    groups: dict[Step, str] = {}
    for run in runs:
        step = time_step(run.time.values)
        if step is not None and not any(_same(step, other) for other in groups):
            groups[step] = str(run.attrs.get("source", "frames"))
    if not groups:
        raise InputError("no two frames follow each other: the time step is unknown")
    if len(groups) > 1:
        (a, source_a), (b, source_b) = list(groups.items())[:2]
        hint = "train on one of them"
        if not isinstance(a, str) and not isinstance(b, str):
            hint = f"give --step-minutes {math.lcm(round(a), round(b))}, to which both are thinned, or {hint}"
        raise InputError(f"time steps differ: {step_text(a)} in {source_a}, {step_text(b)} in {source_b}; {hint}")
    return next(iter(groups))


def _same(a: Step, b: Step) -> bool:
    return a == b or (not isinstance(a, str) and not isinstance(b, str) and abs(a - b) <= 0.02 * a)


def fits_memory(runs: Sequence[xr.DataArray]) -> bool:
    """Whether the values of all runs may be kept in memory."""
    return sum(run.size for run in runs) * 4 <= MEMORY_LIMIT


def count_windows(runs: Sequence[xr.DataArray], length: int) -> int:
    """Windows of `length` frames, one starting at each frame that leaves room for it."""
    return sum(max(run.sizes["time"] - length + 1, 0) for run in runs)


# --- splits ---


@dataclass(frozen=True)
class Split:
    """Runs for training, for choosing, and set aside."""

    train: list[xr.DataArray]
    validation: list[xr.DataArray]
    test: list[xr.DataArray] = field(default_factory=list)


Span = tuple[np.datetime64, np.datetime64]


def _span(run: xr.DataArray) -> Span:
    return run.time.values[0], run.time.values[-1]


def _without(runs: Sequence[xr.DataArray], spans: Sequence[Span], guard: int, step: Step) -> list[xr.DataArray]:
    """Runs less the frames that lie in one of the spans or nearer to it than `guard` steps."""
    kept: list[xr.DataArray] = []
    for run in runs:
        times = run.time.values
        keep = np.ones(len(times), dtype=bool)
        for first, last in spans:
            keep &= (times <= advance(first, step, -guard)) | (times >= advance(last, step, guard))
        edges = np.flatnonzero(
            np.diff(keep.astype(int), prepend=0, append=0)
        )  # slices, since they stay stretches on disk
        kept += [run.isel(time=slice(a, b)) for a, b in zip(edges[::2], edges[1::2])] if not keep.all() else [run]
    return kept


def _since(run: xr.DataArray, time: np.datetime64) -> xr.DataArray:
    return run.isel(time=slice(int(np.searchsorted(run.time.values, time)), None))


def split_by_time(
    runs: Sequence[xr.DataArray],
    length: int,
    *,
    validation: Sequence[xr.DataArray] = (),
    test: Sequence[xr.DataArray] = (),
    test_from: np.datetime64 | None = None,
) -> Split:
    """Split runs for windows of `length` frames, with a guard of one window between the parts.

    `test` and everything from `test_from` on are set aside, with all that overlaps them in time. `validation` says what to
    choose by; if it is empty, whole runs of the latest times are taken, about a fifth of the windows, runs that overlap in
    time together; if all overlap, or there is one, it is cut in time.

    Raises InputError if fewer than 3 windows are left, or none on one side.
    """
    runs = [run for run in runs if run.sizes["time"]]
    step = common_step([*runs, *validation, *test])
    aside, kept_out = list(test), [_span(run) for run in test]
    if test_from is not None:
        newest = max(run.time.values[-1] for run in [*runs, *validation])
        if test_from > newest:
            raise InputError(
                f"--test-from {str(test_from)[:16]} sets nothing aside: the newest frame is of {str(newest)[:16]}"
            )
        aside += [late for run in runs if (late := _since(run, test_from)).sizes["time"]]
        kept_out.append((test_from, newest))
    rest = _without(runs, kept_out, length, step)
    if validation:
        chosen = _without(validation, kept_out, length, step)
        if not count_windows(chosen, length):
            raise InputError(
                "no window of --val is left: it is too short, or lies within what is set aside for testing"
            )
        train = _without(rest, [_span(run) for run in chosen], length, step)
    else:
        train, chosen = _choose_validation(rest, length, step)
    windows = count_windows(train, length), count_windows(chosen, length)
    if min(windows) < 1 or sum(windows) < 3:
        raise _TooFew(*windows)
    return Split(train, chosen, aside)


class _TooFew(InputError):
    def __init__(self, train: int, validation: int) -> None:
        super().__init__(f"{train} windows for training and {validation} for validation are too few")


def split_or_advise(
    runs: Sequence[xr.DataArray],
    past: int,
    future: int,
    *,
    validation: Sequence[xr.DataArray] = (),
    test: Sequence[xr.DataArray] = (),
    test_from: np.datetime64 | None = None,
) -> Split:
    """`split_by_time`, with an error that says which `past` and `future` would fit."""
    split = functools.partial(split_by_time, runs, validation=validation, test=test, test_from=test_from)
    try:
        return split(past + future)
    except _TooFew:
        longest = max((run.sizes["time"] for run in runs), default=0)
        advice = f"more frames are needed: the longest run without a gap has {longest}"
        for length in range(min(past + future - 1, longest), 1, -1):
            try:
                split(length)
            except _TooFew:
                continue
            shorter = min(max(1, round(length * past / (past + future))), length - 1)
            advice = f"--past {shorter} --future {length - shorter} would fit (the longest run has {longest} frames)"
            break
        raise InputError(
            f"fewer than 3 windows of {past} past and {future} future frames fit, with a guard of one window between "
            f"training and validation: {advice}"
        ) from None


def events_of(runs: Sequence[xr.DataArray], length: int, step: Step) -> list[list[xr.DataArray]]:
    """Runs of `length` frames or more, by time; those that overlap, or lie nearer than a window, together."""
    events: list[list[xr.DataArray]] = []
    end: np.datetime64 | None = None
    for run in sorted((run for run in runs if run.sizes["time"] >= length), key=_span):
        first, last = _span(run)
        if end is not None and first < advance(end, step, length):
            events[-1].append(run)
            end = max(end, last)
        else:
            events.append([run])
            end = last
    return events


def _choose_validation(
    runs: Sequence[xr.DataArray], length: int, step: Step
) -> tuple[list[xr.DataArray], list[xr.DataArray]]:
    clusters = events_of(runs, length, step)
    usable = [run for cluster in clusters for run in cluster]
    if len(clusters) < 2:
        return _cut(usable, length, step)
    every = count_windows(usable, length)
    share = [count_windows(cluster, length) / every for cluster in clusters]
    chosen: list[int] = []
    for k in reversed(range(len(clusters))):
        if sum(share[j] for j in chosen) >= VALIDATION_SHARE:
            break
        if sum(share[j] for j in chosen) + share[k] <= 0.34:  # a third, for three runs of one length
            chosen.append(k)
    if not chosen:
        chosen = [min(range(len(clusters)), key=lambda k: (share[k], -k))]
    train = [run for k, cluster in enumerate(clusters) if k not in chosen for run in cluster]
    return train, [run for k in sorted(chosen) for run in clusters[k]]


def _cut(runs: list[xr.DataArray], length: int, step: Step) -> tuple[list[xr.DataArray], list[xr.DataArray]]:
    """Cut runs of one time: the latest windows, a fifth or as few as leave twice as many for training, validate."""
    starts = sorted(t for run in runs for t in run.time.values[: max(run.sizes["time"] - length + 1, 0)])
    train: list[xr.DataArray] = []
    chosen: list[xr.DataArray] = []
    for count in range(max(round(VALIDATION_SHARE * len(starts)), 1), 0, -1):
        if len(starts) < 3:
            break
        cut = starts[-count]
        chosen = [late for run in runs if (late := _since(run, cut)).sizes["time"] >= length]
        train = _without(runs, [(cut, max(run.time.values[-1] for run in runs))], length, step)
        train = [run for run in train if run.sizes["time"] >= length and run.time.values[0] < cut]
        if count_windows(train, length) >= 2 * count_windows(chosen, length):
            break
    return train, chosen


# --- tensors ---


def network_input(encoded: npt.NDArray[np.float32]) -> Tensor:
    """Encoded frames (…, C, Y, X), NaN where missing → (…, 2C, Y, X): of each channel value, 0 where missing, and validity, 0
    or 1.
    """
    valid = np.isfinite(encoded)
    both = np.stack([np.where(valid, encoded, np.float32(0)), valid.astype(np.float32)], axis=-3)
    return torch.from_numpy(both).flatten(-4, -3)


Sample = dict[str, Tensor]


class Windows(Dataset[Sample]):
    """Windows of past and future as tensors: x (P, 2C, Y, X), y and valid (F, 1, Y, X), which are of the first channel.

    Of each window a crop is drawn, from a few tries the first with enough valid and wet pixels, and for rain alone it is turned
    and mirrored at random: weather comes from everywhere. With `periodic`, of grids that go around the globe, a crop has all
    longitudes, and begins at any of them instead. Every draw follows from (seed, epoch, index) alone. With `fixed=N` there are
    at most N samples, spread evenly over the windows, the same in each epoch and unturned. `beside` transforms the channels
    after the first.

    Values stay in memory up to MEMORY_LIMIT; beyond, each window is read from disk. Of a training store only the crops are
    read, and windows and crops are drawn by the index of its rain (`places.py`): the samples of an epoch are spread over the
    windows by their weight.
    """

    def __init__(
        self,
        runs: Sequence[xr.DataArray],
        transform: Transform,
        *,
        past: int,
        future: int,
        crop: int,
        seed: int = 0,
        fixed: int | None = None,
        periodic: bool = False,
        beside: Sequence[Transform] = (),
    ) -> None:
        self.transform, self.past, self.future = transform, past, future
        self.transforms = (transform, *beside)  # of the channels
        self.runs = [run for run in runs if len(self.starts(run))]
        self.seed, self.epoch = seed, 0
        height, width = (min(run.sizes[axis] for run in self.runs) for axis in ("y", "x"))
        self.crop = min(crop, height) if periodic else min(crop, height, width)
        self.crop_x = width if periodic else self.crop
        self.periodic = periodic
        self.windows = [(r, t) for r, run in enumerate(self.runs) for t in self.starts(run)]
        pixels = sum(run.sizes["y"] * run.sizes["x"] * len(self.starts(run)) for run in self.runs)
        self.crops_a_window = max(1, round(pixels / len(self.windows) / (self.crop * self.crop_x)))
        self.fixed = None if fixed is None else min(fixed, len(self.windows) * self.crops_a_window)
        self.in_memory = fits_memory(self.runs)
        self._encoded = [self._encode(run) for run in self.runs] if self.in_memory else []
        self.stretches = [stretch_of(run) for run in self.runs]
        starts = [self.starts(run) for run in self.runs]
        self.places = None
        if not self.in_memory and not periodic and len(self.transforms) == 1:
            self.places = places_of(self.runs, self.stretches, starts, crop=self.crop, rain=self.transform.rain)
        self.sampling = f"crops of the store are drawn by weight: {WEIGHTS}" if self.places else None

    def starts(self, run: xr.DataArray) -> range:
        """First frames of the windows of a run."""
        return range(run.sizes["time"] - self.past - self.future + 1)

    def _encode(self, run: xr.DataArray) -> npt.NDArray[np.float32]:
        channels = zip(self.transforms, channels_of(run))
        encoded = [t.encode(values(one), one.attrs["units"], zr_pair(one)) for t, one in channels]
        return encoded[0][:, None] if len(encoded) == 1 else np.stack(encoded, axis=1)

    def frames(self, run: int, start: int) -> npt.NDArray[np.floating[Any]]:
        """Encoded past and future of the window that begins there (past + future, C, Y, X), NaN where missing."""
        return self.read(run, slice(start, start + self.past + self.future))

    def read(self, run: int, time: slice, y: slice = _ALL, x: slice = _ALL) -> npt.NDArray[np.float32]:
        """Encoded frames of a run (T, C, Y, X), or a crop of them."""
        if self.in_memory:
            return self._encoded[run][time, :, y, x]
        frames = self.runs[run]
        if self.stretches[run] is None:
            return self._encode(frames.isel(time=time, y=y, x=x))
        return self.transform.encode(self.stored(run, time, y, x), frames.attrs["units"], zr_pair(frames))[:, None]

    def stored(self, run: int, time: slice, y: slice = _ALL, x: slice = _ALL) -> npt.NDArray[np.float32]:
        """Frames of a run, (T, Y, X) or (T, channel, Y, X), or a crop of them, from disk and in their own units."""
        frames, stretch = self.runs[run], self.stretches[run]
        return values(frames.isel(time=time, y=y, x=x)) if stretch is None else stretch.read(time, y, x)

    def __len__(self) -> int:
        return self.fixed or len(self.windows) * self.crops_a_window

    def window(self, index: int) -> tuple[int, int]:
        """The window that sample `index` is a crop of: its run, and its first frame in that."""
        if self.places is not None:
            return self.windows[self.places.window((index + 0.5) / len(self))]
        place = index * len(self.windows) // self.fixed if self.fixed else index % len(self.windows)
        return self.windows[place]

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError(index)
        epoch = 0 if self.fixed else self.epoch
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.places is not None:
            window = self.places.window((index + 0.5) / len(self))
            (run, start), (y, x) = self.windows[window], self.places.place(window, rng.random())
            time = slice(start, start + self.past + self.future)
            frames = self.read(run, time, slice(y, y + self.crop), slice(x, x + self.crop))
        else:
            frames = self.frames(*self.window(index))
            y, x = self._draw_crop(frames, rng)
            frames = frames[..., y : y + self.crop, x : x + self.crop_x].astype(np.float32, copy=False)
        if self.periodic and not self.fixed:
            frames = np.roll(frames, int(rng.integers(self.crop_x)), axis=-1)
        elif self.transform.rain and len(self.transforms) == 1 and not self.fixed:
            frames = np.rot90(frames, int(rng.integers(4)), axes=(-2, -1))
            frames = frames[..., ::-1] if rng.integers(2) else frames
        x_tensor = network_input(frames[: self.past])
        target = network_input(frames[self.past :, :1])
        return {"x": x_tensor, "y": target[:, :1], "valid": target[:, 1:] > 0}

    def _draw_crop(self, frames: npt.NDArray[np.floating[Any]], rng: np.random.Generator) -> tuple[int, int]:
        frames = frames[:, 0]
        height, width = frames.shape[1:]
        best, best_score = (0, 0), -1.0
        for _ in range(_CROP_TRIES):
            y = int(rng.integers(height - self.crop + 1))
            x = int(rng.integers(width - self.crop_x + 1))
            seen = frames[:: max(len(frames) // 2, 1), y : y + self.crop : 2, x : x + self.crop_x : 2]
            valid = float(np.isfinite(seen).mean())
            wet = float((seen >= WET).mean()) if self.transform.rain else valid
            score = min(valid, 0.5) + min(wet, 0.05)
            if score > best_score:
                best, best_score = (y, x), score
            if valid >= 0.5 and wet >= 0.05:
                break
        return best
