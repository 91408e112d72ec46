"""The comparison: for each net the learning rate is chosen on validation, then seeds are trained and tested once.

Beside the result lies a folder with what each run found, under a name that follows from everything it depends on; what is
there is not computed again, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from .. import __version__
from ..errors import InputError
from ..provenance import commit, machine
from ..writing import whole_file
from .entries import Entry, Shape, entries
from .fitting import OPTIMIZERS, Run, checks, fit, fresh
from .scores import Score, Sums, joined
from .tasks import Task
from .verdict import Interval, Scored, Verdict, interval, summary, verdict

DEFAULT_MODELS = ("convlstm", "conv2d-lstm", "conv2d-flatten-lstm", "conv2d-flatten-lstm-natural")
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
MOST_UPDATES = 10_000_000
_PICTURES = 3
_TIMED_UPDATES = 3
_SECONDS_A_RUN = 1.0  # that starting and ending one takes
_SHARE = 0.9  # of the minutes that may be planned for


@dataclass(frozen=True)
class Settings:
    """What is compared, and how long.

    Attributes:
        models: names of rows (`entries.py`), the first is compared with the others.
        match: "parameters", "macs", or "time": by parameters, and as many updates as take the same time.
        updates: of each run, or for rows by name; None: as many as `minutes` allow for the whole comparison.
        seeds: runs of each net with its chosen learning rate.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    shape: Shape = field(default_factory=Shape)
    match: str = "parameters"
    updates: int | Mapping[str, int] | None = None
    minutes: float | None = None
    seeds: int = 3
    learning_rates: tuple[float, ...] = LEARNING_RATES
    batch: int = 8
    optimizer: str = "adam"
    seed: int = 0
    device: str = "cpu"


class Row(NamedTuple):
    """A net with all that was found out about it."""

    entry: Entry
    updates: int
    scored: Scored
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        result: for JSON; what a clock measured stands under keys that end in `_seconds`.
        verdicts: of the first row against each other, by the score that decides.
        samples: test cases by each row, to look at.
    """

    result: dict[str, Any]
    verdicts: list[Verdict]
    samples: list[tuple[str, dict[str, xr.DataArray]]]


# --- how many updates ---


def _timed(entry: Entry, task: Task, settings: Settings) -> tuple[float, float]:
    """Seconds of an update, and of forecasting one case."""
    run = Run(entry, settings.learning_rates[0], settings.seed, 1, settings.batch)
    net = fresh(run, task).to(settings.device)
    optimizer = OPTIMIZERS[settings.optimizer](net.parameters(), lr=run.learning_rate)
    batch = next(iter(torch.utils.data.DataLoader(task.train, settings.batch)))
    batch = {name: value.to(settings.device) for name, value in batch.items()}
    seconds = []
    for _ in range(1 + _TIMED_UPDATES):
        began = time.perf_counter()
        optimizer.zero_grad()
        task.loss(net(batch["x"], task.future), batch).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    with torch.inference_mode():
        net(batch["x"], task.future)
    return min(seconds[1:]), (time.perf_counter() - began) / len(batch["x"])


def _plan(rows: Sequence[Entry], folds: Sequence[Task], settings: Settings) -> dict[str, int]:
    """Updates of each row's runs; by the clock where they follow from time."""
    names = [row.name for row in rows]
    if isinstance(settings.updates, Mapping):
        unknown = sorted(set(settings.updates) ^ set(names))
        if unknown:
            raise InputError(
                f"--updates names each model once ({', '.join(f'{name}=N' for name in names)}), or is one number: {unknown[0]!r}"
            )
        return dict(settings.updates)
    if settings.updates is not None and settings.match != "time":
        return dict.fromkeys(names, settings.updates)
    speeds = {row.name: _timed(row, folds[0], settings) for row in rows}
    first = speeds[names[0]][0]

    def updates(count: int) -> dict[str, int]:
        if settings.match != "time":
            return dict.fromkeys(names, count)
        return {name: max(1, round(count * first / update)) for name, (update, _) in speeds.items()}

    if settings.updates is not None:
        return updates(settings.updates)
    assert settings.minutes is not None
    runs = settings.seeds + len(settings.learning_rates) - 1

    def seconds(count: int) -> float:
        total = 0.0
        for name, number in updates(count).items():
            update, case = speeds[name]
            for task in folds:
                total += runs * (number * update + checks(number) * len(task.validation) * case + _SECONDS_A_RUN)  # type: ignore[arg-type]
                total += settings.seeds * task.cases * (case + 2e-3 * task.future)
        return total

    budget = 60 * settings.minutes * _SHARE
    if seconds(2) > budget:
        least = math.ceil(10 * seconds(2) / _SHARE / 60) / 10
        raise InputError(
            f"{settings.minutes:g} minutes are too few for {len(rows)} models, {len(settings.learning_rates)} learning "
            f"rates and {settings.seeds} seeds: give --minutes {least:g} or more, or fewer of them"
        )
    low, high = 2, 4
    while seconds(high) <= budget and high < MOST_UPDATES:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= budget else (low, middle)
    return updates(low)


