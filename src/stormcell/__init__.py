"""ConvLSTM for PyTorch, and nowcasting on top of it.

Every name loads its own module when it is first used, so that `import stormcell` costs nothing, the layers need only
torch and numpy, and the command line answers `--help` without loading either.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data.contract import coarsen
    from .data.frames import open_frames
    from .errors import InputError
    from .forecasting.forecast import Forecaster, load
    from .forecasting.verify import verify
    from .nn.convgru import ConvGRU1d, ConvGRU2d, ConvGRU3d, ConvGRUCell1d, ConvGRUCell2d, ConvGRUCell3d
    from .nn.convlstm import ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, ConvLSTMCell1d, ConvLSTMCell2d, ConvLSTMCell3d
    from .nn.forecaster import EncoderForecaster
    from .nn.nets import paper_model

_HOME = {
    "ConvGRU1d": "nn.convgru",
    "ConvGRU2d": "nn.convgru",
    "ConvGRU3d": "nn.convgru",
    "ConvGRUCell1d": "nn.convgru",
    "ConvGRUCell2d": "nn.convgru",
    "ConvGRUCell3d": "nn.convgru",
    "ConvLSTM1d": "nn.convlstm",
    "ConvLSTM2d": "nn.convlstm",
    "ConvLSTM3d": "nn.convlstm",
    "ConvLSTMCell1d": "nn.convlstm",
    "ConvLSTMCell2d": "nn.convlstm",
    "ConvLSTMCell3d": "nn.convlstm",
    "EncoderForecaster": "nn.forecaster",
    "paper_model": "nn.nets",
    "coarsen": "data.contract",
    "open_frames": "data.frames",
    "Forecaster": "forecasting.forecast",
    "load": "forecasting.forecast",
    "verify": "forecasting.verify",
    "InputError": "errors",
}

__all__ = [
    "ConvGRU1d",
    "ConvGRU2d",
    "ConvGRU3d",
    "ConvGRUCell1d",
    "ConvGRUCell2d",
    "ConvGRUCell3d",
    "ConvLSTM1d",
    "ConvLSTM2d",
    "ConvLSTM3d",
    "ConvLSTMCell1d",
    "ConvLSTMCell2d",
    "ConvLSTMCell3d",
    "EncoderForecaster",
    "Forecaster",
    "InputError",
    "__version__",
    "coarsen",
    "load",
    "open_frames",
    "paper_model",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stormcell' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
