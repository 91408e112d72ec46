"""Other people's weights and runtimes: Keras, other PyTorch ConvLSTMs, Flax and Haiku, ONNX.

Every name loads its own module when it is first used: only what is used has to be installed. `stormcell.interop.keras` has
Keras layers, and is not imported from here, since Keras reads its backend when it is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversion import convert, from_keras, to_keras
    from .keras_read import read_keras
    from .keras_write import write_keras
    from .layer_file import read_layers, write_layers
    from .layouts import from_torch, to_torch
    from .onnx import to_onnx
    from .torch_files import read_torch_file, write_torch_file

_HOME = {
    "convert": "conversion",
    "from_keras": "conversion",
    "from_torch": "layouts",
    "read_keras": "keras_read",
    "read_layers": "layer_file",
    "read_torch_file": "torch_files",
    "to_keras": "conversion",
    "to_onnx": "onnx",
    "to_torch": "layouts",
    "write_keras": "keras_write",
    "write_layers": "layer_file",
    "write_torch_file": "torch_files",
}

__all__ = [
    "convert",
    "from_keras",
    "from_torch",
    "read_keras",
    "read_layers",
    "read_torch_file",
    "to_keras",
    "to_onnx",
    "to_torch",
    "write_keras",
    "write_layers",
    "write_torch_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stormcell.interop' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
