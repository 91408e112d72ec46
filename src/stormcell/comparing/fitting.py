"""One net, one learning rate, one seed: trained by Lightning for so many updates, the best weights by validation kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.windows import Sample
from ..forecasting.loop import CtrlC, Last, on_device, quiet
from ..nn.forecaster import Forecasts
from .entries import Entry
from .tasks import Task

MOST_CHECKS = 12
UPDATES_A_CHECK = 20
PATIENCE = 4  # checks without a better one
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "rmsprop": lambda parameters, lr: torch.optim.RMSprop(parameters, lr, alpha=0.9),  # Shi et al. 2015
}


@dataclass(frozen=True)
class Run:
    """What is trained, and how."""

    entry: Entry
    learning_rate: float
    seed: int
    updates: int
    batch: int
    optimizer: str = "adam"


@dataclass
class Fitted:
    """A trained net, and how it got there.

    Attributes:
        loss: the lowest on validation; `updates` were made until the end, early or not.
        curve: update, training loss since the check before, validation loss.
    """

    net: Forecasts
    loss: float = math.inf
    updates: int = 0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0


def checks(updates: int) -> int:
    """How often validation is looked at."""
    return min(MOST_CHECKS, max(2, updates // UPDATES_A_CHECK), updates)


class _Stream(Dataset[Sample]):
    """Samples of a training set, shuffled anew each time it is through: sample k follows from (seed, k)."""

    def __init__(self, data: Any, count: int, seed: int) -> None:
        self.data, self.count, self.seed = data, count, seed
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self.data))
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = epoch, torch.randperm(len(self.data), generator=generator)
        if hasattr(self.data, "epoch"):
            self.data.epoch = epoch * 1_000_003 + self.seed  # windows draw their crops by it
        return self.data[int(self._order[1][place])]


class _From(Sampler[int]):
    """Samples in their order from one on; those before count as done."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.count))


class _Module(lightning.LightningModule):
    def __init__(self, net: Forecasts, task: Task, run: Run) -> None:
        super().__init__()
        self.net, self.task, self.run = net, task, run

    def training_step(self, batch: Sample, _: int) -> Tensor:
        return self.task.loss(self.net(batch["x"], self.task.future), batch)

    def validation_step(self, batch: Sample, _: int) -> None:
        loss = self.task.loss(self.net(batch["x"], self.task.future), batch)
        self.log("val_loss", loss, batch_size=len(batch["x"]))

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.run.optimizer](self.parameters(), lr=self.run.learning_rate)

        def rate(update: int) -> float:
            done = update / self.run.updates
            return max(min((update + 1) / max(0.05 * self.run.updates, 1), 0.5 * (1 + math.cos(math.pi * done))), 0.01)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Best(Callback):
    """Keeps the curve, and the weights of the lowest validation loss."""

    def __init__(self, fitted: Fitted, advance: Callable[[], None]) -> None:
        self.fitted, self.advance = fitted, advance
        self.weights: dict[str, Tensor] = {}
        self._losses: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self._losses.append(float(outputs["loss"]))
        self.advance()

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        loss = float(trainer.callback_metrics["val_loss"])
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self.fitted.curve.append((trainer.global_step, mean, loss))
        if loss < self.fitted.loss:
            self.fitted.loss = loss
            self.weights = {name: value.detach().clone() for name, value in module.net.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.fitted.curve, "loss": self.fitted.loss, "weights": self.weights, "losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fitted.curve, self.fitted.loss = list(map(tuple, state_dict["curve"])), state_dict["loss"]
        self.weights, self._losses = state_dict["weights"], list(state_dict["losses"])


def fresh(run: Run, task: Task) -> Forecasts:
    """The net of a run before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return run.entry.build(task)


def fit(
    run: Run,
    task: Task,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Fitted:
    """Train, the learning rate rising over the first 5 % and falling as a cosine, and stop early by validation.

    `checkpoint` holds the state while it is under way: a run that was stopped goes on from it, to the same numbers. `advance` is
    called after each update. Raises KeyboardInterrupt after the update that is under way at Ctrl-C.
    """
    fitted = Fitted(fresh(run, task))
    best, ctrl_c = _Best(fitted, advance), CtrlC()
    done = 0 if checkpoint is None else _updates_in(checkpoint)
    for _ in range(done):
        advance()
    stream = _Stream(task.train, run.updates * run.batch, run.seed)
    saving = [] if checkpoint is None else [Last(checkpoint)]
    began = time.perf_counter()
    with quiet(), ctrl_c.heard():
        trainer = lightning.Trainer(
            **on_device(device),
            max_steps=run.updates,
            val_check_interval=max(1, run.updates // checks(run.updates)),
            callbacks=[
                best,
                EarlyStopping("val_loss", patience=PATIENCE, check_on_train_epoch_end=False),
                *saving,
                ctrl_c,
            ],
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(
                _Module(fitted.net, task, run),
                DataLoader(stream, run.batch, sampler=_From(done * run.batch, len(stream))),
                task.batches(task.validation),
                ckpt_path=checkpoint if done else None,
                weights_only=True,
            )
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
    if ctrl_c.asked:
        raise KeyboardInterrupt
    fitted.seconds = time.perf_counter() - began
    fitted.updates = trainer.global_step
    if best.weights:
        fitted.net.load_state_dict(best.weights)
    fitted.net.eval().requires_grad_(False)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return fitted


def _updates_in(checkpoint: Path) -> int:
    """Updates that a checkpoint has behind it; 0 if there is none, or none that can be read."""
    try:
        return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])
    except Exception:  # torch raises pickle, zip, key and system errors alike
        return 0
