"""What ConvLSTM and ConvGRU share, layers and cells: parameters and argument checks, no arithmetic.

They follow `torch.nn.LSTM`: the state is a value that the caller holds, parameters are called weight_ih_l0 and so on. What
differs: one bias where torch has two that add up, `batch_first=True`, and `kernel_size`. Weights start as in Keras:
Glorot-uniform input kernels, orthogonal recurrent kernels, zero bias.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .. import engine as _engine
from ..engine import Drop, Form, State, Weights, state_size
from ..engine.activations import ACTIVATIONS as NAMED

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

Size = int | Sequence[int]
Activation = str | Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {name: named.function for name, named in NAMED.items()}


def _activation(value: Activation, argument: str) -> Callable[[Tensor], Tensor]:
    if callable(value):
        return value
    if value not in ACTIVATIONS:
        raise ValueError(f"{argument} must be callable or one of {', '.join(ACTIVATIONS)}. Received: {value!r}")
    return ACTIVATIONS[value]


def _sizes(value: Size, dims: int, argument: str, smallest: int = 1) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(sizes) != dims or any(not isinstance(n, int) or n < smallest for n in sizes):
        raise ValueError(f"{argument} must be an integer ≥ {smallest}, or {dims} of them. Received: {value!r}")
    return sizes


def _probability(value: float, argument: str) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{argument} must lie in [0, 1). Received: {value!r}")
    return value


class Recurrent(nn.Module):
    """The arguments of one recurrent convolution, and its parameters by name."""

    dims: ClassVar[int]
    gates: ClassVar[int]
    cell: ClassVar[str]
    state_names: ClassVar[str]
    periodic_x: bool = False  # an argument of ConvLSTM layers

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        *,
        recurrent_kernel_size: Size | None,
        stride: Size,
        padding: str | Size,
        dilation: Size,
        activation: Activation,
        recurrent_activation: Activation,
        input_dropout: float,
        recurrent_dropout: float,
        dropout_masks: str,
        zoneout: float | Sequence[float],
        norm: str | None,
        norm_groups: int | None,
        engine: str,
    ) -> None:
        super().__init__()
        if in_channels < 0 or hidden_channels < 1:
            raise ValueError(
                f"in_channels must be ≥ 0 and hidden_channels ≥ 1. Received: {in_channels} and {hidden_channels}"
            )
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f'padding must be "same", "valid", an integer or a tuple. Received: {padding!r}')
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.kernel_size = _sizes(kernel_size, self.dims, "kernel_size")
        self.recurrent_kernel_size = _sizes(
            kernel_size if recurrent_kernel_size is None else recurrent_kernel_size, self.dims, "recurrent_kernel_size"
        )
        self.stride = _sizes(stride, self.dims, "stride")
        self.padding = padding if isinstance(padding, str) else _sizes(padding, self.dims, "padding", 0)
        self.dilation = _sizes(dilation, self.dims, "dilation")
        if max(self.stride) > 1 and max(self.dilation) > 1:
            raise ValueError(f"stride > 1 does not go with dilation > 1. Received: {stride!r} and {dilation!r}")
        self.activation, self.recurrent_activation = activation, recurrent_activation
        _activation(activation, "activation")
        _activation(recurrent_activation, "recurrent_activation")
        self.input_dropout = _probability(input_dropout, "input_dropout")
        self.recurrent_dropout = _probability(recurrent_dropout, "recurrent_dropout")
        if dropout_masks not in ("gate", "shared"):
            raise ValueError(f'dropout_masks must be "gate" or "shared". Received: {dropout_masks!r}')
        self.dropout_masks = dropout_masks
        states = len(self.state_names)
        self.zoneout = (zoneout,) * states if isinstance(zoneout, (int, float)) else tuple(zoneout)
        if len(self.zoneout) != states:
            raise ValueError(
                f"zoneout must be a probability, or one for each of {', '.join(self.state_names)}. Received: {zoneout!r}"
            )
        for p in self.zoneout:
            _probability(p, "zoneout")
        if norm not in (None, "layer", "group"):
            raise ValueError(f'norm must be None, "layer" or "group". Received: {norm!r}')
        if norm_groups is not None and norm != "group":
            raise ValueError('norm_groups goes with norm="group" only')
        if norm_groups is not None and (norm_groups < 1 or self.gates * hidden_channels % norm_groups):
            raise ValueError(
                f"norm_groups must divide the {self.gates * hidden_channels} gate channels. Received: {norm_groups}"
            )
        self.norm, self.norm_groups = norm, norm_groups
        self.engine = engine

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, less device and dtype: `type(layer)(**layer.arguments())` is a layer like this."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("device", "dtype", "bias")]
        has_bias = any(name.startswith("bias") for name, _ in self.named_parameters(recurse=False))
        return {**{name: getattr(self, name) for name in names}, "bias": has_bias}

    def _form(self) -> Form:
        return Form(
            self.stride,
            self.padding,
            self.dilation,
            _activation(self.activation, "activation"),
            _activation(self.recurrent_activation, "recurrent_activation"),
            self.cell,
            (self.norm_groups or self.gates) if self.norm == "group" else 1,
            self.zoneout,
            self.periodic_x,
        )

    def _upper_form(self) -> Form:
        return self._form().same_size()

    def _peephole_size(self) -> tuple[int, ...] | None:
        """Shape of the peepholes, None for none."""
        return None

    def _add(self, suffix: str, inputs: int, *, bias: bool, factory: dict[str, Any]) -> None:
        hidden = self.hidden_channels
        gates = self.gates * hidden

        def add(name: str, *shape: int, there: bool = True) -> None:
            parameter = nn.Parameter(torch.empty(*shape, **factory)) if there else None
            self.register_parameter(name + suffix, parameter)

        add("weight_ih", gates, inputs, *self.kernel_size, there=inputs > 0)
        add("weight_hh", gates, hidden, *self.recurrent_kernel_size)
        peephole = self._peephole_size()
        add("weight_ch", *(peephole or ()), there=peephole is not None)
        add("bias", 4 * hidden, there=bias)  # an LSTM has a bias a gate, a GRU two for n
        add("norm_ih", gates, there=self.norm is not None and inputs > 0)
        add("norm_hh", gates, there=self.norm is not None)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(parameter)
                elif name.startswith("weight_hh"):
                    precise = torch.promote_types(parameter.dtype, torch.float32)  # QR knows no half precision
                    parameter.copy_(nn.init.orthogonal_(torch.empty_like(parameter, dtype=precise)))
                elif name.startswith("norm"):
                    parameter.fill_(1)
                else:
                    parameter.zero_()

    def _weights(self, suffix: str) -> Weights:
        names = ("weight_ih", "weight_hh", "weight_ch", "bias", "norm_ih", "norm_hh")
        return Weights(*(getattr(self, name + suffix) for name in names))

    def _drop(self, x: Tensor, h: Tensor) -> Drop:
        """Masks for frames like x (B, C, *frame) and states like h (B, F, *S)."""
        if not self.training:
            return Drop()
        rows = self.gates if self.dropout_masks == "gate" else 1

        def mask(like: Tensor, p: float) -> Tensor | None:
            if not (p and like.shape[1]):
                return None
            return nnf.dropout(like.new_ones(like.shape[0], rows, *like.shape[1:]), p)

        return Drop(mask(x, self.input_dropout), mask(h, self.recurrent_dropout), training=True)

    def _check_frames(self, x: Tensor, axes: str) -> None:
        expected = [*axes.split(), "C", *"ZYX"[-self.dims :]]
        if x.ndim != len(expected) or x.shape[-self.dims - 1] != self.in_channels:
            raise ValueError(
                f"expected x ({', '.join(expected)}) with {self.in_channels} channels. Received: {tuple(x.shape)}"
            )

    def _fits(self, frame: tuple[int, ...]) -> None:
        """Raise ValueError if frames of this size cannot go through."""

    def _state_size(self, x: Tensor) -> tuple[int, ...]:
        frame = tuple(x.shape[-self.dims :])
        size = state_size(frame, self.kernel_size, self._form())
        if not torch.compiler.is_compiling():  # a graph is made for any size
            self._fits(frame)
            if min(size) < 1:
                raise ValueError(
                    f"frames of {frame} are smaller than the kernel {self.kernel_size} with padding {self.padding!r}"
                )
        return size

    def _state(self, state: State | None, shape: tuple[int, ...], weight: Tensor) -> State:
        """The state to begin with: zeros if None. What sums over time (c; h of a GRU) is never below float32."""
        if state is None:
            state = (weight.new_zeros(()).expand(shape),) * len(self.state_names)  # which takes no memory
        if not torch.compiler.is_compiling():
            if len(state) != len(self.state_names):
                raise ValueError(f"state must be ({', '.join(self.state_names)}). Received: {len(state)} tensors")
            for name, value in zip(self.state_names, state):
                received = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
                if received != shape:
                    raise ValueError(f"state {name} must have the shape {shape}. Received: {received}")
        *shown, summed = state
        precise = torch.promote_types(summed.dtype, torch.promote_types(weight.dtype, torch.float32))
        return (*(value.to(weight.dtype) for value in shown), summed.to(precise))

    def extra_repr(self) -> str:
        given = self.arguments()
        parts = [f"{given.pop('in_channels')}, {given.pop('hidden_channels')}, kernel_size={given.pop('kernel_size')}"]
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        defaults["recurrent_kernel_size"] = self.kernel_size
        for name, value in given.items():
            usual = defaults[name]
            if isinstance(value, tuple) and isinstance(usual, (int, float)):
                usual = (usual,) * len(value)
            if value != usual:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


def _together(states: tuple[Tensor, ...]) -> Tensor:
    """States of layers and directions in a row. One that a backward may read is copied: callers may write over theirs."""
    return states[0].unsqueeze(0) if len(states) == 1 and not states[0].requires_grad else torch.stack(states)


class RecurrentLayer(Recurrent):
    """Whole sequences through several layers, in one direction or both."""

    def _set_up(
        self,
        *,
        bias: bool,
        num_layers: int,
        bidirectional: bool,
        reverse: bool,
        batch_first: bool,
        dropout: float,
        checkpoint_every: int | None,
        factory: dict[str, Any],
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be ≥ 1. Received: {num_layers}")
        if bidirectional and reverse:
            raise ValueError("bidirectional=True runs in both directions already: leave out reverse=True")
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be None or ≥ 1. Received: {checkpoint_every}")
        self.num_layers, self.bidirectional, self.reverse = num_layers, bidirectional, reverse
        self.batch_first, self.checkpoint_every = batch_first, checkpoint_every
        self.dropout = _probability(dropout, "dropout")
        directions = ("", "_reverse") if bidirectional else ("",)
        self._suffixes = [[f"_l{layer}{direction}" for direction in directions] for layer in range(num_layers)]
        for layer, suffixes in enumerate(self._suffixes):
            for suffix in suffixes:
                inputs = self.in_channels if layer == 0 else self.hidden_channels * len(directions)
                self._add(suffix, inputs, bias=bias, factory=factory)
        self.reset_parameters()

    def _run(
        self,
        x: Tensor,
        state: State | None,
        mask: Bool[Tensor, "B T"] | None,
        lengths: Int[Tensor, " B"] | Sequence[int] | None,
    ) -> tuple[Tensor, State]:
        single = x.ndim == self.dims + 2  # one sequence without a batch, as torch.nn.LSTM takes it
        self._check_frames(x, "T" if single else "B T" if self.batch_first else "T B")
        if mask is not None and mask.shape != x.shape[: -self.dims - 1]:
            expected = tuple(x.shape[: -self.dims - 1])
            raise ValueError(f"mask must have the shape {expected}. Received: {tuple(mask.shape)}")
        if single:
            batch_axis = 0 if self.batch_first else 1
            x = x.unsqueeze(batch_axis)
            state = None if state is None else tuple(value.unsqueeze(1) for value in state)
            mask = None if mask is None else mask.unsqueeze(batch_axis)
        if not self.batch_first:
            x = x.transpose(0, 1)
            mask = None if mask is None else mask.transpose(0, 1)
        batch, steps = x.shape[:2]
        if steps < 1:
            raise ValueError(f"a sequence needs at least one step. Received: {tuple(x.shape)}")
        mask = self._checked_mask(x, mask, lengths)
        size = self._state_size(x)
        rows = self.num_layers * len(self._suffixes[0])
        weights = [[self._weights(suffix) for suffix in suffixes] for suffixes in self._suffixes]
        before = self._state(state, (rows, batch, self.hidden_channels, *size), weights[0][0].hh)

        after: list[State] = []
        y = x
        for layer, directions in enumerate(weights):
            if layer and self.dropout:
                y = nnf.dropout(y, self.dropout, self.training)
            form = self._form() if layer == 0 else self._upper_form()
            outputs = []
            for direction, own_weights in enumerate(directions):
                backwards = self.reverse or direction == 1
                own = tuple(value[len(after)] for value in before)
                y_d, last = _engine.run(
                    y.flip(1) if backwards else y,
                    own,
                    own_weights,
                    form,
                    mask=mask.flip(1) if mask is not None and backwards else mask,
                    drop=self._drop(y[:, 0], own[0]),
                    checkpoint_every=self.checkpoint_every,
                    engine=self.engine,
                )
                outputs.append(y_d.flip(1) if backwards else y_d)
                after.append(last)
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        if not self.batch_first:
            y = y.transpose(0, 1)
        last_state = tuple(_together(values) for values in zip(*after))
        if single:
            return y.squeeze(batch_axis), tuple(value.squeeze(1) for value in last_state)
        return y, last_state

    def explain(
        self, frame_size: Size, *, batch: int = 1, steps: int = 10, gradients: bool | None = None
    ) -> dict[str, dict[str, str]]:
        """Which engine computes each layer and direction for such frames, and why not the others.

        >>> ConvLSTM2d(1, 8, 3, engine="reference").explain((64, 64))["l0"]["reference"]
        'chosen'

        `gradients` says whether there will be a backward; None means in training mode. Nothing is run.
        """
        single = self._weights("_l0").hh.new_zeros(())  # one number that stands for all: nothing is allocated
        frame = _sizes(frame_size, self.dims, "frame_size")
        size = self._state_size(single.expand(frame))
        wanted = self.training if gradients is None else gradients
        explained = {}
        for number, suffixes in enumerate(self._suffixes):
            inputs = self.in_channels if number == 0 else self.hidden_channels * len(suffixes)
            x = single.expand(batch, steps, inputs, *(size if number else frame))
            state = self._state(None, (batch, self.hidden_channels, *size), single)
            with torch.set_grad_enabled(wanted):
                for suffix in suffixes:
                    drop = self._drop(x[:, 0], state[0])
                    form = self._upper_form() if number else self._form()
                    case = _engine.case_of(x, state, self._weights(suffix), form, drop)
                    explained[suffix.lstrip("_")] = _engine.explain(case, self.engine)
        return explained

    @staticmethod
    def _checked_mask(
        x: Tensor, mask: Tensor | None, lengths: Tensor | Sequence[int] | None
    ) -> Bool[Tensor, "B T"] | None:
        batch, steps = x.shape[:2]
        if lengths is not None:
            if mask is not None:
                raise ValueError("give mask or lengths, not both")
            lengths = torch.as_tensor(lengths, device=x.device)
            if tuple(lengths.shape) != (batch,):
                raise ValueError(f"lengths must have the shape {(batch,)}. Received: {tuple(lengths.shape)}")
            if not torch.compiler.is_compiling() and bool(((lengths < 0) | (lengths > steps)).any()):
                raise ValueError(f"lengths must lie between 0 and {steps}. Received: {lengths.tolist()}")
            return torch.arange(steps, device=x.device) < lengths[:, None]
        return None if mask is None else mask.bool()

    def _step(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if self.bidirectional:
            raise ValueError("a bidirectional layer cannot stream: its backward half needs the whole sequence")
        time = 0 if x.ndim == self.dims + 1 or not self.batch_first else 1
        y, state = self._run(x.unsqueeze(time), state, None, None)
        return y.squeeze(time), state


class RecurrentCell(Recurrent):
    """One step."""

    def _set_up(self, *, bias: bool, factory: dict[str, Any]) -> None:
        self._add("", self.in_channels, bias=bias, factory=factory)
        self.reset_parameters()

    def _run(self, x: Tensor, state: State | None) -> State:
        single = x.ndim == self.dims + 1
        self._check_frames(x, "" if single else "B")
        if single:
            x, state = x.unsqueeze(0), None if state is None else tuple(value.unsqueeze(0) for value in state)
        weights = self._weights("")
        before = self._state(state, (x.shape[0], self.hidden_channels, *self._state_size(x)), weights.hh)
        drop = self._drop(x, before[0])
        _, after = _engine.run(x.unsqueeze(1), before, weights, self._form(), drop=drop, engine=self.engine)
        return tuple(value.squeeze(0) for value in after) if single else after
