"""Exact label-noise smoothing by enumerating every labelling: the reference for a dozen labels at most."""

import torch
from torch import Tensor


def all_labellings(n: int, classes: int = 2) -> Tensor:
    """(classes ** n, n) every labelling, in lexicographic order."""
    return torch.cartesian_prod(*[torch.arange(classes)] * n).view(-1, n)


def enumerated_votes(predictions: Tensor, n: int, q: float, classes: int = 2) -> Tensor:
    """P(base classifier answers c) under label noise around *every* labelling: (classes ** n, classes).

    `predictions` (classes ** n,) are the base classifier's answers in the order of `all_labellings`. The noise acts
    on each label alone, so its C x C kernel is applied along one axis after another: O(n C^(n+1)).
    """
    votes = torch.nn.functional.one_hot(predictions, classes).double()
    kernel = torch.full((classes, classes), q / (classes - 1), dtype=torch.float64)
    kernel.fill_diagonal_(1 - q)
    votes = votes.view(*[classes] * n, classes)
    for axis in range(n):
        votes = torch.tensordot(kernel, votes, ([1], [axis])).movedim(0, axis)
    return votes.reshape(-1, classes)


def enumerated_radius(answers: Tensor, labels: Tensor, classes: int = 2) -> int:
    """Largest r such that no labelling within r changes of `labels` (n,) has another entry in `answers`; at most n."""
    labellings = all_labellings(len(labels), classes)
    distance = (labellings != labels).sum(1)
    own = answers[distance == 0]
    other = distance[answers != own]
    return int(other.min()) - 1 if len(other) else len(labels)
