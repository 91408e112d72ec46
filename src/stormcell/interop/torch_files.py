"""Files of weights, read and written: .pt, .pth and .ckpt of PyTorch, .safetensors, .npz.

They are trusted in nothing: no object of a pickle is made but tensors, and what a file claims to hold is measured against its
size.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, reason
from ..writing import whole_file
from .layouts import as_array, as_tensor, flattened

__all__ = ["read_torch_file", "write_torch_file"]

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".npz")
_COMPRESSION = 100  # times that an .npz may grow: trained weights shrink by a tenth, a file of zeros to a thousandth
_SHARED = 8  # times that a file's bytes may be named: tied weights, the best and the last state
_PLAIN = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
}
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: a pickled magic number


def read_torch_file(path: str | Path) -> dict[str, Tensor | np.ndarray]:
    """Weights by name from a .pt, .pth or .ckpt of PyTorch, a .safetensors or an .npz; its content counts, not its name.

    Nothing runs that a file holds, and no memory is taken that its size does not justify. Tensors of a .pt are mapped: they
    are read from the file when they are used.

    Raises InputError, naming the file, if it is another kind of file, breaks off, holds Python objects beside its weights, or
    claims more than it has.
    """
    path = Path(path)
    try:
        return _read(path)
    except InputError as error:
        raise InputError(f"{path} {error}") from error.__cause__
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # libraries raise what they will over a broken file
        raise InputError(f"{path} breaks off, or is not what it seems ({reason(error)})") from error


def _read(path: Path) -> dict[str, Tensor | np.ndarray]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(16)
        legacy = start.startswith(_LEGACY)
        if legacy:
            stream.seek(0)
            for _ in range(5):  # magic number, version, system, the object, keys of its storages
                _check_pickle(stream)
            size -= stream.tell()
    if start.startswith(b"PK\3\4"):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if all(entry.filename.endswith(".npy") for entry in entries):
                if unpacked > _COMPRESSION * size:
                    raise InputError(f"unpacks to {unpacked} bytes, far more than weights do: save it with numpy.savez")
                return _read_npz(path)
            pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
            if not pickles:
                raise InputError("is a ZIP archive without tensors; a Keras file goes to stormcell.interop.from_keras")
            if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise InputError("is compressed or claims more than it holds, which torch.save does not do")
            for entry in pickles:
                with archive.open(entry) as stream:
                    _check_pickle(stream)
    elif start[8:9] == b"{":
        return _read_safetensors(path)
    elif not legacy:
        raise InputError(
            "is no file of weights that Stormcell reads: .pt, .safetensors or .npz; save parameters of Flax or Haiku with "
            'numpy.savez(path, **flax.traverse_util.flatten_dict(params, sep="/"))'
        )
    loaded = torch.load(path, weights_only=True, map_location="cpu", mmap=not legacy)
    if not isinstance(loaded, Mapping):
        raise InputError(f"holds a {type(loaded).__name__}, not a state dict: save model.state_dict()")
    weights = flattened(loaded)
    _check_claims(weights, size)
    return weights


def _check_pickle(stream: Any) -> None:
    """Raise InputError if a pickle makes anything but tensors, before anything of it is made.

    torch.load(weights_only=True) runs no code of the file either, but lets it allocate what it will: bytearray(10**12).
    """
    for opcode, value, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST") and value not in _PLAIN:
            module, _, name = str(value).partition(" ")
            if module != "torch" or not (
                name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
            ):
                raise InputError(
                    f"holds a Python object ({module}.{name}), which is not unpickled: save the state dict alone, "
                    'torch.save(checkpoint["state_dict"], path)'
                )


def _check_claims(weights: dict[str, Any], size: int) -> None:
    """Raise InputError where tensors repeat a file's numbers, such as 10**12 times one, before anybody copies them."""
    total = 0
    for name, value in weights.items():
        total += prod(value.shape) * value.element_size()
        if total > _SHARED * size:
            raise InputError(f"has {size} bytes of numbers, and claims more than that at {name} {tuple(value.shape)}")


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise InputError("needs safetensors: pip install safetensors") from error
    with safe_open(path, framework="pt") as file:
        if "stormcell" in (file.metadata() or {}):
            raise InputError("is a file of Stormcell's own: stormcell.interop.read_layers or stormcell.load reads it")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)


def write_torch_file(weights: Mapping[str, Any], path: str | Path) -> None:
    """Write what `to_torch` gives, whole or not at all: .pt, .pth or .ckpt (torch.save), .safetensors or .npz.

    Nested names are joined with "/". Raises InputError for another suffix, or where nothing can be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: name a file that ends in {', '.join(SUFFIXES)}")
    flat = {name: as_tensor(value).cpu().contiguous() for name, value in flattened(weights).items()}
    with whole_file(path) as temporary:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {name: as_array(value) for name, value in flat.items()}
            np.savez(temporary, **arrays)
        elif path.suffix == ".safetensors":
            from safetensors.torch import save

            temporary.write_bytes(save(flat))
        else:
            torch.save(flat, temporary)
