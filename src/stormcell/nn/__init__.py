"""The model: layers with the manners of torch.nn, and the encoder–forecaster built from them."""

from .convlstm import ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, ConvLSTMCell1d, ConvLSTMCell2d, ConvLSTMCell3d
from .forecaster import EncoderForecaster, paper_model

__all__ = [
    "ConvLSTM1d",
    "ConvLSTM2d",
    "ConvLSTM3d",
    "ConvLSTMCell1d",
    "ConvLSTMCell2d",
    "ConvLSTMCell3d",
    "EncoderForecaster",
    "paper_model",
]
