"""Train a forecaster on runs of frames, through Lightning: the best weights by validation become the model file.

Beside the model file MODEL.safetensors lies the folder MODEL.training: `last.ckpt`, from which `resume` goes on after Ctrl-C
or a kill, `best.ckpt`, and `log/`, a CSV file for each start.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from .. import __version__
from ..data.axes import area, common_grid_spacing
from ..data.frames import values, zr_pair
from ..data.units import Transform
from ..data.windows import Sample, Split, Windows, common_step, count_windows, split_or_advise
from ..errors import InputError
from ..nn.forecaster import EncoderForecaster
from ..writing import check_writable
from .forecast import Forecaster
from .loop import CtrlC, Last, on_device, quiet

_VALIDATION_SAMPLES = 48
_VALIDATIONS = 12  # in the time given by `minutes`
_RAIN_WEIGHT = 4.0  # of two tried and of none the best by validation (docs/log.md)


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults suit radar composites on a laptop.

    Attributes:
        past, future: frames that are read, and frames to forecast.
        minutes: stop after so many; epochs: stop after so many (an epoch sees every pixel about once).
        crop: side of the square that is cut from the frames, in pixels.
        batch: crops an update.
        hidden_channels, kernel_size, patch: of the network (see EncoderForecaster).
        learning_rate: the highest; it rises over the first 5 % and falls as a cosine to nothing.
        seed: of weights and crops.
        device: "auto", "cpu", "cuda", "mps" …
    """

    past: int = 4
    future: int = 6
    minutes: float | None = None
    epochs: int | None = None
    crop: int = 128
    batch: int = 4
    hidden_channels: tuple[int, ...] = (48, 48)
    kernel_size: int = 3
    patch: int = 4
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "auto"


def weighted_error(forecast: Tensor, batch: Sample, *, rain: bool) -> tuple[Tensor, Tensor]:
    """Of each pixel, error² + |error| in the encoded range times its weight, and the weight: 0 where it is not valid.

    Heavy rain, which is rare, weighs more.
    """
    error = forecast - batch["y"]
    weight = batch["valid"] * (1 + (_RAIN_WEIGHT if rain else 0.0) * batch["y"].clamp(0, 1))
    return weight * (error**2 + error.abs()), weight


def mean_error(forecast: Tensor, batch: Sample, *, rain: bool) -> Tensor:
    """The loss: weighted error over weight, of all valid pixels."""
    error, weight = weighted_error(forecast, batch, rain=rain)
    return error.sum() / weight.sum().clamp(min=1)


