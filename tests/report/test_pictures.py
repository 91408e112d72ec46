"""Pictures are checked as a reader sees them: by their pixels, their words, and by reading the films back."""

from __future__ import annotations

import gc
import io
from itertools import pairwise
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import BoundaryNorm, to_rgb
from matplotlib.figure import Figure

from stormcell.errors import InputError
from stormcell.report import animate, colours, comparison, panels, save
from stormcell.report.pictures import MISSING_FACE

START = np.datetime64("2016-09-28T14:50", "ns")
STEP = np.timedelta64(5, "m")


def make(
    count: int, *, first: int = 0, forecast: bool = False, units: str = "mm/h", size: tuple[int, int] = (40, 50)
) -> xr.DataArray:
    """Frames from `first` steps after START, y from north to south, 1 km pixels; a forecast starts at START."""
    values = np.random.default_rng(abs(first)).gamma(0.3, 3.0, (count, *size)).astype("float32")
    time = START + STEP * np.arange(first, first + count)
    frames = xr.DataArray(
        values,
        dims=("time", "y", "x"),
        coords={
            "time": time,
            "y": ("y", 1000.0 * np.arange(size[0])[::-1], {"units": "m"}),
            "x": ("x", 1000.0 * np.arange(size[1]), {"units": "m"}),
            "spatial_ref": 0,
        },
        attrs={"units": units},
    )
    return frames.assign_coords(lead_time=("time", time - START), forecast_reference_time=START) if forecast else frames


