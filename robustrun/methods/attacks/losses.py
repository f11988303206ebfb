"""What an attack ascends: (B, classes), (B,) -> (B,), high where the label is far from being predicted."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
LossName = Literal["cross_entropy", "margin", "dlr"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label]; of labels (B, classes) that share an example, the mean by their shares."""
    return F.cross_entropy(logits, labels, reduction="none")


def kl_divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)) of (B, classes) each, (B,): what TRADES ascends (arXiv 1901.08573)."""
    return F.kl_div(F.log_softmax(logits, 1), probabilities, reduction="none").sum(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit of (B, classes) minus the label's, (B,) (arXiv 1608.04644): positive where misclassified."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference-of-logits ratio, the margin over z_(1) - z_(3) (Croce and Hein, arXiv 2003.01690, eq. 6).

    Of logits (B, classes) and labels (B,), one an example. Invariant to shift and scale of the logits. With two
    classes z_(2) stands in for z_(3).
    """
    ranked = logits.topk(min(3, logits.shape[1]), dim=1).values
    return margin(logits, labels) / (ranked[:, 0] - ranked[:, -1] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference-of-logits ratio, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) (ibid., eq. 7).

    Of logits (B, classes), labels and targets (B,), one an example.

    Raises:
        ValueError: fewer than four classes (the denominator is not defined).
    """
    if logits.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs at least four classes, not {logits.shape[1]}")
    ranked = logits.topk(4, dim=1).values
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
    return gap / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def get_loss(loss: LossName | Loss) -> Loss:
    """A loss by name; a callable as it is.

    Raises:
        ValueError: no loss has that name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"unknown attack loss '{loss}': it is one of {', '.join(LOSSES)}")
    return LOSSES[loss]
