"""Layers, cells and nets as ONNX files, for runtimes that know no PyTorch.

Time is unrolled, so that a file holds plain operators and each kernel is a constant that a convolution reads: parsers that
refuse loops and kernels made at run time, TensorRT's for one, take it. It computes what the module computes in eval mode,
with the reference engine. `torch.export` and `torch.onnx.export` take the layers inside a network of one's own as they are.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import __version__
from ..errors import InputError
from ..nn.forecaster import EncoderForecaster
from ..nn.recurrent import Recurrent, RecurrentLayer, Size, _sizes
from ..writing import check_writable, whole_file

__all__ = ["to_onnx"]

Axes = tuple[str | None, ...]  # the name of each axis that may have any size, None for one that is fixed


class _Step(nn.Module):
    """One step of a layer."""

    layer: Any

    def __init__(self, layer: RecurrentLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.layer.step(x, state)
        return y, state


class _Forecast(nn.Module):
    """A net with its number of steps."""

    def __init__(self, net: EncoderForecaster, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.steps)


class _Graph(NamedTuple):
    """What is exported: a module whose forward takes `args`, and the names and axes of its inputs and outputs."""

    module: nn.Module
    args: tuple[Any, ...]
    inputs: dict[str, Axes]
    outputs: dict[str, Axes]


def to_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    steps: int | None = None,
    past: int | None = None,
    frame_size: Size | None = None,
    opset: int = 18,
) -> None:
    """Write a layer, a cell or an EncoderForecaster as one ONNX file; batch and frame may have any size when it runs.

    | module | inputs → outputs |
    |---|---|
    | ConvLSTM layer, a step | x (B, C, *frame), h, c → y (B, F, *S), h_next, c_next |
    | ConvLSTM layer, `steps=T` | x (B, T, C, *frame), h, c → y (B, T, F, *S), h_n, c_n |
    | ConvLSTM cell | x (B, C, *frame), h, c → h_next, c_next |
    | EncoderForecaster, `past=P, steps=T` | x (B, P, C, Y, X) → y (B, T, C_out, Y, X) |

    ConvGRUs are without c. Each state comes in and goes out, as the module has it: zeros to begin with. Axes lie as in the
    module (x is (T, B, …) without `batch_first`), numbers have its precision (onnxruntime on a CPU
    convolves float32 and float16). Masks are not exported.

    Args:
        steps: number of steps of a sequence, which is fixed in the file; None exports one step.
        past: number of past frames of an EncoderForecaster.
        frame_size: fixes the size of frames, for parsers that want it; None leaves it open, other than for pixel
            peepholes, which are made for one size.
        opset: version of the ONNX operators, 18 or newer.

    The module is left as it was. Its class and arguments stand in the file's metadata, under "stormcell".

    Raises:
        InputError: for an option that does not fit the module, if onnx or onnxscript are missing or torch is too old, or
            where the file cannot be written.
        ValueError: for a layer that cannot run so: a bidirectional one step by step, frames smaller than the kernel.
    """
    onnx = _installed()
    newest = onnx.defs.onnx_opset_version()
    if not 18 <= opset <= newest:  # older ones PyTorch's exporter does not write
        raise InputError(f"opset must lie between 18 and {newest}, the newest of the installed onnx. Received: {opset}")
    if opset < 22 and any(parameter.dtype == torch.bfloat16 for parameter in module.parameters()):
        raise InputError(
            f"convolutions of bfloat16 came with opset 22: give opset=22, or module.float(). Received: {opset}"
        )
    if any(parametrize.is_parametrized(part) for part in module.modules()):
        raise InputError(
            "a kernel under a parametrisation (weight or spectral norm) is no constant: call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    exported = copy.deepcopy(module).eval()
    if isinstance(exported, EncoderForecaster):
        graph = _net(exported, steps, past, frame_size)
    elif isinstance(exported, Recurrent):
        if past is not None:
            raise InputError("past goes with an EncoderForecaster only: a layer takes steps")
        graph = _layer(exported, steps, frame_size)
    else:
        raise InputError(
            "to_onnx takes a ConvLSTM or ConvGRU layer or cell, or an EncoderForecaster; a network of your own goes through "
            f"torch.onnx.export(…, dynamo=True). Received: {type(module).__name__}"
        )
    check_writable(Path(path))
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            graph.module.eval(),
            graph.args,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=_dynamic(graph),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    _describe(model, graph, exported, steps=steps, past=past)
    with whole_file(Path(path)) as temporary:
        onnx.save(model, temporary)


def _installed() -> Any:
    if torch.__version__ < "2.8":
        raise InputError(f"ONNX files need torch ≥ 2.8. Installed: {torch.__version__}")
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise InputError("ONNX files need onnx and onnxscript: pip install 'stormcell[onnx]'") from error


def _frame_axes(frame_size: Size | None, dims: int) -> Axes:
    return ("depth", "height", "width")[-dims:] if frame_size is None else (None,) * dims


def _zeros(module: nn.Module, *shape: int) -> Tensor:
    weight = next(module.parameters())
    return torch.zeros(shape, dtype=weight.dtype, device=weight.device)


def _layer(layer: Recurrent, steps: int | None, frame_size: Size | None) -> _Graph:
    if steps is not None and steps < 1:
        raise InputError(f"steps must be ≥ 1, or None for one step. Received: {steps}")
    frame_size = getattr(layer, "frame_size", None) if frame_size is None else frame_size
    if frame_size is not None:
        size = _sizes(frame_size, layer.dims, "frame_size")
    else:  # sizes that the file forgets: unequal, and large enough for any padding
        size = tuple(
            (k - 1) * d + (4 + n) * s
            for n, (k, d, s) in enumerate(zip(layer.kernel_size, layer.dilation, layer.stride))
        )
    frame = _frame_axes(frame_size, layer.dims)
    same = [layer.padding == "same" and s == 1 for s in layer.stride]
    state_frame = tuple(name if name is None or kept else f"state_{name}" for name, kept in zip(frame, same))

    lead: Axes = ("batch",)
    state: Axes = (None, "batch", None, *state_frame)
    module: nn.Module = layer
    if not isinstance(layer, RecurrentLayer):
        if steps is not None:
            raise InputError("a cell is one step: leave out steps, or export the layer")
        state = state[1:]
    elif steps is None:
        module = _Step(layer)
    else:
        lead = ("batch", None) if layer.batch_first else (None, "batch")
    x = _zeros(layer, *[2 if name else steps or 1 for name in lead], layer.in_channels, *size)
    with torch.no_grad():
        after = module(x, None)  # a state as the module has it: its shape, its precision
    outputs: dict[str, Axes] = {}
    if isinstance(layer, RecurrentLayer):
        after = after[1]
        outputs["y"] = (*lead, None, *state_frame)
    suffix = "_next" if steps is None else "_n"
    return _Graph(
        module,
        (x, after),
        {"x": (*lead, None, *frame), **dict.fromkeys(layer.state_names, state)},
        {**outputs, **dict.fromkeys((name + suffix for name in layer.state_names), state)},
    )


def _net(net: EncoderForecaster, steps: int | None, past: int | None, frame_size: Size | None) -> _Graph:
    if steps is None or past is None or min(steps, past) < 1:
        raise InputError(f"an EncoderForecaster needs past and steps, both ≥ 1. Received: {past} and {steps}")
    size = (4 * net.patch, 5 * net.patch) if frame_size is None else _sizes(frame_size, 2, "frame_size")
    axes = ("batch", None, None, *_frame_axes(frame_size, 2))
    return _Graph(_Forecast(net, steps), (_zeros(net, 2, past, net.in_channels, *size),), {"x": axes}, {"y": axes})


def _dynamic(graph: _Graph) -> tuple[Any, ...]:
    """The axes that may have any size, nested as the arguments are."""
    open_axis = torch.export.Dim.DYNAMIC
    axes = [{k: open_axis for k, name in enumerate(names) if name} for names in graph.inputs.values()]
    if len(graph.args) == 1 or isinstance(graph.args[1], Tensor):
        return tuple(axes)
    return axes[0], tuple(axes[1:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says of itself: packages it would support, constants it keeps, a deprecation in torch."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _describe(model: Any, graph: _Graph, module: nn.Module, **options: int | None) -> None:
    """Say what the file is, with plain names for its axes; forget source lines and paths of the machine that wrote it."""
    del model.graph.value_info[:]
    for item in (model.graph, *model.graph.node):
        item.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
        for dim, name in zip(value.type.tensor_type.shape.dim, {**graph.inputs, **graph.outputs}[value.name]):
            if name:
                dim.dim_param = name
    model.producer_name, model.producer_version = "stormcell", __version__
    arguments = module.arguments() if isinstance(module, Recurrent) else {}
    about = {"class": type(module).__name__, "arguments": arguments, **options}
    entry = model.metadata_props.add()
    entry.key, entry.value = "stormcell", json.dumps(about, default=lambda f: getattr(f, "__name__", repr(f)))
