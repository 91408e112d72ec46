"""What nets are compared on: Moving MNIST, or a person's frames. Training, validation and test share no time and no digit.

A task says what a net reads and forecasts, what it is trained and chosen by (`loss`), and turns a forecast of test cases into
sums (`scores.py`). `unit` numbers the independent part that each test case belongs to: a sequence, or an hour of weather.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data.axes import advance, common_grid_spacing, lead_text, length_text
from ..data.moving_mnist import MovingMnistSets
from ..data.windows import Sample, Split, Windows, common_step, events_of, split_or_advise
from ..errors import InputError
from ..forecasting.baselines import baselines_on
from ..forecasting.losses import mean, summed_error, weighted_error
from ..forecasting.plan import digest_of, fitted_transform
from ..forecasting.tally import BLOCK_MINUTES, assign_blocks, block_minutes
from ..forecasting.verify import THRESHOLDS_MM_H
from .scores import IMAGE_SCORES, Score, Sums, frame_scores, image_sums, joined

_EVALUATED_TOGETHER = 16
_LARGEST_VALIDATION = 128


class Task(ABC):
    """See above.

    Attributes:
        name: for people; identity: what results depend on, for resuming.
        in_channels, frame_size, past, future: what a net reads, and how much it forecasts.
        train, validation, test: samples with x, y and valid.
        unit: of each test case; units: what they are called.
        scores: what is printed; the first decides.
        leads: lead time of each frame, for people.
    """

    name: str
    identity: dict[str, Any]
    in_channels: int
    frame_size: tuple[int, int]
    past: int
    future: int
    train: Dataset[Sample]
    validation: Dataset[Sample]
    test: Dataset[Sample]
    unit: npt.NDArray[np.int64]
    units: str
    scores: tuple[Score, ...]
    leads: list[str]
    facts: dict[str, str]

    @property
    def cases(self) -> int:
        return len(self.unit)

    def batches(self, part: Dataset[Sample]) -> DataLoader[Sample]:
        """Samples in their order, some at a time."""
        return DataLoader(part, _EVALUATED_TOGETHER)

    @abstractmethod
    def loss(self, forecast: Tensor, batch: Sample) -> Tensor:
        """What is minimised, and chosen by: a mean."""

    @abstractmethod
    def sums(self, forecast: Tensor, batch: Sample, first: int) -> Sums:
        """Of test cases from number `first` on."""

    @abstractmethod
    def baselines(self) -> dict[str, Sums]:
        """Of all test cases, for what needs no training."""

    @abstractmethod
    def picture(self, forecast: Tensor, batch: Sample) -> npt.NDArray[np.float32]:
        """A forecast (n, F, 1, Y, X) as people see it: (n, F, Y, X)."""

    @abstractmethod
    def sample(self, case: int, rows: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, dict[str, xr.DataArray]]:
        """A test case by name, and what was observed and forecast (F, Y, X) as frames to look at."""

    def evaluate(self, net: torch.nn.Module, device: str = "cpu") -> Sums:
        """Sums over all test cases of a trained net."""
        with torch.inference_mode():
            return self._over_test(lambda batch, _: net(batch["x"].to(device), self.future).cpu())

    def _over_test(self, forecast: Callable[[Sample, int], Tensor]) -> Sums:
        """Sums over all test cases of what forecasts a batch of them, given the number of its first."""
        parts, first = [], 0
        for batch in self.batches(self.test):
            parts.append(self.sums(forecast(batch, first), batch, first))
            first += len(batch["x"])
        return joined(parts)

    def some(self, count: int = 3) -> list[int]:
        """Test cases to look at, spread evenly, not by merit."""
        return sorted({(2 * k + 1) * self.cases // (2 * count) for k in range(count)})


class MovingMnistTask(Task):
    """Moving MNIST, trained and judged by cross entropy, as in Shi et al. 2015."""

    in_channels = 1
    units = "sequences"
    scores = IMAGE_SCORES

    def __init__(self, sets: MovingMnistSets, *, protocol: str, cases: int) -> None:
        if cases > len(sets.test):
            raise InputError(f"--cases must be at most {len(sets.test)}, the protocol's test sequences, not {cases}")
        self.name = "Moving MNIST"
        height = width = sets.test[0]["x"].shape[-1]
        self.frame_size, self.past, self.future = (height, width), sets.test.past, sets.test.future
        self.train = sets.train
        self.validation = Subset(sets.validation, range(min(_LARGEST_VALIDATION, len(sets.validation))))
        self.test = Subset(sets.test, range(cases))
        self.unit = np.arange(cases)
        self.leads = [f"+{k + 1}" for k in range(self.future)]
        digest = digest_of([sets.train.images, sets.validation.images, sets.test.images])
        self.identity = {"protocol": protocol, "digits": digest, "cases": cases, "seed": sets.train.seed}
        outside = f", {sets.test.number} in each" if sets.test.number != sets.train.number else ""
        self.identity |= {"past": self.past, "future": self.future, "number": sets.test.number}
        self.facts = {
            "Data": f"Moving MNIST, protocol “{protocol}”: {sets.train.number} digits on {height}×{width} pixels, "
            f"{self.past} frames → {self.future}",
            "Digits": sets.source,
            "Training": f"sequences made anew, {len(sets.train):,} an epoch"
            if sets.train.anew
            else f"up to {len(sets.train):,} sequences, then again",
            "Validation": f"{len(self.validation)} sequences of other digits",
            "Test": f"{cases:,} sequences of again other digits{outside}",
            "Trained by": "cross entropy",
        }

    def loss(self, forecast: Tensor, batch: Sample) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(forecast, batch["y"])

    def sums(self, forecast: Tensor, batch: Sample, first: int) -> Sums:
        return image_sums(forecast, batch["y"])

    def baselines(self) -> dict[str, Sums]:
        parts = []
        for batch in self.batches(self.test):
            last = batch["x"][:, -1:, 0].expand(-1, self.future, -1, -1).numpy()
            found = frame_scores(last, batch["y"][:, :, 0].numpy())
            parts.append(found | {"cross_entropy": np.full(found["mse"].shape, np.nan)})  # of certainty: infinite
        return {"persistence": joined(parts)}

    def picture(self, forecast: Tensor, batch: Sample) -> npt.NDArray[np.float32]:
        return torch.sigmoid(forecast)[:, :, 0].numpy()

    def sample(self, case: int, rows: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, dict[str, xr.DataArray]]:
        height, width = self.frame_size
        coords = {"time": np.arange(1, self.future + 1), "y": np.arange(height), "x": np.arange(width)}
        observed = self.test[case]["y"][:, 0].numpy()

        def frames(data: npt.NDArray[np.float32]) -> xr.DataArray:
            return xr.DataArray(data, dims=("time", "y", "x"), coords=coords, attrs={"units": "brightness"})

        return f"sequence {case}", {"truth": frames(observed)} | {name: frames(data) for name, data in rows.items()}


class FramesTask(Task):
    """A person's frames: trained and chosen by the loss of `stormcell train`, judged by it and by rain scores.

    Test cases are crops of the nets' own size, spread evenly over the windows of the test runs, so that a net which knows
    one frame size can be judged too. A pixel counts where truth and all baselines are valid.
    """

    in_channels = 2

    def __init__(
        self,
        split: Split,
        *,
        name: str,
        past: int,
        future: int,
        crop: int,
        cases: int,
        seed: int,
        against: Sequence[str],
    ) -> None:
        everything = [*split.train, *split.validation, *split.test]
        if any("channel" in run.dims for run in everything):
            raise InputError("stormcell compare reads one variable: name one in --variable, and leave --static out")
        step = common_step(everything)
        spacing = common_grid_spacing(everything)
        transform = fitted_transform(everything, split.train)
        lengths: dict[str, Any] = {"past": past, "future": future, "crop": crop}
        self.name, self.past, self.future, self.transform = name, past, future, transform
        train = Windows(split.train, transform, **lengths, seed=seed)
        validation = Windows(split.validation, transform, **lengths, seed=seed, fixed=_LARGEST_VALIDATION)
        test = Windows(split.test, transform, **lengths, seed=seed, fixed=cases)
        if len({train.crop, validation.crop, test.crop}) > 1:
            side = min(train.crop, validation.crop, test.crop)
            raise InputError(f"frames differ in size, and the smallest has {side} pixels: give --crop {side} or less")
        self.train, self.validation, self.test, self.windows = train, validation, test, test
        self.frame_size = (test.crop, test.crop)
        starts = [test.window(k) for k in range(len(test))]
        self.references = [test.runs[r].time.values[t + past - 1] for r, t in starts]
        order = np.argsort(np.array(self.references), kind="stable")
        self.unit = np.empty(len(starts), dtype=np.int64)
        length = block_minutes(step, future, rain=transform.rain)
        self.unit[order] = assign_blocks([self.references[k] for k in order], length)
        self.units = f"blocks of {'an hour' if length == BLOCK_MINUTES else length_text(length)} or more"
        self.unit_names = "mm/h" if transform.rain else transform.units
        self.thresholds = THRESHOLDS_MM_H if transform.rain else ()
        first = everything[0].time.values[0]
        self.leads = [lead_text(advance(first, step, k + 1) - first) for k in range(future)]
        unit = self.unit_names
        self.scores = (
            Score("loss", "loss", "loss", ("weight",)),
            Score("mse", f"MSE, ({unit})²", "se", ("n",)),
            Score("mae", f"MAE, {unit}", "ae", ("n",)),
            Score("correlation", "correlation", "fo", ("ff", "oo"), better="high", root=True),
            *(score for level in self.thresholds for score in self._categorical(level)),
        )
        self.against = [one for one in against if transform.rain or one == "persistence"]
        self._rivals, _ = baselines_on(self.against, spacing_m=spacing, step=step, seed=seed)
        digests = [
            digest_of([run.time.values, run.isel(time=0).values, run.isel(time=-1).values]) for run in everything
        ]
        self.identity = {**lengths, "crop": test.crop, "cases": len(test), "seed": seed}
        self.identity |= {"frames": digests, "against": self.against}
        self.facts = {
            "Data": f"{name}: {past} frames → {future}, crops of {test.crop}×{test.crop} pixels",
            "Training": f"{len(train.windows)} windows",
            "Validation": f"{len(validation)} crops",
            "Test": f"{len(test)} crops in {int(self.unit.max()) + 1} {self.units}",
            "Trained by": "squared and absolute error, heavy rain more"
            if transform.rain
            else "squared and absolute error",
        }

    @classmethod
    def _categorical(cls, level: float) -> list[Score]:
        hits, misses, false_alarms = cls._counts(level)
        found = [Score(f"csi_{level:g}", f"CSI ≥ {level:g}", hits, (hits, misses, false_alarms), better="high")]
        if level == THRESHOLDS_MM_H[0]:  # what the paper's table has
            found.append(Score(f"pod_{level:g}", f"POD ≥ {level:g}", hits, (hits, misses), better="high"))
            found.append(Score(f"far_{level:g}", f"FAR ≥ {level:g}", false_alarms, (hits, false_alarms)))
        return found

    @staticmethod
    def _counts(level: float) -> tuple[str, ...]:
        return tuple(f"{name}_{level:g}" for name in ("hits", "misses", "false_alarms"))

    def loss(self, forecast: Tensor, batch: Sample) -> Tensor:
        return mean(*summed_error(forecast, batch, rain=self.transform.rain))

    def _decoded(self, encoded: Tensor) -> npt.NDArray[np.float32]:
        return self.transform.decode(encoded.numpy(), self.unit_names, self.transform.zr)

    @functools.cached_property
    def _baselines(self) -> dict[str, npt.NDArray[np.float32]]:
        """Forecasts (cases, F, Y, X) of the baselines, NaN where they have none; of an ensemble its mean."""
        found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self.against}
        for k in range(self.cases):
            x = self.windows[k]["x"]
            past = np.where(x[:, 1].numpy() > 0, self._decoded(x[:, 0]), np.float32(np.nan))
            for name, rival in self._rivals.items():
                field = rival(past, self.future)
                found[name].append(field.mean(axis=0) if field.ndim == 4 else field)
        return {name: np.stack(forecasts) for name, forecasts in found.items()}

    def sums(self, forecast: Tensor, batch: Sample, first: int) -> Sums:
        cases = slice(first, first + len(forecast))
        valid = batch["valid"].clone()
        for field in self._baselines.values():
            valid &= torch.from_numpy(np.isfinite(field[cases]))[:, :, None]
        error, weight = weighted_error(forecast, {**batch, "valid": valid}, rain=self.transform.rain)
        pixels = (-3, -2, -1)
        counted = valid[:, :, 0].numpy()
        shown, truth = self._decoded(forecast[:, :, 0]), self._decoded(batch["y"][:, :, 0])
        difference = np.where(counted, shown.astype(np.float64) - truth, 0)
        found = {
            "loss": error.sum(dim=pixels).double().numpy(),
            "weight": weight.sum(dim=pixels).double().numpy(),
            "n": counted.sum(axis=(-2, -1)).astype(np.float64),
            "se": (difference**2).sum(axis=(-2, -1)),
            "ae": np.abs(difference).sum(axis=(-2, -1)),
        }
        f, o = (np.where(counted, field, 0).astype(np.float64) for field in (shown, truth))
        found |= {name: (a * b).sum(axis=(-2, -1)) for name, a, b in (("ff", f, f), ("fo", f, o), ("oo", o, o))}
        for level in self.thresholds:
            said, seen = (field >= np.float32(level) for field in (shown, truth))
            events = (said & seen, ~said & seen, said & ~seen)
            for name, event in zip(self._counts(level), events):
                found[name] = (event & counted).sum(axis=(-2, -1)).astype(np.float64)
        return found

    def baselines(self) -> dict[str, Sums]:
        return {name: self._over_test(functools.partial(self._encoded, name)) for name in self._baselines}

    def _encoded(self, name: str, batch: Sample, first: int) -> Tensor:
        """A baseline's forecasts as a net would make them; where it has none, no pixel counts."""
        shown = np.nan_to_num(self._baselines[name][first : first + len(batch["x"])])
        return torch.from_numpy(self.transform.encode(shown, self.unit_names, self.transform.zr))[:, :, None]

    def picture(self, forecast: Tensor, batch: Sample) -> npt.NDArray[np.float32]:
        return self._decoded(forecast[:, :, 0])

    def sample(self, case: int, rows: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, dict[str, xr.DataArray]]:
        one = self.windows[case]
        truth = np.where(one["valid"][:, 0].numpy(), self._decoded(one["y"][:, 0]), np.float32(np.nan))
        r, t = self.windows.window(case)
        times = self.windows.runs[r].time.values[t + self.past : t + self.past + self.future]
        reference = self.references[case]
        side = np.arange(self.frame_size[0])

        def frames(data: npt.NDArray[np.float32]) -> xr.DataArray:
            coords = {"time": times, "lead_time": ("time", times - reference), "y": side, "x": side}
            return xr.DataArray(data, dims=("time", "y", "x"), coords=coords, attrs={"units": self.unit_names})

        name = f"from {np.datetime_as_string(reference, unit='m').replace('T', ' ')} UTC"
        shown = {"observed": truth, **{key: field[case] for key, field in self._baselines.items()}, **rows}
        return name, {key: frames(data) for key, data in shown.items()}


