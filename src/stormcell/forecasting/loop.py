"""Manners of Lightning's training loop: it saves its state, ends between updates on Ctrl-C, and keeps its advice to itself."""

from __future__ import annotations

import logging
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

SAVE_EVERY = 30.0  # seconds


def on_device(name: str) -> dict[str, Any]:
    """What a Trainer takes for torch's name of a device."""
    kind, _, number = name.partition(":")
    return {
        "accelerator": "gpu" if kind == "cuda" else kind,
        "devices": [int(number)] if kind == "cuda" and number else 1,
    }


class Last(Callback):
    """Keep `last.ckpt` fresh: every half minute, at each validation, and when something stops the training."""

    def __init__(self, path: Path) -> None:
        self.path, self.saved = path, time.monotonic()

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if time.monotonic() - self.saved > SAVE_EVERY:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._save(trainer)

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        if trainer.global_step and isinstance(exception, KeyboardInterrupt):
            self._save(trainer)


class CtrlC(Callback):
    """Ctrl-C ends the training after the update that is under way, so that nothing is half done; a second one at once.

    Where the caller ignores it, as shells do for jobs in the background, so does the training.
    """

    def __init__(self) -> None:
        self.asked = False

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

    def on_train_batch_end(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt


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
