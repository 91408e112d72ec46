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
import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import xarray as xr

from stormcell import load
from stormcell.data.axes import grid_spacing
from stormcell.data.frames import open_runs
from stormcell.data.reading import Reading
from stormcell.data.units import Transform
from stormcell.data.windows import Split, runs_of
from stormcell.forecasting.baselines import Array, baselines_on
from stormcell.forecasting.lagrangian import LagrangianForecaster
from stormcell.forecasting.plan import Plan, Recipe
from stormcell.forecasting.tally import FEWEST_BLOCKS, scores_to_json
from stormcell.forecasting.train import train
from stormcell.forecasting.verify import hindcast
from stormcell.provenance import commit, machine
from stormcell.report.networks import csi_table, ensemble_table, reliable_bins
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
RIVALS, MEMBERS = ("persistence", "optical-flow", "s-prog", "steps"), 20


def recipe(epochs: int) -> Recipe:
    return Recipe(model="lagrangian", past=len(AGES), future=FUTURE, epochs=epochs, crop=96, batch=8,
                  hidden_channels=(48, 48), patch=8, learning_rate=1.5e-2, device="auto")  # fmt: skip


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


def parts(fold: str) -> tuple[str, list[str]]:
    """Of the networks left, the one that chooses the weights, and those that train."""
    names = list(FOLDS)
    choosing = names[(names.index(fold) + 1) % len(names)]
    return choosing, [name for name in names if name not in (fold, choosing)]


def trained(folder: Path, fold: str, recipe: Recipe, work: Path) -> LagrangianForecaster:
    path = work / f"{fold}.safetensors"
    if not path.exists():
        choosing, others = parts(fold)
        training = [run for name in others for run in events(folder, name)]
        train(planned(training, events(folder, choosing), recipe), path, command="experiments/skill.py")
    forecaster = load(path)
    assert isinstance(forecaster, LagrangianForecaster)
    return forecaster


def nowcast(rival: str, spacing_m: float, step: float, past: Array, steps: int) -> Array:
    """Of a rival; kept on disk, since it knows nothing of our models."""
    return baselines_on([rival], spacing_m=spacing_m, step=step)[0][rival](past, steps)


def scored(
    folder: Path, fold: str, forecaster: LagrangianForecaster, rivals: list[str], members: int, memory: joblib.Memory
) -> list[Any]:
    runs = events(folder, fold)
    step = float((runs[0].time.values[1] - runs[0].time.values[0]) / np.timedelta64(60, "s"))
    spacing = grid_spacing(runs[0]) or 2000.0
    kept = memory.cache(nowcast, verbose=0)
    against = {rival: functools.partial(kept, rival, spacing, step) for rival in rivals}
    found = []
    for minutes in PASSES.get(fold, LEADS):
        leads = [round(lead / step) for lead in minutes]
        scores = hindcast(
            forecaster,
            runs,
            against=against,
            steps=max(leads),
            leads=leads,
            members=members,
            every_minutes=EVERY_MINUTES,
            thresholds=THRESHOLDS,
            scales=(5, 11, 21),
            sample_count=0,
        ).scores
        settings = baselines_on(rivals, spacing_m=spacing, step=step)[1]
        found.append(json.loads(scores_to_json(scores.assign_attrs(rivals=settings))))
    return found


def table(results: Path) -> str:
    """Scores by fold, then what is asked of the mean over folds, and what came out."""
    folds = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    if not folds:
        return "nothing is known yet"
    at = {
        (fold, row["forecaster"], row["lead_minutes"]): row
        for fold, result in folds.items()
        for scores in result["scores"]
        for row in scores["scores"]
    }
    networks = {fold: result["scores"] for fold, result in folds.items()}
    return "\n".join([csi_table(networks), ensemble_table(networks), *_targets(folds, at)])


