"""What a call asks for, in words that rules can read: engines say of a case whether they can compute it, or why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import name_of
from .reference import Drop, Form, State, Weights


class Case(NamedTuple):
    """A call without its numbers."""

    cell: str  # "lstm" or "gru"
    device: str  # type of the device
    dtype: torch.dtype  # of the weights
    state_dtype: torch.dtype  # of c, or of a GRU's h
    batch: int
    steps: int
    in_channels: int
    hidden_channels: int
    size: tuple[int, ...]  # of the state
    kernel: tuple[int, ...]  # of the input convolution; () without input
    recurrent_kernel: tuple[int, ...]
    form: Form
    activations: tuple[str | None, str | None]  # names of activation and recurrent activation; None for a function
    peephole: str | None = None  # "channel" or "pixel"
    norm: bool = False
    dropout: str | None = None  # "gate" or "shared" masks
    zoneout: bool = False
    autocast: bool = False
    transformed: bool = False  # inside vmap, grad and their like of torch.func, or among dual numbers
    gradients: bool = True


def first_that_holds(reasons: Mapping[str, object]) -> str | None:
    """The first of reasons, each with whether it holds; None if none does. In words that any torch.compile can trace."""
    for reason, holds in reasons.items():
        if holds:
            return reason
    return None


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    if device == "cpu":  # the general call came with torch 2.4, which still warns of the special ones
        return bool(torch.is_autocast_enabled("cpu"))
    return bool(torch.is_autocast_enabled(device)) if device in ("cuda", "mps", "xpu") else False


def autocast_of(device: str) -> torch.dtype | None:
    """The precision in which autocast convolves on a type of device, None where it is off."""
    return torch.get_autocast_dtype(device) if autocasts(device) else None


def _is_transformed() -> bool:
    if torch.compiler.is_compiling():
        return False  # compiled code that is transformed is not to be had
    known = getattr(torch._C, "_are_functorch_transforms_active", None)
    forward_mode = torch.autograd.forward_ad._current_level >= 0  # dual numbers without torch.func
    return forward_mode or (known is not None and bool(known()))


def case_of(x: Tensor, state: State, w: Weights, form: Form, drop: Drop | None) -> Case:
    """The case of a call of `engine.run`."""
    masks = () if drop is None else tuple(mask for mask in (drop.inputs, drop.recurrent) if mask is not None)
    dropout = None if not masks else "gate" if any(mask.shape[1] > 1 for mask in masks) else "shared"
    device = w.hh.device.type
    return Case(
        cell=form.cell,
        device=device,
        dtype=w.hh.dtype,
        state_dtype=state[-1].dtype,
        batch=x.shape[0],
        steps=x.shape[1],
        in_channels=0 if w.ih is None else w.ih.shape[1],
        hidden_channels=w.hh.shape[1],
        size=tuple(state[0].shape[2:]),
        kernel=() if w.ih is None else tuple(w.ih.shape[2:]),
        recurrent_kernel=tuple(w.hh.shape[2:]),
        form=form,
        activations=(name_of(form.activation), name_of(form.recurrent_activation)),
        peephole=None if w.ch is None else "channel" if w.ch.ndim == 1 else "pixel",
        norm=w.norm_hh is not None,
        dropout=dropout,
        zoneout=any(form.zoneout),
        autocast=autocasts(device),
        transformed=_is_transformed(),
        gradients=torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (x, *state, w.ih, w.hh, w.ch, w.bias)),
    )
