"""Stormcell: `ConvLSTM2d` and `EncoderForecaster` with an engine by name, without peepholes, since no peer has them.

A variant is an engine, or ENGINE+MODE: the module inside `torch.compile` in that mode. With "reduce-overhead", CUDA graphs, a
stream's step is not compiled but recorded as it is: each call copies a frame in and an output out, the graph holds the state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stormcell import ConvLSTM2d, EncoderForecaster, engine
from stormcell.engine.case import case_of

from ..cases import Arrays, Case, LayerArrays, arrays
from . import NotHere
from .autograd import AutogradRun, autocast
from .graphs import need_gpu, recorded


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


def _recorded_step(
    model: nn.Module, frame: Tensor, state: tuple[Tensor, Tensor], precision: str
) -> Callable[[Tensor], Tensor]:
    """`model.step` as a CUDA graph that holds the state: each frame is copied in, each output copied out."""
    x, *held = [value.clone() for value in (frame, *state)]

    def step() -> Tensor:
        y, after = model.step(x, (held[0], held[1]))
        torch._foreach_copy_(held, list(after))
        return y

    with torch.no_grad(), autocast(frame.device.type, precision, cached=False):
        graph, y = recorded(step)
    torch._foreach_copy_(held, list(state))

    def compute(frame: Tensor) -> Tensor:
        x.copy_(frame)
        graph.replay()
        return y.clone()

    compute.held = held  # type: ignore[attr-defined]  # the graph reads and writes it
    return compute


def build(case: Case, variant: str, device: str = "cpu", precision: str = "float32") -> AutogradRun:
    """A run of the engine in `variant`. Raises NotHere with the engine's own reason."""
    name, _, mode = variant.partition("+")
    reason = engine.engines().get(name) if name != "auto" else None
    if reason is not None:
        raise NotHere(reason)
    graphs = mode == "reduce-overhead"
    if graphs:
        need_gpu(device)
    numbers = arrays(case)
    model = module(case, numbers, engine=name).to(device)
    parameters = list(model.parameters())
    x, d_y = torch.from_numpy(numbers.x).to(device), torch.from_numpy(numbers.d_y).to(device)
    compute: Callable[[Tensor], Tensor]
    if case.streaming:
        x, d_y = x[:, 0], d_y[:, 0]
        state = tuple(torch.from_numpy(value)[None].to(device) for value in numbers.state)
        step = (
            torch.compile(model.step, mode=mode, fullgraph=True, dynamic=False) if mode and not graphs else model.step
        )

        def compute(x: Tensor) -> Tensor:
            return step(x, state)[0]

        if graphs:
            compute = _recorded_step(model, x, state, precision)
    else:
        if mode:
            model = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)

        def compute(x: Tensor) -> Tensor:
            return model(x, steps=case.future) if case.future else model(x)[0]

    return AutogradRun(
        compute,
        x,
        d_y,
        parameters,
        streaming=case.streaming,
        precision=precision,
        trees=graphs and not case.streaming,
    )
