"""What `stormcell inspect` says of files: what is in them, what is odd, what they do not say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stormcell.cli import main
from stormcell.data.inspection import Facts, inspected
from stormcell.data.reading import Reading
from stormcell.errors import InputError
from stormcell.forecasting.forecast import save_frames

from ..conftest import make_frames
from . import formats


def facts_of(path: Path, reading: Reading | None = None) -> Facts:
    ((_, facts),) = inspected([str(path)], reading)
    return facts


def test_a_healthy_file(tmp_path: Path) -> None:
    formats.odim(tmp_path / "a.h5")
    facts = facts_of(tmp_path / "a.h5")
    assert facts["format"] == "ODIM HDF5"
    assert facts["quantity"] == "rain rate in mm/h, product RATE, Z = 200 R^1.6, with quality"
    assert facts["time"] == "1 frame, 2016-09-28 14:45 UTC"
    assert facts["grid"].startswith(
        "12×10 pixels (y×x), rows from north to south, 2 km apart, lambert azimuthal equal area"
    )
    assert facts["missing"] == "2.5%, always the same pixels"
    known = formats.LEVELS[formats.LEVELS < 255] * 0.1
    assert facts["values"] == f"0 to {known.max():.4g} mm/h, mean {known.mean():.3g}"
    assert facts["suspicious"] == "nothing"


def test_gaps_and_odd_values(tmp_path: Path) -> None:
    rain = np.random.default_rng(0).gamma(0.5, 3, size=(9, 7, 8)).astype(np.float32)
    rain[2, 0, :3] = -5
    rain[6] = rain[5]
    rain[8, 1, 1] = 1205
    rain[3] = np.nan
    frames = make_frames(rain).isel(time=[0, 1, 2, 3, 5, 6, 8])
    save_frames(frames, tmp_path / "rain.nc")
    facts = facts_of(tmp_path / "rain.nc")
    assert facts["format"] == "NetCDF"
    assert facts["gaps"].startswith("2, 2 frames missing; the longest, 10 min, after ")
    assert facts["suspicious"] == (
        "3 pixels below 0 mm/h, down to -5: taken as missing; 1 pixels over 300 mm/h, up to 1205 at "
        f"{str(frames.time.values[-1])[:16].replace('T', ' ')}; 1 frames equal to the one before; 1 frames without any value"
    )


def test_what_a_file_does_not_say(tmp_path: Path) -> None:
    np.save(tmp_path / "rain.npy", np.random.default_rng(0).random((3, 4, 5)).astype(np.float32))
    facts = facts_of(tmp_path / "rain.npy")
    assert facts["format"] == "NumPy"
    assert facts["quantity"] == "unknown: give --units, such as mm/h or dBZ"
    assert facts["time"] == "3 frames at unknown times: give --start and --step-minutes"
    assert facts["grid"].endswith("of unknown size: no x and y in the file")
    facts = facts_of(tmp_path / "rain.npy", Reading(units="K", start="2024-01-01", step_minutes=60))
    assert facts["quantity"] == "values in K"
    assert facts["time"] == "3 frames, 2024-01-01 00:00 to 2024-01-01 02:00 UTC, a step of 60 min"
    with pytest.raises(InputError, match="does not exist"):
        inspected([str(tmp_path / "no.nc")])


def test_companions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.meteonet(tmp_path / "rainfall.npz")
    assert facts_of(tmp_path)["companions"] == "radar_coords_NW.npz: coordinates or quality, no frames"
    assert main(["inspect", str(tmp_path / "radar_coords_NW.npz")]) == 0
    assert "holds MeteoNet's coordinates, no frames" in capsys.readouterr().out


def test_models_and_frames_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.pgm(tmp_path / "a.pgm")
    assert main(["inspect", str(tmp_path / "a.pgm"), "default"]) == 0
    out = capsys.readouterr().out
    assert "FMI PGM" in out
    assert "lagrangian" in out
    assert "than optical flow" in out
    (tmp_path / "bad.nc").write_bytes(b"nothing")
    assert main(["inspect", str(tmp_path / "bad.nc")]) == 2
    assert "bad.nc has no known format" in capsys.readouterr().err


@pytest.mark.slow
def test_every_original_file(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.needs("eccodes")
    files = sorted(path for path in (real_data / "native").rglob("*") if path.is_file())
    assert len(files) > 200
    for path in files:
        assert main(["inspect", str(path)]) == 0, path
        said = capsys.readouterr().out
        assert "format" in said or "companion" in said
        assert "unknown" not in said, said
