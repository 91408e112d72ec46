"""Skill on radar networks that no training has seen, against the nowcasts of pysteps at their best.

    python experiments/skill.py EVENTS                   every network left out in turn; some hours on two cores
    python experiments/skill.py EVENTS --folds mch,bom   some of them
    python experiments/skill.py --table                  what is known, as a table

EVENTS is a folder with one NetCDF file an event. Events that overlap in time are one fold. Of the networks left, the next
in the list chooses the best weights, and the others train. Everything is at 2 km; cases are 15 minutes apart or more. A
fold whose scores are there is not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from stormcell import load
from stormcell.data.frames import open_runs
from stormcell.data.reading import Reading
from stormcell.data.units import Transform
from stormcell.data.windows import Split, runs_of
from stormcell.forecasting.lagrangian import LagrangianForecaster
from stormcell.forecasting.tally import scores_to_json
from stormcell.forecasting.train import Plan, Recipe, train
from stormcell.forecasting.verify import hindcast
from stormcell.provenance import commit, machine
from stormcell.writing import whole_file

RESULTS = Path(__file__).parent / "results" / "skill"
FOLDS: dict[str, dict[str, int]] = {  # events, and how many pixels make 2 km
    "mch": {"mch_20150515": 2, "mch_20160711": 2},
    "fmi": {"fmi_20160928": 2},
    "knmi": {"knmi_20100826": 2},
    "mrms": {"mrms_20190610_greatlakes": 2, "mrms_20190610_indiana": 2, "mrms_20190610_newmexico": 2},
    "bom": {"bom_melbourne_20180616": 4},
    "opera": {"opera_20180824_scandinavia": 1, "opera_20180824_czechia": 1, "opera_20180824_england": 1},
    "dwd": {"dwd_yw_20170816": 2},
}
PASSES: dict[str, tuple[tuple[int, ...], ...]] = {"mrms": ((30,), (60,)), "dwd": ((30,),)}  # too short for both at once
LEADS = ((30, 60),)
AGES, LEAD_MINUTES, FUTURE = (-10.0, -5.0, 0.0), 10.0, 6
THRESHOLDS, EVERY_MINUTES = (0.5, 2.0, 5.0), 15.0


def events(folder: Path, fold: str) -> list[xr.DataArray]:
    return [
        run
        for name, coarsen in FOLDS[fold].items()
        for run in runs_of(open_runs([str(folder / f"{name}.nc")], Reading()), coarsen=coarsen)
    ]


def untrained(recipe: Recipe) -> LagrangianForecaster:
    """For frames of any step up to 15 minutes, at 2 km."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LagrangianForecaster.at_ages(
            Transform(zr=(200.0, 1.6)),
            AGES,
            LEAD_MINUTES,
            FUTURE,
            2000.0,
            hidden_channels=recipe.hidden_channels,
            kernel_size=recipe.kernel_size,
            patch=recipe.patch,
        )


def planned(training: list[xr.DataArray], choosing: list[xr.DataArray], recipe: Recipe) -> Plan:
    forecaster = untrained(recipe)
    windows = forecaster.windows(training, crop=recipe.crop, seed=recipe.seed)
    chosen = forecaster.windows(choosing, crop=recipe.crop, seed=recipe.seed, fixed=96)
    forecaster.card |= {"recipe": asdict(recipe), "frames": []}
    split = Split(training, choosing, [])
    return Plan(split, recipe, windows, chosen, forecaster, json.dumps(asdict(recipe)))


def trained(folder: Path, fold: str, recipe: Recipe, models: Path) -> LagrangianForecaster:
    path = models / f"{fold}.safetensors"
    if not path.exists():
        names = list(FOLDS)
        choosing = names[(names.index(fold) + 1) % len(names)]
        training = [run for name in names if name not in (fold, choosing) for run in events(folder, name)]
        train(planned(training, events(folder, choosing), recipe), path, command="experiments/skill.py")
    forecaster = load(path)
    assert isinstance(forecaster, LagrangianForecaster)
    return forecaster


def scored(folder: Path, fold: str, forecaster: LagrangianForecaster, rivals: list[str], members: int) -> list[Any]:
    runs = events(folder, fold)
    step = float((runs[0].time.values[1] - runs[0].time.values[0]) / np.timedelta64(60, "s"))
    found = []
    for minutes in PASSES.get(fold, LEADS):
        leads = [round(lead / step) for lead in minutes]
        scores = hindcast(
            forecaster,
            runs,
            against=rivals,
            steps=max(leads),
            leads=leads,
            members=members,
            every_minutes=EVERY_MINUTES,
            thresholds=THRESHOLDS,
            scales=(5, 11, 21),
            sample_count=0,
        ).scores
        found.append(json.loads(scores_to_json(scores)))
    return found


def table() -> str:
    """CSI of each fold, lead time and threshold, and how the targets are met."""
    lines, ratios = [], {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for scores in result["scores"]:
            rows = {(row["forecaster"], row["lead_minutes"]): row for row in scores["scores"]}
            names = list(dict.fromkeys(name for name, _ in rows))
            for lead in dict.fromkeys(lead for _, lead in rows):
                for k, level in enumerate(THRESHOLDS):
                    csi = {name: rows[name, lead]["thresholds"][k]["csi"] for name in names}
                    ratios.setdefault((lead, level), []).append(csi)
                    cells = "  ".join(f"{name} {csi[name]:.3f}" for name in names)
                    lines.append(
                        f"{path.stem:6} +{lead:g} min  ≥ {level:g}: {cells}  ({scores['cases']} cases, {scores['blocks']} blocks)"
                    )
    lines.append("")
    for (lead, level), found in sorted(ratios.items()):
        means = {name: np.mean([one[name] for one in found]) for name in found[0]}
        lines.append(
            f"mean   +{lead:g} min  ≥ {level:g}: " + "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", nargs="?", type=Path)
    parser.add_argument("--folds", default=",".join(FOLDS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of training a fold")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--rivals", default="persistence,optical-flow,s-prog,steps")
    parser.add_argument("--models", type=Path, default=Path("skill-models"), help="folder for the models of the folds")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.events is not None:
        RESULTS.mkdir(parents=True, exist_ok=True)
        asked.models.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(model="lagrangian", past=3, future=FUTURE, minutes=asked.minutes, crop=96, batch=8,
                        hidden_channels=(32, 32), learning_rate=2e-3, device="auto")  # fmt: skip
        for fold in asked.folds.split(","):
            path = RESULTS / f"{fold}.json"
            if path.exists():
                continue
            began = time.perf_counter()
            forecaster = trained(asked.events, fold, recipe, asked.models)
            result = {
                "commit": commit(),
                "machine": machine(),
                "recipe": asdict(recipe),
                "scores": scored(asked.events, fold, forecaster, asked.rivals.split(","), asked.members),
                "wall_seconds": round(time.perf_counter() - began),
            }
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
