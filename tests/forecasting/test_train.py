"""Training learns, resumes after a kill, stops at Ctrl-C with a usable model, and refuses what does not go together."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from stormcell import InputError, load
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.forecast import save_frames
from stormcell.forecasting.losses import mean
from stormcell.forecasting.plan import Recipe, plan
from stormcell.forecasting.train import dry_run, train
from stormcell.forecasting.verify import hindcast

from ..conftest import make_frames
from .conftest import RECIPE

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def storms(rain: xr.DataArray) -> list[xr.DataArray]:
    return split_at_gaps(rain)


def test_it_beats_persistence_on_storms_it_has_not_seen(storms: list[xr.DataArray], tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=30, hidden_channels=(16, 16), batch=4, learning_rate=3e-3)
    forecaster = train(plan(storms[:25], recipe), tmp_path / "m.safetensors", progress=False)
    scores = hindcast(forecaster, storms[25:], scales=(5,)).scores.isel(lead_time=-1)
    model, persistence = (scores.sel(forecaster=name) for name in ("stormcell", "persistence"))
    assert float(model.mse) < 0.8 * float(persistence.mse)
    assert float(model.csi.sel(threshold=0.5)) > float(persistence.csi.sel(threshold=0.5))


def test_the_same_seed_gives_the_same_model(storms: list[xr.DataArray], tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    a, b = (train(plan(storms[:8], recipe), tmp_path / f"{n}.safetensors", progress=False) for n in "ab")
    for name, weight in a.network.state_dict().items():
        assert torch.equal(weight, b.network.state_dict()[name])
    other = plan(storms[:8], replace(recipe, seed=1)).network.state_dict()
    assert not torch.equal(other["output.weight"], plan(storms[:8], recipe).network.state_dict()["output.weight"])


def test_missing_pixels_have_no_say(storms: list[xr.DataArray], tmp_path: Path) -> None:
    """Loss and validation leave out missing pixels of the future: nonsense under the mask changes nothing."""
    prepared = plan(storms[:8], RECIPE)
    batch = {k: v[None] for k, v in prepared.training[0].items()}
    batch["valid"] = torch.rand(batch["valid"].shape) > 0.5
    loss = mean(*prepared.forecaster.errors(batch))
    batch["y"] = torch.where(batch["valid"], batch["y"], 0.7)
    assert torch.equal(mean(*prepared.forecaster.errors(batch)), loss)
    batch["valid"] = torch.zeros_like(batch["valid"])
    assert mean(*prepared.forecaster.errors(batch)) == 0


def test_a_plain_quantity_trains_too(tmp_path: Path) -> None:
    """Months, kelvin, a third of the pixels missing: no rain anywhere in the code's way."""
    rng = np.random.default_rng(0)
    months = np.array([np.datetime64(f"{2000 + k // 12}-{1 + k % 12:02d}-16", "ns") for k in range(60)])
    wave = 280 + 8 * np.sin(2 * np.pi * np.arange(60) / 12)[:, None, None] + rng.normal(0, 0.3, (60, 12, 16))
    wave[:, :4] = np.nan
    frames = make_frames(wave, units="K").assign_coords(time=months)
    recipe = replace(RECIPE, past=6, future=3, epochs=20, batch=4, learning_rate=5e-3)
    forecaster = train(plan(split_at_gaps(frames), recipe), tmp_path / "m.safetensors", progress=False)
    assert forecaster.step == "month"
    fcst = forecaster.forecast(frames.isel(time=slice(0, 30)))
    assert fcst.time.values[0] == np.datetime64("2002-07-16", "ns")
    assert np.isnan(fcst[:, :4]).all()
    truth = frames.isel(time=slice(30, 33))
    error = float(np.abs(fcst.values - truth.values)[:, 4:].mean())
    still = float(np.abs(frames.values[29] - truth.values)[:, 4:].mean())
    assert error < 0.7 * still
    assert load(tmp_path / "m.safetensors").transform.units == "K"


def test_a_dry_run_says_what_it_would_take(storms: list[xr.DataArray]) -> None:
    said = dry_run(plan(storms, RECIPE, test=storms[-2:]))
    assert said["windows"].endswith("16 set aside")
    assert said["parameters"] == "12,700"
    assert "MB for an update of 8" in said["memory"]
    assert float(said["minutes an epoch"].split()[0]) < 5


def test_what_does_not_go_together_is_refused(storms: list[xr.DataArray], tmp_path: Path) -> None:
    kelvin = storms[0].copy()
    kelvin.attrs = {"units": "K", "source": "cold.nc"}
    with pytest.raises(InputError, match=r"is in mm/h and cold\.nc in K: one model learns one quantity"):
        plan([*storms, kelvin], RECIPE)
    coarse = make_frames(np.zeros((20, 8, 8)), spacing=4000)
    with pytest.raises(InputError, match="grids differ: 1 km in synthetic rain, 4 km in made frames"):
        plan([*storms, coarse], RECIPE)
    with pytest.raises(InputError, match="--past and --future must be 1 or more"):
        plan(storms, replace(RECIPE, past=0))
    prepared = plan(storms[:8], RECIPE)
    with pytest.raises(InputError, match="a model file ends in .safetensors"):
        train(prepared, tmp_path / "m.pt")
    with pytest.raises(InputError, match="there is nothing to resume"):
        train(prepared, tmp_path / "m.safetensors", resume=True)
    assert not list(tmp_path.iterdir())


def test_frames_without_a_valid_pixel_are_refused(storms: list[xr.DataArray]) -> None:
    with pytest.raises(InputError, match="every pixel of the training frames is missing"):
        plan([run.where(run < 0) for run in storms[:8]], RECIPE)


