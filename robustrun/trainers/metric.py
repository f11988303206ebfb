"""Training for the metric that is reported, and cross-entropy beside it (arXiv 1912.00965).

Both follow the paper's recipe: plain SGD on fixed mini-batches, a penalty lambda |theta|^2 on all parameters for a
few lambda at once, and the weights of the epoch and the lambda with the best value of the metric on validation data.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.methods.adversarial_prediction import AdversarialPredictionLoss, Metric
from robustrun.metric_node import MetricNode
from robustrun.numbers import NonNegative, Positive, PositiveInt
from robustrun.registry import trainers
from robustrun.roles import BinaryTask, Fitted, Trainer
from robustrun.runtime import Run, TrainingLoop


class _Members(nn.Module):
    """Copies of one network, trained side by side: inputs (B, ...) to scores (members, B) in one vectorised pass."""

    def __init__(self, model: nn.Module, count: int):
        super().__init__()
        self._names = [name for name, _ in model.named_parameters()]
        if count == 1:
            self.single = model
            return
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise ConfigError(
                "a model with batch normalisation is trained with one penalty only: trainer.penalties=[0]"
            )
        self._template = (model,)  # in a tuple: not a part of this module
        self.stacked = nn.ParameterList(p.detach().expand(count, *p.shape).clone() for p in model.parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        if hasattr(self, "single"):
            return _score(self.single(inputs)).unsqueeze(0)
        (model,) = self._template

        def one(weights: tuple[Tensor, ...]) -> Tensor:
            named = dict(zip(self._names, weights, strict=True))
            return _score(torch.func.functional_call(model, named, (inputs,)))

        return torch.vmap(one, randomness="different")(tuple(self.stacked))

    def penalties(self) -> Tensor:
        """The sum of all squared parameters, biases too, of every member."""
        if hasattr(self, "single"):
            return sum(p.square().sum() for p in self.single.parameters()).reshape(1)
        return sum(p.square().flatten(1).sum(1) for p in self.stacked)

    def weights(self, member: int) -> dict[str, Tensor]:
        """A copy of one member's parameters under the network's names."""
        if hasattr(self, "single"):
            return {name: value.detach().clone() for name, value in self.single.state_dict().items()}
        return {name: p.detach()[member].clone() for name, p in zip(self._names, self.stacked, strict=True)}


def _score(logits: Tensor) -> Tensor:
    """How far the positive class is ahead."""
    return (logits[:, 1] - logits[:, 0]).float()


class _Selection:
    """The best epoch and member so far; part of every checkpoint."""

    def __init__(self) -> None:
        self.best: dict[str, Any] = {"value": -float("inf"), "member": 0, "epoch": 0, "weights": {}}

    def offer(self, values: list[float], epoch: int, members: _Members) -> None:
        member = max(range(len(values)), key=values.__getitem__)
        if values[member] > self.best["value"]:
            self.best = {"value": values[member], "member": member, "epoch": epoch, "weights": members.weights(member)}

    def state_dict(self) -> dict[str, Any]:
        return self.best

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = dict(state)


class _MetricTraining(Trainer):
    """The recipe around a loss of scores (members, B) and labels (B,), one value a member.

    Args:
        metric: what epochs and penalties are chosen by.
        epochs, batch_size, lr: of plain SGD.
        penalties: the lambdas of the penalty lambda |theta|^2; trained side by side.
    """

    def __init__(
        self,
        *,
        metric: MetricNode,
        epochs: PositiveInt = 100,
        batch_size: PositiveInt = 25,
        lr: Positive = 3e-3,
        penalties: list[NonNegative] = [0.0],  # noqa: B006
    ):
        if not penalties:
            raise ConfigError("trainer.penalties is empty: [0] trains without a penalty")
        self.metric: Metric = metric.build()
        self.epochs, self.batch_size, self.lr, self.penalties = epochs, batch_size, lr, penalties

    def loss(self) -> nn.Module:
        """The loss, made anew for a training."""
        raise NotImplementedError

    def figures(self, loss_of: nn.Module) -> dict[str, Tensor]:
        """What else is worth logging after a step."""
        return {}

    def fit(self, task: BinaryTask, model: nn.Module, run: Run) -> Fitted:
        chosen_by = "valid" if task.size("valid") else "train"
        members, loss_of, selection = _Members(model, len(self.penalties)), self.loss(), _Selection()
        penalties, penalized = torch.tensor(self.penalties, device=run.device), any(self.penalties)
        loop = TrainingLoop(
            run,
            model=members,
            optimizer=torch.optim.SGD(members.parameters(), lr=self.lr),
            loader=task.loader("train", self.batch_size, run, train=True),
            epochs=self.epochs,
            state={"loss": loss_of, "selection": selection},
        )
        for epoch in loop:
            for batch in loop.batches():
                with run.precision.autocast():
                    scores = members(batch.inputs)
                losses = loss_of(scores, batch.targets)
                total = losses.sum()
                if penalized:
                    total = total + (penalties * members.penalties()).sum()
                loop.minimize(total)
                loop.log(loss=losses.detach().mean(), **self.figures(loss_of))
            members.eval()
            values = self._measure(task, members, chosen_by, run)
            selection.offer(values, epoch, members)
            loop.end_epoch(**{f"{chosen_by}_metric": max(values)})
        best = selection.best
        last = members.weights(best["member"])
        model.load_state_dict(last, strict=False)
        model.eval()
        extra = {"train_seconds": loop.train_seconds, "best_epoch": best["epoch"] + 1}
        if len(self.penalties) > 1:
            extra["penalty"] = self.penalties[best["member"]]
        buffers = {k: v for k, v in model.state_dict().items() if k not in last}
        states = {"last": {**buffers, **last}, "best": {**buffers, **best["weights"]}}
        return Fitted(model, states, loop.history, extra)

    @torch.no_grad()
    def _measure(self, task: BinaryTask, members: _Members, split: str, run: Run) -> list[float]:
        """The metric of every member on a split, at the natural threshold."""
        scores, labels = [], []
        for batch in task.loader(split, 2000, run).epoch(0):
            scores.append(members(batch.inputs))
            labels.append(batch.targets)
        predictions, labels = (torch.cat(scores, 1) >= 0).cpu().numpy(), torch.cat(labels).cpu().numpy()
        return [self.metric(row, labels) for row in predictions.astype(int)]


class Solver(BaseModel):
    """When the game of a mini-batch is solved well enough, and how: see methods.adversarial_prediction.ADMM."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tolerance: NonNegative = 0.05  # duality gap at which a game ends
    max_iterations: PositiveInt = 100
    check_every: PositiveInt = 10  # iterations between two looks at the gap
    penalty: Positive = 1.5
    relaxation: float = Field(1.6, ge=1, lt=2)
    warm_start: bool = True


@trainers.register("ap_perf")
class AdversarialPredictionTraining(_MetricTraining):
    """Adversarial prediction: the loss is the metric's own game.

    Args:
        solver: of the game.
    """

    def __init__(self, *, solver: Solver = Solver(), **common):  # noqa: B008
        super().__init__(**common)
        self.solver = solver

    def loss(self) -> nn.Module:
        return _GameLoss(self.metric, self.solver)

    def figures(self, loss_of: nn.Module) -> dict[str, Tensor]:
        last = loss_of.game.last
        return {"gap": last.gap.mean(), "iterations": last.iterations.double().mean()}


class _GameLoss(nn.Module):
    def __init__(self, metric: Metric, solver: Solver):
        super().__init__()
        self.game = AdversarialPredictionLoss(metric, **solver.model_dump())

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return self.game(scores, labels.expand_as(scores))


@trainers.register("cross_entropy")
class CrossEntropyTraining(_MetricTraining):
    """Mean binary cross-entropy, chosen by the metric but not trained for it."""

    def loss(self) -> nn.Module:
        return _CrossEntropy()


class _CrossEntropy(nn.Module):
    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(scores).expand_as(scores)
        return F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1)
