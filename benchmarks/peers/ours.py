"""Stormcell: `ConvLSTM2d` and `EncoderForecaster` with an engine by name, without peepholes, since no peer has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stormcell import ConvLSTM2d, EncoderForecaster, engine
from stormcell.engine.case import case_of

from ..cases import Arrays, Case, LayerArrays, arrays
from . import NotHere
from .autograd import AutogradRun


def module(case: Case, numbers: Arrays, *, engine: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The layer or net of a case, with the case's weights."""

    def load(layer: ConvLSTM2d, values: LayerArrays) -> None:
        weights = {"weight_hh_l0": values.hh, "bias_l0": values.bias}
        if values.ih is not None:
            weights["weight_ih_l0"] = values.ih
        layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    if not case.future:
        layer = ConvLSTM2d(case.in_channels, case.hidden[0], case.kernel, engine=engine, dtype=dtype)
        load(layer, numbers.encoder[0])
        return layer
    net = EncoderForecaster(case.in_channels, case.hidden, case.kernel, engine=engine).to(dtype)
    for layer, values in zip([*net.encoder, *net.forecaster], [*numbers.encoder, *numbers.forecaster]):
        load(layer, values)
    weight, bias = (torch.from_numpy(value) for value in numbers.output)
    net.output.load_state_dict({"weight": weight, "bias": bias})
    return net


def chosen(case: Case, device: str = "cpu") -> str:
    """The engine that "auto" takes for a case's first layer in training, or for the step of a stream."""
    layer = ConvLSTM2d(case.in_channels, case.hidden[0], case.kernel, device=device)
    x = torch.zeros(case.batch, case.steps, case.in_channels, *case.size, device=device)
    state = (torch.zeros(case.batch, case.hidden[0], *case.size, device=device),) * 2
    with torch.set_grad_enabled(not case.streaming):
        asked = engine.explain(case_of(x, state, layer._weights("_l0"), layer._form(), None))
    return next(name for name, said in asked.items() if said == "chosen")


def build(case: Case, variant: str, device: str = "cpu") -> AutogradRun:
    """A run on the engine `variant`. Raises NotHere with the engine's own reason."""
    reason = engine.engines().get(variant) if variant != "auto" else None
    if reason is not None:
        raise NotHere(reason)
    numbers = arrays(case)
    model = module(case, numbers, engine=variant).to(device)
    x, d_y = torch.from_numpy(numbers.x).to(device), torch.from_numpy(numbers.d_y).to(device)
    if case.streaming:
        x, d_y = x[:, 0], d_y[:, 0]
        state = tuple(torch.from_numpy(value)[None].to(device) for value in numbers.state)

        def compute(x: Tensor) -> Tensor:
            return model.step(x, state)[0]

    elif case.future:

        def compute(x: Tensor) -> Tensor:
            return model(x, steps=case.future)

    else:

        def compute(x: Tensor) -> Tensor:
            return model(x)[0]

    return AutogradRun(compute, x, d_y, list(model.parameters()), streaming=case.streaming)
