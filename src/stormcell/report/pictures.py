"""Frames as still pictures and films.

Every picture tells three states apart: a value (colour), no echo (white) and missing (grey, hatched); a white hole in
the radar coverage would read as "dry". Colours are matplotlib's own, with lightness falling steadily as rain rises,
so that they survive colour blindness and a black-and-white printer. Figures are made without pyplot: nothing global,
nothing to close, safe in a server.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..data.axes import lead_text
from ..errors import InputError

__all__ = ["animate", "colours", "comparison", "panels", "save"]

BOUNDARIES: dict[str, tuple[float, ...]] = {
    "mm/h": (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
    "dBZ": tuple(range(5, 70, 5)),
}
BRIGHTNESS = "brightness"
"""Unit of images, from 0 to 1."""
QUANTITIES = {"mm/h": "rain rate", "dBZ": "reflectivity"}

MOST_PANELS = 12
MOST_COLUMNS = 4
WIDEST = 1500
"""Pixels along one side above which a grid is thinned before drawing; no picture here has as many."""

MISSING_FACE, MISSING_HATCH = "#c9c9c9", "#8a8a8a"
INK, QUIET = "#1f2933", "#52606d"
FORECAST_EDGE = "#0072b2"


def colours(units: str, frames: xr.DataArray | Sequence[xr.DataArray] | None = None) -> tuple[Colormap, Normalize]:
    """Colour map and norm for values in `units`.

    mm/h and dBZ have fixed boundaries, so that pictures of different days compare; what is below the first is white. Images are
    grey, from 0 to 1.
    Any other unit spans the 2nd to 98th percentile of the valid pixels of `frames` (0 to 1 where there are none).
    Missing pixels are transparent.
    """
    transparent = (0.0, 0.0, 0.0, 0.0)
    if units in BOUNDARIES:
        cmap = matplotlib.colormaps["plasma_r"]
        # extend="both" also skips the palest end of the map: the first class must not be taken for the white below it
        return cmap.with_extremes(under="white", bad=transparent), BoundaryNorm(
            BOUNDARIES[units], cmap.N, extend="both"
        )
    if units == BRIGHTNESS:
        return matplotlib.colormaps["gray"].with_extremes(bad=transparent), Normalize(0, 1)
    many = [] if frames is None else [frames] if isinstance(frames, xr.DataArray) else list(frames)
    low, high = _robust_range(many)
    return matplotlib.colormaps["viridis"].with_extremes(bad=transparent), Normalize(low, high)


def panels(frames: xr.DataArray, *, title: str | None = None, past: xr.DataArray | None = None) -> Figure:
    """Draw one panel a time step: valid time in UTC, lead time where `frames` are a forecast, one colour bar.

    At most 12 panels are drawn, evenly chosen, first and last always among them; `past` frames come first, marked
    "observed". Missing pixels are grey and hatched. InputError where either is not frames, has no time step, or where
    their units differ.
    """
    groups = [frames] if past is None else [past, frames]
    unit = _one_unit(groups)
    shown: list[tuple[xr.DataArray, str]] = []
    if past is not None:
        kept = min(past.sizes["time"], max(MOST_COLUMNS, MOST_PANELS - frames.sizes["time"]))
        past = _thinned(past.isel(time=_evenly(past.sizes["time"], kept)))
        shown += [(frame, f"observed\n{_time_label(frame)}") for frame in _steps(past)]
    frames = _thinned(frames.isel(time=_evenly(frames.sizes["time"], MOST_PANELS - len(shown))))
    shown += [(frame, _panel_title(frame)) for frame in _steps(frames)]

    columns = {3: 3, 5: 3, 6: 3, 9: 3}.get(len(shown), min(len(shown), MOST_COLUMNS))
    rows = math.ceil(len(shown) / columns)
    figure, axes = _grid(rows, columns, place=_Place.of(frames), title=title, gap=0.45)
    cmap, norm = colours(unit, [frame for frame, _ in shown])
    flat = [ax for row in axes for ax in row]
    for number, ((frame, label), ax) in enumerate(zip(shown, flat, strict=False)):
        image = _draw(ax, frame, cmap, norm)
        ax.set_title(label, fontsize=9, color=INK, parse_math=False)
        _outer_labels(ax, left=number % columns == 0, bottom=number + columns >= len(shown))
    for ax in flat[len(shown) :]:
        ax.set_visible(False)
    _explain(figure, image, flat[: len(shown)], [frame for frame, _ in shown])
    return figure


def comparison(
    rows: Mapping[str, xr.DataArray], *, leads: Sequence[np.timedelta64] | None = None, title: str | None = None
) -> Figure:
    """Draw the same valid times one above the other: one row a name (observed, forecast, persistence, …), one column
    a lead time.

    `leads` defaults to at most 4 lead times, evenly chosen, of the first row that has the coordinate `lead_time`;
    where no row has one, the columns are times of the first row. Rows without `lead_time` (observations) are matched
    by valid time; a row that lacks a time says so in an empty panel. InputError for no rows, other things than
    frames, unlike units, or a lead no forecast has.
    """
    if not rows:
        raise InputError("comparison needs at least one row of frames. Received: {}")
    unit = _one_unit(list(rows.values()))
    guide = next((row for row in rows.values() if "lead_time" in row.coords), next(iter(rows.values())))
    guide = _columns_of(guide, leads)
    table = {name: [_at(row, time) for time in guide["time"].values] for name, row in rows.items()}
    drawn = [frame for line in table.values() for frame in line if frame is not None]

    first = next(iter(rows.values()))
    place = _Place.of(first)
    figure, axes = _grid(len(rows), guide.sizes["time"], place=place, title=title)
    cmap, norm = colours(unit, drawn)
    image = None
    for line_number, ((name, line), line_axes) in enumerate(zip(table.items(), axes, strict=True)):
        below = list(table.values())[line_number + 1 :]
        for number, (frame, ax) in enumerate(zip(line, line_axes, strict=True)):
            if frame is None:
                _empty(ax, place)
            else:
                image = _draw(ax, frame, cmap, norm)
                _outer_labels(ax, left=number == 0, bottom=all(lower[number] is None for lower in below))
            if line_number == 0:
                ax.set_title(_panel_title(guide.isel(time=number)), fontsize=9, color=INK, parse_math=False)
        _row_name(line_axes[0], name)
    if image is not None:
        _explain(figure, image, [ax for line_axes in axes for ax in line_axes], drawn)
    return figure


def animate(
    frames: xr.DataArray, path: str | os.PathLike[str], *, past: xr.DataArray | None = None, fps: float = 4
) -> None:
    """Write a film to `path`, GIF or MP4 (H.264) by its suffix: one picture a time step, the `past` frames before
    `frames`.

    Each picture names its valid time in UTC and, where `frames` are a forecast, "observed" or "forecast" and the lead
    time. A GIF rests on its last picture. InputError for another suffix, fps not above 0, what is not frames, or
    unlike units.
    """
    writers: dict[str, Callable[[list[np.ndarray], Path, float], None]] = {".gif": _write_gif, ".mp4": _write_mp4}
    path = Path(path)
    if path.suffix.lower() not in writers:
        raise InputError(f"a film is .gif or .mp4. Received: {path.name!r}")
    if not fps > 0:
        raise InputError(f"fps must be above 0. Received: {fps}")
    writers[path.suffix.lower()](list(_film(frames, past)), path, fps)


def save(figure: Figure, path: str | os.PathLike[str] | BinaryIO, *, dpi: float = 144) -> None:
    """Write `figure` as PNG, `dpi` pixels an inch, to `path` (PNG whatever its suffix, for temporary names) or a
    binary file.
    """
    figure.savefig(path, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.12)


# --- what is drawn ---


def _one_unit(groups: Sequence[xr.DataArray]) -> str:
    for frames in groups:
        if frames.dims != ("time", "y", "x") or 0 in frames.shape:
            raise InputError(f"pictures need frames with dims (time, y, x), none empty. Received: {dict(frames.sizes)}")
    units = {str(frames.attrs.get("units", "")) for frames in groups}
    if len(units) > 1:
        raise InputError(f"one colour bar needs one unit. Received: {', '.join(sorted(units))}")
    return units.pop()


def _evenly(length: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … length - 1, evenly spread, first and last among them."""
    return sorted({round(float(index)) for index in np.linspace(0, length - 1, min(length, most))})


