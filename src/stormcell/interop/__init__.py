"""Other people's weights and runtimes: Keras, other PyTorch ConvLSTMs, Flax and Haiku, ONNX.

Every name loads its own module when it is first used: only what is used has to be installed. `stormcell.interop.keras` has
Keras layers, and is not imported from here, since Keras reads its backend when it is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layer_file import read_layers, write_layers

_HOME = {
    "read_layers": "layer_file",
    "write_layers": "layer_file",
}

__all__ = ["read_layers", "write_layers"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stormcell.interop' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
