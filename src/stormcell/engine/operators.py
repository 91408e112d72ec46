"""Operators of torch.library, by which an engine's own code passes through autograd and torch.compile.

`torch.library.custom_op` would do, but wraps each operator in a call of torch._dynamo: its import takes a second and 70 MB from
everybody who computes anything. And torch's way from an operator to its Python and back takes a tenth of a millisecond: where
nobody would see the operator on it, the same code is called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("stormcell", "FRAGMENT")
_PLAIN = (Tensor, torch.nn.Parameter)


def constant(function: Callable[[], Any]) -> Callable[[], Any]:
    """Let torch.compile call a function while it traces, and take what it says: `torch.compiler.assume_constant_result`,
    which imports all of torch._dynamo. For what reads the environment, which torch 2.4 cannot trace through."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def operator(
    name: str,
    compute: Callable[..., Any],
    schema: str,
    *,
    fake: Callable[..., Any],
    direct: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    keep: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Make torch.ops.stormcell.NAME, and give what calls it.

    Outputs share no memory with inputs or each other: nobody checks that. `fake` gives their shapes; `keep(ctx, inputs,
    output)` saves for `backward(ctx, *gradients)`, if there is one. `direct` computes the same where only autograd sees it.
    """
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"stormcell::{name}", fake, lib=_LIBRARY)
    seen = getattr(torch.ops.stormcell, name)
    unseen = differentiable = compute if direct is None else direct
    if backward is not None and keep is not None:
        torch.library.register_autograd(f"stormcell::{name}", backward, setup_context=keep, lib=_LIBRARY)
        differentiable = _differentiable(name, unseen, backward, keep)

    def call(*arguments: Any) -> Any:
        if _is_watched(arguments):
            return seen(*arguments)
        return (differentiable if torch.is_grad_enabled() else unseen)(*arguments)

    return call


def _differentiable(
    name: str, compute: Callable[..., Any], backward: Callable[..., Any], keep: Callable[..., None]
) -> Callable[..., Any]:
    def forward(ctx: Any, *arguments: Any) -> Any:
        made = compute(*arguments)
        keep(ctx, arguments, made)
        return made

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]


def _is_watched(arguments: Sequence[Any]) -> bool:
    """Whether somebody wants to see operators: a compiler, a mode of `torch.utils._python_dispatch`, a tensor of another kind."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch.jit.is_tracing():
        return True
    return any(isinstance(value, Tensor) and (type(value) not in _PLAIN or value.is_meta) for value in arguments)
