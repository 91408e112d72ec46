"""From probabilities of exceedance to fields: the one of greatest expected CSI, and the members of an ensemble.

Logits of P(rain rate ≥ level), levels ascending, tell the distribution at each pixel; between levels the rate is interpolated
in its logarithm. A member is that distribution read at a noise field, a copula: each pixel keeps its distribution, and the
noise, which has the texture of the case's newest frame and lives longer on larger scales, says how pixels go together. At each
pixel the members share the distribution among them, one to each part of equal probability: drawn with no regard for each
other, twenty would miss it by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

LEVELS_MM_H = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_LEAST = 0.05  # what is less probable is not forecast, however much CSI it promises
_MOST_PIXELS = 100_000  # that are sorted
_STRIP_ROWS = 16
_BEYOND = 2.0  # steps between levels, above the highest
_RAREST = 1e-4  # probability that a member reads the distribution at
_LIFETIME_MINUTES, _WAVELENGTH_KM = 30.0, 20.0  # of noise: it grows with the wavelength


def nested(logits: Float[Tensor, "K Y X"]) -> Float[Tensor, "K Y X"]:
    """A higher level is never more probable than a lower one."""
    return torch.cummin(logits, dim=0).values


def rate_at(
    logits: Float[Tensor, "K Y X"], probability_logit: Tensor, levels: Sequence[float] = LEVELS_MM_H
) -> Float[Tensor, "Y X"]:
    """The rate that is exceeded with a probability, given as logits (K, 1, 1) or (Y, X), where `logits` are nested; 0 below the
    lowest level.
    """
    asked = probability_logit.expand_as(logits)
    step = torch.tensor(np.log(levels), dtype=logits.dtype)
    last = len(levels) - 1
    below = torch.full(logits.shape[1:], -1)  # the highest level that is exceeded, -1 for none
    for k, (level, bound) in enumerate(zip(logits, asked)):
        below.masked_fill_(level >= bound, k)

    def over(level: Tensor) -> Tensor:
        return (logits.gather(0, level[None]) - asked.gather(0, level[None]))[0]

    lower = below.clamp(min=0)
    upper = (lower + 1).clamp(max=last)
    here, highest = over(lower), logits[-1] - asked[-1]
    share = here / (here - over(upper)).clamp(min=1e-6)
    within = step[lower] + share * (step[upper] - step[lower])
    falls = (logits[-2] - asked[-2] - highest).clamp(min=0.1)
    beyond = step[-1] + (highest / falls).clamp(max=_BEYOND) * (step[-1] - step[-2])
    rate = torch.exp(torch.where(lower == last, beyond, within))
    return torch.where(below >= 0, rate, 0.0)


def best_probabilities(logits: Float[Tensor, "K Y X"], seen: Tensor | None = None) -> Float[Tensor, "K 1 1"]:
    """For each level the probability, as a logit, above which saying "event" makes the expected CSI greatest, over the pixels
    `seen` (Y, X).

    Of n pixels said, with probabilities that sum to h of all their sum H, it is about h / (n + H - h). The rule comes from the
    forecast alone: nothing of it is fitted.
    """
    count = logits.shape[-2] * logits.shape[-1]
    stride = max(1, math.isqrt(count // _MOST_PIXELS))
    thinned = torch.sigmoid(nested(logits[:, ::stride, ::stride]).flatten(1))
    if seen is not None and seen[::stride, ::stride].any():
        thinned = thinned[:, seen[::stride, ::stride].flatten()]
    falling = thinned.sort(dim=1, descending=True).values
    hits = falling.double().cumsum(dim=1)
    said = torch.arange(1, falling.shape[1] + 1)
    csi = hits / (said + hits[:, -1:] - hits)
    best = falling.gather(1, csi.argmax(dim=1, keepdim=True))
    return torch.logit(best.clamp(_LEAST, 0.999))[..., None]


def best_field(
    logits: Float[Tensor, "K Y X"], seen: Tensor | None = None, levels: Sequence[float] = LEVELS_MM_H
) -> Float[Tensor, "Y X"]:
    """Rain rates, mm/h, whose expected CSI is greatest at each level over the pixels `seen`."""
    limits = best_probabilities(logits, seen)
    strips = logits.split(_STRIP_ROWS, dim=1)  # that the cache holds
    return torch.cat([rate_at(nested(strip), limits, levels) for strip in strips])


def noise(
    newest: npt.NDArray[np.float32], minutes: Sequence[float], count: int, *, kilometres: float, seed: int
) -> Iterator[Float[Tensor, "count Y X"]]:
    """Standard normal fields of `count` members at each lead time, with the spectrum of the newest frame (encoded, no NaN).

    A wave of 20 km loses its phase with a time constant of half an hour, others in proportion to their length.
    """
    height, width = newest.shape
    field = newest - newest.mean()
    window = np.hanning(height)[:, None] * np.hanning(width)
    amplitude = torch.from_numpy(np.abs(np.fft.rfft2(field * window)).astype(np.float32))
    across, down = np.fft.rfftfreq(width, kilometres), np.fft.fftfreq(height, kilometres)
    frequency = torch.from_numpy(np.hypot(down[:, None], across).astype(np.float32))
    amplitude = _smooth(amplitude, frequency)
    amplitude[0, 0] = 0
    lifetime = _LIFETIME_MINUTES * (1 / (frequency.clamp(min=1e-6) * _WAVELENGTH_KM))
    generator = torch.Generator().manual_seed(seed)

    def white() -> Tensor:
        return torch.fft.rfft2(torch.randn(count, height, width, generator=generator)) * amplitude

    state, now = white(), 0.0
    for lead in minutes:
        keep = torch.exp(-(lead - now) / lifetime)
        state, now = keep * state + torch.sqrt(1 - keep**2) * white(), lead
        drawn = torch.fft.irfft2(state, s=(height, width))
        yield drawn / drawn.std(dim=(-2, -1), keepdim=True).clamp(min=1e-9)


def _smooth(amplitude: Tensor, frequency: Tensor) -> Tensor:
    """The mean amplitude at each wavelength: texture without the places of the newest frame's cells."""
    bins = (frequency / frequency.max() * max(amplitude.shape)).long().flatten()
    total = torch.zeros(int(bins.max()) + 1).scatter_add_(0, bins, amplitude.flatten() ** 2)
    number = torch.zeros_like(total).scatter_add_(0, bins, torch.ones_like(amplitude.flatten()))
    return (total / number.clamp(min=1)).sqrt()[bins].view_as(amplitude)