class _Training(lightning.LightningModule):
    """What Lightning needs to know: loss, optimizer, schedule."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.network, self.recipe, self.identity, self.windows = plan.network, plan.recipe, plan.identity, plan.training
        self.rain = plan.forecaster.transform.rain
        self.timer: Timer | None = None

    def loss(self, forecast: Tensor, batch: Sample) -> Tensor:
        return mean_error(forecast, batch, rain=self.rain)

    def training_step(self, batch: Sample, _: int) -> Tensor:
        loss = self.loss(self.network(batch["x"], self.recipe.future), batch)
        if not torch.isfinite(loss):
            raise InputError(f"the loss is no longer finite at update {self.global_step}: try a lower --learning-rate")
        self.log("train_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: Sample, _: int) -> None:
        size = len(batch["x"])
        self.log("val_loss", self.loss(self.network(batch["x"], self.recipe.future), batch), batch_size=size)
        last = batch["x"][:, -1:, :1].expand_as(batch["y"])
        self.log("val_persistence", self.loss(last, batch), batch_size=size)

    def on_train_epoch_start(self) -> None:
        self.windows.epoch = self.current_epoch

    def progress(self) -> float:
        """Share of the training that is done."""
        if self.timer is not None:
            assert self.recipe.minutes is not None
            return min(self.timer.time_elapsed() / (60 * self.recipe.minutes), 1.0)
        return min(self.global_step / max(float(self.trainer.estimated_stepping_batches), 1.0), 1.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.recipe.learning_rate, weight_decay=1e-4)

        def rate(_: int) -> float:
            done = self.progress()
            return max(min(done / 0.05, 0.5 * (1 + math.cos(math.pi * done))), 0.01)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stormcell"] = self.identity


class _Reporter(Callback):
    """A bar over the whole training on a terminal; everywhere a line a validation, beside what keeping the last frame
    would score.
    """

    def __init__(self, *, bar: bool) -> None:
        self.best, self.persistence = math.inf, math.nan
        console = Console(stderr=True)
        columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=console, transient=True, disable=not (bar and console.is_terminal))
        self.task = self.bar.add_task("", total=1)

    def on_train_start(self, *_: Any) -> None:
        self.bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.bar.update(self.task, completed=module.progress(), description=f"update {trainer.global_step}")

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        scores = {k: float(v) for k, v in trainer.callback_metrics.items()}
        star = " *" if scores["val_loss"] < self.best else ""
        self.best, self.persistence = min(self.best, scores["val_loss"]), scores["val_persistence"]
        self.bar.console.print(
            f"update {trainer.global_step}: training loss {scores.get('train_loss', math.nan):.4f}, "
            f"validation {scores['val_loss']:.4f} (persistence {scores['val_persistence']:.4f}){star}",
            soft_wrap=True,
            highlight=False,
        )

    def on_train_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "persistence": self.persistence}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.persistence = state_dict["best"], state_dict["persistence"]


@dataclass(frozen=True)
class Plan:
    """Everything settled before the first update: the data, the network, the identity of the run."""

    split: Split
    recipe: Recipe
    training: Windows
    validation: Windows
    network: EncoderForecaster
    forecaster: Forecaster
    identity: str


def plan(
    runs: Sequence[xr.DataArray],
    recipe: Recipe,
    *,
    validation: Sequence[xr.DataArray] = (),
    test: Sequence[xr.DataArray] = (),
    test_from: np.datetime64 | None = None,
) -> Plan:
    """Split runs (frames without gaps) by time, fit the transform on the training part, draw the network.

    Raises InputError if units, time steps or grid spacings do not go together, or too few windows fit.
    """
    if recipe.past < 1 or recipe.future < 1:
        raise InputError(f"--past and --future must be 1 or more, not {recipe.past} and {recipe.future}")
    everything = [*runs, *validation, *test]
    step = common_step(everything)
    spacing = common_grid_spacing(everything)
    split = split_or_advise(runs, recipe.past, recipe.future, validation=validation, test=test, test_from=test_from)
    transform = fitted_transform(everything, split.train)
    for name, part in (("training", split.train), ("validation", split.validation)):
        if not any(np.isfinite(values(run.isel(time=t))).any() for run in part for t in range(run.sizes["time"])):
            raise InputError(f"every pixel of the {name} frames is missing: check --missing, --gain and --variable")
    lengths = {"past": recipe.past, "future": recipe.future, "crop": recipe.crop}
    training = Windows(split.train, transform, **lengths, seed=recipe.seed)
    chosen = Windows(split.validation, transform, **lengths, seed=recipe.seed, fixed=_VALIDATION_SAMPLES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = EncoderForecaster(
            2, recipe.hidden_channels, recipe.kernel_size, patch=recipe.patch, peephole="channel", out_channels=1
        )
    frames = _described(training, "training") + _described(chosen, "validation")
    card = {"version": __version__, "frames": frames, "recipe": asdict(recipe)}
    fixed = replace(recipe, minutes=None, epochs=None, device="auto")
    identity = json.dumps({"recipe": asdict(fixed), "frames": [f["digest"] for f in frames]}, sort_keys=True)
    forecaster = Forecaster(network, transform, step, recipe.past, recipe.future, spacing, card)
    return Plan(split, recipe, training, chosen, network, forecaster, identity)


def fitted_transform(runs: Sequence[xr.DataArray], training: Sequence[xr.DataArray]) -> Transform:
    """The transform for runs of one quantity, fitted on the training part where it is not rain.

    Raises InputError if there are two quantities.
    """
    first = runs[0]
    transform = Transform(units=first.attrs["units"])
    for run in runs:
        if not transform.accepts(run.attrs["units"]):
            raise InputError(
                f"{first.attrs['source']} is in {first.attrs['units']} and {run.attrs['source']} in "
                f"{run.attrs['units']}: one model learns one quantity"
            )
    if transform.rain:
        return Transform(zr=zr_pair(first))
    return Transform.fit(first.attrs["units"], [values(run.isel(time=slice(None, None, 3))) for run in training])


def _described(windows: Windows, role: str) -> list[dict[str, Any]]:
    """What a model file says of the runs it was made with; `verify` leaves out what lies in their time and area."""
    return [_described_run(run, role, whole=windows.in_memory) for run in windows.runs]


def _described_run(run: xr.DataArray, role: str, *, whole: bool) -> dict[str, Any]:
    times = run.time.values
    seen = range(len(times)) if whole else {0, len(times) - 1}
    return {
        "role": role,
        "source": str(run.attrs.get("source", "")),
        "start": str(times[0]),
        "end": str(times[-1]),
        "count": len(times),
        "area": area(run),
        "digest": digest_of(itertools.chain([times], (values(run.isel(time=k)) for k in seen))),
    }


def digest_of(arrays: Iterable[npt.NDArray[Any]]) -> str:
    """What tells one set of numbers from another."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def dry_run(plan: Plan) -> dict[str, str]:
    """What training would take, measured on one update: windows, parameters, memory, minutes an epoch."""
    recipe = plan.recipe
    module = _Training(plan)
    loader = _loader(plan.training, recipe.batch, shuffle=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = next(iter(loader))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.loss(plan.network(batch["x"], recipe.future), batch).backward()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        module.loss(plan.network(batch["x"], recipe.future), batch).backward()
        seconds.append(time.perf_counter() - began)
    plan.network.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in plan.network.parameters())
    length = recipe.past + recipe.future
    frames = sum(run.size for run in [*plan.training.runs, *plan.validation.runs]) * 4
    return {
        "windows": f"{len(plan.training.windows)} training, {len(plan.validation.windows)} validation, "
        f"{count_windows(plan.split.test, length)} set aside",
        "samples an epoch": f"{len(plan.training)} crops of {plan.training.crop}×{plan.training.crop} pixels",
        "parameters": f"{parameters:,}",
        "memory": f"{(sum(kept.values()) + 16 * parameters) / 2**20:.0f} MB for an update of {recipe.batch}, "
        + (f"{frames / 2**20:.0f} MB for frames" if plan.training.in_memory else "frames stay on disk"),
        "minutes an epoch": f"{min(seconds) * len(loader) / 60:.1f} (on the CPU)",
    }


