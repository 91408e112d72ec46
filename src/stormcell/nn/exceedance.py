"""How probable it is that rain exceeds a level: a first guess that optical flow could give, and what a ConvLSTM adds to it.

Works in the storm's coordinates: what it reads has been moved to the present along the motion, and what it says is moved on
from there (`advection.py`). Then nothing blurs because it moves, and any speed can be followed.

The first guess is the share of pixels of the newest frame above a level, in surroundings of growing width around a pixel,
mixed by weights that follow from level and lead time: near in time the pixel itself, later its surroundings, at last the
climate. To its logits a small head adds its own at each pixel, from the means of all past frames in those surroundings (what
three frames say together is far less noise than what one says), and from what the encoder–forecaster tells it of the storm;
it begins as zero: untrained, the net is its first guess.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .forecaster import EncoderForecaster

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["ExceedanceForecaster", "FirstGuess"]

OCTAVES = 5
_LEAST = 1e-5  # probability
_LITTLE = 1e-4  # of the pixels around: what the wider surroundings weigh
_HALVING = (0.125, 0.375, 0.375, 0.125)  # a binomial filter
_SEEN_GAIN = 16.0  # rain of interest is encoded as 0.1 to 0.5: the head learns faster from larger numbers
_HOUR = 60.0
_STRIP = 8192  # pixels


def means(value: Tensor, valid: Float[Tensor, "B 1 Y X"], octaves: int) -> Float[Tensor, "B C S Y X"]:
    """Of valid pixels of maps (B, C, Y, X) around each pixel: the pixel itself, then surroundings that double in width, about
    Gaussian, of standard deviations 1.3, 2.6, 5.2 … pixels.

    Where no pixel is valid around, it is the mean of the wider surroundings; in the widest then 0.
    """
    height, width = value.shape[-2:]
    both = torch.cat([value * valid, valid.expand(len(value), 1, height, width)], dim=1)
    both = nnf.pad(both, (0, -width % 2**octaves, 0, -height % 2**octaves))
    filter_ = both.new_tensor(_HALVING)
    kernel = torch.outer(filter_, filter_).expand(both.shape[1], 1, 4, 4)
    levels = [both]
    for _ in range(octaves):
        levels.append(nnf.conv2d(levels[-1], kernel, stride=2, padding=1, groups=len(kernel)))
    found: list[Tensor] = []
    wider: Tensor | float = 0.0
    for octave, level in reversed(list(enumerate(levels))):
        mean = level
        if octave:
            mean = nnf.interpolate(level, scale_factor=2**octave, mode="bilinear", align_corners=False)
        mean = mean[..., :height, :width]
        wider = (mean[:, :-1] + _LITTLE * wider) / (mean[:, -1:] + _LITTLE)
        found.append(wider)
    return torch.stack(found[::-1], dim=2)


class FirstGuess(nn.Module):
    """Mixture of neighbourhood shares.

    Args:
        levels: of events (value ≥ level), in the range of the values, ascending.
        octaves: surroundings of so many widths, beside the pixel itself.
    """

    levels: Tensor

    def __init__(self, levels: Sequence[float], octaves: int = OCTAVES) -> None:
        super().__init__()
        self.octaves = octaves
        self.register_buffer("levels", torch.tensor(levels))
        parts = len(levels), octaves + 2  # the pixel, its surroundings, the climate
        # Of the logarithm of a part's weight: constant, by hours of lead, by their logarithm.
        self.weight = nn.Parameter(torch.zeros(3, *parts))
        with torch.no_grad():
            self.weight[0, :, -1] = -3.0
        self.climate = nn.Parameter(torch.full((len(levels),), -3.0))

    def shares(self, value: Float[Tensor, "B 1 Y X"], valid: Float[Tensor, "B 1 Y X"]) -> Float[Tensor, "B K S Y X"]:
        """Of valid pixels at or above each level, around each pixel, in surroundings of each width."""
        return means(value >= self.levels.view(-1, 1, 1), valid, self.octaves)

    def forward(self, shares: Float[Tensor, "B K S Y X"], minutes: float) -> Float[Tensor, "B K Y X"]:
        """Logits at a lead time, from what `shares` gives."""
        hours = minutes / _HOUR
        constant, slope, curve = self.weight
        part = torch.softmax(constant + slope * hours + curve * math.log(hours), dim=-1)
        guess = torch.einsum("bksyx,ks->bkyx", shares, part[:, :-1])
        guess = guess + (part[:, -1] * torch.sigmoid(self.climate))[:, None, None]
        return torch.logit(guess, eps=_LEAST)


def _in_strips(function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """What a function of pixels gives for maps (…, Y, X), computed a strip of rows at a time where no gradient is wanted: a
    strip stays in the cache, which is six times faster on a large grid.
    """
    if torch.is_grad_enabled():
        return function(*maps)
    rows = max(1, _STRIP // maps[0].shape[-1])
    return torch.cat([function(*strips) for strips in zip(*(one.split(rows, dim=-2) for one in maps))], dim=-2)


class ExceedanceForecaster(nn.Module):
    """Logits of P(value ≥ level) at any lead times, from `past` aligned frames.

    Args:
        levels: see `FirstGuess`.
        past: number of frames that it reads.
        lead_minutes: what a step of the encoder–forecaster stands for; between its steps what it says is interpolated.
        hidden_channels, kernel_size, patch: of the encoder–forecaster.
        told: channels at a pixel through which it speaks to the head.
        width: hidden units of the head.

    Raises ValueError for levels that do not ascend, and what `EncoderForecaster` raises.
    """

    def __init__(
        self,
        levels: Sequence[float],
        past: int,
        *,
        lead_minutes: float = 10.0,
        hidden_channels: Sequence[int] = (32, 32),
        kernel_size: int = 3,
        patch: int = 8,
        told: int = 8,
        width: int = 32,
    ) -> None:
        super().__init__()
        if not levels or any(b <= a for a, b in itertools.pairwise(levels)):
            raise ValueError(f"levels must ascend. Received: {levels}")
        self.past, self.lead_minutes = past, lead_minutes
        self.guess = FirstGuess(levels)
        self.core = EncoderForecaster(
            2, hidden_channels, kernel_size, patch=patch, peephole="channel", out_channels=told
        )
        self.from_seen = nn.Conv2d(past * (self.guess.octaves + 1), width, 1)
        with torch.no_grad():
            self.from_seen.weight *= _SEEN_GAIN
        self.from_told = nn.Conv2d(told, width, 1, bias=False)
        self.from_lead = nn.Linear(2, width, bias=False)
        self.mix = nn.Conv2d(width, width, 1)
        self.add = nn.Conv2d(width, len(levels), 1)
        nn.init.zeros_(self.add.weight)
        assert self.add.bias is not None
        nn.init.zeros_(self.add.bias)

    def leads(
        self, x: Float[Tensor, "B P 2 Y X"], minutes: Sequence[float], *, guess_only: bool = False
    ) -> Iterator[Float[Tensor, "B K Y X"]]:
        """Logits, one lead time after the other: a forecast of a large grid need not be held as a whole."""
        shares = self.guess.shares(*x[:, -1].split(1, dim=1))
        if not guess_only:
            told = self.core(x, math.ceil(max(minutes) / self.lead_minutes - 1e-6))
            value, valid = x.flatten(0, 1).split(1, dim=1)
            around = means(value, valid, self.guess.octaves).view(len(x), -1, *x.shape[-2:])
            seen = _in_strips(self.from_seen, around)
        for lead in minutes:
            logits = self.guess(shares, lead)
            if not guess_only:
                hours = lead / _HOUR
                when = self.from_lead(x.new_tensor([hours, math.log(hours)]))[:, None, None]
                logits = logits + _in_strips(functools.partial(self._head, when), seen, self._between(told, lead))
            yield logits

    def _head(self, when: Tensor, seen: Tensor, told: Tensor) -> Tensor:
        return self.add(nnf.relu(self.mix(nnf.relu(seen + self.from_told(told) + when))))

    def _between(self, told: Float[Tensor, "B L F Y X"], lead: float) -> Float[Tensor, "B F Y X"]:
        """What the encoder–forecaster says at a lead time; nothing at 0."""
        step, share = divmod(lead / self.lead_minutes + 1e-6, 1.0)
        before = told[:, int(step) - 1] if step >= 1 else torch.zeros_like(told[:, 0])
        return before if share < 1e-3 else torch.lerp(before, told[:, int(step)], share)

    def forward(
        self, x: Float[Tensor, "B P 2 Y X"], minutes: Sequence[float], *, guess_only: bool = False
    ) -> Float[Tensor, "B L K Y X"]:
        """x: values and validity of the past frames, the newest last, moved to the present; `minutes` of lead."""
        return torch.stack(list(self.leads(x, minutes, guess_only=guess_only)), dim=1)
