"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def check_writable(path: Path) -> None:
    """Raise InputError if `path` cannot be written, before long work begins."""
    parent = path.absolute().parent
    probe = parent / f".{path.name}.probe"
    try:
        if path.is_dir() and not _is_store(path):
            raise InputError(f"{path} is a folder: name a file")
        if not parent.is_dir():
            raise InputError(f"{path} cannot be written: the folder {parent} does not exist")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from error


def _is_store(path: Path) -> bool:
    """Whether a folder is a Zarr store, which may be replaced."""
    return path.suffix == ".zarr" and any((path / name).exists() for name in (".zgroup", ".zmetadata", "zarr.json"))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, with the same suffix; it becomes `path` if the block ends well, and nothing if not.

    Raises InputError where the disk is full or the folder cannot be written.
    """
    check_writable(path)
    temporary = path.absolute().with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        if path.is_dir():  # a Zarr store of an earlier time
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
