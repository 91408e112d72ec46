"""The verb that takes weights from one program to another: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .app import app
from .options import whole_numbers_in

_READ = "Reading"
_WRITE = "Writing"


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell convert model.keras layers.safetensors`, then `stormcell.interop.read_layers` in Python\n\n"
    "`stormcell convert weights.weights.h5 layers.safetensors -O padding=same -O strides=1 -O dilation_rate=1 "
    "-O activation=tanh -O recurrent_activation=sigmoid -O conv_lstm2d_1:activation=relu`\n\n"
    "`stormcell convert checkpoint.pt model.keras --frame-size 64,64`\n\n"
    "`stormcell convert layers.safetensors cells.pt --to ndrplz`\n\n"
    "`stormcell convert layers.safetensors layer.onnx --only encoder --steps 10`"
)
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Weights of Keras, PyTorch, Flax, Haiku or Stormcell.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; its suffix says which kind.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-O",
            "--option",
            metavar="[LAYER:]KEY=VALUE",
            rich_help_panel=_READ,
            help="What Keras weights do not say: padding, strides, dilation_rate, activation, recurrent_activation, "
            "merge_mode, go_backwards (repeatable).",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_READ, help="Whose cells they are: ndrplz, openstl, automan000, flax, haiku, stormcell."
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(rich_help_panel=_READ, help="Module to look in.")] = "",
    gates: Annotated[
        str | None, typer.Option(rich_help_panel=_READ, help="Order of the gates, where a fork has another: ifog.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", rich_help_panel=_READ, help="Take this layer (repeatable).")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            rich_help_panel=_WRITE,
            help="For other people's code: ndrplz, openstl, automan000, flax, haiku; into .pt, .safetensors or .npz.",
        ),
    ] = None,
    frame_size: Annotated[
        str | None,
        typer.Option(metavar="Y,X", rich_help_panel=_WRITE, help="The one size that layers in a .keras file take."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(rich_help_panel=_WRITE, help="Steps of an .onnx sequence; one step without.", min=1)
    ] = None,
) -> None:
    """Convert ConvLSTM weights: Keras, other PyTorch, Flax and Haiku ⇄ Stormcell.

    IN is known by what it holds. OUT is Stormcell's own (.safetensors), for plain Keras (.keras, .weights.h5, and .h5 for
    Keras 2), for other people's code (--to), or for runtimes (.onnx). Nothing is unpickled. From .keras to .keras the whole
    model stays, and what plain Keras does not know is taken out.
    """
    from ..interop import convert as converted

    layers = converted(
        source,
        target,
        options=_options(option or []),
        layout=layout,
        prefix=prefix,
        gates=gates,
        to=to,
        only=only or (),
        frame_size=None
        if frame_size is None
        else whole_numbers_in(frame_size, "--frame-size", "64,64", most=1_000_000),
        steps=steps,
    )
    for name, layer in layers.items():
        typer.echo(f"{name or 'layer'}: {layer}")
    typer.echo(f"wrote {target}")


def _options(pairs: list[str]) -> dict[str, Any]:
    """[LAYER:]KEY=VALUE, as `read_keras` takes them."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        layer, _, key = key.rpartition(":")
        if not equals or not key or not text:
            raise InputError(f"-O takes KEY=VALUE or LAYER:KEY=VALUE, such as padding=same, not {pair!r}")
        where = options.setdefault(layer, {}) if layer else options
        where[key] = _value(text)
    return options


def _value(text: str) -> Any:
    """A number, numbers with commas between, true or false, or a word."""
    parts = text.split(",")
    if all(part.strip().isdecimal() for part in parts):
        numbers = tuple(map(int, parts))
        return numbers if len(numbers) > 1 else numbers[0]
    return {"true": True, "false": False}.get(text.lower(), text)
