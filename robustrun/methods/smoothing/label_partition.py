"""Partition aggregation: an ensemble on disjoint parts of the training set, of which a flip reaches one member."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class PartitionVotes:
    """`prediction` (m,), `votes` (m, C), and `radius` (m,) changed labels that cannot change the prediction."""

    prediction: Tensor
    votes: Tensor
    radius: Tensor


def partition_radius(votes: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction and radius (m,) from the members' votes (m, C), where a changed label moves one vote at most.

    floor((v_A - v_c - [c < A]) / 2), the least over rivals c; ties go to the smaller class. Source: Levine and
    Feizi, "Deep partition aggregation" (ICLR 2021), label-flipping variant.
    """
    prediction = votes.argmax(1, keepdim=True)
    rival = torch.arange(votes.shape[1], device=votes.device)
    gap = votes.gather(1, prediction) - votes - (rival < prediction).long()
    gap = gap.scatter(1, prediction, torch.iinfo(gap.dtype).max)
    return prediction.squeeze(1), gap.amin(1) // 2


def partition_votes(
    features: Tensor,
    labels: Tensor,
    classes: int,
    queries: Tensor,
    *,
    parts: int,
    regularisation: float,
    generator: torch.Generator,
    batch: int = 32,
) -> PartitionVotes:
    """Votes of ridge classifiers, one on each of `parts` equal random parts of the training set (n, k).

    The split depends on nothing that can be poisoned; the n mod `parts` last points of it are left out. All
    members of a `batch` are solved at once, in the dual form, in O(n (n / parts)^2 + n (n / parts) k) altogether.

    Raises:
        ValueError: there are not from 1 to n parts.
    """
    n = len(features)
    if not 1 <= parts <= n:
        raise ValueError(f"parts must lie between 1 and the {n} training points, got {parts}")
    size = n // parts
    split = torch.randperm(n, generator=generator)[: parts * size].view(parts, size).to(features.device)
    votes = torch.zeros(len(queries), classes, dtype=torch.long, device=features.device)
    identity = torch.eye(size, dtype=features.dtype, device=features.device)
    for members in split.split(batch):
        x = features[members]
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        targets = one_hot(labels[members], classes).to(x.dtype)
        frequency = targets.mean(1, keepdim=True)
        gram = centred @ centred.mT + regularisation * identity
        weights = centred.mT @ torch.linalg.solve(gram, targets - frequency)
        scores = queries @ weights + (frequency - mean @ weights)
        votes += one_hot(scores.argmax(2), classes).sum(0)
    prediction, radius = partition_radius(votes)
    return PartitionVotes(prediction, votes, radius)
