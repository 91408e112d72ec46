"""The model: layers with the manners of torch.nn, what they are compared with, and the encoder–forecaster built from them."""

from .convgru import ConvGRU1d, ConvGRU2d, ConvGRU3d, ConvGRUCell1d, ConvGRUCell2d, ConvGRUCell3d
from .convlstm import ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, ConvLSTMCell1d, ConvLSTMCell2d, ConvLSTMCell3d
from .costs import Cost, cost, forecast_macs, forecast_reach
from .forecaster import Conv2dFlatLSTMForecaster, Conv2dLSTMForecaster, EncoderForecaster, NextFrameForecaster
from .identities import (
    from_conv_and_pixel_lstm,
    from_pixel_lstm,
    to_conv_and_pixel_lstm,
    to_dense_lstm,
    to_pixel_lstm,
)
from .nets import net, paper_model
from .recurrent import ACTIVATIONS
from .stacks import Conv2dFlatLSTM, Conv2dPixelLSTM

__all__ = [
    "ACTIVATIONS",
    "Conv2dFlatLSTM",
    "Conv2dFlatLSTMForecaster",
    "Conv2dLSTMForecaster",
    "Conv2dPixelLSTM",
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
    "Cost",
    "EncoderForecaster",
    "NextFrameForecaster",
    "cost",
    "forecast_macs",
    "forecast_reach",
    "from_conv_and_pixel_lstm",
    "from_pixel_lstm",
    "net",
    "paper_model",
    "to_conv_and_pixel_lstm",
    "to_dense_lstm",
    "to_pixel_lstm",
]
