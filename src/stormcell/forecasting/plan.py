"""What a training is, settled before its first update: a recipe, and for these frames the split, the transform, the network."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import nn

from ..data.axes import Step, area, common_grid_spacing, grid_spacing, wraps
from ..data.channels import channels_of, first_channel
from ..data.channels import described as described_channels
from ..data.contract import values, zr_pair
from ..data.units import Transform
from ..data.windows import Split, Windows, common_step, fits_memory, split_or_advise
from ..errors import InputError
from .climatology import Climatology
from .forecast import SPACING_TOLERANCE, Channel, Forecaster, close, load, static_digest
from .models import AUTO, MODELS, kind_for

_VALIDATION_SAMPLES = 48
_FINE_TUNING = 0.2  # of the usual learning rate
_FITTED_ON = 2**28  # bytes of an archive


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults suit radar composites on a laptop.

    Attributes:
        model: "plain", "lagrangian", or "auto": lagrangian for rain whose motion can be followed (docs/models.md).
        past, future: frames that are read, and frames to forecast.
        minutes: stop after so many; epochs: stop after so many (an epoch sees every pixel about once).
        crop: side of the square that is cut from the frames, in pixels.
        batch: crops an update, of all processes together.
        hidden_channels, kernel_size, patch: of the network (see EncoderForecaster); patch None: 4, of lagrangian models 8;
            on grids that go around the globe the largest up to 4 that divides their columns.
        learning_rate: the highest; it rises over the first 5 % and falls as a cosine to nothing. None: 0.001, for
            lagrangian models 0.015, and with `base` a fifth of that.
        base: model file whose weights are gone on with, or None. What is OF_THE_NETWORK is then that model's.
        seed: of weights and crops.
        device: "auto", "cpu", "cuda", "mps" …
    """

    model: str = AUTO
    past: int = 4
    future: int = 6
    minutes: float | None = None
    epochs: int | None = None
    crop: int = 128
    batch: int = 4
    hidden_channels: tuple[int, ...] = (48, 48)
    kernel_size: int = 3
    patch: int | None = None
    learning_rate: float | None = None
    base: str | None = None
    seed: int = 0
    device: str = "auto"


def option(name: str) -> str:
    """How what is `name` in a Recipe is called on the command line, without dashes before it."""
    return {"hidden_channels": "hidden", "base": "from"}.get(name, name.replace("_", "-"))


OF_THE_NETWORK = ("model", "past", "future", "hidden_channels", "kernel_size", "patch")


@dataclass(frozen=True)
class Plan:
    """Everything settled before the first update: the data, the network, the identity of the run."""

    split: Split
    recipe: Recipe
    training: Windows
    validation: Windows
    forecaster: Forecaster
    identity: str

    @property
    def network(self) -> nn.Module:
        return self.forecaster.network


