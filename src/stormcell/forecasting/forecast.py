"""A trained network that forecasts a person's frames, and its file.

A model file is one `.safetensors`: weights, and a JSON header (the model card) with architecture, unit transform, time step,
grid spacing, past and future lengths, the frames it was trained and chosen on, validation scores, version and command.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import h5netcdf
import h5py
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..data.axes import MONTH, Step, advance, grid_spacing, step_text, time_step, time_text, wraps
from ..data.channels import channels_of, described, first_channel
from ..data.contract import check_frames, values, zr_pair
from ..data.units import Transform, from_rain_rate, is_rain, to_rain_rate
from ..data.windows import Sample, Windows, network_input, split_at_gaps
from ..errors import InputError, reason
from ..nn.convlstm import ConvLSTM2d
from ..nn.forecaster import EncoderForecaster
from ..writing import whole_file
from .bundled import model_file
from .climatology import Climatology
from .losses import Sums, summed_error
from .tiles import halo, side, tiled

FORMAT = 1
_CLIMATOLOGY = "climatology"  # among the weights in a file
_PYSTEPS_NAMES = {"mm/h": "precip_intensity", "dBZ": "reflectivity"}
Steps = int | Sequence[float]  # so many from the newest frame on, or these: [0.5, 2] is half a step ahead, and two
THRESHOLDS_MM_H = (0.5, 2.0, 5.0, 10.0)
SPACING_TOLERANCE = 0.25


@dataclass(frozen=True)
class Channel:
    """What a model reads beside what it forecasts; `digest` tells the field, where it is one that does not change."""

    name: str
    transform: Transform
    digest: str | None = None


@dataclass
class Forecaster:
    """A network with all that is needed to use it on frames: `load(path).forecast(frames, steps=18)`.

    Attributes:
        network: (B, past, 2C, Y, X) → (B, steps, 1, Y, X), in the encoded range; value and validity of each channel.
        transform: from units to the encoded range.
        step: time step, minutes or "month".
        past, future: frames it reads, and frames it was trained to forecast.
        grid_spacing_m: grid spacing it was trained on, or None.
        card: all else that the model file says.
        climatology: of the frames it was made with, of a plain quantity on one grid; else None.
        beside: channels that it reads beside the one that it forecasts.

    This one reads and forecasts in the ground's coordinates, any quantity; `LagrangianForecaster` in the storm's, rain.
    """

    kind: ClassVar[str] = "plain"
    reference: ClassVar[str] = "persistence"
    usual: ClassVar[dict[str, Any]] = {"patch": 4, "learning_rate": 1e-3}  # in training, unless told otherwise

    network: EncoderForecaster
    transform: Transform
    step: Step
    past: int
    future: int
    grid_spacing_m: float | None
    card: dict[str, Any]
    climatology: Climatology | None = None
    beside: tuple[Channel, ...] = ()

    @classmethod
    def against(cls, units: str, step: Step) -> str | None:
        """Why such a model cannot learn frames of this unit and time step; None if it can."""
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
    ) -> Forecaster:
        """With weights as torch draws them; `periodic`: for grids that go around the globe. Raises InputError if such a model
        cannot learn such frames.
        """
        network = EncoderForecaster(
            2 + 2 * len(beside),
            hidden_channels,
            kernel_size,
            patch=patch,
            peephole="channel",
            out_channels=1,
            periodic_x=periodic,
        )
        return cls(network, transform, step, past, future, grid_spacing_m, {}, beside=tuple(beside))

    @classmethod
    def span(cls, step: Step, past: int, future: int) -> tuple[int, int]:
        """Frames before and after now that a training window takes, for a model that reads and forecasts so many."""
        return past, future

    @property
    def frames_ahead(self) -> int:
        """Frames after now that a training window takes, and that are forecast unless told otherwise."""
        return self.future

    def windows(self, runs: Sequence[xr.DataArray], **options: Any) -> Windows:
        """Samples to train on, or to choose by."""
        return Windows(
            runs,
            self.transform,
            past=self.past,
            future=self.future,
            periodic=self.network.periodic_x,
            beside=[c.transform for c in self.beside],
            **options,
        )

    def errors(self, batch: Sample, draws: np.random.Generator | None = None) -> Sums:
        """What training minimises the mean of. What is left to chance in training follows from `draws`."""
        return summed_error(self.network(batch["x"], self.future), batch, rain=self.transform.rain)

    def reference_errors(self, batch: Sample) -> Sums:
        """The same of what needs no training."""
        last = batch["x"][:, -1:, :1].expand_as(batch["y"])
        return summed_error(last, batch, rain=self.transform.rain)

    def _checked_unit(self, frames: xr.DataArray) -> str:
        """The frames' source. Raises InputError if their unit is not the model's."""
        source, units = frames.attrs.get("source", "frames"), frames.attrs["units"]
        if not self.transform.accepts(units):
            wanted = "rain, mm/h or dBZ" if self.transform.rain else self.transform.units
            raise InputError(
                f"{source} is in {units}, which does not convert to the model's unit ({wanted}): "
                "train one on such frames, stormcell train"
            )
        return str(source)

    def _check_channels(self, frames: xr.DataArray, *, any_grid: bool) -> None:
        """Raise InputError if frames have not the channels that the model reads, in their order."""
        source, theirs = frames.attrs.get("source", "frames"), described(frames)
        names = [str(self.card.get("variable", theirs[0][0])), *(c.name for c in self.beside if c.digest is None)]
        if len(names) != sum(not static for *_, static in theirs):
            raise InputError(
                f"{source}: the model reads {len(names)} of its variables: give --variable {','.join(names)}"
            )
        wanted = [c.name for c in self.beside if c.digest is not None]
        given = [name for name, _, static in theirs if static]
        if wanted != given:
            again = " ".join(f"--static FILE:{name}" for name in wanted)
            advice = f"give {again}, as in training" if wanted else "leave --static out"
            raise InputError(
                f"{source}: the model reads {', '.join(wanted) or 'no static field'} beside the frames, and "
                f"{', '.join(given) or 'none'} is given: {advice}"
            )
        for channel, (name, units, _), one in zip(self.beside, theirs[1:], channels_of(frames)[1:]):
            if not channel.transform.accepts(units):
                raise InputError(f"{source}: {name} is in {units}, and the model reads {channel.transform.units} there")
            if channel.digest not in (None, static_digest(one)) and not any_grid:
                raise InputError(
                    f"{source}: {name} is another field than the one of that name in training; give that one, or --any-grid "
                    "to go on all the same"
                )

    def suited(self, frames: xr.DataArray, *, any_grid: bool = False) -> Forecaster:
        """The forecaster for such frames. Raises InputError if unit, time step or grid spacing are not the model's."""
        source = self._checked_unit(frames)
        self._check_channels(frames, any_grid=any_grid)
        step = time_step(frames.time.values)
        if step is not None and step != self.step and not close(step, self.step, 0.02):
            advice = "use a model trained on that step"
            if not isinstance(step, str) and not isinstance(self.step, str) and _divides(step, self.step):
                advice = f"give --step-minutes {self.step:g} to thin them"
            raise InputError(
                f"{source} has a frame every {step_text(step)}, the model one every {step_text(self.step)}: {advice}"
            )
        if self.network.periodic_x and (not wraps(frames) or frames.sizes["x"] % self.network.patch):
            raise InputError(
                f"{source} has {frames.sizes['x']} columns, which do not go around the globe, or not in patches of "
                f"{self.network.patch}; the model's grid does: use a model trained on this grid"
            )
        spacing = grid_spacing(frames)
        if any_grid or spacing is None or self.grid_spacing_m is None:
            return self
        if not close(spacing, self.grid_spacing_m, SPACING_TOLERANCE):
            n = round(self.grid_spacing_m / spacing)
            advice = "use a model trained on that grid"
            if n >= 2 and close(n * spacing, self.grid_spacing_m, SPACING_TOLERANCE):
                advice = f"give --coarsen {n}"
            raise InputError(
                f"{source} has a grid of {spacing / 1000:.3g} km, the model one of {self.grid_spacing_m / 1000:.3g} km: "
                f"{advice}, or --any-grid to go on all the same"
            )
        return self

    def fields(self, past: npt.NDArray[np.float32], steps: Steps) -> npt.NDArray[np.float32]:
        """Frames (past, [C,] Y, X) as `quantities` has them, NaN where missing → forecast (steps, Y, X).

        Missing only where all past frames are. Of large frames a tile at a time (`tiles.py`). Raises InputError for a part of a
        step.
        """
        wanted = lead_steps(steps)
        if any(k % 1 for k in wanted):
            raise InputError(f"this model forecasts whole steps of {step_text(self.step)}, not {wanted}")
        transforms = [self.transform, *(channel.transform for channel in self.beside)]
        channels = past[:, None] if past.ndim == 3 else past
        encoded = [t.encode(channels[:, k], "mm/h" if t.rain else t.units) for k, t in enumerate(transforms)]
        device = next(self.network.parameters()).device
        self.network.eval()

        def forecast(tile: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            with torch.no_grad():
                y = self.network(network_input(tile)[None].to(device), int(wanted[-1]))
                return y[0, [int(k) - 1 for k in wanted], 0].float().cpu().numpy()

        x = np.stack(encoded, axis=1)
        size = self.network, len(past), int(wanted[-1])
        whole = self.network.periodic_x  # a tile would have ends
        y = forecast(x) if whole else tiled(forecast, x, side=side(*size), halo=halo(*size))
        y[:, ~np.isfinite(channels[:, 0]).any(axis=0)] = np.nan
        return self.transform.decode(y, "mm/h" if self.transform.rain else self.transform.units)

    def ensemble(
        self, past: npt.NDArray[np.float32], steps: Steps, *, members: int, seed: int = 0
    ) -> npt.NDArray[np.float32]:
        """Frames as in `fields` → members (members, steps, Y, X). Raises InputError for a model without probabilities."""
        raise InputError("this model forecasts one field, not an ensemble: train one with --model lagrangian")

    def forecast(
        self,
        frames: xr.DataArray,
        steps: Steps | None = None,
        *,
        members: int | None = None,
        seed: int = 0,
        any_grid: bool = False,
    ) -> xr.DataArray:
        """Forecast the `steps` frames after the newest of `frames` (None: as many as in training), or those at a list of steps,
        such as [6, 12], which a lagrangian model may divide: [0.5, 1].

        Returns frames of the same unit, grid and CRS; time is the valid time, with `lead_time` beside it and
        `forecast_reference_time`, the time of the newest frame. NaN only where a pixel is missing in all past frames.
        With `members`, an ensemble of so many, with a dimension `member` in front, which follows from `seed`.

        Raises InputError if there are too few frames without a gap up to the newest, if unit, time step or grid
        spacing are not the model's, or if it makes no ensembles.
        """
        frames = check_frames(frames)
        source = frames.attrs.get("source", "frames")
        suited = self.suited(frames, any_grid=any_grid)
        leads = lead_steps(suited.frames_ahead if steps is None else steps)
        newest = split_at_gaps(frames)[-1]
        if newest.sizes["time"] < suited.past:
            raise InputError(
                f"{source} ends with {newest.sizes['time']} frames without a gap; the model needs {suited.past}"
            )
        newest = newest.isel(time=slice(-suited.past, None))
        units, zr = frames.attrs["units"], zr_pair(frames)
        past = quantities(newest)
        found = (
            suited.fields(past, leads) if members is None else suited.ensemble(past, leads, members=members, seed=seed)
        )
        if self.transform.rain:
            found = from_rain_rate(found, units, zr)
        return as_forecast(found.astype(np.float32), first_channel(newest), suited.step, leads)

    def architecture(self) -> dict[str, Any]:
        """The arguments that make this network anew."""
        layer = self.network.encoder[0]
        assert isinstance(layer, ConvLSTM2d)
        return {
            "in_channels": self.network.in_channels,
            "hidden_channels": list(self.network.hidden_channels),
            "kernel_size": layer.kernel_size[0],
            "recurrent_kernel_size": layer.recurrent_kernel_size[0],
            "patch": self.network.patch,
            "peephole": layer.peephole,
            "out_channels": self.network.out_channels,
            "readout": self.network.readout,
            "periodic_x": self.network.periodic_x,
        }

    @classmethod
    def built(cls, architecture: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What `architecture` describes: a network, and arguments of this class that belong to it."""
        return EncoderForecaster(**architecture), {}

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all. Raises InputError where it cannot be written."""
        header = {
            **self.card,
            "format": FORMAT,
            "model": self.kind,
            "architecture": self.architecture(),
            "transform": self.transform.to_json(),
            "step": self.step,
            "past": self.past,
            "future": self.future,
            "grid_spacing_m": self.grid_spacing_m,
            "beside": [{"name": c.name, "transform": c.transform.to_json(), "digest": c.digest} for c in self.beside],
            "climatology": None if self.climatology is None else self.climatology.to_json(),
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        if self.climatology is not None:
            weights[_CLIMATOLOGY] = torch.from_numpy(self.climatology.means)
        with whole_file(Path(path)) as temporary:
            temporary.write_bytes(save(weights, metadata={"stormcell": json.dumps(header)}))


def quantities(frames: xr.DataArray) -> npt.NDArray[np.float32]:
    """Values as models and baselines take them (T, Y, X), of several channels (T, C, Y, X): rain in mm/h."""
    found = []
    for one in channels_of(frames):
        units = one.attrs["units"]
        found.append(to_rain_rate(values(one), units, zr_pair(one)) if is_rain(units) else values(one))
    return found[0] if "channel" not in frames.dims else np.stack(found, axis=1)


def static_digest(channel: xr.DataArray) -> str:
    """What tells a field that does not change from another."""
    return hashlib.blake2b(values(channel.isel(time=0)).tobytes(), digest_size=8).hexdigest()


def lead_steps(steps: Steps) -> list[float]:
    """The steps that are meant. Raises InputError if there are none, or they do not ascend from above 0."""
    if isinstance(steps, (int, np.integer)):
        if steps < 1:
            raise InputError(f"--steps must be 1 or more, not {steps}")
        return list(range(1, int(steps) + 1))
    wanted = [float(k) for k in steps]
    if not wanted or not all(a < b for a, b in zip([0.0, *wanted], wanted)):
        raise InputError(f"steps must ascend from above 0, not {wanted}")
    return wanted


def as_forecast(
    decoded: npt.NDArray[np.float32], past: xr.DataArray, step: Step, steps: Steps | None = None
) -> xr.DataArray:
    """Values ([member,] steps, Y, X) → a forecast on the grid of `past`, counted from its newest frame.

    `steps` says which they are, where they are not the first ones.
    """
    reference = past.time.values[-1]
    leads = lead_steps(decoded.shape[-3] if steps is None else steps)
    valid = np.array([advance(reference, step, k) for k in leads], dtype="datetime64[ns]")
    coords: dict[str, Any] = {
        "time": ("time", valid, {"standard_name": "time", "long_name": "valid time"}),
        "lead_time": ("time", valid - reference, {"standard_name": "forecast_period"}),
        "forecast_reference_time": ((), reference, {"standard_name": "forecast_reference_time"}),
        "y": past.y,
        "x": past.x,
    }
    if "spatial_ref" in past.coords:
        coords["spatial_ref"] = past.spatial_ref
    attrs = {**past.attrs, "long_name": f"forecast of {past.name or 'frames'}"}
    dims: tuple[str, ...] = ("time", "y", "x")
    if decoded.ndim == 4:
        dims = ("member", *dims)
        coords["member"] = ("member", np.arange(len(decoded)), {"standard_name": "realization"})
    return xr.DataArray(decoded, dims=dims, coords=coords, attrs=attrs, name=past.name or "forecast")


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Forecaster:
    """Read a model file; "default" is the model that comes with Stormcell: rain, any grid up to 2 km, steps up to 15 minutes.

    Nothing is unpickled. Raises InputError if it is not a model file, or breaks off.
    """
    try:
        file_path = model_file(path)
        if not file_path.is_file():
            raise InputError(f"{path} is not there; train a model first: stormcell train DATA -o {path}")
        with safe_open(file_path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["stormcell"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        if "layers" in card:
            raise InputError(
                f"{path} holds ConvLSTM layers, not a forecaster: stormcell.interop.read_layers reads them"
            )
        if card["format"] != FORMAT:
            raise InputError(f"{path} has format {card['format']}; this version of Stormcell reads {FORMAT}")
        from .models import MODELS

        kind: Any = MODELS[card.get("model", Forecaster.kind)]
        network, own = kind.built(card["architecture"])
        if card.get("climatology"):
            own["climatology"] = Climatology(weights.pop(_CLIMATOLOGY).numpy(), **card["climatology"])
        own["beside"] = tuple(
            Channel(one["name"], Transform.from_json(one["transform"]), one["digest"]) for one in card.get("beside", [])
        )
        network.load_state_dict(weights)
        if card["step"] != MONTH and not float(card["step"]) > 0:
            raise ValueError(f"a step of {card['step']}")
        forecaster: Forecaster = kind(
            network=network.to(device).eval(),
            transform=Transform.from_json(card["transform"]),
            step=card["step"],
            past=int(card["past"]),
            future=int(card["future"]),
            grid_spacing_m=card["grid_spacing_m"],
            card=card,
            **own,
        )
    except InputError:
        raise
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a model file of Stormcell, or breaks off ({reason(error)})") from error
    return forecaster


def save_frames(frames: xr.DataArray, path: str | Path) -> None:
    """Write frames or a forecast as CF NetCDF (.nc) or Zarr (.zarr), whole or not at all; `open_frames` reads it back.

    Raises InputError for another suffix, and where it cannot be written.
    """
    path = Path(path)
    dataset = to_cf(frames)
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".zarr":
            dataset.to_zarr(temporary, zarr_format=2, consolidated=True)
        elif path.suffix.lower() in (".nc", ".nc4"):
            temporary.write_bytes(_netcdf(dataset, str(frames.name or "frames")))
        else:
            raise InputError(f"{path}: expected a file that ends in .nc, .zarr, .png, .gif or .mp4")


def _netcdf(dataset: xr.Dataset, name: str) -> bytes:
    """A file, made in memory: where the disk is full, HDF5 takes the whole process down.

    pysteps' importer counts the time of a forecast in seconds from its reference time, and knows few names of variables: what
    it knows becomes a second name (a hard link of HDF5) of the same values.
    """
    encoding: dict[str, dict[str, Any]] = {coord: {"_FillValue": None} for coord in map(str, dataset.coords)}
    encoding[name] = {"zlib": True, "complevel": 4}
    second_names = {}
    reference = dataset.coords.get("forecast_reference_time")
    if reference is not None and reference.ndim == 0:
        encoding["time"]["units"] = f"seconds since {time_text(reference.values, 's')}"
        known = _PYSTEPS_NAMES.get(dataset[name].attrs["units"], name)
        if known not in dataset.variables:
            second_names[known] = name
            dataset[name].attrs["also_named"] = known
        if "spatial_ref" in dataset and dataset.spatial_ref.attrs.get("grid_mapping_name") == "polar_stereographic":
            second_names["polar_stereographic"] = "spatial_ref"
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:  # `to_netcdf` makes no bytes in the last xarray for Python 3.10
        dataset.dump_to_store(xr.backends.H5NetCDFStore(file), encoding=encoding)
    with h5py.File(buffer, "r+") as file:
        for second, first in second_names.items():
            file[second] = file[first]
    return buffer.getvalue()


def to_cf(frames: xr.DataArray) -> xr.Dataset:
    """Frames as a dataset in the words of CF: units, axes, grid mapping, forecast period and reference time."""
    name, source = str(frames.name or "frames"), frames.attrs.get("source")
    frames = frames.copy(deep=False).rename(name)
    attrs = {k: v for k, v in frames.attrs.items() if k in ("units", "long_name", "standard_name")}
    if is_rain(frames.attrs["units"]):
        attrs["zr_a"], attrs["zr_b"] = zr_pair(frames)
        attrs["standard_name"] = {
            "mm/h": "lwe_precipitation_rate",
            "dBZ": "equivalent_reflectivity_factor",
        }[frames.attrs["units"]]
    if "spatial_ref" in frames.coords:
        attrs["grid_mapping"] = "spatial_ref"
    frames.attrs = attrs
    places = {"m": "projection_{}_coordinate", "degrees": "{}"}
    for axis, degree in (("x", "longitude"), ("y", "latitude")):
        units = frames[axis].attrs.get("units")
        frames[axis].attrs |= {"axis": axis.upper()}
        if units in places:
            frames[axis].attrs["standard_name"] = places[units].format(axis if units == "m" else degree)
        if units == "degrees":
            frames[axis].attrs["units"] = "degrees_east" if axis == "x" else "degrees_north"
    if "lead_time" in frames.coords:
        lead = frames.lead_time
        minutes = (lead / np.timedelta64(1, "s")).astype(np.float64) / 60
        frames = frames.assign_coords(
            lead_time=("time", minutes.values, {"standard_name": "forecast_period", "units": "minutes"})
        )
    dataset = frames.to_dataset()
    if "member" in frames.dims:
        dataset["probability_of_exceedance"] = _exceedance(frames)
    dataset["time"].attrs |= {"standard_name": "time", "axis": "T"}
    dataset.attrs = {
        "Conventions": "CF-1.11",
        "title": str(frames.attrs.get("long_name", name)),
        "source": f"Stormcell, from {source}" if source else "Stormcell",
    }
    return dataset


def _exceedance(members: xr.DataArray) -> xr.DataArray:
    """Share of members at or above each of THRESHOLDS_MM_H, NaN where they are missing."""
    zr = members.attrs["zr_a"], members.attrs["zr_b"]
    shares = []
    for level in THRESHOLDS_MM_H:
        limit = float(from_rain_rate(np.array([level], np.float32), members.attrs["units"], zr)[0])
        shares.append((members >= limit).mean("member").where(members.notnull().any("member")).astype(np.float32))
    threshold = xr.DataArray(list(THRESHOLDS_MM_H), dims="threshold", attrs={"units": "mm/h", "long_name": "rain rate"})
    found = xr.concat(shares, dim=threshold.rename("threshold")).transpose("time", "threshold", "y", "x")
    found.attrs = {"units": "1", "long_name": "share of members at or above the threshold"}
    return found


def close(a: Step, b: Step, tolerance: float) -> bool:
    """Whether a step or a spacing is another one, to a share of the latter."""
    return not isinstance(a, str) and not isinstance(b, str) and abs(a - b) <= tolerance * b


def _divides(step: float, wanted: float) -> bool:
    ratio = wanted / step
    return ratio > 1.5 and abs(ratio - round(ratio)) < 0.01
