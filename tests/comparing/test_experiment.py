"""The comparison as a whole: the same numbers twice, no run done twice, and the test cases only seen at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from stormcell import InputError
from stormcell.comparing import experiment
from stormcell.comparing.entries import Entry, Shape
from stormcell.comparing.experiment import Settings, compare, to_json
from stormcell.comparing.fitting import PATIENCE, Run, checks, fit
from stormcell.comparing.tasks import FramesTask, MovingMnistTask, folds_of
from stormcell.data.moving_mnist import moving_mnist
from stormcell.data.windows import split_at_gaps

from ..conftest import make_frames

SETTINGS = Settings(
    models=("convlstm", "conv2d-lstm"),
    shape=Shape((4,), 3, 8),
    updates=6,
    seeds=2,
    learning_rates=(1e-3, 1e-2),
    batch=2,
)


@pytest.fixture(scope="module")
def digits() -> MovingMnistTask:
    return MovingMnistTask(moving_mnist(past=3, future=2), protocol="paper", cases=12)


@pytest.fixture(scope="module")
def storms(rain: xr.DataArray) -> list[FramesTask]:
    found = folds_of(split_at_gaps(rain), past=3, future=2, crop=16, cases=20, seed=0, against=["persistence"])
    assert all(isinstance(task, FramesTask) for task in found)
    return found  # type: ignore[return-value]


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if not key.endswith(("_seconds", "_mb"))}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def test_two_runs_give_the_same_numbers(digits: MovingMnistTask, tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        result = json.loads(to_json(compare([digits], SETTINGS, tmp_path / name).result))
        texts.append(json.dumps(without_clocks(result)))
    assert texts[0] == texts[1]
    assert "_seconds" not in texts[0]


def test_what_it_says(digits: MovingMnistTask, tmp_path: Path) -> None:
    result = compare([digits], SETTINGS, tmp_path / "runs", repeat=lambda n: f"again {n}").result
    assert result["repeat"] == "again 6"
    first, second = result["rows"]
    assert (first["name"], second["name"]) == ("convlstm", "conv2d-lstm")
    assert first["net"] == "convlstm-3x3-4"
    assert second["parameters"] == pytest.approx(first["parameters"], rel=0.05)
    for row in result["rows"]:
        assert len(row["runs"]) == 3  # two learning rates, of which one went on with a second seed
        chosen = [run for run in row["runs"] if run.get("chosen")]
        tried = [run for run in row["runs"] if "chosen" in run]
        assert len(chosen) == 1
        assert chosen[0]["validation"] == min(run["validation"] for run in tried)
        score = row["scores"]["cross_entropy"]
        assert len(score["by_seed"]) == 2
        assert score["value"] == pytest.approx(np.mean(score["by_seed"]))
        assert score["value"] == pytest.approx(sum(score["by_lead"]))
        assert score["interval"][0] < score["value"] < score["interval"][1]
    assert [v["second"] for v in result["verdicts"]] == ["conv2d-lstm"]
    assert result["baselines"][0]["name"] == "persistence"
    assert result["baselines"][0]["scores"]["cross_entropy"]["value"] is None
    assert result["cases"] == 12


def test_what_was_found_is_not_computed_again(
    digits: MovingMnistTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = experiment.fit, []

    def stopped(run: Run, *arguments: Any, **options: Any) -> Any:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(run)
        return real(run, *arguments, **options)

    monkeypatch.setattr(experiment, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare([digits], SETTINGS, tmp_path / "runs")
    monkeypatch.setattr(experiment, "fit", lambda run, *a, **o: made.append(run) or real(run, *a, **o))
    resumed = compare([digits], SETTINGS, tmp_path / "runs").result
    assert len(made) == len(set(made)) == 6
    whole = compare([digits], SETTINGS, tmp_path / "other").result
    assert json.dumps(without_clocks(resumed)) == json.dumps(without_clocks(whole))
    made.clear()
    compare([digits], SETTINGS, tmp_path / "runs")
    assert not made


def test_test_cases_are_seen_once_and_by_the_chosen_alone(
    digits: MovingMnistTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []
    real = MovingMnistTask.evaluate
    monkeypatch.setattr(
        MovingMnistTask, "evaluate", lambda self, net, device="cpu": evaluated.append(net) or real(self, net, device)
    )
    compare([digits], SETTINGS, tmp_path / "runs")
    assert len(evaluated) == 4  # two models, two seeds; no learning rate that was not chosen


def test_minutes_are_turned_into_updates_that_are_kept(
    digits: MovingMnistTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "_timed", lambda *_: (1.0, 0.001))  # seconds of an update, and of a case
    settings = Settings(**{**vars(SETTINGS), "updates": None, "minutes": 0.7})
    first = compare([digits], settings, tmp_path / "runs", repeat=str).result
    count = int(first["repeat"])
    assert 2 <= count <= 7  # six runs of a second an update, and of one to begin and end
    again = compare([digits], Settings(**{**vars(SETTINGS), "updates": count}), tmp_path / "other", repeat=str).result
    assert json.dumps(without_clocks(first)) == json.dumps(without_clocks(again))
    with pytest.raises(InputError, match="minutes are too few"):
        compare([digits], Settings(**{**vars(settings), "minutes": 0.001}), tmp_path / "short")


def test_the_same_training_time(digits: MovingMnistTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_timed", lambda entry, *_: (0.02 if entry.name == "convlstm" else 0.005, 0.001))
    settings = Settings(**{**vars(SETTINGS), "updates": 2, "match": "time", "learning_rates": (1e-3,)})
    result = compare([digits], settings, tmp_path / "runs", repeat=str).result
    assert [row["updates"] for row in result["rows"]] == [2, 8]
    assert result["repeat"] == "convlstm=2,conv2d-lstm=8"
    with pytest.raises(InputError, match="names each model once"):
        compare([digits], Settings(**{**vars(settings), "updates": {"convlstm": 2}}), tmp_path / "x")


def test_on_frames(storms: list[FramesTask], tmp_path: Path) -> None:
    found = compare(storms, SETTINGS, tmp_path / "runs")
    result = found.result
    assert result["units"] == {"count": 7, "of": "blocks of an hour or more"}
    assert [one["name"] for one in result["baselines"]] == ["persistence"]
    for row in [*result["rows"], *result["baselines"]]:
        csi = {"csi_0.5", "csi_2", "csi_5", "csi_10"}
        assert set(row["scores"]) == {"loss", "mse", "mae", "correlation", *csi, "pod_0.5", "far_0.5"}
        assert 0 <= row["scores"]["csi_0.5"]["value"] <= 1
    assert [v["second"] for v in result["verdicts"]] == ["conv2d-lstm", "persistence"]
    name, rows = found.samples[0]
    assert name.startswith("from 2024-")
    assert list(rows) == ["observed", "persistence", "convlstm", "conv2d-lstm"]
    assert rows["convlstm"].shape == (2, 16, 16)


def test_each_event_is_left_out_once(rain: xr.DataArray, tmp_path: Path) -> None:
    runs = split_at_gaps(rain)[:6]
    folds = folds_of(runs, past=3, future=2, crop=16, cases=6, seed=0, against=["persistence"], leave_one_out=True)
    assert len(folds) == 6
    for k, task in enumerate(folds):
        assert isinstance(task, FramesTask)
        times = {time for run in task.windows.runs for time in run.time.values}
        assert times == set(runs[k].time.values)
        for part in (task.train, task.validation):
            assert not times & {time for run in part.runs for time in run.time.values}  # type: ignore[attr-defined]
    settings = Settings(**{**vars(SETTINGS), "updates": 2, "learning_rates": (1e-3,)})
    result = compare(folds[:2], settings, tmp_path / "runs").result
    assert result["units"]["count"] == 2
    assert result["cases"] == sum(task.cases for task in folds[:2])
    assert "too few for an interval" in result["verdicts"][0]["text"]
    with pytest.raises(InputError, match="two events or more"):
        folds_of(runs[:1], past=3, future=2, crop=16, cases=6, seed=0, against=[], leave_one_out=True)
    with pytest.raises(InputError, match="leave out --test"):
        folds_of(runs, past=3, future=2, crop=16, cases=6, seed=0, against=[], test=runs[:1], leave_one_out=True)


def test_pixels_count_where_all_are_valid(rain: xr.DataArray) -> None:
    holes = rain.copy()
    holes[:, :16] = np.nan
    (task,) = folds_of(split_at_gaps(holes), past=3, future=2, crop=32, cases=6, seed=0, against=["persistence"])
    batch = next(iter(task.batches(task.test)))
    sums = task.sums(batch["y"], batch, 0)
    np.testing.assert_array_equal(sums["n"], 16 * 32)
    np.testing.assert_allclose(sums["se"], 0, atol=1e-3)  # a perfect forecast
    assert (sums["misses_0.5"] == 0).all()
    assert sums["hits_0.5"].sum() > 0


def test_an_ensemble_is_compared_by_its_mean(rain: xr.DataArray) -> None:
    pytest.importorskip("pysteps", reason="STEPS needs pysteps")
    lengths = {"past": 3, "future": 2, "crop": 32, "cases": 4, "seed": 0}
    (task,) = folds_of(split_at_gaps(rain), **lengths, against=["optical-flow", "steps"])
    sums = task.baselines()
    assert sums["steps"]["n"].shape == (4, 2)
    np.testing.assert_array_equal(sums["steps"]["n"], sums["optical-flow"]["n"])
    assert 0 < sums["steps"]["se"].sum() < sums["steps"]["oo"].sum()
    (again,) = folds_of(split_at_gaps(rain), **lengths, against=["optical-flow", "steps"])
    np.testing.assert_array_equal(again.baselines()["steps"]["se"], sums["steps"]["se"])


def test_of_a_plain_quantity_a_block_is_as_long_as_a_forecast() -> None:
    months = np.array([np.datetime64("2000-01") + k for k in range(72)], dtype="datetime64[ns]")
    values = np.random.default_rng(0).normal(300, 2, (72, 16, 16)).astype(np.float32)
    sea = make_frames(values, units="K").assign_coords(time=months)
    (task,) = folds_of([sea], past=3, future=3, crop=16, cases=8, seed=0, against=["persistence"])
    assert task.leads[0] == "+31 d"
    assert task.units == "blocks of 84 days or more"
    begins = [min(np.array(task.references)[task.unit == block]) for block in range(task.unit.max() + 1)]
    assert (np.diff(begins) >= np.timedelta64(84, "D")).all()
    assert 1 < len(begins) < task.cases


# --- one run ---


class Planned(MovingMnistTask):
    """A task whose validation losses are known beforehand, one a check."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__(moving_mnist(past=3, future=2), protocol="paper", cases=1)
        self.losses, self.seen = losses, 0

    def loss(self, forecast: torch.Tensor, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            return (forecast - 1).square().mean()
        check, self.seen = self.seen // len(self.batches(self.validation)), self.seen + 1
        return torch.tensor(self.losses[check])


def test_a_run_keeps_the_best_weights_and_stops_early() -> None:
    run = Run(Entry("net", "convlstm-3x3-4", 8), 1e-2, 0, 240, 2)
    kept = {}
    for name, losses in {
        "second": [5.0, 3.0, 4.0, 4.5, 4.0, 3.5],
        "second again": [9.0, 1.0, 2.0, 2.0, 2.0, 2.0],
        "third": [5.0, 4.0, 3.0, 4.5, 4.0, 3.5, 3.5],
    }.items():
        found = fit(run, Planned(losses))
        assert found.loss == min(losses)
        assert [point[2] for point in found.curve] == losses
        assert found.updates == 20 * len(losses)
        kept[name] = torch.cat([value.flatten() for value in found.net.state_dict().values()])
    assert PATIENCE == 4
    assert torch.equal(kept["second"], kept["second again"])
    assert not torch.equal(kept["second"], kept["third"])


def test_how_often_validation_is_looked_at() -> None:
    assert [checks(n) for n in (1, 2, 40, 100, 10_000)] == [1, 2, 2, 5, 12]


def test_seeds_and_learning_rates_make_different_runs(digits: MovingMnistTask) -> None:
    entry = Entry("net", "convlstm-3x3-4", 8)
    weights = []
    for rate, seed in ((1e-2, 0), (1e-2, 0), (1e-2, 1), (1e-3, 0)):
        net = fit(Run(entry, rate, seed, 3, 2), digits).net
        weights.append(torch.cat([value.flatten() for value in net.state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_a_stopped_run_goes_on_to_the_same_numbers(
    digits: MovingMnistTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Entry("net", "convlstm-3x3-4", 8), 1e-2, 0, 12, 2)
    whole = fit(run, digits)
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit(run, digits, checkpoint=checkpoint, advance=stop)
    assert checkpoint.exists()
    made: list[None] = []
    resumed = fit(run, digits, checkpoint=checkpoint, advance=lambda: made.append(None))
    assert len(made) == 12
    assert resumed.curve == whole.curve
    assert resumed.updates == whole.updates == 12
    for name, value in resumed.net.state_dict().items():
        assert torch.equal(value, whole.net.state_dict()[name])
    assert not checkpoint.exists()
    checkpoint.write_bytes(b"damaged")
    assert fit(run, digits, checkpoint=checkpoint).curve == whole.curve
