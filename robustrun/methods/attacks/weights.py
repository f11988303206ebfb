"""Perturbed weights: how far the loss rises around them, tensor by tensor."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class WeightPerturbation:
    """A shift of a model's weights that can be applied and taken back, to the last bit."""

    def __init__(self, parameters: list[nn.Parameter], shifts: list[Tensor]):
        self.parameters, self.shifts = parameters, shifts
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def apply(self) -> None:
        """Shift the weights, unless they are shifted already."""
        if self._before is None:
            self._before = [p.detach().clone() for p in self.parameters]
            torch._foreach_add_(self.parameters, self.shifts)

    @torch.no_grad()
    def undo(self) -> None:
        """Put the weights back, unless they are already."""
        if self._before is not None:
            torch._foreach_copy_(self.parameters, self._before)
            self._before = None


def weight_perturbation(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> WeightPerturbation:
    """One step of ascent in the weights, tensor by tensor (Wu, Xia and Wang, arXiv 2004.05884, equation 10).

    Each weight w (biases and normalisation are spared) is shifted by gamma |w| g / |g|, with g the gradient of
    the loss; a tensor whose gradient is exactly 0 stays. Gradients of parameters are left alone.

    Args:
        model: whose weights.
        loss: the loss (a scalar) of the model as it is.
        gamma: length of the shift, relative to each tensor's norm.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    weights, gradients = zip(*((w, g) for w, g in zip(weights, gradients, strict=True) if g is not None), strict=True)
    tiny = torch.finfo(weights[0].dtype).tiny
    lengths = zip(torch._foreach_norm(weights), torch._foreach_norm(gradients), strict=True)
    scales = [gamma * own.detach() / gradient.clamp_min(tiny) for own, gradient in lengths]
    return WeightPerturbation(list(weights), list(torch._foreach_mul(gradients, scales)))
