"""Grey videos (MP4, AVI, MKV, WebM) through ffmpeg: the grey of a pixel is its value, as far as lossy coding has kept it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError
from .raw import LARGEST_UNPACKED, stack

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
_COLOUR = 12  # levels between the channels of a grey pixel that coding may leave


def recognises(start: bytes) -> bool:
    return (
        start[4:8] == b"ftyp" or start.startswith(b"\x1aE\xdf\xa3") or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")
    )


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """All frames, in memory: a video says no times. Raises InputError if it is in colour or cannot be decoded."""
    import imageio_ffmpeg

    frames: list[npt.NDArray[np.uint8]] = []
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        width, height = next(reader)["size"]
        for packed in reader:
            pixels = np.frombuffer(packed, np.uint8).reshape(height, width, 3)
            if np.ptp(pixels.astype(np.int16), axis=2).max(initial=0) > _COLOUR:
                raise InputError(f"{path} is a video in colour: save the values, not their colours")
            frames.append(pixels[..., 1].copy())
            if len(frames) * height * width > LARGEST_UNPACKED:
                raise InputError(f"{path} is a video of more than {LARGEST_UNPACKED // 2**20} MB: cut it into parts")
    except (OSError, RuntimeError, StopIteration, KeyError) as error:
        raise InputError(f"{path} is no video that ffmpeg can read, or breaks off") from error
    finally:
        reader.close()
    if not frames:
        raise InputError(f"{path} is a video without frames")
    return stack(np.stack(frames), path)