def folds_of(
    runs: Sequence[xr.DataArray],
    *,
    past: int,
    future: int,
    crop: int,
    cases: int,
    seed: int,
    against: Sequence[str],
    test: Sequence[xr.DataArray] = (),
    test_from: np.datetime64 | None = None,
    leave_one_out: bool = False,
) -> list[Task]:
    """Tasks on runs of frames (`windows.runs_of`): one, tested on `test`, on all from `test_from` on, or on the latest fifth;
    or with `leave_one_out` one an event, tested on it and trained on the others. Events that overlap in time are one.

    Raises InputError where too little is left for a part.
    """
    task = functools.partial(FramesTask, past=past, future=future, crop=crop, cases=cases, seed=seed, against=against)
    if not leave_one_out:
        if not test and test_from is None:
            first = split_or_advise(runs, past, future)
            runs, test = first.train, first.validation
        split = split_or_advise(runs, past, future, test=test, test_from=test_from)
        return [task(split, name="frames")]
    if test or test_from is not None:
        raise InputError("--leave-one-out tests every event: leave out --test and --test-from")
    events = events_of(runs, past + future, common_step(runs))
    if len(events) < 2:
        raise InputError("--leave-one-out needs two events or more that do not overlap in time")
    folds: list[Task] = []
    for k, event in enumerate(events):
        others = [run for j, other in enumerate(events) if j != k for run in other]
        split = split_or_advise(others, past, future, test=event)
        folds.append(task(split, name=str(event[0].time.values[0])[:10]))
    return folds
