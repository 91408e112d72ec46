"""Manners of Lightning's training loop: it saves its state, ends between updates on Ctrl-C, and keeps its advice to itself."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from .processes import ALONE, ANSWER_WITHIN, Processes, processes

SAVE_EVERY = 30.0  # seconds


def on_device(name: str, team: Processes = ALONE) -> dict[str, Any]:
    """What a Trainer takes for torch's name of a device, and for several processes, whose batches are shares already."""
    kind, _, number = name.partition(":")
    accelerator = "gpu" if kind == "cuda" else kind
    if team.count > 1:
        strategy = DDPStrategy(timeout=ANSWER_WITHIN)
        together = {
            "devices": team.here,
            "num_nodes": team.nodes,
            "strategy": strategy,
            "use_distributed_sampler": False,
        }
        return {"accelerator": accelerator, **together}
    return {"accelerator": accelerator, "devices": [int(number)] if kind == "cuda" and number else 1}


def any_of(trainer: lightning.Trainer, decision: bool) -> bool:
    """Whether one of the processes says so: what only some of them did, the others would wait for for ever."""
    return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


class Stopped(KeyboardInterrupt):
    """Ctrl-C, heard by all processes after the same update."""


class Last(Callback):
    """Keep `last.ckpt` fresh: every half minute, at each validation, and when something stops the training."""

    def __init__(self, path: Path) -> None:
        self.path, self.saved = path, time.monotonic()

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if any_of(trainer, time.monotonic() - self.saved > SAVE_EVERY):
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._save(trainer)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        together = isinstance(exception, Stopped) or trainer.world_size == 1
        if trainer.global_step and isinstance(exception, KeyboardInterrupt) and together:
            self._save(trainer)


class CtrlC(Callback):
    """Ctrl-C ends the training after the update that is under way, so that nothing is half done; a second one at once.

    Where the caller ignores it, as shells do for jobs in the background, so does the training. Of several processes all stop
    after the same update, whichever was told to.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agent = os.getppid() if processes().by == "torchrun" else None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen while the block runs; afterwards the caller's handler is back, which Lightning turns off otherwise."""
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or handler in (signal.SIG_IGN, None):
            yield
            return
        signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if any_of(trainer, self.asked or self._orphaned):
            self.asked = True
            raise Stopped

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.on_train_batch_end(trainer)

    @property
    def _orphaned(self) -> bool:
        """Whether the agent that has started this process is gone, so that a new training may write where this one does."""
        return self.agent is not None and os.getppid() != self.agent


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice to programmers is not for users."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
