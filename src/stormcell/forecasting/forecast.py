"""A trained network that forecasts a person's frames, and its file.

A model file is one `.safetensors`: weights, and a JSON header (the model card) with architecture, unit transform, time step,
grid spacing, past and future lengths, the frames it was trained and chosen on, validation scores, version and command.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..data.axes import MONTH, Step, advance, grid_spacing, step_text, time_step
from ..data.frames import check_frames, values, zr_pair
from ..data.units import Transform, is_rain
from ..data.windows import network_input, split_at_gaps
from ..errors import InputError, reason
from ..nn.convlstm import ConvLSTM2d
from ..nn.forecaster import EncoderForecaster
from ..writing import whole_file

FORMAT = 1
SPACING_TOLERANCE = 0.25


@dataclass
class Forecaster:
    """A network with all that is needed to use it on frames: `load(path).forecast(frames, steps=18)`.

    Attributes:
        network: (B, past, 2, Y, X) → (B, steps, 1, Y, X), in the encoded range; channels value and validity.
        transform: from units to the encoded range.
        step: time step, minutes or "month".
        past, future: frames it reads, and frames it was trained to forecast.
        grid_spacing_m: grid spacing it was trained on, or None.
        card: all else that the model file says.
    """

    network: EncoderForecaster
    transform: Transform
    step: Step
    past: int
    future: int
    grid_spacing_m: float | None
    card: dict[str, Any]

    def check(self, frames: xr.DataArray, *, any_grid: bool = False) -> None:
        """Raise InputError if unit, time step or grid spacing of the frames are not the model's."""
        source, units = frames.attrs.get("source", "frames"), frames.attrs["units"]
        if not self.transform.accepts(units):
            wanted = "rain, mm/h or dBZ" if self.transform.rain else self.transform.units
            raise InputError(f"{source} is in {units}, which does not convert to the model's unit ({wanted})")
        step = time_step(frames.time.values)
        if step is not None and step != self.step and not _close(step, self.step, 0.02):
            advice = "use a model trained on that step"
            if not isinstance(step, str) and not isinstance(self.step, str) and _divides(step, self.step):
                advice = f"give --step-minutes {self.step:g} to thin them"
            raise InputError(
                f"{source} has a frame every {step_text(step)}, the model one every {step_text(self.step)}: {advice}"
            )
        spacing = grid_spacing(frames)
        if any_grid or spacing is None or self.grid_spacing_m is None:
            return
        if not _close(spacing, self.grid_spacing_m, SPACING_TOLERANCE):
            n = round(self.grid_spacing_m / spacing)
            advice = "use a model trained on that grid"
            if n >= 2 and _close(n * spacing, self.grid_spacing_m, SPACING_TOLERANCE):
                advice = f"give --coarsen {n}"
            raise InputError(
                f"{source} has a grid of {spacing / 1000:.3g} km, the model one of {self.grid_spacing_m / 1000:.3g} km: "
                f"{advice}, or --any-grid to go on all the same"
            )

    def predict(self, past: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float32]:
        """Encoded frames (past, Y, X), NaN where missing → encoded forecast (steps, Y, X).

        Missing only where all past frames are.
        """
        device = next(self.network.parameters()).device
        self.network.eval()
        with torch.no_grad():
            y = self.network(network_input(past)[None].to(device), steps)[0, :, 0].float().cpu().numpy()
        y[:, ~np.isfinite(past).any(axis=0)] = np.nan
        return y

    def forecast(self, frames: xr.DataArray, steps: int | None = None, *, any_grid: bool = False) -> xr.DataArray:
        """Forecast the `steps` frames after the newest of `frames` (None: as many as in training).

        Returns frames of the same unit, grid and CRS; time is the valid time, with `lead_time` beside it and
        `forecast_reference_time`, the time of the newest frame. NaN only where a pixel is missing in all past frames.

        Raises InputError if there are too few frames without a gap up to the newest, or if unit, time step or grid
        spacing (by more than 25 %, unless `any_grid`) are not the model's.
        """
        frames = check_frames(frames)
        steps = self.future if steps is None else steps
        if steps < 1:
            raise InputError(f"--steps must be 1 or more, not {steps}")
        source = frames.attrs.get("source", "frames")
        self.check(frames, any_grid=any_grid)
        newest = split_at_gaps(frames)[-1]
        if newest.sizes["time"] < self.past:
            raise InputError(
                f"{source} ends with {newest.sizes['time']} frames without a gap; the model needs {self.past}"
            )
        newest = newest.isel(time=slice(-self.past, None))
        units, zr = frames.attrs["units"], zr_pair(frames)
        encoded = self.predict(self.transform.encode(values(newest), units, zr), steps)
        return as_forecast(self.transform.decode(encoded, units, zr), newest, self.step)

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all. Raises InputError where it cannot be written."""
        header = {
            **self.card,
            "format": FORMAT,
            "architecture": architecture(self.network),
            "transform": self.transform.to_json(),
            "step": self.step,
            "past": self.past,
            "future": self.future,
            "grid_spacing_m": self.grid_spacing_m,
        }
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        with whole_file(Path(path)) as temporary:
            temporary.write_bytes(save(weights, metadata={"stormcell": json.dumps(header)}))


def as_forecast(decoded: npt.NDArray[np.float32], past: xr.DataArray, step: Step) -> xr.DataArray:
    """Values (steps, Y, X) → a forecast on the grid of `past`, counted from its newest frame."""
    reference = past.time.values[-1]
    valid = np.array([advance(reference, step, k + 1) for k in range(len(decoded))], dtype="datetime64[ns]")
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
    return xr.DataArray(decoded, dims=("time", "y", "x"), coords=coords, attrs=attrs, name=past.name or "forecast")


def architecture(network: EncoderForecaster) -> dict[str, Any]:
    """The arguments that make this network anew."""
    layer = network.encoder[0]
    assert isinstance(layer, ConvLSTM2d)
    return {
        "in_channels": network.in_channels,
        "hidden_channels": list(network.hidden_channels),
        "kernel_size": layer.kernel_size[0],
        "recurrent_kernel_size": layer.recurrent_kernel_size[0],
        "patch": network.patch,
        "peephole": layer.peephole,
        "out_channels": network.out_channels,
        "readout": network.readout,
    }


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Forecaster:
    """Read a model file. Nothing is unpickled. Raises InputError if it is not one, or breaks off."""
    try:
        if not Path(path).is_file():
            raise InputError(f"{path} is not there; train a model first: stormcell train DATA -o {path}")
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["stormcell"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        if "layers" in card:
            raise InputError(
                f"{path} holds ConvLSTM layers, not a forecaster: stormcell.interop.read_layers reads them"
            )
        if card["format"] != FORMAT:
            raise InputError(f"{path} has format {card['format']}; this version of Stormcell reads {FORMAT}")
        network = EncoderForecaster(**card["architecture"])
        network.load_state_dict(weights)
        if card["step"] != MONTH and not float(card["step"]) > 0:
            raise ValueError(f"a step of {card['step']}")
        forecaster = Forecaster(
            network=network.to(device).eval(),
            transform=Transform.from_json(card["transform"]),
            step=card["step"],
            past=int(card["past"]),
            future=int(card["future"]),
            grid_spacing_m=card["grid_spacing_m"],
            card=card,
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
            encoding: dict[str, dict[str, Any]] = {name: {"_FillValue": None} for name in map(str, dataset.coords)}
            encoding[str(frames.name or "frames")] = {"zlib": True, "complevel": 4}
            # In memory first: where the disk is full, HDF5 takes the whole process down. Not by `to_netcdf`, which makes
            # no bytes with h5netcdf in the last xarray for Python 3.10.
            buffer = io.BytesIO()
            with h5netcdf.File(buffer, "w") as file:
                dataset.dump_to_store(xr.backends.H5NetCDFStore(file), encoding=encoding)
            temporary.write_bytes(buffer.getvalue())
        else:
            raise InputError(f"{path}: expected a file that ends in .nc, .zarr, .png, .gif or .mp4")


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
    dataset["time"].attrs |= {"standard_name": "time", "axis": "T"}
    dataset.attrs = {
        "Conventions": "CF-1.11",
        "title": str(frames.attrs.get("long_name", name)),
        "source": f"Stormcell, from {source}" if source else "Stormcell",
    }
    return dataset


def _close(a: Step, b: Step, tolerance: float) -> bool:
    return not isinstance(a, str) and not isinstance(b, str) and abs(a - b) <= tolerance * b


def _divides(step: float, wanted: float) -> bool:
    ratio = wanted / step
    return ratio > 1.5 and abs(ratio - round(ratio)) < 0.01