def test_what_cannot_be_resumed_is_refused(storms: list[xr.DataArray], tmp_path: Path) -> None:
    recipe, path = replace(RECIPE, epochs=2), tmp_path / "m.safetensors"
    train(plan(storms[:8], recipe), path, progress=False)
    last = tmp_path / "m.training" / "last.ckpt"
    with pytest.raises(InputError, match="is in epoch 2 already: give --epochs 2 or more"):
        train(plan(storms[:8], replace(recipe, epochs=1)), path, resume=True)
    with pytest.raises(InputError, match="made with another --hidden: give the same"):
        train(plan(storms[:8], replace(recipe, hidden_channels=(6, 6))), path, resume=True)
    changed = [run.copy(deep=True) for run in storms[:8]]
    changed[2][5] += 1
    with pytest.raises(InputError, match="made with other frames"):
        train(plan(changed, recipe), path, resume=True)
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last\.ckpt is not a checkpoint of this program, or is damaged"):
        train(plan(storms[:8], recipe), path, resume=True)
    load(path)


def test_frames_may_differ_in_size_between_runs(storms: list[xr.DataArray]) -> None:
    small = [run.isel(y=slice(0, 24)) for run in storms[:3]]
    prepared = plan([*small, *storms[3:]], RECIPE)
    assert prepared.training.crop == 24


# --- stopping and going on ---


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `stormcell train` on tmp_path/rain.nc in a process of its own."""
    running: list[subprocess.Popen[str]] = []

    def begin(*more: str) -> subprocess.Popen[str]:
        running.append(_begin(tmp_path, *more))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def _begin(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stormcell", "train", str(folder / "rain.nc"), "-o", str(folder / "m.safetensors")]
    sizes = ["--model", "plain", "--past", "3", "--future", "2", "--crop", "32", "--batch", "2", "--hidden", "8,8"]
    options = [*sizes, "--epochs", "40", "--device", "cpu"]
    # Tests may themselves run in the background of a shell, where Ctrl-C is ignored and children inherit that.
    listen = None if os.name == "nt" else (lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    return subprocess.Popen(
        [*command, *options, *more], stderr=subprocess.PIPE, text=True, cwd=folder, preexec_fn=listen
    )


def wait_for(process: subprocess.Popen[str], word: str) -> list[str]:
    """Lines up to the one with `word`."""
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.strip())
        if word in line:
            return lines
    raise AssertionError(f"{word!r} never came: {lines}")


def updates(folder: Path) -> list[list[int]]:
    """Updates logged by each start of a training."""
    logs = sorted((folder / "m.training" / "log").glob("version_*/metrics.csv"))
    return [[int(row["step"]) for row in csv.DictReader(log.read_text().splitlines())] for log in logs]


def test_kill_9_then_resume(rain: xr.DataArray, tmp_path: Path, start: Start) -> None:
    save_frames(rain.isel(time=slice(0, 8 * 12)), tmp_path / "rain.nc")
    process = start()
    wait_for(process, "update")
    wait_for(process, "update")
    wait_for(process, "update")
    process.kill()  # SIGKILL: nothing can be tidied up
    process.wait()
    assert not (tmp_path / "m.safetensors").exists()
    checkpoint = torch.load(tmp_path / "m.training" / "last.ckpt", weights_only=True)
    reached = checkpoint["global_step"]
    assert reached > 0

    changed = start("--resume", "--learning-rate", "0.1")
    assert changed.wait() == 2
    assert "made with another --learning-rate" in changed.stderr.read()  # type: ignore[union-attr]

    resumed = start("--resume")
    lines = wait_for(resumed, "update")
    first = int(lines[-1].split("update ")[1].split(":")[0])
    assert first > reached
    resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert load(tmp_path / "m.safetensors").card["updates"] == len(plan_of(tmp_path)) * 40
    logged = updates(tmp_path)
    assert len(logged) == 2
    assert min(logged[1]) >= reached


def plan_of(folder: Path) -> range:
    """The updates of an epoch."""
    from stormcell import open_frames

    recipe = Recipe(model="plain", past=3, future=2, crop=32, batch=2, hidden_channels=(8, 8))
    prepared = plan(split_at_gaps(open_frames(folder / "rain.nc")), recipe)
    return range(-(-len(prepared.training) // 2))


@pytest.mark.skipif(os.name == "nt", reason="a test cannot send Ctrl-C on Windows")
def test_ctrl_c_leaves_a_usable_model_and_a_checkpoint(rain: xr.DataArray, tmp_path: Path, start: Start) -> None:
    save_frames(rain.isel(time=slice(0, 8 * 12)), tmp_path / "rain.nc")
    endless = ("--epochs", "100000")
    process = start(*endless)
    wait_for(process, "update")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "has the best weights so far; add --resume to the same command to go on" in err
    assert "Traceback" not in err
    load(tmp_path / "m.safetensors")
    wait_for(start("--resume", *endless), "update")


def test_ctrl_c_is_heard_after_the_update_and_a_second_one_at_once() -> None:
    import lightning.pytorch as lightning

    from stormcell.forecasting.loop import CtrlC

    alone = lightning.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ctrl_c = CtrlC()
        with ctrl_c.heard():
            ctrl_c.on_train_batch_end(alone)
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                ctrl_c.on_train_batch_end(alone)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with CtrlC().heard():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a job in the background of a shell
    finally:
        signal.signal(signal.SIGINT, outer)


def test_a_new_training_keeps_the_unfinished_one(storms: list[xr.DataArray], tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    for _ in range(2):
        train(plan(storms[:8], recipe), tmp_path / "m.safetensors", progress=False)
    assert (tmp_path / "m.training.old" / "last.ckpt").exists()
    assert (tmp_path / "m.training" / "last.ckpt").exists()