def plan(
    runs: Sequence[xr.DataArray],
    recipe: Recipe,
    *,
    validation: Sequence[xr.DataArray] = (),
    test: Sequence[xr.DataArray] = (),
    test_from: np.datetime64 | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Plan:
    """Split runs (frames without gaps) by time, fit the transform on the training part, draw the network.

    `progress` wraps the list of runs of which frames are read, where they are not in memory, to show a bar.
    Raises InputError if units, time steps or grid spacings do not go together, or too few windows fit.
    """
    if recipe.past < 1 or recipe.future < 1:
        raise InputError(f"--past and --future must be 1 or more, not {recipe.past} and {recipe.future}")
    if recipe.model not in (AUTO, *MODELS):
        raise InputError(f"--model knows {', '.join((AUTO, *MODELS))}, not {recipe.model!r}")
    everything = [*runs, *validation, *test]
    step = common_step(everything)
    spacing = common_grid_spacing(everything)
    begun = None if recipe.base is None else _begun(Path(recipe.base), everything)
    channels = len(described_channels(everything[0]))
    kind = type(begun) if begun else kind_for(recipe.model, everything[0].attrs["units"], step, channels=channels)
    width = _columns_around(everything)
    if begun is not None:
        own = begun.card.get("recipe", {})  # of a model that was never trained there is none
        recipe = replace(recipe, **{name: own[name] for name in OF_THE_NETWORK if name in own})
    recipe = _whole(recipe, kind, width)
    if begun is None:
        past, future = kind.span(step, recipe.past, recipe.future)
    else:
        past, future = begun.past, begun.frames_ahead
    split = split_or_advise(runs, past, future, validation=validation, test=test, test_from=test_from)
    transform, *others = fitted_transforms(everything, split.train)
    for name, part in (("training", split.train), ("validation", split.validation)):
        seen = map(first_channel, part)
        if not any(np.isfinite(values(run.isel(time=t))).any() for run in seen for t in range(run.sizes["time"])):
            raise InputError(f"every pixel of the {name} frames is missing: check --missing, --gain and --variable")
    beside = [
        Channel(str(one.name), own, static_digest(one) if one.attrs["static"] else None)
        for own, one in zip(others, channels_of(everything[0])[1:])
    ]
    forecaster = begun or _drawn(recipe, transform, step, spacing, periodic=width is not None, beside=beside)
    if not transform.rain:
        forecaster.climatology = Climatology.of([*map(first_channel, [*split.train, *split.validation])])
    training = forecaster.windows(split.train, crop=recipe.crop, seed=recipe.seed)
    chosen = forecaster.windows(split.validation, crop=recipe.crop, seed=recipe.seed, fixed=_VALIDATION_SAMPLES)
    frames = [
        line
        for part, role in ((training, "training"), (chosen, "validation"))
        for line in described(part, role, progress=iter if part.in_memory else progress)
    ]
    fixed = replace(recipe, minutes=None, epochs=None, device="auto")
    identity = json.dumps({"recipe": asdict(fixed), "frames": [f["digest"] for f in frames]}, sort_keys=True)
    frames += forecaster.card.get("frames", [])  # what a model was begun with, it has seen
    forecaster.card |= {"frames": frames, "recipe": asdict(recipe)}
    if begun is None:
        forecaster.card["variable"] = str(first_channel(everything[0]).name or "")
    if training.sampling:
        forecaster.card["sampling"] = training.sampling
    return Plan(split, recipe, training, chosen, forecaster, identity)


def _columns_around(runs: Sequence[xr.DataArray]) -> int | None:
    """How many columns go around the globe, if they do in all runs, and are as many."""
    widths = {run.sizes["x"] if wraps(run) else None for run in runs}
    return widths.pop() if len(widths) == 1 else None


def _whole(recipe: Recipe, kind: type[Forecaster], columns: int | None) -> Recipe:
    """With what is usual for a kind of model in the place of None. A patch divides the columns that go around the globe."""
    patch, rate = kind.usual["patch"], kind.usual["learning_rate"]
    if columns is not None and recipe.base is None and kind is Forecaster:
        patch = max(n for n in range(1, patch + 1) if columns % n == 0)
        if columns % (recipe.patch or patch):
            raise InputError(
                f"--patch {recipe.patch} does not divide the {columns} columns that go around the globe: --patch {patch} does"
            )
    return replace(
        recipe,
        model=kind.kind,
        patch=recipe.patch or patch,
        learning_rate=recipe.learning_rate or rate * (1.0 if recipe.base is None else _FINE_TUNING),
    )


def _drawn(
    recipe: Recipe,
    transform: Transform,
    step: Step,
    spacing: float | None,
    *,
    periodic: bool,
    beside: Sequence[Channel],
) -> Forecaster:
    assert recipe.patch is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return MODELS[recipe.model].untrained(
            transform,
            step,
            recipe.past,
            recipe.future,
            spacing,
            hidden_channels=recipe.hidden_channels,
            kernel_size=recipe.kernel_size,
            patch=recipe.patch,
            periodic=periodic,
            beside=beside,
        )


def _begun(path: Path, runs: Sequence[xr.DataArray]) -> Forecaster:
    """A trained model, for these runs. Raises InputError if it cannot serve them as they are."""
    model, suited = load(path), []
    for run in runs:
        spacing, own = grid_spacing(run), model.grid_spacing_m
        if spacing is not None and own is not None and not close(spacing, own, SPACING_TOLERANCE):
            n = round(own / spacing)
            advice = f": give --coarsen {n}" if n > 1 else ""
            raise InputError(
                f"{run.attrs['source']} has a grid of {spacing / 1000:.3g} km, and {path} was trained on one of "
                f"{own / 1000:.3g} km{advice}"
            )
        suited.append(model.suited(run))
    return suited[0]


def fitted_transforms(runs: Sequence[xr.DataArray], training: Sequence[xr.DataArray]) -> list[Transform]:
    """As `fitted_transform`, of each channel."""
    channels = zip(zip(*map(channels_of, runs)), zip(*map(channels_of, training)))
    return [fitted_transform(several, some) for several, some in channels]


def fitted_transform(runs: Sequence[xr.DataArray], training: Sequence[xr.DataArray]) -> Transform:
    """The transform for runs of one quantity, fitted on the training part where it is not rain.

    Raises InputError if there are two quantities.
    """
    first = runs[0]
    transform = Transform(units=first.attrs["units"])
    for run in runs:
        if not transform.accepts(run.attrs["units"]):
            raise InputError(
                f"{first.attrs['source']} is in {first.attrs['units']} and {run.attrs['source']} in "
                f"{run.attrs['units']}: one model learns one quantity"
            )
    if transform.rain:
        return Transform(zr=zr_pair(first))
    every = 3 if fits_memory(training) else math.ceil(sum(run.nbytes for run in training) / _FITTED_ON)
    return Transform.fit(first.attrs["units"], [values(run.isel(time=slice(None, None, every))) for run in training])


def described(
    windows: Windows, role: str, *, progress: Callable[[Sequence[int]], Iterable[int]] = iter
) -> list[dict[str, Any]]:
    """What a model file says of the runs it was made with; `verify` leaves out what lies in their time and area."""
    found = []
    for number in progress(range(len(windows.runs))):
        run = windows.runs[number]
        times = run.time.values
        seen = range(len(times)) if windows.in_memory else sorted({0, len(times) - 1})
        frames = (windows.stored(number, slice(k, k + 1)) for k in seen)
        found.append(
            {
                "role": role,
                "source": str(run.attrs.get("source", "")),
                "start": str(times[0]),
                "end": str(times[-1]),
                "count": len(times),
                "area": area(run),
                "digest": digest_of(itertools.chain([times], frames)),
            }
        )
    return found


def digest_of(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """What tells one set of numbers from another."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
