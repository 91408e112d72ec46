"""How training scales: updates a second of 1, 2, 4 … processes that share the same batches, on made-up rain.

python -m benchmarks.scaling                          on this machine's GPUs, or its cores where it has none
python -m benchmarks.scaling --devices 1,2 --minutes 2 --batch 32 -o scaling.json

Each number is a training of its own, with validations in it, as people run it; the start of its processes is left out. On CPUs
each process has an equal part of the cores, that of the most processes; a last row gives one process all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from stormcell import load
from stormcell.data.synthetic import advected_rain
from stormcell.forecasting.forecast import save_frames
from stormcell.provenance import commit, machine

RESULT = Path(__file__).parent / "results" / "scaling" / "scaling.json"


def updates_in(folder: Path, devices: int, threads: int | None, options: argparse.Namespace) -> int:
    """Updates that so many processes make in the time, with so many threads each."""
    model = folder / f"{options.model}-{devices}-{threads}.safetensors"
    told = [f"--{name}={getattr(options, name)}" for name in ("model", "device", "batch", "minutes")]
    command = [
        sys.executable,
        "-m",
        "stormcell",
        "train",
        folder / "rain.nc",
        "-o",
        model,
        f"--devices={devices}",
        *told,
    ]
    subprocess.run(command, check=True, env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}))
    return int(load(model).card["updates"])


def measured(options: argparse.Namespace) -> dict[str, Any]:
    counts = [int(number) for number in options.devices.split(",")]
    cores = os.cpu_count() or 1
    rows: list[tuple[int, int | None]] = [(devices, None) for devices in counts]
    if options.device == "cpu":
        each = max(1, cores // max(counts))
        rows = [(devices, each) for devices in counts]
        rows += [(1, cores)] if (1, cores) not in rows else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_frames(advected_rain(40, 24, size=256, seed=0), folder / "rain.nc")
        updates = [updates_in(folder, *row, options) for row in rows]
    return {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(options.device),
        "settings": {name: getattr(options, name) for name in ("model", "batch", "minutes", "device")},
        "rows": [
            {
                "processes": devices,
                "threads_each": threads,
                "updates_a_second": made / (60 * options.minutes),
                "speedup": made / updates[0],
            }
            for (devices, threads), made in zip(rows, updates)
        ],
    }


def main() -> None:
    gpus = torch.cuda.device_count()
    powers = [2**k for k in range(10) if 2**k <= max(gpus, 2)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--devices", default=",".join(map(str, powers)), help="numbers of processes, the first the measure"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--batch", type=int, default=16, help="of all processes together")
    parser.add_argument("--model", default="plain")
    parser.add_argument("--device", default="cuda" if gpus else "cpu")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    result = measured(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in result["rows"]:
        threads = f" of {row['threads_each']} threads" if row["threads_each"] else ""
        print(
            f"{row['processes']} processes{threads}: {row['updates_a_second']:.2f} updates a second ({row['speedup']:.2f}×)"
        )


if __name__ == "__main__":
    main()
