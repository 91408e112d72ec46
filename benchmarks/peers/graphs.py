"""Work on a GPU recorded as a CUDA graph, which is launched as one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from . import NotHere

Outputs = TypeVar("Outputs", bound=Any)
_WARM_RUNS = 3  # what is compiled, tuned or allocated at first must not be recorded


def need_gpu(device: str) -> None:
    """Raise NotHere where there are no CUDA graphs."""
    if not device.startswith("cuda"):
        raise NotHere("CUDA graphs need a GPU")


def recorded(compute: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """The graph of a computation on tensors that stay where they are, and its outputs, which each replay overwrites."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_RUNS):
            compute()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other libraries' threads may go on
        outputs = compute()
    return graph, outputs
