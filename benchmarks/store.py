"""Training from a store: how much memory it takes over time, and how fast it is beside the same frames in memory.

python -m benchmarks.store build rain.zarr --frames 3000 --size 1000    make a store of synthetic rain, or go on with it
python -m benchmarks.store memory rain.zarr --updates 500               memory while training that keeps no frames
python -m benchmarks.store speed rain.zarr --updates 100 --rounds 5     updates a second from the store and from memory

`build` is cheap: a mosaic of small storms drifts over the grid, an event of 48 frames after the other. `memory` reads all from
the store, however little it is; `speed` holds the frames once, and takes turns. Updates are those of `stormcell train`, without
Lightning around them. Results go to benchmarks/results/store/.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.progress import track

from stormcell import open_frames
from stormcell.data import windows
from stormcell.data.batches import Batches
from stormcell.data.synthetic import advected_rain
from stormcell.forecasting.archive import Archive
from stormcell.forecasting.losses import mean
from stormcell.forecasting.plan import Plan, Recipe, plan
from stormcell.provenance import commit, machine

RESULTS = Path(__file__).parent / "results" / "store"
_EVENT = 48  # frames
_MOSAIC = 125  # pixels of a storm's own frame
_WARM_UP = 5  # updates


def resident_mb() -> float:
    """Memory of this process now; where the system does not say, its highest so far."""
    statm = Path("/proc/self/statm")
    import resource

    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def children_mb() -> float:
    """Of the processes that read ahead, what they do not share with this one."""
    total = 0
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            lines = Path(f"/proc/{child}/smaps_rollup")
            if lines.exists():
                total += sum(
                    int(line.split()[1]) for line in lines.read_text().splitlines() if line.startswith("Private")
                )
    return total / 2**10


def build(options: argparse.Namespace) -> None:
    archive = Archive(options.store)
    side = math.ceil(options.size / _MOSAIC)
    for event in track(range(len(archive.times) // _EVENT, math.ceil(options.frames / _EVENT)), "building"):
        storms = advected_rain(side**2, 1, size=_MOSAIC, seed=event % 16).values.reshape(side, side, _MOSAIC, _MOSAIC)
        sky = np.block([list(row) for row in storms])[: options.size, : options.size]
        drift = np.random.default_rng(event).integers(-3, 4, size=2)
        times = np.datetime64("2020-01-01", "ns") + np.timedelta64(5, "m") * (np.arange(_EVENT) + event * (_EVENT + 24))
        metres = 1000.0 * np.arange(options.size)
        frames = xr.DataArray(
            np.stack([np.roll(sky, k * drift, axis=(0, 1)) for k in range(_EVENT)]),
            dims=("time", "y", "x"),
            coords={"time": times, "y": ("y", metres[::-1], {"units": "m"}), "x": ("x", metres, {"units": "m"})},
            attrs={"units": "mm/h", "source": "synthetic rain", "zr": (200.0, 1.6)},
            name="rain_rate",
        )
        archive.add(frames)
    archive.finish()
    print(json.dumps(size_of(options.store)))


def size_of(store: Path) -> dict[str, Any]:
    frames = open_frames(store)
    return {
        "frames": list(frames.shape),
        "float32_mb": round(frames.size * 4 / 2**20),
        "on_disk_mb": round(sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) / 2**20),
    }


def planned(options: argparse.Namespace, *, in_memory: bool) -> Plan:
    windows.MEMORY_LIMIT = 2**60 if in_memory else 0
    runs = windows.runs_of([open_frames(options.store)])
    recipe = Recipe(model=options.model, crop=options.crop, batch=options.batch, device=options.device)
    return plan(runs, recipe)


class Updates:
    """A training that can be gone on with for so many updates."""

    def __init__(self, made: Plan, device: str) -> None:
        self.plan, self.device, self.number = made, device, 0
        made.network.to(device).train()
        self.optimizer = torch.optim.AdamW(made.network.parameters(), lr=1e-4)
        self.batches = self._batches()

    def _batches(self) -> Iterator[Any]:
        while True:
            yield from Batches(self.plan.training, self.plan.recipe.batch, shuffled=True).loader()
            self.plan.training.epoch += 1

    def run(self, count: int) -> float:
        """Seconds that they took."""
        began = time.perf_counter()
        for _ in range(count):
            batch = {name: tensor.to(self.device) for name, tensor in next(self.batches).items()}
            loss = mean(*self.plan.forecaster.errors(batch, np.random.default_rng([0, self.number])))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.number += 1
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began


def memory(options: argparse.Namespace) -> dict[str, Any]:
    began, seen, over = time.perf_counter(), [], threading.Event()

    def watch() -> None:
        while not over.wait(options.every):
            seen.append([round(time.perf_counter() - began, 1), round(resident_mb()), round(children_mb())])

    imported = resident_mb()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    training = Updates(planned(options, in_memory=False), options.device)
    planned_after = time.perf_counter() - began
    training.run(_WARM_UP)
    seconds = training.run(options.updates)
    over.set()
    watcher.join()
    half = [sum(row[1:]) for row in seen if row[0] > planned_after]
    return {
        "imported_mb": round(imported),
        "planned_after_s": round(planned_after, 1),
        "highest_mb": max(sum(row[1:]) for row in seen),
        "first_half_mb": round(float(np.mean(half[: len(half) // 2]))),
        "second_half_mb": round(float(np.mean(half[len(half) // 2 :]))),
        "updates_a_second": options.updates / seconds,
        "seconds_own_mb_readers_mb": seen,
    }


def speed(options: argparse.Namespace) -> dict[str, Any]:
    trainings = {
        name: Updates(planned(options, in_memory=name == "memory"), options.device) for name in ("memory", "store")
    }
    readers = Batches(trainings["store"].plan.training, options.batch, shuffled=True).loader().num_workers
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    for training in trainings.values():
        training.run(_WARM_UP)
    for turn in range(options.rounds):
        for name in list(trainings)[:: 1 if turn % 2 else -1]:
            rates[name].append(options.updates / trainings[name].run(options.updates))
    pairs = [store / held for store, held in zip(rates["store"], rates["memory"])]
    return {"updates_a_second": rates, "readers": readers, "store_to_memory": pairs, "median": float(np.median(pairs))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "memory", "speed"))
    parser.add_argument("store", type=Path)
    parser.add_argument("--frames", type=int, default=480, help="build: how many, in events of 48")
    parser.add_argument("--size", type=int, default=512, help="build: side of the frames, pixels")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--crop", type=int, default=Recipe.crop)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--updates", type=int, default=100, help="in all, of speed in each round")
    parser.add_argument("--rounds", type=int, default=5, help="speed: turns of each")
    parser.add_argument("--every", type=float, default=0.5, help="memory: seconds between looks")
    parser.add_argument(
        "-o", "--output", type=Path, help="result; benchmarks/results/store/WHAT-MODEL.json if left out"
    )
    options = parser.parse_args()
    if options.what == "build":
        build(options)
        return
    found = memory(options) if options.what == "memory" else speed(options)
    result = {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(options.device),
        "threads": torch.get_num_threads(),
        "settings": {name: getattr(options, name) for name in ("model", "crop", "batch", "updates", "device")},
        "store": size_of(options.store),
        **found,
    }
    output = options.output or RESULTS / f"{options.what}-{options.model}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = {name: value for name, value in found.items() if name != "seconds_own_mb_readers_mb"}
    print(json.dumps(shown, indent=1), f"wrote {output}", sep="\n")


if __name__ == "__main__":
    main()
