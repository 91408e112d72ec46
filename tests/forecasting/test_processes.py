"""Several processes train what one would; where one dies the others end with a word; resuming goes on as if nothing had been."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from stormcell import InputError, load
from stormcell.data.synthetic import advected_rain
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.forecast import save_frames
from stormcell.forecasting.motion import has_pysteps
from stormcell.forecasting.plan import Recipe, plan
from stormcell.forecasting.processes import ALONE, Processes, asked_for, check_shares, processes
from stormcell.forecasting.tally import scores_to_json
from stormcell.forecasting.train import train
from stormcell.forecasting.verify import hindcast

SMALL = Recipe(model="plain", past=3, future=3, epochs=2, crop=32, hidden_channels=(4,), device="cpu")
RECIPES = {  # of 24 samples: batches that do not divide by two, and a last one with nothing for the second process
    "plain": replace(SMALL, batch=3),
    "missing": replace(SMALL, batch=23, epochs=4),
    "lagrangian": replace(SMALL, model="lagrangian", batch=3),
}
ROOT = Path(__file__).parents[2]


def compute(folder: Path) -> None:
    """Train all, and verify a network that is the same for certain."""
    storms = split_at_gaps(advected_rain(13, 9, size=32, seed=3))
    for name, recipe in RECIPES.items():
        if name != "lagrangian" or has_pysteps():
            runs = [run.isel(time=slice(0, 8)) for run in storms[:10]]
            if name == "missing":
                runs = [run.where(run.x > 2000 * k) for k, run in enumerate(runs)]
            train(plan(runs, recipe), folder / f"{name}.safetensors", progress=False, command="made by a test")
    untrained = plan(storms[:10], RECIPES["plain"]).forecaster
    scores = hindcast(untrained, storms[10:], thresholds=(0.5,), scales=(5,)).scores
    if processes().first:
        (folder / "scores.json").write_text(scores_to_json(scores))


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, part in items for name, leaf in leaves(part, f"{path}/{key}").items()}
    return {path: value}


def curve(folder: Path, name: str) -> list[float]:
    log = (folder / f"{name}.training" / "log" / "version_0" / "metrics.csv").read_text()
    return [
        float(row[key])
        for row in csv.DictReader(log.splitlines())
        for key in ("train_loss", "val_loss")
        if row.get(key)
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_two_processes_train_and_verify_as_one_does(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = subprocess.Popen([*torchrun, "-m", __name__, tmp_path / "two"], cwd=ROOT, env=environment())
    compute(tmp_path / "one")
    assert together.wait(timeout=120) == 0
    for path in (tmp_path / "one").glob("*.safetensors"):
        one, two = (curve(tmp_path / folder, path.stem) for folder in ("one", "two"))
        assert len(one) >= 3
        assert two == pytest.approx(one, rel=1e-5)
        a, b = load(path), load(tmp_path / "two" / path.name)
        assert a.card["updates"] == b.card["updates"]
        for name, weight in a.network.state_dict().items():
            torch.testing.assert_close(b.network.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
    one, two = (leaves(json.loads((tmp_path / folder / "scores.json").read_text())) for folder in ("one", "two"))
    floats = {name: value for name, value in one.items() if isinstance(value, float)}
    assert {name: two.pop(name) for name in floats} == pytest.approx(floats, rel=1e-6, abs=1e-8)
    rest = {name: value for name, value in one.items() if name not in floats}
    assert two == rest  # counts, and all that is no number
    assert any("hits" in name and value > 0 for name, value in rest.items())


def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    rain: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch: each sample of it is still seen once, with the same crops."""
    storms, recipe = split_at_gaps(rain)[:8], replace(SMALL, batch=4, epochs=3)
    whole = train(plan(storms, recipe), tmp_path / "whole.safetensors", progress=False)
    prepared, seen = plan(storms, recipe), [0]
    errors = type(prepared.forecaster).errors

    def stop_later(self: object, *arguments: object) -> object:
        seen[0] += len(arguments) == 2  # in training
        if seen[0] == 16:
            signal.raise_signal(signal.SIGINT)
        return errors(self, *arguments)  # type: ignore[arg-type]

    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(type(prepared.forecaster), "errors", stop_later)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(prepared, tmp_path / "cut.safetensors", progress=False)
    finally:
        signal.signal(signal.SIGINT, outer)
        monkeypatch.undo()
    reached = torch.load(tmp_path / "cut.training" / "last.ckpt", weights_only=True)["global_step"]
    assert reached == 16
    assert reached % -(-len(prepared.training) // 4)
    resumed = train(plan(storms, recipe), tmp_path / "cut.safetensors", resume=True, progress=False)
    assert resumed.card["updates"] == whole.card["updates"]
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], weight)


