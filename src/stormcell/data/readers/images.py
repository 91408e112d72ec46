"""PNG, JPEG, GIF, TIFF and PGM frames through Pillow: one value a pixel, one or several frames a file.

The value is the grey, also of a grey palette; of a palette in colours it is the index, which is what radar products store.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import dask
import dask.array
import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import GifImagePlugin, Image, TiffImagePlugin

from ...errors import InputError, reason
from . import geotiff
from .raw import stack

SUFFIXES = (".png", ".gif", ".tif", ".tiff", ".jpg", ".jpeg", ".pgm")
_MAGIC = (b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\xff\xd8\xff", b"P5")
_GEO_KEYS = 34735  # GeoTIFF 1.1
_SUBFILE_TYPE = 254  # TIFF 6.0: bit 0 is set for a reduced copy of another page
# Pillow's modes with one number a pixel.
_MODES = {
    "1": np.uint8,
    "L": np.uint8,
    "P": np.uint8,
    "I;16": np.uint16,
    "I;16B": np.uint16,
    "I": np.int32,
    "F": np.float32,
}


def _decode(path: Path, index: int) -> npt.NDArray[np.generic]:
    # Later frames of a GIF come as RGB otherwise, and the palette index, which is the value, is lost.
    GifImagePlugin.LOADING_STRATEGY = GifImagePlugin.LoadingStrategy.RGB_AFTER_DIFFERENT_PALETTE_ONLY
    try:
        _check_png(path)
        with Image.open(path) as image:
            image.seek(index)
            pixels = np.asarray(image)
            palette = np.asarray(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} breaks off or is damaged ({reason(error)}): take it out or fetch it again") from error
    if pixels.ndim == 3 and _grey(pixels):  # a later frame of a GIF with a grey palette of its own
        return pixels[..., 0]
    if pixels.ndim != 2:
        raise InputError(
            f"{path}: frame {index} is in colour or has another palette: save the values, not their colours"
        )
    if not len(palette) or not _grey(palette):  # of the whole palette: a dry frame may use its greys alone
        return pixels
    return np.pad(palette[:, 0], (0, 256 - len(palette)))[pixels]


def _check_png(path: Path) -> None:
    """Compare the checksums of a PNG's chunks, which Pillow passes over where the pixels are. Raises ValueError."""
    data = path.read_bytes()
    place = 8
    while data.startswith(b"\x89PNG") and place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        body, found = data[place + 4 : place + 8 + length], data[place + 8 + length : place + 12 + length]
        if zlib.crc32(body) != int.from_bytes(found, "big"):
            raise ValueError("a checksum is wrong")
        if body.startswith(b"IEND"):
            return
        place += 12 + length


def _grey(colours: npt.NDArray[np.uint8]) -> bool:
    return bool((colours[..., :1] == colours).all())


def recognises(start: bytes) -> bool:
    return start.startswith(_MAGIC)


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """Frames of one picture file; pixels are decoded when they are used. Overviews in a TIFF are no frames.

    Raises InputError if it is a colour picture.
    """
    with Image.open(path) as image:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and _GEO_KEYS in image.tag_v2:
            return geotiff.read(path, variable)
        size, mode = image.size, image.mode
        indices = [k for k in range(getattr(image, "n_frames", 1)) if _is_frame(image, k, size)]
    if mode not in _MODES:
        raise InputError(
            f"{path} is a colour picture ({mode}): frames need one value a pixel, grey or palette; "
            "save the values, not their colours"
        )
    shape = (size[1], size[0])
    planes = [
        dask.array.from_delayed(dask.delayed(_decode)(path, index), shape, dtype=_MODES[mode]) for index in indices
    ]
    return stack(dask.array.stack(planes), path)


def _is_frame(image: Image.Image, index: int, size: tuple[int, int]) -> bool:
    if index == 0 or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    image.seek(index)
    return image.size == size and not image.tag_v2.get(_SUBFILE_TYPE, 0) & 1