def stratified(normals: Float[Tensor, "M Y X"]) -> Float[Tensor, "M Y X"]:
    """Probabilities of exceedance at which M members read the distribution, from a standard normal field of each.

    At each pixel one lies in each of M equal parts of 0 to 1, the members in the order of their fields, uniform within its
    part: at the share that the gap to the next lower has of the gaps to both neighbours (gaps between uniform numbers are
    exchangeable). Where two fields cross, both lie on the border of their parts: what is continuous remains so.
    """
    ascending, order = torch.special.ndtr(normals).sort(dim=0)
    count = len(ascending)
    ends = torch.zeros_like(ascending[:1]), torch.ones_like(ascending[:1])
    gaps = torch.diff(torch.cat([ends[0], ascending, ends[1]]), dim=0)
    within = gaps[:-1] / (gaps[:-1] + gaps[1:]).clamp(min=1e-12)
    parts = (torch.arange(count, dtype=within.dtype)[:, None, None] + within) / count
    return 1 - torch.empty_like(parts).scatter_(0, order, parts)


def member_rates(
    logits: Float[Tensor, "K Y X"], exceeded: Float[Tensor, "M Y X"], levels: Sequence[float] = LEVELS_MM_H
) -> Float[Tensor, "M Y X"]:
    """Rain rates, mm/h, of M members: at each pixel of each the rate that is exceeded with this probability."""
    asked = torch.logit(exceeded.clamp(_RAREST, 1 - _RAREST))
    strips = []
    for strip, own in zip(map(nested, logits.split(_STRIP_ROWS, dim=1)), asked.split(_STRIP_ROWS, dim=1)):
        strips.append(torch.stack([rate_at(strip, one, levels) for one in own]))
    return torch.cat(strips, dim=1)
