"""The game's production solver: ADMM with exact projections, batched over games.

The splitting is Fathony and Kolter's (arXiv 1912.00965): X is free, Q = X lies in Delta, and Z = Z(X) meets the
predictor, whose best response enters through its support function. Three things make it fast: the linear step is
closed-form (the operator acts on the samples' mean by nB + C and on deviations from it by the low-rank C), both
projections are one batched call with warm active sets, and a duality gap ends every game on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustrun.methods.adversarial_prediction.game import Constraints, Game
from robustrun.methods.adversarial_prediction.polytope import Multipliers, project


class State(NamedTuple):
    """Where the iteration stands, games first: the warm start of a similar game."""

    free: Tensor  # (G, n, n) X
    payoffs: Tensor  # (G, n, n) Z(X), recomputed when a new game starts
    adversary_dual: Tensor  # (G, n, n) W
    payoff_dual: Tensor  # (G, n, n) U
    weights: Tensor  # (G, J) scaled multipliers of the constraints
    weights_dual: Tensor  # (G, J)
    lift: Tensor  # (G, 2, n) multipliers of the two projections
    cap: Tensor  # (G, 2, n)
    shift: Tensor  # (G, 2, 1)

    @staticmethod
    def cold(games: int, n: int, constraints: int, device: torch.device) -> State:
        """Everything zero."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(games, *shape, dtype=torch.float64, device=device)

        square, few, rows = (n, n), (constraints,), (2, n)
        infinite = torch.full_like(zeros(*rows), torch.inf)
        return State(*(zeros(*square) for _ in range(4)), zeros(*few), zeros(*few), zeros(*rows), infinite, zeros(2, 1))

    def of_games(self, games: Tensor) -> State:
        """The states of some of the games."""
        return State(*(x[games] for x in self))


class Play(NamedTuple):
    """What the solver found for every game: the best plays seen, and what they prove."""

    adversary: Tensor  # (G, n, n) in Delta
    predictor: Tensor  # (G, n, n) in Delta, meeting the constraints
    upper: Tensor  # (G,) of the adversary
    lower: Tensor  # (G,) of the predictor
    iterations: Tensor  # (G,) int64
    state: State  # the last one

    def record(
        self, games: Tensor, state: State, adversary: Tensor, predictor: Tensor, upper: Tensor, lower: Tensor, done: int
    ) -> None:
        """Take over the state of these games, and their plays where they prove more than the best so far."""
        for kept, new in zip(self.state, state, strict=True):
            kept[games] = new
        self.iterations[games] = done
        better, worse = (upper < self.upper[games]), (lower > self.lower[games])
        self.adversary[games[better]], self.upper[games[better]] = adversary[better], upper[better]
        self.predictor[games[worse]], self.lower[games[worse]] = predictor[worse], lower[worse]


@dataclass(frozen=True)
class ADMM:
    """Options of the solver.

    Args:
        tolerance: a game ends when its duality gap is at most this.
        max_iterations: and at the latest after so many iterations.
        check_every: iterations between two evaluations of the gap.
        penalty: rho, the weight of the splitting's quadratic; 1 to 2 suits metrics of order one.
        relaxation: over-relaxation in [1, 2); 1 is the plain iteration.
    """

    tolerance: float = 1e-3
    max_iterations: int = 1000
    check_every: int = 10
    penalty: float = 1.5
    relaxation: float = 1.6

    def solve(self, game: Game, scores: Tensor, labels: Tensor, start: State | None = None) -> Play:
        """Play the game of every row of float64 scores (G, n) with 0/1 labels (G, n), on the game's device."""
        constraints = Constraints.of(game.metric, labels)
        count = constraints.base.shape[-1] if constraints else 0
        state = State.cold(*scores.shape, count, scores.device) if start is None else start
        play = _unplayed(scores, state)
        games = torch.arange(scores.shape[0], device=scores.device)  # those not yet ended
        step = _Step(self, game, scores, constraints)
        state = state._replace(payoffs=step.payoffs(state.free, state.weights))
        done = 0
        while True:
            count = min(self.check_every, self.max_iterations - done)
            for left in reversed(range(count)):  # only plays that are judged need exact projections
                state, adversary, predictor = step(state, exact=left == 0)
            done += count
            play.record(games, state, *step.judged(state, adversary, predictor), done)
            open_games = play.upper[games] - play.lower[games] > self.tolerance
            if done >= self.max_iterations or not open_games.any():
                return play
            if not open_games.all():
                games, state, step = games[open_games], state.of_games(open_games), step.of_games(open_games)


def _unplayed(scores: Tensor, state: State) -> Play:
    games, n = scores.shape
    empty = scores.new_zeros(games, n, n)
    bound = torch.full_like(scores[:, 0], torch.inf)
    iterations = torch.zeros(games, dtype=torch.int64, device=scores.device)
    return Play(empty, empty.clone(), bound, -bound, iterations, State(*(x.clone() for x in state)))


