"""For peers whose channels lie last: from our layout and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import Case


def last(values: np.ndarray) -> np.ndarray:
    """(…, C, Y, X) → (…, Y, X, C)."""
    return np.ascontiguousarray(np.moveaxis(values, -3, -1))


def first(values: np.ndarray) -> np.ndarray:
    """(…, Y, X, C) → (…, C, Y, X)."""
    return np.moveaxis(values, -1, -3)


def _float32(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.float32, copy=False)  # bfloat16 is no type of numpy's own


def compared(case: Case, y: Any, gradients: list[Any] | None) -> dict[str, np.ndarray]:
    """What `Run.numbers` gives, from results (B, T, Y, X, C); the gradients are the input's, then the parameters'."""
    found = {"y": first(_float32(y))}
    if case.streaming:
        found["y"] = found["y"][:, 0]
    elif gradients is not None:
        found["d_x"] = first(_float32(gradients[0]))
        found["gradients"] = np.array(sum(int(np.prod(g.shape)) for g in gradients))
    return found
