"""The whole way on rain that is made up: what `stormcell demo` does, with the functions that the other verbs call."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr

from .data.frames import open_frames
from .data.synthetic import advected_rain
from .data.windows import runs_of
from .errors import InputError
from .forecasting.forecast import load, save_frames
from .forecasting.plan import Recipe, plan
from .forecasting.tally import scores_to_json
from .forecasting.train import train
from .forecasting.verify import hindcast
from .report import animate, print_scores, report_verification
from .writing import check_writable, whole_file

PAST, FUTURE = 4, 6
TRAINING_SEQUENCES, UNSEEN_SEQUENCES = 300, 60
_TO_BEAT = (0.5, 2.0)  # mm/h


def run_demo(folder: Path, *, minutes: float, seed: int = 0) -> bool:
    """Make rain, train, forecast unseen storms, verify, write a report and a film into `folder`.

    Returns whether the model beat persistence at the last lead time, in MSE and in CSI at 0.5 and 2 mm/h, over all unseen
    storms; prints either way. Raises InputError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error})") from error
    check_writable(folder / "rain.nc")
    length = PAST + FUTURE
    print(f"making rain: {TRAINING_SEQUENCES} storms to learn from, {UNSEEN_SEQUENCES} to forecast", flush=True)
    save_frames(advected_rain(TRAINING_SEQUENCES, length + 2, seed=seed), folder / "rain.nc")
    unseen = advected_rain(UNSEEN_SEQUENCES, length, seed=seed + 1, start="2025-01-01T00:00")
    save_frames(unseen, folder / "unseen.nc")

    print(f"training for {minutes:g} minutes", flush=True)
    recipe = Recipe(
        model="plain",  # without pysteps too
        past=PAST,
        future=FUTURE,
        minutes=minutes,
        crop=64,
        batch=8,
        hidden_channels=(32, 32),
        learning_rate=2e-3,
        seed=seed,
        device="cpu",
    )
    prepared = plan(runs_of([open_frames(folder / "rain.nc")]), recipe)
    train(prepared, folder / "model.safetensors")

    forecaster = load(folder / "model.safetensors")
    storms = runs_of([open_frames(folder / "unseen.nc")])
    found = hindcast(forecaster, storms)
    print_scores(found.scores)
    with whole_file(folder / "scores.json") as temporary:
        temporary.write_text(scores_to_json(found.scores), encoding="utf-8")
    with whole_file(folder / "report.html") as temporary:
        report_verification(
            found.scores,
            temporary,
            samples=found.samples,
            model=str(folder / "model.safetensors"),
            data=str(folder / "unseen.nc"),
            card=forecaster.card,
        )
    past = storms[0].isel(time=slice(None, PAST))
    with whole_file(folder / "forecast.gif") as temporary:
        animate(forecaster.forecast(past), temporary, past=past)
    print(f"report: {folder / 'report.html'}\nfilm:   {folder / 'forecast.gif'}")
    return _beats_persistence(found.scores.isel(lead_time=-1))


def _beats_persistence(last: xr.Dataset) -> bool:
    minutes = int(last.lead_time / np.timedelta64(1, "m"))
    won = []
    for name, level in (("mse", None), *(("csi", level) for level in _TO_BEAT)):
        score = last[name] if level is None else last[name].sel(threshold=level)
        model, persistence = (float(score.sel(forecaster=who)) for who in ("stormcell", "persistence"))
        better = model < persistence if name == "mse" else model > persistence
        won.append(better)
        what = "MSE" if level is None else f"CSI at {level:g} mm/h"
        verdict = "better" if better else "NOT better"
        print(f"+{minutes} min, {what}: model {model:.3f}, persistence {persistence:.3f} – {verdict}")
    if not all(won):
        print("the model did not beat persistence; give it more time with --minutes", file=sys.stderr)
    return all(won)
