"""Train a forecaster on runs of frames, through Lightning: the best weights by validation become the model file.

Beside the model file MODEL.safetensors lies the folder MODEL.training: `last.ckpt`, from which `resume` goes on after Ctrl-C
or a kill, `best.ckpt`, and `log/`, a CSV file for each start.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from .. import __version__
from ..data.batches import Batches
from ..data.windows import Sample, count_windows
from ..errors import InputError
from ..writing import check_writable
from .forecast import Forecaster
from .loop import CtrlC, Last, on_device, quiet
from .losses import Sums, mean
from .plan import Plan, option
from .processes import GO_ON, Processes, check_shares, from_the_first, processes, together

_VALIDATIONS = 12  # in the time given by `minutes`


class _Training(lightning.LightningModule):
    """What Lightning needs to know: loss, optimizer, schedule."""

    def __init__(self, plan: Plan, batches: Batches) -> None:
        super().__init__()
        self.network, self.recipe, self.identity, self.windows = plan.network, plan.recipe, plan.identity, plan.training
        self.forecaster, self.batches = plan.forecaster, batches
        self.timer: Timer | None = None
        self.seconds = 0.0  # that all processes agree to have trained
        self.validated: list[Sums] = []

    def training_step(self, batch: Sample, _: int) -> Tensor:
        error, weight = self.forecaster.errors(batch, np.random.default_rng([self.recipe.seed, self.global_step]))
        seconds = self.timer.time_elapsed() if self.timer else 0.0
        total = self._summed(torch.stack([error.detach(), weight, weight.new_tensor(seconds)]))
        self.seconds = float(total[2]) / self.trainer.world_size
        loss = mean(total[0], total[1])
        if not torch.isfinite(loss):
            raise InputError(f"the loss is no longer finite at update {self.global_step}: try a lower --learning-rate")
        self.log("train_loss", loss, on_step=True)
        return mean(error, total[1]) * self.trainer.world_size  # of whose gradients DDP takes the mean

    def validation_step(self, batch: Sample, _: int) -> None:
        self.validated += [self.forecaster.errors(batch), self.forecaster.reference_errors(batch)]

    def on_validation_epoch_end(self) -> None:
        for k, name in enumerate(("val_loss", "val_reference")):
            self.log(
                name, mean(*self._summed(torch.stack([torch.stack(sums) for sums in self.validated[k::2]]).sum(dim=0)))
            )
        self.validated.clear()

    def _summed(self, sums: Tensor) -> Tensor:
        """Over all processes."""
        return self.trainer.strategy.reduce(sums, reduce_op="sum")

    def on_train_start(self) -> None:
        self.windows.epoch = self.current_epoch
        self.batches.done = self.global_step % len(self.batches)

    def on_train_epoch_start(self) -> None:
        self.windows.epoch = self.current_epoch

    def progress(self) -> float:
        """Share of the training that is done."""
        if self.recipe.minutes:
            return min(self.seconds / (60 * self.recipe.minutes), 1.0)
        return min(self.global_step / max(float(self.trainer.estimated_stepping_batches), 1.0), 1.0)

    def configure_optimizers(self) -> Any:
        assert self.recipe.learning_rate is not None
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.recipe.learning_rate, weight_decay=1e-4)

        def rate(_: int) -> float:
            done = self.progress()
            return max(min(done / 0.05, 0.5 * (1 + math.cos(math.pi * done))), 0.01)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stormcell"] = self.identity


class _Reporter(Callback):
    """A bar over the whole training on a terminal; everywhere a line a validation, beside what the model's reference
    (keeping the last frame, or the first guess) scores.
    """

    def __init__(self, *, bar: bool, reference: str) -> None:
        self.best, self.reference, self.name = math.inf, math.nan, reference
        console = Console(stderr=True, quiet=not processes().first)
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
        self.best, self.reference = min(self.best, scores["val_loss"]), scores["val_reference"]
        self.bar.console.print(
            f"update {trainer.global_step}: training loss {scores.get('train_loss', math.nan):.4f}, "
            f"validation {scores['val_loss']:.4f} ({self.name} {self.reference:.4f}){star}",
            soft_wrap=True,
            highlight=False,
        )

    def on_train_end(self, *_: Any) -> None:
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        self.bar.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "reference": self.reference}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.reference = state_dict["best"], state_dict["reference"]


class _ByTheClock(Callback):
    """Validates every so many seconds, so that a large archive is validated long before its first epoch is through.

    Lightning has this too, but each process by a clock of its own.
    """

    def __init__(self, every: float) -> None:
        self.every = every
        self.since: float | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.since is None:
            self.since = module.seconds
        trainer.val_check_batch = 1 if module.seconds - self.since >= self.every else sys.maxsize

    def on_validation_end(self, *_: Any) -> None:
        self.since = None


def dry_run(plan: Plan) -> dict[str, str]:
    """What training would take, measured on one update: windows, parameters, memory, minutes an epoch."""
    recipe = plan.recipe
    loader = Batches(plan.training, recipe.batch, shuffled=True).loader()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = next(iter(loader))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _update(plan, batch)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        _update(plan, batch)
        seconds.append(time.perf_counter() - began)
    plan.network.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in plan.network.parameters())
    length = recipe.past + recipe.future
    frames = sum(run.size for run in [*plan.training.runs, *plan.validation.runs]) * 4
    return {
        "windows": f"{len(plan.training.windows)} training, {len(plan.validation.windows)} validation, "
        f"{count_windows(plan.split.test, length)} set aside",
        "samples an epoch": f"{len(plan.training)} crops of {plan.training.crop}×{plan.training.crop_x} pixels",
        "parameters": f"{parameters:,}",
        "memory": f"{(sum(kept.values()) + 16 * parameters) / 2**20:.0f} MB for an update of {recipe.batch}, "
        + (f"{frames / 2**20:.0f} MB for frames" if plan.training.in_memory else "frames stay on disk"),
        "minutes an epoch": f"{min(seconds) * len(loader) / 60:.1f} (on the CPU)",
    }


def _update(plan: Plan, batch: Sample) -> None:
    mean(*plan.forecaster.errors(batch, np.random.default_rng(plan.recipe.seed))).backward()


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

    Where torchrun or SLURM have started several processes, each calls this with the same plan: a batch is split among them, all
    return the same, and the first one writes.

    Raises InputError if `output` cannot be written, `resume` finds nothing that fits, or a process is lost.
    """
    output, team = Path(output), processes()
    folder = output.with_suffix(".training")
    check_shares(team, batch=plan.recipe.batch, device=plan.recipe.device)
    if team.first:
        check_model_path(output)
        _prepare(folder, plan, resume=resume)
    reporter = _Reporter(bar=progress, reference=plan.forecaster.reference)
    with together(GO_ON):
        updates, interrupted = _fit(plan, folder, reporter, team, resume=resume)
        best = folder / "best.ckpt"
        weights = from_the_first(_weights(best) if team.first and best.exists() else None)
        if weights is not None:
            forecaster = _best(plan, weights, reporter, updates=updates, command=command)
            if team.first:
                forecaster.save(output)
    if interrupted:
        raise KeyboardInterrupt
    if weights is None:
        raise InputError("training stopped before its first validation: give it more --minutes")
    return forecaster