def _targets(folds: dict[str, Any], at: dict[Any, Any]) -> list[str]:
    def mean(name: str, lead: float, get: Callable[[dict[str, Any]], float]) -> float:
        """Over the folds that hold this lead time."""
        return float(np.mean([get(row) for (_, who, when), row in at.items() if who == name and when == lead]))

    def csi(k: int) -> Callable[[dict[str, Any]], float]:
        return lambda row: row["thresholds"][k]["csi"]

    def verdict(what: str, value: float, asked: float, *, most: bool = False) -> str:
        met = value <= asked if most else value >= asked
        return f"{'met   ' if met else 'MISSED'}  {what}: {value:.3f} ({'≤' if most else '≥'} {asked:g} asked)"

    leads = sorted({lead for _, _, lead in at})
    places = [(lead, k) for lead in leads for k in range(len(THRESHOLDS))]
    found = []
    for lead, k in places:
        ours, flow = mean("stormcell", lead, csi(k)), mean("optical-flow", lead, csi(k))
        found.append(verdict(f"CSI at {THRESHOLDS[k]:g} mm/h, +{lead:g} min, over optical flow's", ours / flow, 1.0))
    for rival, asked in (("optical-flow", 1.10), ("s-prog", 1.05)):
        ours, its = (np.mean([mean(name, lead, csi(k)) for lead, k in places]) for name in ("stormcell", rival))
        found.append(verdict(f"mean CSI over {rival}'s", float(ours / its), asked))
    for fold, result in folds.items():
        own = [lead for lead in leads if (fold, "stormcell", lead) in at]
        ours, flow = (
            np.mean([at[fold, name, lead]["thresholds"][k]["csi"] for lead in own for k in range(len(THRESHOLDS))])
            for name in ("stormcell", "optical-flow")
        )
        few = "" if result["scores"][0]["blocks"] >= FEWEST_BLOCKS else ", too few blocks for an interval"
        found.append(verdict(f"{fold}: mean CSI over optical flow's{few}", float(ours / flow), 0.95))
    for lead in leads:
        ours, its = (mean(name, lead, lambda row: row["crps"]) for name in ("ensemble", "steps"))
        found.append(verdict(f"CRPS over STEPS', +{lead:g} min", ours / its, 0.95, most=True))
    for (fold, who, lead), row in at.items():
        for entry in row["thresholds"] if who == "ensemble" else []:
            inside, bins = reliable_bins([entry])
            if bins:
                what = f"{fold}, +{lead:g} min, {entry['threshold']:g} mm/h: share of {bins} bins in the band"
                found.append(verdict(what, inside / bins, 1.0))
    if 60.0 in leads:
        power = mean("ensemble", 60.0, lambda row: row["relative_power"])
        found.append(verdict("power of a member at 4 to 16 km over the observed, +60 min", power, 0.5))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", nargs="?", type=Path)
    parser.add_argument("--folds", default=",".join(FOLDS))
    parser.add_argument("--epochs", type=int, default=4, help="of training a fold; some ten minutes on two cores")
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--rivals", default=",".join(RIVALS))
    parser.add_argument(
        "--work", type=Path, default=Path("skill-work"), help="folder for models, and rivals' nowcasts (30 GB)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the scores; those in the repository, unless given"
    )
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.events is not None:
        asked.results.mkdir(parents=True, exist_ok=True)
        asked.work.mkdir(parents=True, exist_ok=True)
        memory = joblib.Memory(asked.work / "rivals", verbose=0)
        chosen = recipe(asked.epochs)
        for fold in asked.folds.split(","):
            path = asked.results / f"{fold}.json"
            if path.exists():
                continue
            forecaster = trained(asked.events, fold, chosen, asked.work)
            result = {
                "commit": commit(),
                "machine": machine(),
                "recipe": asdict(chosen),
                "chosen_on": parts(fold)[0],
                "trained_on": parts(fold)[1],
                "updates": forecaster.card["updates"],
                "validation": forecaster.card["validation"],
                "scores": scored(asked.events, fold, forecaster, asked.rivals.split(","), asked.members, memory),
            }
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(asked.results))


if __name__ == "__main__":
    main()
