"""CUDA graphs of calls whose shapes repeat: what a GPU was told once is told again in one go.

A graph is tied to the addresses it was recorded with. So each has memory of its own: what a call is given is copied in before
the graph is replayed, and what it made is copied out after. Nothing that a caller holds is written again or read later, and
so neither autograd nor DDP sees a difference. Not while somebody else records (`torch.cuda.graph`, or torch.compile with its
own graphs), and not for what torch.compile has compiled.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

SWITCH = "STORMCELL_CUDA_GRAPHS"  # the environment variable: 0 turns them off
CALLS_BEFORE = 2  # of a kind, that are no repetition yet: they also compile kernels and choose algorithms
CALLS_AFTER = 1000  # until what had to go is recorded again: recording takes as long as many calls
MOST_BYTES = 2**30  # of all graphs' memory; a twentieth of a GPU's, if that is less
MOST_KINDS = 1024  # that are remembered
Compute = Callable[..., Sequence[Tensor]]

_here = threading.local()


@contextmanager
def allowed() -> Iterator[None]:
    """Inside, calls may be recorded: a caller that is no compiler's asks for it."""
    before = getattr(_here, "allowed", False)
    _here.allowed = True
    try:
        yield
    finally:
        _here.allowed = before


class _Graph:
    """A call, recorded. `bytes` is what it holds of the GPU's memory, what it computes with included."""

    def __init__(self, compute: Compute, arguments: Sequence[Any]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.arguments = [_memory(value) if isinstance(value, Tensor) else value for value in arguments]
            self.copy_in(arguments)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                compute(*self.arguments)  # once more: algorithms may be chosen by where memory begins
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                made = compute(*self.arguments)
            self.is_tuple, self.made = isinstance(made, tuple), list(made)
        given = sum(value.nbytes for value in self.arguments if isinstance(value, Tensor))
        self.bytes = given + max(torch.cuda.memory_reserved() - before, sum(value.nbytes for value in self.made))

    def copy_in(self, arguments: Sequence[Any]) -> None:
        _copy((own, value) for own, value in zip(self.arguments, arguments) if isinstance(own, Tensor))

    def __call__(self, arguments: Sequence[Any]) -> Sequence[Tensor]:
        with torch.no_grad():
            self.copy_in(arguments)
            self.graph.replay()
            made = [_memory(value) for value in self.made]
            _copy(zip(made, self.made))
        return tuple(made) if self.is_tuple else made


def _memory(value: Tensor) -> Tensor:
    """For a tensor, with its strides if it fills its memory."""
    return torch.empty_like(value, memory_format=torch.preserve_format, requires_grad=False)


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """In one launch those of a precision whose memory has one order; torch copies a list of others one by one."""
    groups: dict[tuple[torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
    for to, value in pairs:
        if to.numel():
            groups.setdefault((to.dtype, to.stride() == value.stride()), []).append((to, value))
    for group in groups.values():
        torch._foreach_copy_([to for to, _ in group], [value for _, value in group])


class Graphs:
    """All graphs of this process: the least recently used goes where memory would exceed its bound."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of copying in, replaying and copying out as well
        self.seen: OrderedDict[Hashable, int | _Graph | None] = OrderedDict()  # calls so far; None: not to be recorded

    def clear(self) -> None:
        """Forget all, and give their memory back."""
        with self.lock:
            self.seen.clear()

    @property
    def bytes(self) -> int:
        return sum(graph.bytes for graph in self.seen.values() if isinstance(graph, _Graph))

    def run(self, compute: Compute, arguments: Sequence[Any], *settings: Hashable) -> Sequence[Tensor]:
        """compute(*arguments), replayed if it has been seen before. `settings`: what else its kernels follow from."""
        if not getattr(_here, "allowed", False) or os.environ.get(SWITCH) == "0" or _is_recording():
            return compute(*arguments)
        key = (compute, *settings, *_switches(), *map(_kind, arguments))
        with self.lock:
            known = self.seen.get(key, 0)
            if known == CALLS_BEFORE:
                known = self._record(key, compute, arguments)
            if isinstance(known, _Graph):
                self.seen.move_to_end(key)
                return known(arguments)
            if known is not None:
                self.seen[key] = known + 1
                if len(self.seen) > MOST_KINDS:
                    self.seen.popitem(last=False)
        return compute(*arguments)

    def _record(self, key: Hashable, compute: Compute, arguments: Sequence[Any]) -> _Graph | None:
        """The graph of a kind that will have one; None, for good, where it would take too much or cannot be recorded."""
        most = _most_bytes()
        self.seen[key] = graph = None
        if sum(value.nbytes for value in arguments if isinstance(value, Tensor)) <= most // 4:
            graph = _recorded(compute, arguments)
        if graph is None or graph.bytes > most // 4:  # long enough to hide its launches; and others want a place too
            return None
        for other in [other for other, held in self.seen.items() if isinstance(held, _Graph)]:
            if self.bytes + graph.bytes > most:
                self.seen[other] = CALLS_BEFORE - CALLS_AFTER
        self.seen[key] = graph
        return graph


def _recorded(compute: Compute, arguments: Sequence[Any]) -> _Graph | None:
    stream = torch.cuda.current_stream()
    try:
        return _Graph(compute, arguments)
    except torch.cuda.OutOfMemoryError:
        return None
    except RuntimeError as error:
        warnings.warn(f"a call is computed without a CUDA graph, which could not be recorded: {error}", stacklevel=2)
        return None
    finally:
        torch.cuda.set_stream(stream)  # recording that fails may leave another


def _most_bytes() -> int:
    return min(MOST_BYTES, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // 20)


def _kind(value: Any) -> Hashable:
    """An argument without its numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(value) if isinstance(value, list) else value


def _is_recording() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _switches() -> tuple[Hashable, ...]:
    """Of torch: where work is queued, and by what kernels are chosen. Streams run beside each other, and share no graph."""
    cudnn = torch.backends.cudnn
    chosen = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    return torch.cuda.current_stream(), *chosen


graphs = Graphs()