class _Step:
    """One iteration for a set of games, with what it needs beside the game: scores and constraints."""

    def __init__(self, options: ADMM, game: Game, scores: Tensor, constraints: Constraints | None):
        self.options, self.game, self.scores, self.constraints = options, game, scores, constraints
        self.tilt = (game.adversary_bonus.unsqueeze(-1) - scores.unsqueeze(-2)) / options.penalty
        self.bonus = game.predictor_bonus.unsqueeze(-1)
        squared = game.scale.square()
        self.shrink = (squared / (1 + squared)).unsqueeze(-1)
        inverse = torch.eye(game.n, dtype=scores.dtype, device=scores.device) - game.left @ (self.shrink * game.left.T)
        self.mean_correction = (game.level_inverse - inverse) / game.n
        if constraints is not None:
            self._border(constraints)

    def _border(self, constraints: Constraints) -> None:
        """The multipliers enter the linear step as a few more unknowns: their Schur complement."""
        self.norms = constraints.gains.square().sum((-1, -2)).sqrt().clamp(min=1e-12)
        gains = constraints.gains / self.norms[..., None, None]
        self.moved = self.resolvent(self.game.adjoint(gains))  # how X answers a multiplier
        self.felt = gains - self.game.apply(self.moved)  # and Z
        count = gains.shape[1]
        schur = torch.einsum("gaki,gbki->gab", gains, self.felt) + torch.eye(
            count, dtype=gains.dtype, device=gains.device
        )
        self.schur_inverse = torch.linalg.inv(schur)
        self.gains = gains
        self.price = constraints.slack_at_zero / self.norms

    def of_games(self, games: Tensor) -> _Step:
        """The step for some of the games."""
        constraints = None if self.constraints is None else self.constraints.of_games(games)
        return _Step(self.options, self.game, self.scores[games], constraints)

    def payoffs(self, free: Tensor, weights: Tensor) -> Tensor:
        """Z(X), with the gains of the constraints at their multipliers."""
        payoffs = self.game.payoffs(free)
        return payoffs if self.constraints is None else payoffs + _weighted(weights, self.gains)

    def judged(self, state: State, adversary: Tensor, predictor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both plays, made feasible, and what they prove: (Q, P, upper, lower)."""
        constraints = self.constraints
        if constraints is not None:
            constraints.multipliers = state.weights.clamp(min=0.0) / self.norms
            predictor = constraints.repaired(predictor)
        upper = self.game.upper(adversary, self.scores, constraints)
        return adversary, predictor, upper, self.game.lower(predictor, self.scores)

    def resolvent(self, right: Tensor) -> Tensor:
        """(I + A^T A)^-1 for the linear part A of Z, applied to (..., n, n)."""
        game = self.game
        deviation = right - game.left @ (self.shrink * (game.left.T @ right))
        return deviation + (right.sum(-1) @ self.mean_correction.T).unsqueeze(-1)

    def __call__(self, state: State, *, exact: bool = True) -> tuple[State, Tensor, Tensor]:
        """The next state, and the iterates Q and P; both in Delta if the projections are exact.

        Otherwise two rounds of Newton from the last active sets do: they settle as the iteration does.
        """
        rho, alpha = self.options.penalty, self.options.relaxation
        raised = state.payoffs + state.payoff_dual
        points = torch.stack((state.free + state.adversary_dual - self.tilt, rho * raised), 1)
        start = Multipliers(state.lift, state.cap, state.shift)
        projected, multipliers = project(points, start, rounds=60 if exact else 2, exact=exact)
        adversary, predictor = projected.unbind(1)

        relaxed_free = torch.lerp(state.free, adversary, alpha)
        relaxed_payoffs = torch.lerp(state.payoffs, raised - predictor / rho, alpha)
        residual = state.payoff_dual - relaxed_payoffs + self.bonus
        free = -self.resolvent(self.game.adjoint(residual) + state.adversary_dual - relaxed_free)
        payoffs = self.game.payoffs(free)
        weights, weights_dual = state.weights, state.weights_dual
        if self.constraints is not None:
            allowed = (weights + weights_dual - self.price / rho).clamp(min=0.0)
            relaxed = torch.lerp(weights, allowed, alpha)
            felt = torch.einsum("gjki,gki->gj", self.gains, residual + payoffs - self.bonus)
            weights = torch.einsum("gab,gb->ga", self.schur_inverse, relaxed - weights_dual - felt)
            weights_dual = weights_dual + weights - relaxed
            free = free - _weighted(weights, self.moved)
            payoffs = payoffs + _weighted(weights, self.felt)
        adversary_dual = state.adversary_dual + free - relaxed_free
        payoff_dual = state.payoff_dual + payoffs - relaxed_payoffs
        state = State(free, payoffs, adversary_dual, payoff_dual, weights, weights_dual, *multipliers)
        return state, adversary, predictor


def _weighted(weights: Tensor, matrices: Tensor) -> Tensor:
    """sum_j weights[g, j] matrices[g, j]."""
    return torch.einsum("gj,gjki->gki", weights, matrices)
