"""The verb that makes a training store of raw files: store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.reading import Reading
from .app import app
from .options import Data, reads_frames
from .speaking import minute, note, span, track


@app.command(
    epilog="**Examples**\n\n"
    "`stormcell store radar/ -o rain.zarr`, and again when there are newer files\n\n"
    "`stormcell store 2016/ 2017/ -o rain.zarr --coarsen 2`\n\n"
    "`stormcell train rain.zarr -o rain.safetensors --test-from 2017-06-01`"
)
@reads_frames
def store(
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="Store to write or to go on with, .zarr.")],
    reading: Reading,
    coarsen: int,
) -> None:
    """Make a training store of an archive that is larger than memory, or add newer frames to one.

    Only a few files are open at a time, in the order given, in folders by name: their times must ascend. Stopped or killed, the
    same command goes on. Give it the same options: the store remembers values, not how they were read.
    """
    from ..data.frames import open_frames
    from ..forecasting.archive import Archive, fill

    archive = Archive(output)
    if archive.newest is not None:
        note(f"{output} has {len(archive.times)} frames up to {minute(archive.newest)}; going on from there")
    try:
        added = fill(archive, data, reading, coarsen=coarsen, progress=lambda items: track(items, "storing"))
    except KeyboardInterrupt:
        note(f"stopped at {len(archive.times)} frames. The same command goes on")
        raise
    typer.echo(f"wrote {output}: {span(open_frames(output))}" if added else f"{output}: nothing is newer")
