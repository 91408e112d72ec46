"""Cases that every engine is held against the reference on: awkward shapes, and each thing that a ConvLSTM can be asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stormcell.engine.activations import ACTIVATIONS
from stormcell.engine.reference import Drop, Form, State, Weights, state_size

Sequence = Callable[..., tuple[Tensor, State]]


class Call(NamedTuple):
    """The arguments of `sequence`."""

    x: Tensor
    state: State
    w: Weights
    form: Form
    mask: Tensor | None
    drop: Drop | None

    def differentiable(self) -> dict[str, Tensor]:
        """What there is a gradient of, by name."""
        named = {"x": self.x, **dict(zip("hc", self.state)), **self.w._asdict()}
        return {name: value for name, value in named.items() if value is not None and value.numel()}

    def detached(self, needed: Callable[[str], bool] = lambda name: True) -> Call:
        """The same numbers as leaves, those that are `needed` with a gradient; strides stay as they are."""

        def leaf(name: str, value: Tensor | None) -> Any:
            return None if value is None else value.detach().requires_grad_(needed(name) and value.numel() > 0)

        state = tuple(leaf(name, value) for name, value in zip("hc", self.state))
        w = Weights(*(leaf(name, value) for name, value in self.w._asdict().items()))
        return Call(leaf("x", self.x), state, w, self.form, self.mask, self.drop)


@dataclass(frozen=True)
class Recipe:
    """A case without its numbers."""

    batch: int = 2
    steps: int = 3
    channels: int = 2
    hidden: int = 3
    frame: tuple[int, ...] = (5, 6)
    kernel: tuple[int, ...] = (3, 3)
    recurrent: tuple[int, ...] | None = None  # the kernel's size if None
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str | tuple[int, ...] = "same"
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"
    peephole: str | None = None
    bias: bool = True
    mask: list[list[int]] | None = None
    drop: str | None = None  # "gate" or "shared" masks
    periodic: bool = False  # the last axis
    contiguous: bool = True  # frames, and what is small
    scale: float = 1.0  # of weights: small where activations have no bounds, so that three steps do not explode

    def form(self) -> Form:
        ones = (1,) * len(self.frame)
        functions = (ACTIVATIONS[name].function for name in (self.activation, self.recurrent_activation))
        return Form(self.stride or ones, self.padding, self.dilation or ones, *functions, periodic_x=self.periodic)

    def make(self, dtype: torch.dtype = torch.float64) -> Call:
        """Random numbers of standard deviations that keep gates away from their ends; the same ones in every dtype."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, fan_in: int = 4) -> Tensor:
            scale = 1 if fan_in == 1 else self.scale
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale / fan_in**0.5).to(dtype)

        form, gates = self.form(), 4 * self.hidden
        size = state_size(self.frame, self.kernel if self.channels else (1,) * len(self.frame), form)
        recurrent = self.recurrent or self.kernel
        x = draw(self.batch, self.steps, self.channels, *self.frame, fan_in=1)
        if not self.contiguous:  # as of a (T, B, X, Y, C) array, with a frame left out between two
            x = draw(2 * self.steps, self.batch, *self.frame[::-1], self.channels, fan_in=1)[::2].transpose(0, 1)
            x = x.permute(0, 1, x.ndim - 1, *range(x.ndim - 2, 1, -1))
        w = Weights(
            draw(gates, self.channels, *self.kernel, fan_in=self.channels * math.prod(self.kernel))
            if self.channels
            else None,
            draw(gates, self.hidden, *recurrent, fan_in=self.hidden * math.prod(recurrent)),
            {None: None, "channel": draw(3 * self.hidden), "pixel": draw(3 * self.hidden, *size)}[self.peephole],
            draw(gates) if self.bias else None,
        )
        state = (draw(self.batch, self.hidden, *size), draw(self.batch, self.hidden, *size))
        if not self.contiguous:
            w = w._replace(ch=_apart(w.ch), bias=_apart(w.bias))
        mask = None if self.mask is None else torch.tensor(self.mask, dtype=torch.bool)
        rows = 4 if self.drop == "gate" else 1

        def dropped(*shape: int) -> Tensor:  # any factors will do
            kept = torch.rand(shape, generator=generator, dtype=torch.float64) > 0.4
            return draw(*shape, fan_in=1).add(1) * kept.to(dtype)

        drop = None
        if self.drop is not None:
            drop = Drop(
                dropped(self.batch, rows, self.channels, *self.frame) if self.channels else None,
                dropped(self.batch, rows, self.hidden, *size),
                True,
            )
        return Call(x, state, w, form, mask, drop)


def _apart(value: Tensor | None) -> Tensor | None:
    """The same numbers with gaps between."""
    return None if value is None else value.repeat_interleave(2, -1)[..., ::2]


