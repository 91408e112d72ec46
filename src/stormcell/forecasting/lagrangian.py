"""A forecaster in the storm's coordinates: what has been seen is moved to the present along the optical flow, the network says
there how probable each rain rate is, and what it says is moved on to its time.

So rain does not blur because it moves, and moves as fast as it likes. Frames of another grid than the model's are averaged or
spread to it, and frames of another step are interpolated along the motion: one model serves steps of 2 to 15 minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
import xarray as xr
from torch import Tensor

from ..data.axes import Step, grid_spacing, step_text, time_step
from ..data.units import Transform, is_rain
from ..data.windows import Sample, Windows, network_input
from ..errors import InputError
from ..nn.advection import paths, sample
from ..nn.exceedance import ExceedanceForecaster
from .exceedance import LEVELS_MM_H, best_field, member_rates, noise, stratified
from .forecast import SPACING_TOLERANCE, Channel, Forecaster, Steps, close, lead_steps
from .losses import Sums, exceedance_error
from .motion import Array, motion_field, pysteps

LONGEST_STEP_MINUTES = 15.0
_MOTION_MINUTES = 10.0  # of past that the motion is taken from, and three frames at least
_FEWEST_FRAMES = 3
_WIDEST_MARGIN = 64  # pixels
_LEADS_AN_UPDATE = 2


def frames_needed(step: float, ages: Sequence[float]) -> int:
    """Past frames at a step in minutes: they reach back as far as the network looks, and give a motion."""
    reach = max(-min(ages), _MOTION_MINUTES)
    return max(_FEWEST_FRAMES, math.ceil(reach / step - 1e-6) + 1)


def aligned(fields: Array, minutes: Sequence[float], motion: Tensor, times: Sequence[float]) -> Array:
    """Fields (T, Y, X) seen at `minutes` (0 is now), moved to now, and between them at `times`: (len(times), Y, X).

    `motion` (1, 2, Y, X) is in pixels a minute. Before the first and after the last of `minutes` these are repeated. What is
    missing is what was last seen there.
    """
    places = paths(motion, minutes)
    moved = [sample(torch.from_numpy(field)[None, None], places[:, k])[0, 0] for k, field in enumerate(fields)]
    found: list[Tensor] = []
    for time in times:
        after = min(int(np.searchsorted(minutes, time - 1e-6)), len(moved) - 1)
        before = max(after - 1, 0) if abs(minutes[after] - time) > 1e-6 else after
        gap = minutes[after] - minutes[before]
        share = min(max((time - minutes[before]) / gap, 0.0), 1.0) if gap else 0.0
        field = moved[before] if not share else torch.lerp(moved[before], moved[after], share)
        found.append(torch.where(torch.isnan(field), found[-1], field) if found else field)
    return torch.stack(found).numpy()


class _Storm(NamedTuple):
    """What is known at the present, on the model's grid and a margin around it, from which rain may flow in: the aligned past
    (ages, Y, X) in mm/h, the motion in pixels a minute, and where anything was ever seen; and the lead times wanted, minutes.
    """

    minutes: list[float]
    past: Array
    motion: Tensor
    seen: npt.NDArray[np.bool_]
    margin: int


@dataclass
class LagrangianForecaster(Forecaster):
    """See above. `network` gives logits of exceedance (`nn/exceedance.py`); rain only.

    Attributes:
        ages: of the past fields that the network reads, minutes, the newest 0 and last.
    """

    network: ExceedanceForecaster  # type: ignore[assignment]
    ages: tuple[float, ...] = (-10.0, -5.0, 0.0)
    spacing_m: float | None = None  # of the frames it is used on
    motion: npt.NDArray[np.float64] | None = None  # in them, as `motion_field` gives it; None: to be found

    kind: ClassVar[str] = "lagrangian"
    reference: ClassVar[str] = "first guess"
    usual: ClassVar[dict[str, Any]] = {"patch": 8, "learning_rate": 1.5e-2}

    @classmethod
    def against(cls, units: str, step: Step) -> str | None:
        if not is_rain(units):
            return f"forecasts rain, in mm/h or dBZ, not {units}"
        if isinstance(step, str) or step > LONGEST_STEP_MINUTES:
            return f"follows the motion of rain over {LONGEST_STEP_MINUTES:g} min at most, and frames are {step_text(step)} apart"
        return None

    @classmethod
    def untrained(
        cls,
        transform: Transform,
        step: Step,
        past: int,
        future: int,
        grid_spacing_m: float | None,
        *,
        hidden_channels: Sequence[int],
        kernel_size: int,
        patch: int,
        periodic: bool = False,
        beside: Sequence[Channel] = (),
    ) -> LagrangianForecaster:
        against = "reads rain alone, without other channels" if beside else cls.against(transform.units, step)
        if against is not None:
            raise InputError(f"--model lagrangian {against}: use --model plain")
        assert not isinstance(step, str)
        pysteps()
        ages = tuple(step * (k + 1 - past) for k in range(past))
        return cls.at_ages(
            transform,
            ages,
            step,
            future,
            grid_spacing_m,
            hidden_channels=hidden_channels,
            kernel_size=kernel_size,
            patch=patch,
        )

    @classmethod
    def at_ages(
        cls,
        transform: Transform,
        ages: tuple[float, ...],
        lead_minutes: float,
        future: int,
        grid_spacing_m: float | None,
        **network: Any,
    ) -> LagrangianForecaster:
        """Untrained, for these ages and for `future` lead times, whatever the step of the frames; `network`: as in
        `ExceedanceForecaster`.
        """
        levels = transform.encode(np.array(LEVELS_MM_H, dtype=np.float32), "mm/h").tolist()
        net = ExceedanceForecaster(levels, len(ages), lead_minutes=lead_minutes, **network)
        past = frames_needed(lead_minutes, ages)
        return cls(net, transform, lead_minutes, past, future, grid_spacing_m, {}, ages=ages)

    @classmethod
    def span(cls, step: Step, past: int, future: int) -> tuple[int, int]:
        return (past if isinstance(step, str) else frames_needed(step, [step * (1 - past)])), future

    @property
    def frames_ahead(self) -> int:
        return math.ceil(self.leads[-1] / self._step - 1e-6)

    @property
    def leads(self) -> tuple[float, ...]:
        """Lead times that it is trained for, minutes."""
        return tuple(self.network.lead_minutes * (k + 1) for k in range(self.future))

    def windows(self, runs: Sequence[xr.DataArray], **options: Any) -> Windows:
        from .aligned import AlignedWindows

        return AlignedWindows(runs, self.transform, ages=self.ages, leads=self.leads, **options)

    def errors(self, batch: Sample, draws: np.random.Generator | None = None) -> Sums:
        """Of all lead times, but in training of a few that are drawn: they are much alike."""
        chosen = list(range(self.future))
        if draws is not None:
            chosen = sorted(draws.permutation(self.future)[:_LEADS_AN_UPDATE].tolist())
        leads = [self.leads[k] for k in chosen]
        drawn = {name: batch[name][:, chosen] for name in ("y", "valid")}
        return exceedance_error(self.network(batch["x"], leads), drawn, self.network.guess.levels)

    def reference_errors(self, batch: Sample) -> Sums:
        guess = self.network(batch["x"], self.leads, guess_only=True)
        return exceedance_error(guess, batch, self.network.guess.levels)

    def architecture(self) -> dict[str, Any]:
        network, core = self.network, self.network.core
        return {
            "levels": network.guess.levels.tolist(),
            "past": network.past,
            "lead_minutes": network.lead_minutes,
            "hidden_channels": list(core.hidden_channels),
            "kernel_size": core.kernel_size,
            "patch": core.patch,
            "told": core.out_channels,
            "width": network.mix.out_channels,
            "ages": list(self.ages),
        }

    @classmethod
    def built(cls, architecture: Mapping[str, Any]) -> tuple[ExceedanceForecaster, dict[str, Any]]:
        rest = {name: value for name, value in architecture.items() if name != "ages"}
        return ExceedanceForecaster(**rest), {"ages": tuple(architecture["ages"])}

    def suited(self, frames: xr.DataArray, *, any_grid: bool = False) -> LagrangianForecaster:
        """This forecaster for frames of this step and grid. Raises InputError where it cannot serve them."""
        source = self._checked_unit(frames)
        self._check_channels(frames, any_grid=any_grid)
        step = time_step(frames.time.values)
        if step is None:
            return self
        if isinstance(step, str) or step > LONGEST_STEP_MINUTES:
            raise InputError(
                f"{source} has a frame every {step_text(step)}: the motion of rain can be followed over "
                f"{LONGEST_STEP_MINUTES:g} min at most"
            )
        spacing, own = None if any_grid else grid_spacing(frames), self.grid_spacing_m
        if spacing is not None and own is not None and spacing > own * (1 + SPACING_TOLERANCE):
            raise InputError(
                f"{source} has a grid of {spacing / 1000:.3g} km, coarser than the model's of {own / 1000:.3g} km: use a model "
                "trained on that grid, or --any-grid to go on all the same"
            )
        return replace(self, step=step, past=frames_needed(step, self.ages), spacing_m=spacing)

    def fields(self, past: Array, steps: Steps) -> Array:
        """Rain rates (P, Y, X), mm/h, `step` minutes apart → the field of greatest expected CSI at each step (steps, Y, X).

        Steps need not be whole.
        """
        storm = self._storm(past, steps)
        seen = torch.from_numpy(storm.seen)
        leads = [best_field(logits, seen) for logits in self._logits(storm)]
        return self._placed(torch.stack(leads)[None], storm, past)[0]

    def ensemble(self, past: Array, steps: Steps, *, members: int, seed: int = 0) -> Array:
        """Members (members, steps, Y, X), mm/h, each as probable as the other."""
        storm = self._storm(past, steps)
        newest = np.nan_to_num(self.transform.encode(storm.past[-1], "mm/h"))
        kilometres = (self.grid_spacing_m or 1000.0) / 1000
        drawn = noise(newest, storm.minutes, members, kilometres=kilometres, seed=seed)
        leads = [member_rates(logits, stratified(normals)) for logits, normals in zip(self._logits(storm), drawn)]
        return self._placed(torch.stack(leads, dim=1), storm, past)

    @property
    def _step(self) -> float:
        assert not isinstance(self.step, str)
        return self.step

    def _size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of the model's grid over frames of this shape."""
        height, width = shape[-2:]
        spacing, own = self.spacing_m, self.grid_spacing_m
        if spacing is None or own is None or close(spacing, own, SPACING_TOLERANCE):
            return height, width
        return max(1, round(height * spacing / own)), max(1, round(width * spacing / own))

    def _storm(self, past: Array, steps: Steps) -> _Storm:
        minutes = [self._step * k for k in lead_steps(steps)]
        size = self._size(past.shape)
        if size != past.shape[-2:]:
            past = _means(past, size)
        moves = motion_field(past) if self.motion is None else _resized(self.motion, size)
        motion = torch.from_numpy((moves / self._step).astype(np.float32))[None]
        times = [self._step * (k + 1 - len(past)) for k in range(len(past))]
        here = aligned(past, times, motion, self.ages)
        margin = min(math.ceil(float(motion.abs().max()) * minutes[-1]), _WIDEST_MARGIN)
        around = ((0, 0), (margin, margin), (margin, margin))
        here = np.pad(here, around, constant_values=np.nan)
        seen = np.pad(np.isfinite(past).any(axis=0), around[1:])
        return _Storm(minutes, here, nnf.pad(motion, (margin,) * 4, mode="replicate"), seen, margin)

    def _logits(self, storm: _Storm) -> Iterator[Tensor]:
        """(K, Y, X) for each lead time, in the storm's coordinates."""
        device = next(self.network.parameters()).device
        x = network_input(self.transform.encode(storm.past, "mm/h")[:, None])[None].to(device)
        self.network.eval()
        with torch.inference_mode():
            for logits in self.network.leads(x, storm.minutes):
                yield logits[0].float().cpu()

    def _placed(self, fields: Tensor, storm: _Storm, past: Array) -> Array:
        """Fields (N, steps, Y, X) in the storm's coordinates → where they will be, on the grid of `past`.

        Missing only where all past frames are.
        """
        places = paths(storm.motion, [-minute for minute in storm.minutes])
        shape, size = past.shape[-2:], self._size(past.shape)
        inside = (..., slice(storm.margin, storm.margin + size[0]), slice(storm.margin, storm.margin + size[1]))
        found = np.empty((*fields.shape[:2], *shape), dtype=np.float32)
        for k in range(fields.shape[1]):
            moved = sample(fields[:, k][None], places[:, k], beyond="border")[inside]
            if moved.shape[-2:] != shape:
                moved = nnf.interpolate(moved, size=shape, mode="bilinear", align_corners=False)
            found[:, k] = moved[0].numpy()
        found[..., ~np.isfinite(past).any(axis=0)] = np.nan
        return found


def _means(fields: Array, size: tuple[int, int]) -> Array:
    """Over the valid pixels of each pixel of a coarser grid, missing where under half are valid."""
    field = torch.from_numpy(fields)[None]
    valid = torch.isfinite(field)
    weight = nnf.interpolate(valid.float(), size=size, mode="area")
    mean = nnf.interpolate(torch.where(valid, field, 0.0), size=size, mode="area") / weight.clamp(min=1e-6)
    return torch.where(weight >= 0.5, mean, torch.nan)[0].numpy()


def _resized(motion: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Motion (2, Y, X) in pixels of one grid → in those of another over the same area."""
    if size == motion.shape[-2:]:
        return motion
    scale = np.array([size[1] / motion.shape[2], size[0] / motion.shape[1]])[:, None, None]
    return nnf.interpolate(torch.from_numpy(motion)[None], size=size, mode="area")[0].numpy() * scale
