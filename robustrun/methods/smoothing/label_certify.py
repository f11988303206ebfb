"""Certificates against changed training labels for all test points: one pass over the hat matrix, in blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustrun.methods.smoothing.label_chernoff import BinaryVote, binary_vote
from robustrun.methods.smoothing.label_compress import compress, group_by_label
from robustrun.methods.smoothing.label_hat import RidgeHat
from robustrun.methods.smoothing.label_radius import kl_radius, kl_radius_multiclass, np_radius
from robustrun.methods.smoothing.label_rivals import RivalVotes, rival_votes


@dataclass(frozen=True)
class LabelCertificate:
    """What the labels' noise guarantees for each of m queries, deterministically.

    `prediction` (m,); `log_bound` (m,) upper bound on log P(any other class) under label noise, and `t` (m,) the
    Chernoff parameter behind it; `radius_kl` and `radius_np` (m,) training labels that may be changed at will
    without changing the smoothed classifier's prediction. Where `log_bound` >= log(1/2) both radii are 0, and for
    two classes the prediction is that of the mean score. `log_rivals` (m, C - 1) for `certify_multiclass`.
    """

    prediction: Tensor
    log_bound: Tensor
    t: Tensor
    radius_kl: Tensor
    radius_np: Tensor
    log_rivals: Tensor | None = None


def _grouped(hat: RidgeHat, labels: Tensor) -> tuple[RidgeHat, Tensor]:
    """Training points in the order of their labels: each class is then one slice of the alphas' columns."""
    labels, order = labels.long().sort(stable=True)
    return replace(hat, coordinates=hat.coordinates[order]), labels


def certify_binary(
    hat: RidgeHat, labels: Tensor, queries: Tensor, noise: Sequence[float], regularisation: float
) -> list[LabelCertificate]:
    """A certificate for each flip probability in `noise`, for labels (n,) in {0, 1} and queries (m, k).

    The alphas are formed once for all of `noise`. Source: Rosenfeld et al. (ICML 2020), algorithm 1.
    """
    hat, labels = _grouped(hat, labels)

    def vote(alpha: Tensor) -> list[BinaryVote]:
        compressed = compress(*group_by_label(alpha, labels, 2))
        return [binary_vote(alpha, labels, q, compressed=compressed) for q in noise]

    blocks = hat.map_alphas(vote, hat.weights(queries, regularisation))
    certificates = []
    for collected, q in zip(zip(*blocks, strict=True), noise, strict=True):
        prediction, log_bound, t = (
            torch.cat([getattr(v, name) for v in collected]) for name in ("prediction", "log_bound", "t")
        )
        radii = kl_radius(log_bound, q, len(hat)), np_radius(log_bound, q, len(hat))
        certificates.append(LabelCertificate(prediction, log_bound, t, *radii))
    return certificates


def certify_multiclass(
    hat: RidgeHat,
    labels: Tensor,
    classes: int,
    queries: Tensor,
    noise: Sequence[float],
    regularisation: float,
    *,
    tilts: int = 1,
) -> list[LabelCertificate]:
    """A certificate for each replacement probability in `noise`, for labels (n,) in {0, ..., classes - 1}.

    `tilts` as in `rival_votes`. Source: Rosenfeld et al. (ICML 2020), section 4.3.
    """
    hat, labels = _grouped(hat, labels)

    def vote(alpha: Tensor) -> list[RivalVotes]:
        compressed = compress(*group_by_label(alpha, labels, classes))
        return [rival_votes(alpha, labels, classes, q, compressed=compressed, tilts=tilts) for q in noise]

    blocks = hat.map_alphas(vote, hat.weights(queries, regularisation))
    certificates = []
    for collected, q in zip(zip(*blocks, strict=True), noise, strict=True):
        prediction, log_rivals, t = (
            torch.cat([getattr(v, name) for v in collected]) for name in ("prediction", "log_rivals", "t")
        )
        log_bound = log_rivals.logsumexp(1)
        radii = kl_radius_multiclass(log_rivals, q, len(hat)), np_radius(log_bound, q, len(hat), classes)
        certificates.append(LabelCertificate(prediction, log_bound, t, *radii, log_rivals))
    return certificates
