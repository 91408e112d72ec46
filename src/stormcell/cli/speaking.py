"""What the command line says: notes on stderr, times and frames in words, a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T")


def note(line: str) -> None:
    typer.echo(line, err=True)


def minute(time: Any) -> str:
    from ..data.axes import time_text

    return f"{time_text(time)} UTC"


def span(frames: xr.DataArray) -> str:
    first, last, count = frames.time.values[0], frames.time.values[-1], frames.sizes["time"]
    size = f"{frames.sizes['y']}×{frames.sizes['x']}"
    return f"{count} frames of {size}, {minute(first)} to {minute(last)}"


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    yield from bar(items, what, console=console, disable=not console.is_terminal)
