"""Which nets are compared: by name, and matched to the first by parameters or by multiply–accumulates.

A family has one size that is free, and is matched by it: "convlstm", "conv2d-lstm" (an LSTM per pixel), "conv2d-flatten-lstm"
(one vector; pooled before Flatten until it fits, and a second time at the size that people write). Any name of `nn.nets`
stands for that net as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..nn.convlstm import ConvLSTM2d
from ..nn.costs import forecast_macs, forecast_reach
from ..nn.forecaster import Conv2dFlatLSTMForecaster, Conv2dLSTMForecaster, Forecasts
from ..nn.nets import FORMS, OWN_PATCH, net
from .tasks import Task

FAMILIES = ("convlstm", "conv2d-lstm", "conv2d-flatten-lstm", "conv2d-flatten-lstm-natural")
MATCHES = ("parameters", "macs", "time")
NEAR = 0.05  # how far a match may be off
_LARGEST = 20_000
_EVERYTHING = "all"
_FLAT_CHANNELS = 8
_FEWEST_UNITS = 16
_POOLS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Shape:
    """Sizes of the reference, of which families take kernel, patch and number of layers.

    Attributes:
        hidden: channels of its layers; kernel, patch: of all nets.
    """

    hidden: tuple[int, ...] = (32, 32)
    kernel: int = 3
    patch: int = 4


@dataclass(frozen=True)
class Entry:
    """A net in the comparison.

    Attributes:
        name: of its row; net: its full name (`nn.nets`); patch: of its frames.
        note: what a reader must know of it.
    """

    name: str
    net: str
    patch: int
    note: str = ""

    def build(self, task: Task) -> Forecasts:
        """The net, freshly drawn from torch's seed."""
        return net(self.net, in_channels=task.in_channels, out_channels=1, patch=self.patch, frame_size=task.frame_size)

    def parameters(self, task: Task) -> int:
        return sum(p.numel() for p in self._empty(task).parameters())

    def macs(self, task: Task) -> int:
        """Of one forecast."""
        return forecast_macs(self._empty(task), task.frame_size, past=task.past, steps=task.future)

    def reach(self, task: Task) -> list[float]:
        """Pixels around, of the newest frame, that each forecast frame may see; inf: all."""
        empty = self._empty(task)
        return [(forecast_reach(empty, k + 1) + 0.5) * empty.patch - 0.5 for k in range(task.future)]

    def memory(self, task: Task) -> str:
        """What the state of a pixel sees of the state before, in pixels of its map."""
        empty = self._empty(task)
        if isinstance(empty, Conv2dFlatLSTMForecaster) or empty.patch >= max(task.frame_size):
            return _EVERYTHING
        if isinstance(empty, Conv2dLSTMForecaster):
            return "itself"
        layer = next(module for module in empty.modules() if isinstance(module, ConvLSTM2d))
        k = max(layer.recurrent_kernel_size)
        return f"{k}×{k}" if k > 1 else "itself"

    def any_size(self, task: Task) -> bool:
        """Whether the net takes frames of any size."""
        return self.memory(task) != _EVERYTHING

    def _empty(self, task: Task) -> Forecasts:
        with torch.device("meta"):
            return self.build(task)


def entries(models: Sequence[str], task: Task, shape: Shape, match: str) -> list[Entry]:
    """Rows of the comparison; families are as large as the first.

    Raises InputError for a name that is none, for a net that the task does not suit, and where no size matches.
    """
    if match not in MATCHES:
        raise InputError(f"--match knows {', '.join(MATCHES)}, not {match!r}")
    if len(models) < 2:
        raise InputError("--models takes two names or more, of which the first is compared with the others")
    measure = Entry.macs if match == "macs" else Entry.parameters
    found: list[Entry] = []
    for name in models:
        found.append(_entry(name, task, shape, measure, found[0] if found else None))
    counts: dict[str, int] = {}
    named = []
    for entry in found:
        counts[entry.name] = counts.get(entry.name, 0) + 1
        again = f" ({counts[entry.name]})" if counts[entry.name] > 1 else ""
        named.append(Entry(entry.name + again, entry.net, entry.patch, entry.note))
    return named


def _entry(name: str, task: Task, shape: Shape, measure: Callable[[Entry, Task], int], like: Entry | None) -> Entry:
    layers = len(shape.hidden)
    kernel = f"{shape.kernel}x{shape.kernel}"
    reference = Entry("convlstm", f"convlstm-{kernel}-" + "-".join(map(str, shape.hidden)), shape.patch)
    if name == "convlstm":
        return reference
    if name not in FAMILIES:
        entry = Entry(name, name, OWN_PATCH.get(name, shape.patch))
        try:
            entry.parameters(task)
        except ValueError as error:
            raise InputError(
                f"--models knows {', '.join((*FAMILIES, *FORMS))} and such names: {name!r} does not fit ({error})"
            ) from None
        return entry
    if name == "conv2d-flatten-lstm-natural":
        width = shape.hidden[0]
        return Entry(
            name, f"conv2d-flatten-lstm-{kernel}-{width}-{8 * width}", shape.patch, "not matched: as people write it"
        )
    target = measure(like or reference, task)
    if name == "conv2d-lstm":
        return _matched(name, lambda w: f"conv2d-lstm-{kernel}" + f"-{w}" * layers, 1, task, shape, measure, target)
    for pool in _POOLS:
        named = functools.partial(_flat_name, kernel, pool)
        if measure(Entry(name, named(_FEWEST_UNITS), shape.patch), task) <= target:
            note = f"pooled {pool}×{pool} before Flatten, to match" if pool > 1 else ""
            return _matched(name, named, _FEWEST_UNITS, task, shape, measure, target, note)
    raise InputError(f"no {name} is as small as the first model: leave it out of --models, or make --hidden larger")


def _flat_name(kernel: str, pool: int, units: int) -> str:
    return f"conv2d-flatten-lstm-{kernel}-{_FLAT_CHANNELS}-{units}" + (f"-pool{pool}" if pool > 1 else "")


def _matched(
    name: str,
    named: Callable[[int], str],
    fewest: int,
    task: Task,
    shape: Shape,
    measure: Callable[[Entry, Task], int],
    target: int,
    note: str = "",
) -> Entry:
    """The size whose measure is nearest to the target, and at least `fewest`."""

    def at(size: int) -> int:
        return measure(Entry(name, named(size), shape.patch), task)

    low, high = fewest, fewest
    while at(high) < target:
        if high > _LARGEST:
            raise InputError(f"no {name} of up to {_LARGEST} channels is as large as the first model: leave it out")
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    best = min((low, high), key=lambda size: abs(at(size) - target))
    off = at(best) / target - 1
    if abs(off) > NEAR:
        note = "; ".join(part for part in (note, f"{100 * off:+.0f} % off its match") if part)
    return Entry(name, named(best), shape.patch, note)
