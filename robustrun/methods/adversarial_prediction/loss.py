"""The training loss of a metric: minus the value of its adversarial prediction game."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustrun.methods.adversarial_prediction.admm import ADMM, State
from robustrun.methods.adversarial_prediction.metric import Metric
from robustrun.methods.adversarial_prediction.parser import parse_metric
from robustrun.methods.adversarial_prediction.solver import Method, Solution, solve_game


class AdversarialPredictionLoss(nn.Module):
    """loss = -(v(psi) + psi . y) of a batch of scores, for training on a performance metric as it is.

    Convex and piecewise linear in the scores, -1 where a metric bounded by 1 is guaranteed with margin. Its
    gradient is q - y, q the marginals of an optimal adversary. It is a *sum* over the batch: at the learning rate
    of a mean loss it takes steps as many times larger as the batch has samples. Predict 1 where the score is >= 0.

    Args:
        metric: a `Metric` or its text, as in "f_beta(2)" or "precision st recall >= 0.8".
        method: see `solve_game`.
        warm_start: begin every batch where the last one of its shape ended; samples are ordered by score, so that
            batches of different samples resemble each other.
        admm options: see `ADMM`. The default tolerance is what training needs; the gradient is a subgradient of
            a value within that of the loss.

    `last` is the solution of the latest call: its `gap` and `iterations` are worth logging.
    """

    def __init__(
        self,
        metric: Metric | str,
        *,
        method: Method = "auto",
        warm_start: bool = True,
        tolerance: float = 0.05,
        max_iterations: int = 100,
        check_every: int = 10,
        penalty: float = 1.5,
        relaxation: float = 1.6,
    ):
        super().__init__()
        self.metric = parse_metric(metric) if isinstance(metric, str) else metric
        self.method: Method = method
        self.warm_start = warm_start
        self.admm = ADMM(tolerance, max_iterations, check_every, penalty, relaxation)
        self.last: Solution | None = None
        self._states: dict[str, State] = {}

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch (n,), a scalar, or of several games (G, n), one value each.

        Args:
            scores: psi, (n,) or (G, n).
            labels: 0/1 of the same shape.

        Raises:
            ValueError: shapes differ, labels are not 0/1, or scores are not finite.
        """
        if scores.ndim not in (1, 2):
            raise ValueError(f"scores must be (samples,) or (games, samples), not {tuple(scores.shape)}")
        if labels.shape != scores.shape:
            raise ValueError(f"labels {tuple(labels.shape)} and scores {tuple(scores.shape)} differ in shape")
        psi, y = torch.atleast_2d(scores), torch.atleast_2d(labels)
        key = "x".join(map(str, psi.shape))
        start = self._states.get(key) if self.warm_start else None
        if start is not None and start.free.device != psi.device:
            start = State(*(x.to(psi.device) for x in start))
        solution = solve_game(psi, y, self.metric, method=self.method, admm=self.admm, start=start)
        if self.warm_start and solution.state is not None:
            self._states[key] = solution.state
        self.last = solution
        loss = _GameLoss.apply(psi, y.to(psi), solution.marginals, solution.value)
        return loss if scores.ndim == 2 else loss[0]

    def get_extra_state(self) -> dict[str, list[Tensor]]:
        """The warm starts: part of `state_dict`, so that a resumed training goes on exactly as it was."""
        return {key: list(state) for key, state in self._states.items()}

    def set_extra_state(self, state: dict[str, list[Tensor]]) -> None:
        self._states = {key: State(*tensors) for key, tensors in state.items()}


class _GameLoss(torch.autograd.Function):
    """-(v + psi . y), with the optimal play's gradient (envelope theorem)."""

    @staticmethod
    def forward(ctx, scores: Tensor, labels: Tensor, marginals: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(marginals - labels)
        return -(value.to(scores) + (scores * labels).sum(-1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        return upstream.unsqueeze(-1) * gradient, None, None, None
