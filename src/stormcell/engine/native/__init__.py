"""The library of the Winograd engine: where it is, and its C interface for ctypes.

It is built with the package where there is a C++ compiler, and knows nothing of PyTorch: any version of it goes with any
other. It runs in torch's own OpenMP threads where these can be reached, since two pools of threads on the same cores fight.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import torch  # noqa: F401 (whose OpenMP `_team` looks for)

INSTRUCTION_SETS = ("plain", "avx2", "avx512")
LANES = {"plain": 4, "avx2": 8, "avx512": 16}  # floats in a vector
_FILES = ("libstormcell_winograd.so", "libstormcell_winograd.dylib", "stormcell_winograd.dll")
_NUMBERS = ctypes.c_void_p  # float*, by address: tensors give theirs as integers
_STRIDES = ctypes.c_int64 * 5


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Problem(ctypes.Structure):
    """stormcell_problem of winograd.h, field by field."""

    _fields_ = (
        *_fields(ctypes.c_int64, "batch steps height width first last inputs hidden kernel points"),
        *_fields(ctypes.c_int64, "activation recurrent_activation periodic_x threads isa"),
        *_fields(ctypes.c_void_p, "parallel thread_number thread_count"),
        *_fields(_NUMBERS, "weight_ih weight_hh u u_transposed"),
        *_fields(_NUMBERS, "x"),
        ("x_strides", _STRIDES),
        *_fields(_NUMBERS, "hoisted h0 c0 bias peephole"),
        *_fields(ctypes.c_int64, "peephole_pixels"),
        *_fields(_NUMBERS, "mask h_mask y c c_last z d_y"),
        ("d_y_strides", _STRIDES),
        *_fields(_NUMBERS, "d_h d_c d_u d_x"),
        ("d_x_strides", _STRIDES),
        *_fields(_NUMBERS, "d_hoisted d_bias d_peephole d_weight_ih d_weight_hh"),
    )


def _candidates() -> Iterator[Path]:
    here = Path(__file__).parent
    yield from (here / name for name in _FILES)
    try:  # an editable installation leaves what it builds in site-packages
        installed = importlib.metadata.distribution("stormcell")
    except importlib.metadata.PackageNotFoundError:
        return
    for name in _FILES:
        yield Path(str(installed.locate_file(f"stormcell/engine/native/{name}")))


def _loaded() -> ctypes.CDLL | None:
    path = next((path for path in _candidates() if path.is_file()), None)
    if path is None:
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError:
        return None
    problem = ctypes.POINTER(Problem)
    found.stormcell_isa.restype = ctypes.c_int64
    for name in ("weights", "forward", "backward", "d_weights"):
        function = getattr(found, f"stormcell_{name}")
        function.argtypes, function.restype = [problem], ctypes.c_int64
    return found


def _instruction_set() -> str:
    asked = os.environ.get("STORMCELL_ISA", INSTRUCTION_SETS[-1])
    if asked not in INSTRUCTION_SETS:
        raise ValueError(f"STORMCELL_ISA must be one of {', '.join(INSTRUCTION_SETS)}. Received: {asked!r}")
    best = 0 if LIBRARY is None else int(LIBRARY.stormcell_isa())
    return INSTRUCTION_SETS[min(best, INSTRUCTION_SETS.index(asked))]


def _team() -> dict[str, int]:
    names = {"parallel": "GOMP_parallel", "thread_number": "omp_get_thread_num", "thread_count": "omp_get_num_threads"}
    try:
        process = ctypes.CDLL(None)
        found = {field: ctypes.cast(getattr(process, name), ctypes.c_void_p).value for field, name in names.items()}
    except (OSError, TypeError, AttributeError):  # Windows has no handle for the whole process
        return {}
    return {field: address for field, address in found.items() if address}


# Found once, when torch is there: torch.compile cannot look at them inside a call.
LIBRARY = _loaded()  # None where it was not built, or does not load
INSTRUCTION_SET = (
    _instruction_set()
)  # the processor's best, or what the environment variable STORMCELL_ISA asks for, if less
TEAM = _team()  # addresses of OpenMP's functions in this process, for `Problem`; empty where torch brings no GNU OpenMP
