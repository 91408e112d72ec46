"""Monthly sea surface temperature around the globe: the example of docs/other-quantities.md, trained, verified and written down.

    python experiments/sea_surface_temperature.py sst.nc

A minute on two cores. Nothing was tuned; it is an example of what is printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stormcell.data.axes import time_text
from stormcell.data.frames import open_frames
from stormcell.data.windows import runs_of
from stormcell.forecasting.plan import Recipe, plan
from stormcell.forecasting.tally import scores_to_json
from stormcell.forecasting.train import train
from stormcell.forecasting.verify import hindcast, usual_rivals
from stormcell.provenance import commit, machine
from stormcell.writing import whole_file

RESULT = Path(__file__).parent / "results" / "sea-surface-temperature.json"
RECIPE = Recipe(past=3, future=3, epochs=30, hidden_channels=(32, 32), batch=2)
SET_ASIDE_FROM = "2009-10-01"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    runs = runs_of([open_frames(parser.parse_args().data)])
    planned = plan(runs, RECIPE, test_from=np.datetime64(SET_ASIDE_FROM))
    with tempfile.TemporaryDirectory() as folder:
        forecaster = train(planned, Path(folder) / "sst.safetensors", command="experiments/sea_surface_temperature.py")
    scores = json.loads(scores_to_json(hindcast(forecaster, runs, against=usual_rivals(forecaster, runs)).scores))
    for row in scores["scores"]:
        del row["spectrum"]
    spans = {
        role: [f"{time_text(run.time.values[0], 'M')} to {time_text(run.time.values[-1], 'M')}" for run in part]
        for role, part in (("training", planned.split.train), ("validation", planned.split.validation))
    }
    result = {
        "commit": commit(),
        "machine": machine(),
        "recipe": asdict(RECIPE),
        "test_from": SET_ASIDE_FROM,
        "frames": spans,
        "grid": list(runs[0].shape[1:]),
        "parameters": sum(p.numel() for p in planned.network.parameters()),
        **scores,
    }
    with whole_file(RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
