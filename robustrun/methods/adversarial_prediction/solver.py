"""One entry to the game's solvers: exact where a closed form exists, ADMM otherwise."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustrun.methods.adversarial_prediction.admm import ADMM, State
from robustrun.methods.adversarial_prediction.exact import separable_form, solve_lp, solve_separable
from robustrun.methods.adversarial_prediction.game import game_of
from robustrun.methods.adversarial_prediction.metric import Metric

Method = Literal["auto", "admm", "lp"]


class Solution(NamedTuple):
    """The game's solution for every batch, in the samples' order."""

    marginals: Tensor  # (G, n) q: the adversary's probability that a sample is positive
    value: Tensor  # (G,) an upper bound of v(psi), by at most `gap`
    gap: Tensor  # (G,) the proven distance to the optimum
    iterations: Tensor  # (G,)
    state: State | None  # a warm start for the next batch


def solve_game(
    scores: Tensor,
    labels: Tensor,
    metric: Metric,
    *,
    method: Method = "auto",
    admm: ADMM | None = None,
    start: State | None = None,
) -> Solution:
    """Solve v(psi) = min_q max_p E[metric] - E[psi . y] for G batches at once (arXiv 1912.00965).

    Samples are put in the order of their scores first: the game does not mind, and one batch's state then is a
    good start for another.

    Args:
        scores: psi, (G, n), any floating dtype, any device.
        labels: 0/1, (G, n).
        method: "auto" takes the closed form where there is one (metrics linear in the confusion matrix) and ADMM
            otherwise; "lp" is exact and slow.
        admm: the options of ADMM.
        start: the state of a similar set of games of the same shape and metric.

    Raises:
        ValueError: shapes differ, labels are not 0/1, or scores are not finite.
    """
    _check(scores, labels)
    device = scores.device if scores.device.type != "mps" else torch.device("cpu")  # mps has no float64
    psi, y = scores.detach().to(device, torch.float64), labels.to(device)
    form = separable_form(metric, scores.shape[-1]) if method == "auto" else None
    if form is not None:
        marginals, value = solve_separable(psi, form)
        zero = torch.zeros_like(value)
        return Solution(marginals.to(scores), value, zero, zero.long(), None)
    if method == "lp":
        solved = [solve_lp(p, l, metric) for p, l in zip(psi.cpu().numpy(), y.cpu().numpy(), strict=True)]
        marginals = torch.stack([torch.from_numpy(q) for q, _ in solved])
        value = torch.tensor([v for _, v in solved], dtype=torch.float64, device=scores.device)
        zero = torch.zeros_like(value)
        return Solution(marginals.to(scores), value, zero, zero.long(), None)
    order = psi.argsort(-1, descending=True)
    play = (admm or ADMM()).solve(
        game_of(metric, scores.shape[-1], device), psi.gather(-1, order), y.gather(-1, order), start
    )
    marginals = torch.empty_like(psi).scatter_(-1, order, play.adversary.sum(-2).clamp(max=1.0))
    return Solution(marginals.to(scores), play.upper, play.upper - play.lower, play.iterations, play.state)


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            f"scores and labels must both be (games, samples), not {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if scores.shape[-1] == 0:
        raise ValueError("a batch needs at least one sample")
    if not torch.isfinite(scores).all():
        raise ValueError("the scores are not finite: training has diverged")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1; map -1/+1 labels to 0/1 first")