def check_model_path(path: Path) -> None:
    """Raise InputError if no model file can be written there."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a model file ends in .safetensors")
    check_writable(path)


def train(
    plan: Plan, output: str | Path, *, resume: bool = False, progress: bool = True, command: str | None = None
) -> Forecaster:
    """Train by `plan`, write the model file `output` and return the forecaster with the best weights by validation.

    With `resume` an unfinished training of the same frames and recipe goes on from its last checkpoint. KeyboardInterrupt
    is raised again after the best weights so far have been written.

    Raises InputError if `output` cannot be written, or `resume` finds nothing that fits.
    """
    output = Path(output)
    check_model_path(output)
    folder = output.with_suffix(".training")
    last = folder / "last.ckpt"
    if resume:
        _check_resumable(last, plan)
    elif folder.exists():
        earlier = folder.with_suffix(".training.old")
        shutil.rmtree(earlier, ignore_errors=True)
        folder.rename(earlier)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from error
    reporter = _Reporter(bar=progress)
    updates, interrupted = _fit(plan, folder, reporter, resume=resume)
    if not (folder / "best.ckpt").exists():
        if interrupted:
            raise KeyboardInterrupt
        raise InputError("training stopped before its first validation: give it more --minutes")
    forecaster = _best(plan, folder, reporter, updates=updates, command=command)
    forecaster.save(output)
    if interrupted:
        raise KeyboardInterrupt
    return forecaster


def _fit(plan: Plan, folder: Path, reporter: _Reporter, *, resume: bool) -> tuple[int, bool]:
    """Run Lightning's loop; returns the number of updates, and whether Ctrl-C ended it."""
    recipe, last = plan.recipe, folder / "last.ckpt"
    module = _Training(plan)
    best = ModelCheckpoint(
        folder, "best", monitor="val_loss", save_top_k=1, enable_version_counter=False, save_weights_only=True
    )
    ctrl_c = CtrlC()
    callbacks: list[Callback] = [reporter, best, Last(last), ctrl_c]
    timing: dict[str, Any] = {"max_epochs": recipe.epochs or (-1 if recipe.minutes else 50)}
    if recipe.minutes:
        module.timer = Timer(timedelta(minutes=recipe.minutes), interval="step", verbose=False)
        callbacks.insert(0, module.timer)
        # By the clock, so that a large archive is validated long before its first epoch is through.
        timing["val_check_interval"] = timedelta(minutes=recipe.minutes / _VALIDATIONS)
        timing["check_val_every_n_epoch"] = None
    with quiet(), ctrl_c.heard():
        trainer = lightning.Trainer(
            **on_device(recipe.device),
            callbacks=callbacks,
            logger=CSVLogger(folder, name="log"),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            gradient_clip_val=1.0,
            **timing,
        )
        try:
            trainer.fit(
                module,
                _loader(plan.training, recipe.batch, shuffle=True, seed=recipe.seed),
                _loader(plan.validation, recipe.batch),
                ckpt_path=last if resume else None,
                weights_only=True,
            )
        except SystemExit:  # Lightning's answer to Ctrl-C
            return trainer.global_step, True
        except OSError as error:  # reading has errors of its own, so this was a checkpoint
            raise InputError(f"{folder} cannot be written ({error.strerror or error})") from error
    return trainer.global_step, ctrl_c.asked


