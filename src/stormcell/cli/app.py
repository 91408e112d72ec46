"""The program that the verbs are added to."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="stormcell",
    help="ConvLSTM nowcasting: from your own radar or grid frames to a verified forecast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"stormcell {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass
