"""A toy of each awkward shape that a paper can have: they must all go through the one flow."""

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.numbers import PositiveInt
from robustrun.registry import certifiers, models, tasks, trainers
from robustrun.roles import (
    Certifier,
    ClassificationSpec,
    ClassificationTask,
    Fitted,
    LinearClassifier,
    MDPSpec,
    MDPTask,
    Report,
    TabularAgent,
    Trainer,
)
from robustrun.runtime import Run
from robustrun.saved import load

# ------------------------------------------------- a trainer that interacts, a certifier that reads its history


@tasks.register("corridor")
class Corridor(MDPTask):
    """States in a row; action 1 goes right, action 0 left; the right end pays."""

    def __init__(self, *, length: PositiveInt = 5):
        self.spec = MDPSpec((), states=length, actions=2)

    def load(self, run: Run) -> None:
        pass

    def step(self, state: int, action: int) -> tuple[int, float]:
        following = min(max(state + (1 if action else -1), 0), self.spec.states - 1)
        return following, float(following == self.spec.states - 1)


@models.register("q_table")
class QTable(TabularAgent):
    def __init__(self, spec: MDPSpec):
        super().__init__()
        self.register_buffer("values", torch.zeros(spec.states, spec.actions, dtype=torch.float64))


@trainers.register("q_learning")
class QLearning(Trainer):
    def __init__(self, *, episodes: PositiveInt = 40):
        self.episodes = episodes

    def fit(self, task: MDPTask, model: TabularAgent, run: Run) -> Fitted:
        history = []
        if "last" in run.checkpoints:
            saved = run.checkpoints.load("last")
            model.load_state_dict(saved["model"])
            history = saved["history"]
        with run.progress(self.episodes, "episodes", done=len(history)) as progress:
            for episode in range(len(history), self.episodes):
                generator = np.random.default_rng(run.seed_for("episode", episode))
                history.append({"reward": self._episode(task, model.values, generator)})
                run.checkpoints.save("last", {"model": model.state_dict(), "history": history})
                progress.advance()
        return Fitted(model, history=history)

    @staticmethod
    def _episode(task: MDPTask, values: Tensor, generator: np.random.Generator) -> float:
        state, total = 0, 0.0
        for _ in range(40):
            action = int(generator.integers(2)) if generator.random() < 0.5 else int(values[state].argmax())
            following, reward = task.step(state, action)
            values[state, action] += 0.5 * (reward + 0.9 * values[following].max() - values[state, action])
            state, total = following, total + reward
        return total


@certifiers.register("regret")
class Regret(Certifier):
    def __init__(self):
        pass

    def certify(self, task: MDPTask, fitted: Fitted[TabularAgent], run: Run) -> Report:
        rewards = np.array([row["reward"] for row in fitted.history])
        return Report({"mean_reward": rewards.mean(), "first_reward": rewards[0], "last_reward": rewards[-1]})


# ------------------------------------------- a closed-form fit, and a certifier that needs the training set


@models.register("toy_linear")
class ToyLinear(LinearClassifier):
    def __init__(self, spec: ClassificationSpec):
        super().__init__()
        size = int(np.prod(spec.input_shape))
        self.register_buffer("weight", torch.zeros(size, spec.classes, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1).double() @ self.weight


def whole(task: ClassificationTask, split: str, run: Run) -> tuple[Tensor, Tensor]:
    batch = next(iter(task.loader(split, task.size(split), run).epoch(0)))
    return batch.inputs.flatten(1).double(), batch.targets


@trainers.register("toy_least_squares")
class LeastSquares(Trainer):
    def __init__(self):
        pass

    def fit(self, task: ClassificationTask, model: LinearClassifier, run: Run) -> Fitted:
        inputs, targets = whole(task, "train", run)
        gram = inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1], dtype=inputs.dtype)
        one_hot = nn.functional.one_hot(targets, task.spec.classes).double()
        model.weight.copy_(torch.linalg.solve(gram, inputs.T @ one_hot))
        return Fitted(model)


@certifiers.register("toy_leverage")
class Leverage(Certifier):
    def __init__(self):
        pass

    def certify(self, task: ClassificationTask, fitted: Fitted[LinearClassifier], run: Run) -> Report:
        inputs, _ = whole(task, "train", run)
        leverage = torch.linalg.qr(inputs + 1e-9 * torch.randn_like(inputs)).Q.square().sum(1)
        test, targets = whole(task, "test", run)
        accuracy = (fitted.at("last")(test).argmax(1) == targets).double().mean()
        return Report({"accuracy": float(accuracy), "total_leverage": float(leverage.sum())})


# -------------------------------------------------------------- a model around another job's finished model


@models.register("toy_wrapper")
class Wrapper(nn.Module):
    def __init__(self, spec: ClassificationSpec, *, inner: str):
        super().__init__()
        self.inner = load(inner)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * self.inner(inputs)


# -------------------------------------------------------------------------------------- what goes wrong


@trainers.register("toy_faulty")
class Faulty(Trainer):
    """Fails in the way that it is told to."""

    def __init__(self, *, how: str = "bug"):
        self.how = how

    def fit(self, task: ClassificationTask, model: nn.Module, run: Run) -> Fitted:
        if self.how == "bug":
            raise ZeroDivisionError("a bug in a plugin")
        if self.how == "disk":
            raise OSError(28, "No space left on device", "/somewhere/last.pt")
        if self.how == "interrupt":
            raise KeyboardInterrupt
        return Fitted(model)
