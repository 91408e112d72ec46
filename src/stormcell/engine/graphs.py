"""CUDA graphs of calls whose shapes repeat: what a GPU was told once is told again in one go.

A graph is tied to the addresses it was recorded with. Parameters are read where they are: their addresses are part of what a
graph is known by. All else that a call is given is copied in before the graph is replayed, and what it made is copied out after.
Nothing that a caller holds is written again or read later, and so neither autograd nor DDP sees a difference. Not while
somebody else records (`torch.cuda.graph`), and not inside torch.compile.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

SWITCH = "STORMCELL_CUDA_GRAPHS"  # the environment variable: 0 turns them off
CALLS_BEFORE = 2  # of a kind, that are no repetition yet: they also compile kernels and choose algorithms
CALLS_AFTER = 1000  # of a kind that found no room, until others make it: recording takes as long as many calls
WAITED = -1  # the count of a kind at the end of that
MOST_BYTES = 2**30  # of all graphs' memory; a twentieth of a GPU's, if that is less
MOST_KINDS = 1024  # that are remembered
ALIGNED = 512  # bytes, as torch aligns what it allocates
Compute = Callable[..., Sequence[Tensor]]


class _Room:
    """What the graphs of a stream share, since one runs after the other: memory for what they are given and compute with."""

    def __init__(self) -> None:
        self.pool: Any = None
        self.stream: Any = None
        self.given = torch.empty(0, dtype=torch.uint8)
        self.bytes = 0  # all that has been taken

    def lend(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Memory like that of values, until the next call's."""
        likes = [torch.empty_like(value, device="meta") for value in values]
        *starts, needed = accumulate((-(-like.nbytes // ALIGNED) * ALIGNED for like in likes), initial=0)
        if needed > self.given.nbytes:  # earlier graphs go on with what they have
            self.given = torch.empty(max(needed, 2 * self.given.nbytes), dtype=torch.uint8, device=values[0].device)
            self.bytes += self.given.nbytes
        return [
            self.given[start : start + like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())
            for start, like in zip(starts, likes)
        ]

    def capture(self, compute: Compute, arguments: Sequence[Any]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """What computes it once more, and where the results will be."""
        if self.pool is None:
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            compute(*arguments)  # once more: algorithms may be chosen by where memory begins
        torch.cuda.current_stream().wait_stream(self.stream)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                made = compute(*arguments)
        finally:
            self.bytes += max(torch.cuda.memory_reserved() - before, 0)
        return graph.replay, made


class _Graph:
    """A call, recorded."""

    def __init__(self, compute: Compute, arguments: Sequence[Any], room: _Room) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.copied = [number for number, value in enumerate(arguments) if _is_copied(value)]
            self.given = room.lend([_copied(arguments[number]) for number in self.copied])
            self.copy_in(arguments)
            own = list(arguments)
            for number, memory in zip(self.copied, self.given):
                own[number] = memory.expand(arguments[number].shape)
            self.replay, made = room.capture(compute, own)
            self.is_tuple, self.made = isinstance(made, tuple), list(made)

    def copy_in(self, arguments: Sequence[Any]) -> None:
        _copy((own, _copied(arguments[number])) for number, own in zip(self.copied, self.given))

    def __call__(self, arguments: Sequence[Any]) -> Sequence[Tensor]:
        with torch.no_grad():
            self.copy_in(arguments)
            self.replay()
            made = [torch.empty_like(value) for value in self.made]
            _copy(zip(made, self.made))
        return tuple(made) if self.is_tuple else made


def _is_copied(value: Any) -> bool:
    return isinstance(value, Tensor) and type(value) is not nn.Parameter  # whose isinstance takes a microsecond


def _copied(value: Tensor) -> Tensor:
    """What there is to copy: a single number where that stands for all, as in the zeros that a sequence begins with."""
    return value if any(value.stride()) else value.detach().as_strided((), ())


def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """In one launch those of a precision whose memory has one order; torch copies a list of others one by one."""
    groups: dict[tuple[torch.dtype, torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
    for to, value in pairs:
        if to.numel():
            groups.setdefault((to.dtype, value.dtype, to.stride() == value.stride()), []).append((to, value))
    for group in groups.values():
        torch._foreach_copy_([to for to, _ in group], [value for _, value in group])


class Graphs:
    """All graphs of this process. What finds no more room waits for a while; then all others go, and begin anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of copying in, replaying and copying out as well
        # Of each kind its graph; or how many calls came so far, less than none while it waits; or None: it is to have no graph.
        self.seen: OrderedDict[Hashable, int | _Graph | None] = OrderedDict()
        self.rooms: dict[Hashable, _Room] = {}  # of each stream

    def clear(self) -> None:
        """Forget all, and give their memory back."""
        with self.lock:
            self.seen.clear()
            self.rooms.clear()

    @property
    def bytes(self) -> int:
        """Of the GPU's memory, that graphs have."""
        return sum(room.bytes for room in self.rooms.values())

    def run(self, compute: Compute, arguments: Sequence[Any], *settings: Hashable) -> Sequence[Tensor]:
        """compute(*arguments), replayed if it has been seen before. `settings`: what else its kernels follow from."""
        if os.environ.get(SWITCH) == "0" or _is_recording():
            return compute(*arguments)
        stream = torch.cuda.current_stream()  # where work is queued; streams run beside each other, and share nothing
        key = (stream, compute, *settings, *_switches(), *map(_kind, arguments))
        with self.lock:
            known = self.seen.get(key, 0)
            if known in (CALLS_BEFORE, WAITED):
                known = self.seen[key] = self._record(stream, compute, arguments, waited=known == WAITED)
            if isinstance(known, _Graph):
                self.seen.move_to_end(key)
                return known(arguments)
        made = compute(*arguments)
        if known is not None:
            with self.lock:
                self._count(key, known, arguments, made)
        return made

    def _count(self, key: Hashable, known: int, arguments: Sequence[Any], made: Sequence[Tensor]) -> None:
        held = sum(_copied(value).nbytes for value in (*arguments, *made) if _is_copied(value))
        is_long = held > _most_bytes() // 4  # enough to hide its launches; and others want a place too
        self.seen[key] = None if is_long else known + 1
        if len(self.seen) > MOST_KINDS:
            self.seen.popitem(last=False)

    def _record(
        self, stream: Hashable, compute: Compute, arguments: Sequence[Any], *, waited: bool
    ) -> int | _Graph | None:
        """What a kind shall have whose turn has come."""
        if waited:
            self._begin_anew()
        most = _most_bytes()
        if self.bytes > most - most // 4:
            return WAITED - CALLS_AFTER
        graph = _recorded(compute, arguments, self.rooms.setdefault(stream, _Room()))
        if graph is None or self.bytes > most:
            self._begin_anew()  # nobody knows what is left of a pool in which recording failed
            return None
        return graph

    def _begin_anew(self) -> None:
        """All graphs go; each comes back when it is called again."""
        for key, held in self.seen.items():
            if isinstance(held, _Graph):
                self.seen[key] = CALLS_BEFORE
        self.rooms.clear()


def _recorded(compute: Compute, arguments: Sequence[Any], room: _Room) -> _Graph | None:
    stream = torch.cuda.current_stream()
    try:
        return _Graph(compute, arguments, room)
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
    """An argument without its numbers; a parameter by its place."""
    if isinstance(value, Tensor):
        kind = value.shape, value.stride(), value.dtype, value.device
        return kind if _is_copied(value) else (*kind, value.data_ptr())
    return tuple(value) if isinstance(value, list) else value


def _is_recording() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _switches() -> tuple[Hashable, ...]:
    """Of torch, by which kernels are chosen."""
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()


graphs = Graphs()
