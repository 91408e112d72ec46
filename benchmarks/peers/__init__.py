"""Who is compared: one file a library, all with the same small interface.

A peer's module has `build(case, variant) -> Run`. Importing it imports its library, so a process holds one peer only. Those
that run on a GPU as well have `build(case, variant, device, precision)`, the latter two with defaults (gpu.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Run(Protocol):
    """A case, ready to be computed again and again. Both functions return when all numbers are there."""

    def forward(self) -> Any:
        """The output, without keeping anything for a backward."""

    def training_step(self) -> Any:
        """Forward, then backward from the given gradient of the output: all parameter gradients and the input's."""

    def numbers(self) -> dict[str, np.ndarray]:
        """For comparison, in our layouts: y, and unless the case streams d_x and `gradients`, the count of all
        gradient values."""


class Peer(NamedTuple):
    """How a peer is started."""

    name: str
    title: str
    module: str  # in this folder
    variant: str = ""
    needs: tuple[str, ...] = ("torch",)  # modules that must be installed
    backend: str | None = None  # KERAS_BACKEND
    ours: bool = False
    complete: bool = True  # False: it leaves work out, so it cannot be the fastest peer


_ALL = (
    Peer("stormcell", "Stormcell (auto)", "ours", "auto", ours=True),
    Peer("stormcell-bptt", "Stormcell, bptt", "ours", "bptt", ours=True),
    Peer("stormcell-reference", "Stormcell, reference", "ours", "reference", ours=True),
    Peer("torch", "torch loop", "torch_loop", "eager"),
    Peer("torch-channels-last", "torch loop, channels_last", "torch_loop", "channels_last"),
    Peer("torch-compile", "torch.compile, whole loop", "torch_loop", "compile"),
    Peer("torch-compile-step", "torch.compile, step", "torch_loop", "compile_step"),
    Peer("keras-tensorflow", "Keras on TensorFlow", "keras_tensorflow", "graph", ("keras", "tensorflow"), "tensorflow"),
    Peer("keras-tensorflow-xla", "Keras on TensorFlow, XLA", "keras_tensorflow", "xla", ("keras", "tensorflow"), "tensorflow"),
    Peer("keras-jax", "Keras on JAX", "keras_jax", "", ("keras", "jax"), "jax"),
    Peer("keras-torch", "Keras on torch", "keras_torch", "", ("keras", "torch"), "torch"),
    Peer("flax", "Flax", "flax_cell", "", ("jax", "flax")),
    Peer("floor", "convolutions alone", "floor", complete=False),
)  # fmt: skip
PEERS = {peer.name: peer for peer in _ALL}
GROWTH_PEERS = ("stormcell", "stormcell-bptt", "stormcell-reference", "torch")


class NotHere(Exception):
    """Raised by `build` for what this machine cannot run; the text says why."""