def _prepare(folder: Path, plan: Plan, *, resume: bool) -> None:
    if resume:
        _check_resumable(folder / "last.ckpt", plan)
    elif folder.exists():
        earlier = folder.with_suffix(".training.old")
        shutil.rmtree(earlier, ignore_errors=True)
        folder.rename(earlier)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from error


def _fit(plan: Plan, folder: Path, reporter: _Reporter, team: Processes, *, resume: bool) -> tuple[int, bool]:
    """Run Lightning's loop; returns the number of updates, and whether Ctrl-C ended it."""
    recipe, last = plan.recipe, folder / "last.ckpt"
    batches = Batches(plan.training, recipe.batch, shuffled=True, rank=team.rank, count=team.count)
    module = _Training(plan, batches)
    best = ModelCheckpoint(
        folder, "best", monitor="val_loss", save_top_k=1, enable_version_counter=False, save_weights_only=True
    )
    ctrl_c = CtrlC()
    callbacks: list[Callback] = [reporter, best, Last(last), ctrl_c]
    timing: dict[str, Any] = {"max_epochs": recipe.epochs or (-1 if recipe.minutes else 50)}
    if recipe.minutes:
        module.timer = Timer(timedelta(minutes=recipe.minutes), interval="step", verbose=False)
        callbacks = [module.timer, _ByTheClock(60 * recipe.minutes / _VALIDATIONS), *callbacks]
        timing |= {"val_check_interval": sys.maxsize, "check_val_every_n_epoch": None}
    with quiet(), ctrl_c.heard():
        trainer = lightning.Trainer(
            **on_device(recipe.device, team),
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
                batches.loader(),
                Batches(plan.validation, recipe.batch, rank=team.rank, count=team.count).loader(),
                ckpt_path=last if resume else None,
                weights_only=True,
            )
        except SystemExit:  # Lightning's answer to Ctrl-C
            return trainer.global_step, True
        except OSError as error:  # reading has errors of its own, so this was a checkpoint
            raise InputError(f"{folder} cannot be written ({error.strerror or error})") from error
    return trainer.global_step, ctrl_c.asked


def _weights(best: Path) -> dict[str, Tensor]:
    state = torch.load(best, weights_only=True, map_location="cpu")["state_dict"]
    return {k.removeprefix("network."): v for k, v in state.items()}


def _best(
    plan: Plan, weights: dict[str, Tensor], reporter: _Reporter, *, updates: int, command: str | None
) -> Forecaster:
    plan.network.cpu().load_state_dict(weights)
    plan.forecaster.card |= {
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv) if command is None else command,
        "updates": updates,
        "validation": {
            "loss": reporter.best,
            "reference": plan.forecaster.reference,
            "reference_loss": reporter.reference,
        },
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
        options = ", ".join("--" + option(key) for key in changed)
        raise InputError(f"{last} was made with another {options}: give the same options, or train without --resume")
    if not same_frames:
        raise InputError(f"{last} was made with other frames: give the same DATA, or train without --resume")
    if plan.recipe.epochs is not None and epoch >= plan.recipe.epochs:
        raise InputError(f"{last} is in epoch {epoch + 1} already: give --epochs {epoch + 1} or more")