# --- who is who ---


def test_who_started_it_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes() == ALONE == asked_for(None, None)
    assert asked_for(4, 2) == Processes(0, 4, 2)
    for name, value in {"NUM_TASKS": 8, "NUM_NODES": 2}.items():
        monkeypatch.setenv(f"SLURM_STEP_{name}", str(value))
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert processes() == Processes(5, 4, 2, "SLURM") == asked_for(4, None)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": 1, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert processes() == Processes(1, 2, 1, "torchrun")
    with pytest.raises(InputError, match="torchrun has started 2 processes, 2 a machine: leave --devices"):
        asked_for(3, None)


def test_what_cannot_be_shared_is_refused() -> None:
    check_shares(Processes(0, 4), batch=4, device="cpu")
    with pytest.raises(InputError, match="a batch of 4 has nothing for some of 8 processes: give --batch 8"):
        check_shares(Processes(0, 4, 2), batch=4, device="cpu")
    with pytest.raises(InputError, match="--device cuda:1 is one device"):
        check_shares(Processes(0, 2), batch=4, device="cuda:1")
    with pytest.raises(InputError, match=r"--devices 99 is more than the \d+ GPUs"):
        check_shares(Processes(0, 99), batch=99, device="cuda")


# --- the command line ---

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(rain: xr.DataArray, tmp_path: Path) -> Iterator[Start]:
    """Start `stormcell train` without end on tmp_path/rain.nc, its processes in a session of their own."""
    running: list[subprocess.Popen[str]] = []
    save_frames(rain.isel(time=slice(0, 8 * 12)), tmp_path / "rain.nc")
    command = [sys.executable, "-m", "stormcell", "train", "rain.nc", "-o", "m.safetensors", "--model", "plain"]
    sizes = ["--past", "3", "--future", "2", "--crop", "32", "--batch", "4", "--hidden", "4", "--device", "cpu"]

    def begin(*more: str) -> subprocess.Popen[str]:
        listen = None if os.name == "nt" else (lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        running.append(
            subprocess.Popen(
                [*command, *sizes, *more],
                cwd=tmp_path,
                env=environment(),
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=listen,
            )
        )
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.terminate()  # an agent ends its processes
        process.communicate()


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.strip())
        if word in line:
            return
    raise AssertionError(f"{word!r} never came: {lines}")


def workers(agent: int) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, pid)
    return found


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_with_a_word(tmp_path: Path, start: Start, victim: int) -> None:
    job = start("--devices", "2", "--epochs", "100000")
    wait_for(job, "update")
    wait_for(job, "update")  # the checkpoint of the one before is written
    pids = workers(job.pid)
    assert sorted(pids) == [0, 1]
    os.kill(pids[victim], signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 2
    said = [line for line in err.splitlines() if not line.startswith("update")]
    assert said == [
        f"stormcell: process {victim} was killed (SIGKILL): "
        "add --resume to the same command to go on from the last checkpoint"
    ]
    assert gone(list(pids.values()))
    reached = torch.load(tmp_path / "m.training" / "last.ckpt", weights_only=True)["global_step"]
    assert reached > 0
    alone = start("--resume", "--epochs", "100000")  # on another number of processes
    wait_for(alone, "update")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_ctrl_c_leaves_a_usable_model_and_no_process(tmp_path: Path, start: Start) -> None:
    job = start("--devices", "2", "--epochs", "100000")
    wait_for(job, "update")
    pids = workers(job.pid)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "has the best weights so far; add --resume to the same command to go on" in err
    assert err.count("stopped") == 1
    assert "Traceback" not in err
    assert gone(list(pids.values()))
    load(tmp_path / "m.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_processes_whose_agent_is_gone_stop(tmp_path: Path, start: Start) -> None:
    job = start("--devices", "2", "--epochs", "100000")
    wait_for(job, "update")
    pids = workers(job.pid)
    job.kill()
    assert gone(list(pids.values()))
    load(tmp_path / "m.safetensors")


@pytest.mark.slow
def test_mistakes_are_one_sentence_of_several_processes_too(tmp_path: Path, start: Start) -> None:
    for options, sentence in (
        (["--devices", "2", "--past", "40"], "fewer than 3 windows of 40 past"),
        (["--devices", "2", "--resume"], "there is nothing to resume"),
    ):
        job = start(*options)
        _, err = job.communicate(timeout=60)
        assert job.returncode == 2
        assert err.count("stormcell: ") == 1
        assert sentence in err


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