def _best(plan: Plan, folder: Path, reporter: _Reporter, *, updates: int, command: str | None) -> Forecaster:
    checkpoint = torch.load(folder / "best.ckpt", weights_only=True, map_location="cpu")
    state = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items()}
    plan.network.cpu().load_state_dict(state)
    plan.forecaster.card |= {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv) if command is None else command,
        "updates": updates,
        "validation": {"loss": reporter.best, "persistence_loss": reporter.persistence},
    }
    plan.network.eval()
    return plan.forecaster


def _check_resumable(last: Path, plan: Plan) -> None:
    if not last.exists():
        raise InputError(f"there is nothing to resume: {last} does not exist; train without --resume first")
    now = json.loads(plan.identity)
    try:
        checkpoint = torch.load(last, weights_only=True, map_location="cpu")
        before, epoch = json.loads(checkpoint["stormcell"]), int(checkpoint["epoch"])
        changed = [key for key in now["recipe"] if before["recipe"].get(key) != now["recipe"][key]]
        same_frames = before["frames"] == now["frames"]
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise InputError(
            f"{last} is not a checkpoint of this program, or is damaged; train without --resume"
        ) from error
    if changed:
        options = ", ".join("--" + key.removesuffix("_channels").replace("_", "-") for key in changed)
        raise InputError(f"{last} was made with another {options}: give the same options, or train without --resume")
    if not same_frames:
        raise InputError(f"{last} was made with other frames: give the same DATA, or train without --resume")
    if plan.recipe.epochs is not None and epoch >= plan.recipe.epochs:
        raise InputError(f"{last} is in epoch {epoch + 1} already: give --epochs {epoch + 1} or more")


def _loader(windows: Windows, batch: int, *, shuffle: bool = False, seed: int = 0) -> DataLoader[Sample]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(windows, batch, shuffle=shuffle, generator=generator)