def _steps(frames: xr.DataArray) -> Iterator[xr.DataArray]:
    return (frames.isel(time=number) for number in range(frames.sizes["time"]))


def _thinned(frames: xr.DataArray) -> xr.DataArray:
    """Every n-th pixel of a grid wider or taller than WIDEST: a mean would invent values and move the edge of what is
    missing.
    """
    steps = {dim: math.ceil(frames.sizes[dim] / WIDEST) for dim in ("y", "x")}
    return frames.isel({dim: slice(step // 2, None, step) for dim, step in steps.items()}).compute()


def _columns_of(guide: xr.DataArray, leads: Sequence[np.timedelta64] | None) -> xr.DataArray:
    if leads is None:
        return guide.isel(time=_evenly(guide.sizes["time"], MOST_COLUMNS))
    if len(leads) == 0:
        raise InputError("leads must name at least one lead time, or be None. Received: none")
    have = guide["lead_time"].values if "lead_time" in guide.coords else np.array([], "timedelta64[ns]")
    indices = []
    for lead in leads:
        found = np.flatnonzero(have == lead)
        if len(found) == 0:
            known = ", ".join(lead_text(one) for one in have) or "none"
            raise InputError(f"no forecast at {lead_text(lead)}; there are: {known}")
        indices.append(int(found[0]))
    return guide.isel(time=indices)


def _at(frames: xr.DataArray, time: np.generic) -> xr.DataArray | None:
    found = np.flatnonzero(frames["time"].values == time)
    return _thinned(frames.isel(time=int(found[0]))) if len(found) else None


def _robust_range(many: Sequence[xr.DataArray]) -> tuple[float, float]:
    parts = [frames.values[np.isfinite(frames.values)] for frames in many]
    valid = np.concatenate(parts) if parts else np.array([])
    if valid.size == 0:
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(valid, (2, 98)))
    if high > low:
        return low, high
    # a constant field, or one with rare spikes: all of its range, or some room around the constant
    low, high = float(valid.min()), float(valid.max())
    room = 0.0 if high > low else max(abs(low) * 0.05, 0.5)
    return low - room, high + room


# --- where it lies and when it is ---


@dataclass(frozen=True)
class _Place:
    """Edges of the grid in the units of the axes, their labels, and the aspect at which shapes are true."""

    left: float
    right: float
    bottom: float
    top: float
    x_label: str
    y_label: str
    aspect: float

    @classmethod
    def of(cls, frames: xr.DataArray) -> _Place:
        left, right, x_label = _axis(frames, "x", "longitude")
        top, bottom, y_label = _axis(frames, "y", "latitude")
        latitude = math.radians(min(abs(top + bottom) / 2, 80)) if "°" in y_label else 0.0
        return cls(left, right, bottom, top, x_label, y_label, 1 / math.cos(latitude))

    @property
    def shape(self) -> float:
        """Height over width as drawn, kept within what a page can hold."""
        true = self.aspect * abs(self.top - self.bottom) / abs(self.right - self.left)
        return min(max(true, 0.3), 3.0)


def _axis(frames: xr.DataArray, dim: str, in_degrees: str) -> tuple[float, float, str]:
    """Outer edges of the first and last pixel, and its label; pixel numbers where there is no coordinate."""
    values = frames[dim].values.astype(float)
    units = str(frames[dim].attrs.get("units", "1"))
    label, scale = {"m": (f"{dim} (km)", 1e-3), "km": (f"{dim} (km)", 1.0), "1": (f"{dim} (pixels)", 1.0)}.get(
        units, (f"{in_degrees} (°)" if units.startswith("degree") else f"{dim} ({units})", 1.0)
    )
    step = (values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else 1.0
    return scale * (values[0] - step / 2), scale * (values[-1] + step / 2), label


def _time_label(frame: xr.DataArray, *, clock_only: bool = False) -> str:
    time = frame["time"].values
    if not np.issubdtype(time.dtype, np.datetime64):
        return f"step {time}"
    text = str(np.datetime_as_string(time, unit="m"))
    return f"{text[11:] if clock_only else text.replace('T', ' ')} UTC"


def _panel_title(frame: xr.DataArray) -> str:
    when = _time_label(frame)
    return f"{lead_text(frame['lead_time'].values)}\n{when}" if "lead_time" in frame.coords else when


# --- drawing ---


def _grid(
    rows: int, columns: int, *, place: _Place, title: str | None, gap: float = 0.1
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of rows × columns panels, `gap` inches between rows, whose size follows the shape of the grid."""
    width = {1: 4.6, 2: 3.6, 3: 2.9}.get(columns, 2.5)
    width = min(width, width / place.shape * 1.4)
    # inches around the panels: row names, y labels and colour bar beside; titles, x labels and legend above and below
    size = (columns * width + 1.9, rows * (width * place.shape + gap) + (1.4 if title else 1.0))
    figure = Figure(figsize=(max(size[0], 4.0), size[1]), layout="compressed", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, parse_math=False)
    return figure, [list(line) for line in figure.subplots(rows, columns, squeeze=False)]


def _draw(ax: Axes, frame: xr.DataArray, cmap: Colormap, norm: Normalize) -> AxesImage:
    """One frame over a hatched grey ground that shows wherever a pixel is missing."""
    place = _Place.of(frame)
    ground = Rectangle((place.left, place.bottom), place.right - place.left, place.top - place.bottom, zorder=0)
    ground.set(facecolor=MISSING_FACE, edgecolor=MISSING_HATCH, hatch="////", linewidth=0)
    ax.add_patch(ground)
    image = ax.imshow(
        np.ma.masked_invalid(frame.values),
        cmap=cmap,
        norm=norm,
        extent=(place.left, place.right, place.bottom, place.top),
        aspect=place.aspect,
        interpolation="nearest",
        zorder=1,
    )
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.ticklabel_format(style="plain", useOffset=False)
    ax.tick_params(labelsize=8, colors=QUIET)
    ax.set_xlabel(place.x_label, fontsize=8, color=QUIET, parse_math=False)
    ax.set_ylabel(place.y_label, fontsize=8, color=QUIET, parse_math=False)
    ax.spines[:].set_color(QUIET)
    return image


def _outer_labels(ax: Axes, *, left: bool, bottom: bool) -> None:
    ax.tick_params(labelleft=left, labelbottom=bottom)
    ax.xaxis.label.set_visible(bottom)
    ax.yaxis.label.set_visible(left)


def _empty(ax: Axes, place: _Place) -> None:
    ax.set_box_aspect(place.shape)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("#d5dbe1")
    ax.text(
        0.5, 0.5, "no frame\nat this time", transform=ax.transAxes, ha="center", va="center", fontsize=9, color=QUIET
    )


def _row_name(ax: Axes, name: str) -> None:
    ax.yaxis.label.set_visible(True)
    ax.set_ylabel(f"{name}\n{ax.get_ylabel()}", fontsize=9, color=INK, parse_math=False)


def _explain(figure: Figure, image: AxesImage, axes: Sequence[Axes], frames: Sequence[xr.DataArray]) -> None:
    """One colour bar with its unit, and a legend for the two things that are not on it: missing and below the first
    boundary.
    """
    unit = str(frames[0].attrs.get("units", ""))
    quantity = QUANTITIES.get(unit) or str(frames[0].attrs.get("long_name", ""))
    bar_aspect = max(20.0, 4.5 * figure.get_figheight())  # some 0.2 inches wide however tall the figure
    bar = figure.colorbar(
        image,
        ax=axes,
        extend=None if unit in BOUNDARIES else _beyond(image, frames),
        pad=0.02,
        aspect=bar_aspect,
        extendfrac=0.03,
    )
    if unit in BOUNDARIES:
        bar.set_ticks(list(BOUNDARIES[unit]), labels=[f"{edge:g}" for edge in BOUNDARIES[unit]])
    bar.ax.tick_params(labelsize=8, colors=QUIET)
    bar.set_label(
        f"{quantity} ({unit})" if quantity and unit else quantity or unit, fontsize=9, color=INK, parse_math=False
    )

    handles = []
    if unit in BOUNDARIES:
        handles.append(
            Patch(facecolor="white", edgecolor=QUIET, label=f"no echo, or below {BOUNDARIES[unit][0]:g} {unit}")
        )
    if any(bool(np.isnan(frame.values).any()) for frame in frames):
        handles.append(Patch(facecolor=MISSING_FACE, edgecolor=MISSING_HATCH, hatch="/////", label="missing"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=INK)


def _beyond(image: AxesImage, frames: Sequence[xr.DataArray]) -> str:
    low, high = image.get_clim()
    below = any(bool((frame.values < low).any()) for frame in frames)
    above = any(bool((frame.values > high).any()) for frame in frames)
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]


# --- films ---


def _film(frames: xr.DataArray, past: xr.DataArray | None) -> Iterator[np.ndarray]:
    """RGB pictures of even height and width (H.264 has no others), one a time step, laid out once so that nothing
    jumps.
    """
    groups = [frames] if past is None else [past, frames]
    unit = _one_unit(groups)
    forecast = past is not None or "lead_time" in frames.coords
    steps = [(step, group is frames) for group in groups for step in _steps(_thinned(group))]
    drawn = [step for step, _ in steps]
    cmap, norm = colours(unit, drawn)
    figure, [[ax]] = _grid(1, 1, place=_Place.of(frames), title=None)
    image = _draw(ax, drawn[0], cmap, norm)
    _explain(figure, image, [ax], drawn)
    words = ax.set_title(_caption(steps[-1][0], is_forecast=forecast), fontsize=11, color=INK, parse_math=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    canvas = FigureCanvasAgg(figure)
    for step, is_last_group in steps:
        image.set_data(np.ma.masked_invalid(step.values))
        is_forecast = forecast and is_last_group
        words.set_text(_caption(step, is_forecast=is_forecast if forecast else None))
        ax.spines[:].set(color=FORECAST_EDGE if is_forecast else QUIET, linewidth=2.5 if is_forecast else 1)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3]
        yield picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2].copy()


def _caption(frame: xr.DataArray, *, is_forecast: bool | None) -> str:
    clock, date = _time_label(frame, clock_only=True), _time_label(frame).split(" ")[0]
    date = "" if clock == _time_label(frame) else f"\n{date}"
    if not is_forecast:
        return f"{'' if is_forecast is None else 'observed '}{clock}{date}"
    lead = f" {lead_text(frame['lead_time'].values)}," if "lead_time" in frame.coords else ""
    return f"forecast{lead} {clock}{date}"


def _write_gif(pictures: list[np.ndarray], path: Path, fps: float) -> None:
    from PIL import Image

    packed = [picture.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32) for picture in pictures]
    palette = _palette(packed)
    images = []
    for picture in packed:
        shades, places = np.unique(picture, return_inverse=True)
        nearest = ((_rgb(shades)[:, None] - _rgb(palette)) ** 2).sum(-1).argmin(-1).astype(np.uint8)
        image = Image.fromarray(nearest[places].reshape(picture.shape))
        image.putpalette(_rgb(palette).astype(np.uint8).tobytes())
        images.append(image)
    durations = [1000 / fps] * (len(images) - 1) + [max(1500.0, 1000 / fps)]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False
    )


def _palette(packed: Sequence[np.ndarray]) -> np.ndarray:
    """The 256 most frequent colours of the whole film: one exact palette neither flickers nor tints what is white.

    The colour bar is in every picture, which keeps the colours of rare heavy rain among them.
    """
    shades, counts = np.unique(np.concatenate([picture.ravel() for picture in packed]), return_counts=True)
    return shades[np.argsort(-counts, kind="stable")[:256]]


def _rgb(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.int32)


def _write_mp4(pictures: list[np.ndarray], path: Path, fps: float) -> None:
    import imageio_ffmpeg

    height, width = pictures[0].shape[:2]
    settings: dict[str, Any] = {"codec": "libx264", "pix_fmt_out": "yuv420p", "macro_block_size": 2, "quality": None}
    # crf 20 lies between x264's default, 23, and what its guide calls visually lossless, 17-18;
    # +faststart lets a browser begin before the end of the file has come
    output = ["-crf", "20", "-movflags", "+faststart"]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, output_params=output, **settings)
    writer.send(None)
    try:
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
    finally:
        writer.close()
