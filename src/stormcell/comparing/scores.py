"""Scores as ratios of sums over cases, so that any set of cases has a score; and what a field of images is worth.

Cross entropy is that of Shi et al. 2015: natural logarithm, summed over the pixels and frames of a sequence, mean over
sequences. MSE, MAE, SSIM and PSNR are those of the Moving-MNIST tables since (openstl/core/metrics.py): squared and absolute
errors are summed over the pixels of a frame, not averaged; SSIM has windows of 7×7 pixels and, as scikit-image took of floats, a
range of 2; PSNR one of 1; each is a mean over frames and sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from torch import Tensor

Sums = dict[str, npt.NDArray[np.float64]]  # name → (cases, lead times)


@dataclass(frozen=True)
class Score:
    """A score of summed cases: Σ of one sum over Σ of others.

    Attributes:
        name, label: as in JSON, and for people.
        over: the sum above the line; under: the sums below it, or none: the number of cases.
        better: "low" or "high".
        root: what is under the line is the root of the product of its two sums: a correlation.
        whole: frames of a case add up instead of being averaged; only without `under`.
    """

    name: str
    label: str
    over: str
    under: tuple[str, ...] = ()
    better: str = "low"
    root: bool = False
    whole: bool = False

    def of(self, sums: Mapping[str, npt.NDArray[np.float64]], *, by_lead: bool = False) -> npt.NDArray[np.float64]:
        """From sums (…, cases, leads) to scores (…), or (…, leads) `by_lead`. NaN where nothing is under the line."""
        axes: tuple[int, ...] = (-2,) if by_lead else (-2, -1)
        above = sums[self.over]
        frames = above.shape[-1] if self.whole and not by_lead else 1
        below = [sums[name].sum(axis=axes) for name in self.under] or [np.ones_like(above).sum(axis=axes)]
        return np.asarray(frames * self.ratio(above.sum(axis=axes), below))

    def ratio(
        self, above: npt.NDArray[np.float64], below: Sequence[npt.NDArray[np.float64]]
    ) -> npt.NDArray[np.float64]:
        """Of sums that were added up. NaN where nothing is under the line."""
        under = np.sqrt(np.prod(below, axis=0)) if self.root else np.sum(below, axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(above / np.where(under > 0, under, np.nan))


IMAGE_SCORES = (
    Score("cross_entropy", "cross entropy", "cross_entropy", whole=True),
    Score("mse", "MSE", "mse"),
    Score("mae", "MAE", "mae"),
    Score("ssim", "SSIM", "ssim", better="high"),
    Score("psnr", "PSNR, dB", "psnr", better="high"),
)


def frame_scores(shown: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
    """mse, mae, ssim and psnr of each frame: images (N, T, Y, X) in [0, 1] → (N, T).

    SSIM is scikit-image's structural_similarity (Wang et al. 2004), over all frames at once.
    """
    from skimage.metrics import structural_similarity

    error = shown.astype(np.float64) - truth
    shown = shown.clip(0, 1)
    ssim = np.empty(shown.shape[:2])
    for n in range(len(shown)):
        for t in range(shown.shape[1]):
            ssim[n, t] = structural_similarity(shown[n, t], truth[n, t], data_range=2.0)
    clipped = ((shown.astype(np.float64) - truth) ** 2).mean(axis=(-2, -1))
    with np.errstate(divide="ignore"):
        psnr = -10 * np.log10(clipped)
    return {"mse": (error**2).sum(axis=(-2, -1)), "mae": np.abs(error).sum(axis=(-2, -1)), "ssim": ssim, "psnr": psnr}


def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Of each frame, summed over its pixels: (N, T, 1, Y, X) → (N, T)."""
    return nnf.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(dim=(-3, -2, -1))


def image_sums(logits: Tensor, truth: Tensor) -> Sums:
    """The sums of IMAGE_SCORES for a net whose sigmoid is the frame: (N, T, 1, Y, X) each."""
    shown = torch.sigmoid(logits)[:, :, 0].numpy()
    found = {"cross_entropy": cross_entropy(logits, truth).double().numpy()}
    return found | frame_scores(shown, truth[:, :, 0].numpy())


def joined(parts: Sequence[Sums]) -> Sums:
    """Sums of all cases from those of some."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
