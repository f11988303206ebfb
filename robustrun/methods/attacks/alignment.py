"""How well input gradients agree within the ball: where they do, one step of ascent is as good as many."""

import torch
from torch import Tensor

from robustrun.methods.attacks.gradients import Network, full_precision
from robustrun.methods.attacks.losses import cross_entropy


def gradient_alignment(model: Network, inputs: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """Cosine of the input gradients at `inputs` and at `inputs + noise`, example by example: (B,).

    Differentiable with respect to the parameters; 0 where a gradient vanishes (arXiv 2007.02617, equation 6).

    Args:
        model: maps inputs (B, ...) to logits (B, classes); differentiated twice.
        inputs: (B, ...).
        targets: labels (B,) or shares (B, classes).
        noise: (B, ...).
    """
    gradients = []
    for points in (inputs, inputs + noise):
        points = points.detach().requires_grad_()
        loss = cross_entropy(full_precision(model(points)), targets).sum()
        gradients.append(torch.autograd.grad(loss, points, create_graph=True)[0].flatten(1))
    return torch.cosine_similarity(*gradients, dim=1, eps=1e-12)