def budget(updates: Mapping[str, int]) -> str:
    """In words."""
    low, high = min(updates.values()), max(updates.values())
    return f"After {low:,} updates" if low == high else f"After {low:,} to {high:,} updates"


def updates_text(updates: Mapping[str, int]) -> str:
    """What --updates takes to say the same."""
    if len(set(updates.values())) == 1:
        return str(next(iter(updates.values())))
    return ",".join(f"{name}={count}" for name, count in updates.items())


# --- runs ---


def _identity(run: Run, task: Task) -> dict[str, Any]:
    return {
        "task": task.identity,
        "net": run.entry.net,
        "patch": run.entry.patch,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "updates": run.updates,
        "batch": run.batch,
        "optimizer": run.optimizer,
        "threads": torch.get_num_threads(),
    }


class _Runs:
    """Runs, and the folder with what they found, by a digest of all that it depends on."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.advance: Callable[[int, str], None] = lambda count, text: None
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror or error})") from error

    def path(self, what: Mapping[str, Any], suffix: str) -> Path:
        text = json.dumps({**what, "version": __version__}, sort_keys=True)
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}{suffix}"

    def read(self, what: Mapping[str, Any]) -> Any:
        path = self.path(what, ".json")
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except ValueError:  # damaged: made anew
            return None

    def write(self, what: Mapping[str, Any], found: Any) -> None:
        with whole_file(self.path(what, ".json")) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")

    def fitted(self, run: Run, task: Task, text: str) -> dict[str, Any]:
        """Validation loss, curve, … of a run; its weights lie in the folder."""
        from safetensors.torch import save_file

        identity = _identity(run, task)
        known, weights = self.read(identity), self.path(identity, ".safetensors")
        if known is not None and (weights.exists() or self.path(identity, ".npz").exists() or known.get("left")):
            self.advance(run.updates, text)
            return dict(known)
        made = 0

        def one() -> None:
            nonlocal made
            made += 1
            self.advance(1, text)

        self.advance(0, text)
        found = fit(run, task, device=self.device, checkpoint=self.path(identity, ".ckpt"), advance=one)
        self.advance(run.updates - made, text)  # those that early stopping left out
        with whole_file(weights) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in found.net.state_dict().items()}, temporary)
        result = {
            "learning_rate": run.learning_rate,
            "seed": run.seed,
            "validation": found.loss if math.isfinite(found.loss) else None,
            "updates": found.updates,
            "curve": found.curve,
            "train_seconds": round(found.seconds, 2),
        }
        self.write(identity, result)
        return result

    def leave(self, run: Run, task: Task) -> None:
        """A run that was not chosen needs no weights."""
        identity = _identity(run, task)
        self.write(identity, {**self.read(identity), "left": True})
        self.path(identity, ".safetensors").unlink(missing_ok=True)

    def tested(self, run: Run, task: Task) -> tuple[Sums, dict[int, npt.NDArray[np.float32]]]:
        """Sums over the test cases, and forecasts to look at. This is the only place where test cases are seen."""
        from safetensors.torch import load_file

        identity = _identity(run, task)
        path, weights = self.path(identity, ".npz"), self.path(identity, ".safetensors")
        if not path.exists():
            net = fresh(run, task)
            net.load_state_dict(load_file(weights))
            net.to(self.device).eval()
            arrays: dict[str, Any] = dict(task.evaluate(net, self.device))
            for case in task.some(_PICTURES):
                batch = {name: value[None] for name, value in task.test[case].items()}
                with torch.inference_mode():
                    forecast = net(batch["x"].to(self.device), task.future).cpu()
                arrays[f"picture/{case}"] = task.picture(forecast, batch)[0]
            with whole_file(path) as temporary:
                np.savez_compressed(temporary, **arrays)
            weights.unlink(missing_ok=True)
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        shown = {int(name.split("/")[1]): arrays.pop(name) for name in list(arrays) if name.startswith("picture/")}
        return arrays, shown


# --- the whole ---


def compare(
    folds: Sequence[Task],
    settings: Settings,
    folder: Path,
    *,
    repeat: Callable[[str], str] = lambda updates: f"--updates {updates}",
    progress: Callable[[int, str], Callable[[int, str], None]] = lambda total, text: lambda advance, text: None,
) -> Comparison:
    """Compare nets on a task, or on several of which each leaves out another part of the data.

    `repeat` turns what --updates would take into the command that gives the same numbers. `progress` is called with the
    number of all updates, and what it returns with updates that were made and what is being done.

    Raises InputError for settings that do not fit. After KeyboardInterrupt the same call goes on.
    """
    if settings.optimizer not in OPTIMIZERS:
        raise InputError(f"--optimizer knows {', '.join(OPTIMIZERS)}, not {settings.optimizer!r}")
    made_by = {"commit": commit(), "machine": machine(settings.device)}  # what runs, whatever is checked out later
    rows = entries(settings.models, folds[0], settings.shape, settings.match)
    runs = _Runs(folder, settings.device)
    asked = {"settings": asdict(settings), "task": [task.identity for task in folds], "plan": True}
    updates = runs.read(asked)
    if updates is None:
        updates = _plan(rows, folds, settings)
        runs.write(asked, updates)
    runs_a_row = settings.seeds + len(settings.learning_rates) - 1
    runs.advance = progress(len(folds) * runs_a_row * sum(updates.values()), "training")
    found = [_row(row, k, updates[row.name], folds, settings, runs) for k, row in enumerate(rows)]
    unit = _units(folds)
    score = folds[0].scores[0]
    baselines = _baselines(folds)
    trained = [row.scored for row, _ in found]
    units = folds[0].units
    verdicts = [
        verdict(score, trained[0], other, unit, units) for other in [*trained[1:], *baselines] if _has(score, other)
    ]
    result = {
        "stormcell": __version__,
        **made_by,
        "repeat": repeat(updates_text(updates)),
        "score": score.name,
        "facts": folds[0].facts
        | ({"Left out in turn": ", ".join(task.name for task in folds)} if len(folds) > 1 else {}),
        "match": settings.match,
        "seeds": settings.seeds,
        "learning_rates": list(settings.learning_rates),
        "batch": settings.batch,
        "optimizer": settings.optimizer,
        "threads": torch.get_num_threads(),
        "seed": settings.seed,
        "train_seconds": round(sum(run["train_seconds"] for row, _ in found for run in row.runs)),
        "cases": int(sum(task.cases for task in folds)),
        "units": {"count": int(unit.max()) + 1, "of": units},
        "leads": folds[0].leads,
        "verdict": summary(verdicts, budget(updates)) if verdicts else "",
        "verdicts": [{**asdict(v), "difference": _interval_json(v.difference)} for v in verdicts],
        "rows": [_row_json(row, folds, unit) for row, _ in found],
        "baselines": [{"name": one.name, "scores": _scores_json(one, folds, unit)} for one in baselines],
    }
    samples = [
        folds[0].sample(case, {row.entry.name: shown[case] for row, shown in found})
        for case in folds[0].some(_PICTURES)
    ]
    return Comparison(_finite(result), verdicts, samples)


def _row(
    entry: Entry, number: int, updates: int, folds: Sequence[Task], settings: Settings, runs: _Runs
) -> tuple[Row, dict[int, npt.NDArray[np.float32]]]:
    """Everything about one net: in each fold the learning rate with the lowest validation loss, then all seeds."""

    def run(rate: float, seed: int) -> Run:
        own = settings.seed * 1_000_000 + number * 1_000 + seed
        return Run(entry, rate, own, updates, settings.batch, settings.optimizer)

    by_fold: list[list[Sums]] = []
    made: list[dict[str, Any]] = []
    pictures: dict[int, npt.NDArray[np.float32]] = {}
    for fold, task in enumerate(folds):
        where = entry.name + (f", tested on {task.name}" if len(folds) > 1 else "")
        tried = {
            rate: runs.fitted(run(rate, 0), task, f"{where}: learning rate {rate:g}")
            for rate in settings.learning_rates
        }
        losses = {rate: math.inf if one["validation"] is None else one["validation"] for rate, one in tried.items()}
        best = min(losses, key=lambda rate: losses[rate])
        if losses[best] == math.inf:
            raise InputError(f"{entry.name} cannot be trained: with every learning rate the loss is not finite")
        made += [{"fold": fold, "chosen": rate == best, **one} for rate, one in tried.items()]
        for rate in settings.learning_rates:
            if rate != best:
                runs.leave(run(rate, 0), task)
        for seed in range(1, settings.seeds):
            made.append({"fold": fold, **runs.fitted(run(best, seed), task, f"{where}: seed {seed + 1}")})
        tested = [runs.tested(run(best, seed), task) for seed in range(settings.seeds)]
        by_fold.append([sums for sums, _ in tested])
        if not fold:
            pictures = tested[0][1]
    for one in made:
        one.pop("left", None)
    return Row(entry, updates, Scored(entry.name, [joined(parts) for parts in zip(*by_fold)]), made), pictures


def _units(folds: Sequence[Task]) -> npt.NDArray[np.int64]:
    parts, first = [], 0
    for task in folds:
        parts.append(task.unit + first)
        first += int(task.unit.max()) + 1
    return np.concatenate(parts)


def _baselines(folds: Sequence[Task]) -> list[Scored]:
    found = [task.baselines() for task in folds]
    return [Scored(name, [joined([one[name] for one in found])]) for name in found[0]]


def _has(score: Score, row: Scored) -> bool:
    return bool(np.isfinite(score.of(row.seeds[0])))


# --- JSON ---


def _interval_json(found: Interval) -> dict[str, Any]:
    return {"value": found.value, "interval": [found.low, found.high]}


def _scores_json(row: Scored, folds: Sequence[Task], unit: npt.NDArray[np.int64]) -> dict[str, Any]:
    found = {}
    for score in folds[0].scores:
        if score.over not in row.seeds[0]:
            continue
        found[score.name] = {
            "label": score.label,
            **_interval_json(interval(score, row, unit)),
            "by_seed": [float(score.of(sums)) for sums in row.seeds],
            "by_lead": np.mean([score.of(sums, by_lead=True) for sums in row.seeds], axis=0).tolist(),
        }
    return found


def _row_json(row: Row, folds: Sequence[Task], unit: npt.NDArray[np.int64]) -> dict[str, Any]:
    entry, task = row.entry, folds[0]
    reach = entry.reach(task)
    chosen = [run for run in row.runs if run.get("chosen", True)]
    return {
        "name": entry.name,
        "net": entry.net,
        "note": entry.note,
        "patch": entry.patch,
        "parameters": entry.parameters(task),
        "macs": entry.macs(task),
        "reach_pixels": [reach[0], reach[-1]],
        "memory": entry.memory(task),
        "any_frame_size": entry.any_size(task),
        "updates": row.updates,
        "learning_rates": [run["learning_rate"] for run in row.runs if run.get("chosen")],
        "scores": _scores_json(row.scored, folds, unit),
        "runs": row.runs,
        "update_seconds": sum(run["train_seconds"] for run in chosen) / max(sum(run["updates"] for run in chosen), 1),
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


to_json = functools.partial(json.dumps, indent=1, allow_nan=False, ensure_ascii=False)