def words(figure: Figure) -> str:
    """All visible text of a figure, titles, ticks and legends included."""
    figure.draw_without_rendering()
    found = [text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text") and one.get_visible())]
    return "\n".join(found)


def data_axes(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.images and ax.get_visible()]


def pixels(figure: Figure, number: int = 0) -> np.ndarray:
    """The rendered inside of one panel, RGB 0-255, row 0 at the top."""
    canvas = figure.canvas
    canvas.draw()
    box = data_axes(figure)[number].get_window_extent()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    top, bottom = picture.shape[0] - box.y1, picture.shape[0] - box.y0
    return picture[round(top) + 2 : round(bottom) - 2, round(box.x0) + 2 : round(box.x1) - 2].astype(int)


@pytest.mark.parametrize(("units", "dry"), [("mm/h", 0.0), ("dBZ", -32.0)])
def test_missing_dry_and_wet_look_different(units: str, dry: float) -> None:
    frames = make(1, units=units)
    frames[:] = dry
    frames[:, :, :15] = np.nan
    frames[:, :, 35:] = 30.0
    picture = pixels(panels(frames))
    width = picture.shape[1]
    missing, no_echo, wet = (
        picture[:, : width // 4],
        picture[:, width * 2 // 5 : width * 3 // 5],
        picture[:, -width // 5 :],
    )

    assert (no_echo == 255).all()
    face = np.round(np.array(to_rgb(MISSING_FACE)) * 255)
    is_face = (np.abs(missing - face) <= 2).all(-1)
    assert 0.3 < is_face.mean() < 0.95, "grey ground, and hatching over it"
    assert (np.ptp(missing, axis=-1) <= 6).all(), "grey only"
    assert missing.max() < 240
    assert (np.ptp(wet, axis=-1) > 40).all(), "a colour"


def test_north_is_up_and_west_is_left() -> None:
    frames = make(1)
    frames[:] = 0
    frames[:, :10, :10] = 50.0
    picture = pixels(panels(frames))
    height, width = picture.shape[:2]
    assert (picture[: height // 5, : width // 6] < 255).any(-1).all()
    assert (picture[height // 3 :, width // 3 :] == 255).all()


def test_rain_colours_are_fixed_and_darken_steadily() -> None:
    cmap, norm = colours("mm/h")
    assert isinstance(norm, BoundaryNorm)
    assert list(norm.boundaries) == [0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
    assert cmap(norm(0.05)) == (1, 1, 1, 1)
    assert cmap(np.ma.masked_invalid([np.nan]))[0, 3] == 0
    values = [0.05, 0.2, 0.4, 0.7, 1.5, 3, 5, 10, 20, 50, 80]
    lightness = [np.dot(cmap(norm(value))[:3], (0.2126, 0.7152, 0.0722)) for value in values]
    assert (np.diff(lightness) < -0.01).all()
    assert list(colours("dBZ")[1].boundaries) == list(range(5, 70, 5))


def test_plain_units_span_the_data_without_its_spikes() -> None:
    frames = make(1, units="K")
    frames[:] = np.linspace(270, 290, frames.size).reshape(frames.shape)
    frames[0, 0, 0], frames[0, 1, 1] = 9999, np.nan
    _, norm = colours("K", frames)
    assert norm.vmin == pytest.approx(270.4, abs=0.05)
    assert norm.vmax == pytest.approx(289.6, abs=0.05)
    _, constant = colours("K", frames.copy(data=np.full(frames.shape, 280, "float32")))
    assert constant.vmin < 280 < constant.vmax
    _, empty = colours("K", frames.copy(data=np.full(frames.shape, np.nan, "float32")))
    assert (empty.vmin, empty.vmax) == (0, 1)


def test_panels_say_when_how_far_ahead_and_in_which_unit() -> None:
    forecast = make(3, first=1, forecast=True)
    forecast[0, 0, 0] = np.nan
    text = words(panels(forecast, past=make(2, first=-1), title="Costs $5 and $6"))
    for expected in (
        "observed\n2016-09-28 14:45 UTC",
        "+5 min\n2016-09-28 14:55 UTC",
        "+15 min\n2016-09-28 15:05 UTC",
        "rain rate (mm/h)",
        "x (km)",
        "missing",
        "below 0.1 mm/h",
        "Costs $5 and $6",
    ):
        assert expected in text
    assert "missing" not in words(panels(make(1)))
    assert "reflectivity (dBZ)" in words(panels(make(1, units="dBZ")))


def test_panels_are_at_most_twelve_with_first_and_last() -> None:
    figure = panels(make(30, first=1, forecast=True), past=make(10, first=-9))
    assert len(data_axes(figure)) == 12
    text = words(figure)
    assert text.count("observed") == 4
    for time in ("14:05", "14:50", "14:55", "17:20"):
        assert f"{time} UTC" in text
    assert len(data_axes(panels(make(11)))) == 11


def test_axes_follow_the_coordinates() -> None:
    degrees = make(1)
    degrees = degrees.assign_coords(
        x=("x", np.linspace(5, 10, 50), {"units": "degrees"}), y=("y", np.linspace(62, 58, 40), {"units": "degrees"})
    )
    figure = panels(degrees)
    assert "longitude (°)" in words(figure)
    assert data_axes(figure)[0].get_aspect() == pytest.approx(2), "a degree of longitude is half as long at 60° north"
    numbered = make(1).assign_coords(x=("x", np.arange(50), {"units": "1"}), y=("y", np.arange(40), {"units": "1"}))
    figure = panels(numbered)
    assert "x (pixels)" in words(figure)
    assert data_axes(figure)[0].get_ylim() == (39.5, -0.5)


def test_large_grids_are_thinned() -> None:
    figure = panels(make(1, size=(8, 3100)))
    assert data_axes(figure)[0].images[0].get_array().shape[1] < 1500
    assert data_axes(figure)[0].get_xlim() == pytest.approx((-0.5, 3099.5), abs=2)


def test_comparison_matches_valid_times() -> None:
    forecast = make(12, first=1, forecast=True)
    observed, short = make(40, first=-20), make(6, first=1, forecast=True)
    figure = comparison({"observed": observed, "stormcell": forecast, "persistence": short}, title="One case")
    text = words(figure)
    for expected in (
        "observed\n",
        "stormcell\n",
        "persistence\n",
        "+5 min",
        "+60 min\n2016-09-28 15:50 UTC",
        "One case",
    ):
        assert expected in text
    assert text.count("no frame\nat this time") == 2
    assert len(data_axes(figure)) == 10
    drawn = data_axes(figure)[3].images[0].get_array()
    np.testing.assert_array_equal(drawn, observed.sel(time=forecast.time[-1]).values)

    chosen = comparison({"observed": observed, "stormcell": forecast}, leads=[np.timedelta64(30, "m")])
    assert len(data_axes(chosen)) == 2
    assert "+30 min" in words(chosen)


def test_a_gif_shows_past_then_forecast(tmp_path: Path) -> None:
    animate(make(5, first=1, forecast=True), tmp_path / "film.gif", past=make(3, first=-2), fps=5)
    gif = imageio.imread(tmp_path / "film.gif", index=None)
    assert len(gif) == 8
    assert (gif[0, 2, 2] == 255).all(), "white stays white"
    assert all((one != other).any() for one, other in pairwise(gif))
    assert imageio.immeta(tmp_path / "film.gif")["duration"] == 200
    assert (tmp_path / "film.gif").stat().st_size < 500_000


def test_writing_mp4_leaves_nothing_open(tmp_path: Path) -> None:
    animate(make(2), tmp_path / "film.mp4")
    gc.collect()  # what was left open would warn here, and warnings are errors
    assert (tmp_path / "film.mp4").stat().st_size < 100_000


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_an_mp4_shows_what_the_gif_shows(tmp_path: Path) -> None:
    """The filter is for imageio's own reader, which leaves the pipes of its ffmpeg to the garbage collector."""
    past, forecast = make(3, first=-2), make(5, first=1, forecast=True)
    for name in ("film.gif", "film.MP4"):
        animate(forecast, tmp_path / name, past=past)
    gif, mp4 = (imageio.imread(tmp_path / name, index=None) for name in ("film.gif", "film.MP4"))
    gc.collect()
    assert mp4.shape == gif.shape
    assert len(mp4) == 8
    assert mp4.shape[1] % 2 == mp4.shape[2] % 2 == 0
    assert np.abs(gif.astype(int) - mp4).mean() < 6


def test_film_of_another_unit(tmp_path: Path) -> None:
    animate(make(2, units="K"), tmp_path / "k.gif")
    assert len(imageio.imread(tmp_path / "k.gif", index=None)) == 2


def test_save_writes_png_whatever_the_name(tmp_path: Path) -> None:
    figure = panels(make(1))
    save(figure, tmp_path / "now.png.part")
    memory = io.BytesIO()
    save(figure, memory, dpi=40)
    assert (tmp_path / "now.png.part").read_bytes().startswith(b"\x89PNG")
    assert len(memory.getvalue()) < (tmp_path / "now.png.part").stat().st_size


def test_errors_say_what_came_and_what_is_wanted(tmp_path: Path) -> None:
    forecast = make(2, first=1, forecast=True)
    with pytest.raises(InputError, match=r"dims \(time, y, x\).*Received: \{'y': 40, 'x': 50\}"):
        panels(forecast[0])
    with pytest.raises(InputError, match=r"one unit\. Received: dBZ, mm/h"):
        panels(forecast, past=make(2, units="dBZ"))
    with pytest.raises(InputError, match=r"no forecast at \+7 min; there are: \+5 min, \+10 min"):
        comparison({"a": forecast}, leads=[np.timedelta64(7, "m")])
    with pytest.raises(InputError, match="at least one lead"):
        comparison({"a": forecast}, leads=[])
    with pytest.raises(InputError, match="at least one row"):
        comparison({})
    with pytest.raises(InputError, match=r"\.gif or \.mp4. Received: 'a.avi'"):
        animate(forecast, tmp_path / "a.avi")
    with pytest.raises(InputError, match="fps must be above 0"):
        animate(forecast, tmp_path / "a.gif", fps=0)
