"""Compile the kernels that calls launch, for GPUs that need not be there: python -m tests.engine.compile_kernels 80 90

Without TRITON_INTERPRET. The calls run with kernels that are compiled to machine code and not run; a line for each is printed.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stormcell.engine import triton as engine
from stormcell.engine import triton_kernels as kernels

from .cases import Recipe, outcome
from .test_bptt import in_half

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Compiled:
    """In the place of a kernel: what is launched is compiled once for each specialisation that Triton makes."""

    def __init__(self, kernel: Any, processors: list[int]) -> None:
        self.kernel, self.processors, self.seen = kernel, processors, set()

    def __getitem__(self, grid: Any) -> Any:
        return self.launch

    def launch(self, *in_order: Any, **given: Any) -> None:
        given |= zip(self.kernel.arg_names, in_order)
        options = {name: given.pop(name) for name in OPTIONS if name in given}
        signature, constants, divisible = {}, {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            value = given.pop(name)
            if isinstance(value, Tensor):
                signature[name] = TYPES[value.dtype]
            elif type(value) is int and value != 1 and not self.kernel.params[place].is_constexpr:
                signature[name] = "i32"
            else:
                signature[name], constants[place,] = "constexpr", value
            if signature[name] != "constexpr" and (isinstance(value, Tensor) or value % 16 == 0):
                divisible[place,] = [["tt.divisibility", 16]]
        assert not given
        key = str((signature, constants, list(divisible)))
        if key in self.seen:
            return
        self.seen.add(key)
        for processor in self.processors:
            target = GPUTarget("cuda", processor, 32)
            source = ASTSource(self.kernel, signature, constants, divisible)
            made = triton.compile(source, target=target, options=options)
            how = "fused" if "taps" in signature and signature["taps"] != "constexpr" else "alone"
            products = "mma" in made.asm["ptx"]
            types = [signature[name] for name in ("c", "h", "d_z", "to", "source", "values") if name in signature]
            print(self.kernel.__name__, *types, how, processor, products)


def main(processors: list[str], *, everything: bool) -> None:
    for name in ("_step_kernel", "_back_kernel", "_copy_kernel", "_sum_kernel"):
        setattr(kernels, name, Compiled(getattr(kernels, name), [int(processor) for processor in processors]))
    engine._allows_tf32 = lambda: True
    wide = Recipe(batch=2, hidden=64, frame=(8, 8), peephole="channel", steps=2, mask=[[1, 0], [1, 1]])
    recipes = [wide]
    if everything:
        recipes += [
            Recipe(steps=2, peephole="pixel"),
            Recipe(steps=2, hidden=1, frame=(1,), kernel=(3,), bias=False),
            Recipe(steps=2, channels=0, frame=(3, 4, 5), kernel=(3, 3, 3)),
            *(Recipe(steps=2, activation=phi, recurrent_activation=phi) for phi in engine.ACTIVATIONS),
        ]
    engine.ALIGNED = 1
    for recipe, dtype, (fused, joint) in itertools.product(
        recipes, list(TYPES)[:3] if everything else [torch.bfloat16], ((0, 2**40), (2**40, 2**40), (0, 0))
    ):
        engine.FUSED_PRODUCTS, engine.JOINT_ROWS = fused, joint
        call = recipe.make(torch.float32)
        outcome(engine.sequence, call if dtype == torch.float32 else in_half(call, dtype))


if __name__ == "__main__":
    main(sys.argv[1:], everything=len(sys.argv) > 2)
