"""The model: layers with the manners of torch.nn, and the encoder–forecaster built from them."""

from .convgru import ConvGRU1d, ConvGRU2d, ConvGRU3d, ConvGRUCell1d, ConvGRUCell2d, ConvGRUCell3d
from .convlstm import ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, ConvLSTMCell1d, ConvLSTMCell2d, ConvLSTMCell3d
from .forecaster import EncoderForecaster, paper_model
from .recurrent import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
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
    "paper_model",
]