MASK = [[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 1]]  # the first step, a whole sample
ONE = {"frame": (7,), "kernel": (3,)}
THREE = {"frame": (3, 4, 5), "kernel": (3, 2, 3), "hidden": 2, "steps": 2}
CASES: dict[str, Recipe] = {
    "plain": Recipe(),
    "one sample": Recipe(batch=1),
    "one step": Recipe(steps=1),
    "one of everything": Recipe(batch=1, steps=1, channels=1, hidden=1, frame=(1, 1), kernel=(1, 1)),
    "long": Recipe(steps=40, frame=(3, 4), hidden=2),
    "wide": Recipe(channels=5, hidden=7, frame=(4, 9)),
    "kernel larger than the frame": Recipe(frame=(2, 3), kernel=(5, 5)),
    "no batch": Recipe(batch=0),
    "channels last": Recipe(contiguous=False, peephole="channel"),
    "even kernels": Recipe(kernel=(4, 2), recurrent=(2, 4)),
    "recurrent kernel of one": Recipe(recurrent=(1, 1)),
    "recurrent kernel of its own": Recipe(kernel=(1, 3), recurrent=(5, 2)),
    "stride": Recipe(frame=(7, 8), stride=(2, 3)),
    "stride and even kernels": Recipe(frame=(7, 8), kernel=(4, 2), stride=(2, 3)),
    "stride past its kernel": Recipe(frame=(7, 8), kernel=(2, 2), stride=(3, 3)),
    "dilation": Recipe(frame=(7, 8), dilation=(2, 3)),
    "dilation and even kernels": Recipe(frame=(7, 8), kernel=(2, 4), dilation=(1, 2)),
    "valid": Recipe(padding="valid"),
    "valid, stride": Recipe(frame=(8, 8), padding="valid", stride=(2, 3)),
    "valid, dilation": Recipe(frame=(7, 8), padding="valid", dilation=(2, 1)),
    "padding in numbers": Recipe(padding=(2, 0)),
    "padding in numbers, stride": Recipe(frame=(7, 8), padding=(1, 2), stride=(2, 1)),
    "channel peepholes": Recipe(peephole="channel"),
    "pixel peepholes": Recipe(peephole="pixel"),
    "pixel peepholes, stride": Recipe(peephole="pixel", frame=(7, 8), stride=(2, 2)),
    "no bias": Recipe(bias=False),
    "no input": Recipe(channels=0),
    "no input, no bias": Recipe(channels=0, bias=False, peephole="channel"),
    "mask": Recipe(batch=3, steps=5, mask=MASK),
    "mask, peepholes": Recipe(batch=3, steps=5, mask=MASK, peephole="channel"),
    "mask, no input": Recipe(batch=3, steps=5, mask=MASK, channels=0),
    "shared dropout": Recipe(drop="shared"),
    "shared dropout, even kernels": Recipe(drop="shared", kernel=(2, 4)),
    "gate dropout": Recipe(drop="gate"),
    "gate dropout, even kernels, stride": Recipe(drop="gate", kernel=(2, 4), stride=(1, 2)),
    "gate dropout, mask, no input": Recipe(batch=3, steps=5, mask=MASK, channels=0, drop="gate"),
    "periodic axis": Recipe(periodic=True, batch=3, steps=5, mask=MASK, peephole="pixel"),
    "periodic axis, kernels that reach around it": Recipe(periodic=True, frame=(4, 3), kernel=(3, 6), recurrent=(2, 7)),
    "periodic axis, stride, dilation": Recipe(periodic=True, frame=(7, 12), kernel=(2, 4), stride=(2, 3)),
    "periodic axis, dropout": Recipe(periodic=True, frame=(7, 8), dilation=(2, 3), drop="gate"),
    "periodic axis, no input": Recipe(periodic=True, channels=0, drop="shared"),
    "1D": Recipe(**ONE, peephole="channel"),
    "1D, periodic axis": Recipe(**ONE, periodic=True),
    "1D, even kernel, stride": Recipe(frame=(7,), kernel=(4,), recurrent=(2,), stride=(2,), mask=[[1, 0, 1]] * 2),
    "1D, gate dropout": Recipe(**ONE, drop="gate"),
    "3D": Recipe(**THREE, peephole="pixel"),
    "3D, odd kernels": Recipe(**{**THREE, "kernel": (3, 1, 3)}, peephole="channel", mask=[[1, 0], [1, 1]]),
    "3D, periodic axis": Recipe(**THREE, periodic=True),
    "3D, stride": Recipe(**THREE, stride=(1, 2, 2), drop="shared"),
    **{
        f"{name} and {other}": Recipe(
            activation=name, recurrent_activation=other, frame=(3, 4), peephole="channel", scale=0.3
        )
        for name, other in zip(ACTIVATIONS, [*list(ACTIVATIONS)[4:], *list(ACTIVATIONS)[:4]])
    },
}


def outcome(sequence: Sequence, call: Call, needed: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Every output, state and gradient of a call, by name, for a loss that reads every output with weights of its own."""
    call = call.detached(needed)
    y, (h, c) = sequence(*call)
    outputs = {"y": y, "last h": h, "last c": c}
    loss = sum(
        (value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device).view_as(value)).sum()
        for value in outputs.values()
    )
    inputs = {name: value for name, value in call.differentiable().items() if value.requires_grad}
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    found = {f"d_{name}": value for name, value in zip(inputs, gradients) if value is not None}
    return {**{name: value.detach() for name, value in outputs.items()}, **found}


def assert_shares_no_memory(sequence: Sequence, call: Call) -> None:
    """What a sequence returns lies in no input's memory, nor in each other's."""
    before = [value.detach().clone() for value in call.differentiable().values()]
    y, last = sequence(*call)
    places = [value.untyped_storage().data_ptr() for value in (y, *last, *call.differentiable().values())]
    assert len(set(places)) == len(places)
    for value in (y, *last):
        value.detach().fill_(math.nan)
    assert all(torch.equal(a, b) for a, b in zip(call.differentiable().values(), before))
