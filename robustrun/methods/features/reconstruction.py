"""Reconstruction independent component analysis: sparse features of image patches that can rebuild them.

Source: Le, Karpenko, Ngiam and Ng, "ICA with reconstruction cost for efficient overcomplete feature learning"
(NIPS 2011).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_patches(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One patch of `size` x `size` pixels of each image (B, C, H, W), at a random place: (B, C * size^2)."""
    row, column = (
        torch.randint(extent - size + 1, (len(images),), generator=generator).to(images.device)
        for extent in images.shape[-2:]
    )
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # a view: (B, C, rows, columns, size, size)
    return windows[torch.arange(len(images), device=images.device), :, row, column].flatten(1)


def contrast_normalised(patches: Tensor, dim: int = -1, floor: float = 10 / 255**2) -> Tensor:
    """Patches (N, d) of pixels in [0, 1] less their mean, over their deviation; `floor` is added to the variance."""
    centred = patches - patches.mean(dim, keepdim=True)
    return centred * (centred.square().mean(dim, keepdim=True) + floor).rsqrt()


def zca(patches: Tensor, epsilon: float = 0.1) -> tuple[Tensor, Tensor]:
    """Mean (d,) and whitening matrix (d, d) of patches (N, d): (x - mean) @ matrix has about unit covariance.

    `epsilon` is added to the eigenvalues, so that directions without data stay small.
    """
    mean = patches.mean(0)
    centred = (patches - mean).double()
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
    matrix = (vectors * (eigenvalues.clamp_min(0) + epsilon).rsqrt()) @ vectors.T
    return mean, matrix.to(patches.dtype)


def rica_loss(filters: Tensor, patches: Tensor, beta: float = 0.5) -> Tensor:
    """beta |W'W x - x|^2 + sum_j sqrt((w_j x)^2 + 1e-8), the mean over whitened patches (N, d).

    The rows of `filters` (F, d) count as normalised, whatever their length.
    """
    w = F.normalize(filters, dim=1)
    code = patches @ w.T
    rebuilt = (code @ w - patches).square().sum(1)
    return (beta * rebuilt + (code.square() + 1e-8).sqrt().sum(1)).mean()
