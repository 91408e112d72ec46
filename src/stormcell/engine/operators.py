"""Operators of torch.library, by which an engine's own code passes through autograd and torch.compile.

`torch.library.custom_op` would do, but wraps each operator in a call of torch._dynamo: its import takes a second and 70 MB from
everybody who computes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("stormcell", "FRAGMENT")


def operator(
    name: str,
    compute: Callable[..., Any],
    schema: str,
    *,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    keep: Callable[..., None] | None = None,
) -> None:
    """Make torch.ops.stormcell.NAME. Outputs share no memory with inputs or each other: nobody checks that.

    `fake` gives the outputs' shapes; `keep(ctx, inputs, output)` saves for `backward(ctx, *gradients)`, if there is one.
    """
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"stormcell::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"stormcell::{name}", backward, setup_context=keep, lib=_LIBRARY)
