"""The loss of a variational auto-encoder whose latent states follow learned dynamics."""

from typing import NamedTuple

import torch
from torch import Tensor


class LatentLoss(NamedTuple):
    """Terms of the loss, each summed over pixels (or latent dimensions) and averaged over the batch."""

    reconstruction: Tensor
    divergence: Tensor
    prediction: Tensor

    def total(self, reconstruction_weight: float = 1.0, prediction_weight: float = 1.0) -> Tensor:
        """Weighted sum; the divergence has weight 1."""
        return reconstruction_weight * self.reconstruction + self.divergence + prediction_weight * self.prediction


def sample_latent(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A sample of N(mean, diag exp(log_variance)), differentiable by both; all (B, d)."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + torch.exp(0.5 * log_variance) * noise


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)) of each example, (B,)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)


def latent_loss(
    mean: Tensor, log_variance: Tensor, decoded: Tensor, frames: Tensor, decoded_next: Tensor, next_frames: Tensor
) -> LatentLoss:
    """The terms for pairs of successive frames: all images (B, ...) in [0, 1], mean and log-variance (B, d).

    Source: Manek and Kolter (2019), with squared errors.
    """
    count = len(frames)
    return LatentLoss(
        (decoded - frames).square().sum() / count,
        standard_normal_divergence(mean, log_variance).sum() / count,
        (decoded_next - next_frames).square().sum() / count,
    )
