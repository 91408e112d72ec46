"""The verb that says how sequences are computed here: engines."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app
from .options import whole_numbers_in

_LAYER = "A layer to explain"


@app.command(
    epilog="**Examples**\n\n`stormcell engines`\n\n"
    "`stormcell engines --channels 16 --hidden 64 --kernel-size 5 --size 16,16 --batch 8`"
)
def engines(
    channels: Annotated[int, typer.Option(rich_help_panel=_LAYER, help="Input channels.", min=0)] = 16,
    hidden: Annotated[int, typer.Option(rich_help_panel=_LAYER, help="Hidden channels.", min=1)] = 64,
    kernel_size: Annotated[int, typer.Option(rich_help_panel=_LAYER, help="Of both kernels.", min=1)] = 3,
    size: Annotated[str, typer.Option(metavar="Y,X", rich_help_panel=_LAYER, help="Frame size.")] = "64,64",
    batch: Annotated[int, typer.Option(rich_help_panel=_LAYER, help="Sequences at once.", min=1)] = 1,
    steps: Annotated[int, typer.Option(rich_help_panel=_LAYER, help="Steps of a sequence.", min=1)] = 10,
    device: Annotated[str, typer.Option(rich_help_panel=_LAYER, help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Say which engines this machine has, and which of them computes a ConvLSTM2d of a given size, and why not the others.

    STORMCELL_ENGINE names another default than "auto", STORMCELL_ISA a smaller instruction set: plain, avx2, avx512.
    """
    import torch

    from .. import engine
    from ..nn import ConvLSTM2d
    from .options import device_named

    place = device_named(device)
    for name, reason in engine.engines().items():
        typer.echo(f"{name}: {reason or engine.about(name)}")
    numbers = whole_numbers_in(size, "--size", "64,64", most=1_000_000)
    layer = ConvLSTM2d(channels, hidden, kernel_size, device=place)
    typer.echo(
        f"\n{layer}, batch {batch}, {steps} steps of {'×'.join(map(str, numbers))}, {torch.get_num_threads()} threads:"
    )
    for name, said in layer.explain(numbers, batch=batch, steps=steps)["l0"].items():
        typer.echo(f"  {name}: {said}")
