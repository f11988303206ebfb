"""What fits a model, and what comes of it."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from robustrun.roles.models import Model
from robustrun.roles.tasks import Task
from robustrun.runtime import Run

M = TypeVar("M", bound=Model)


@dataclass
class Fitted(Generic[M]):
    """A fitted model with its named states ("last", "best", ...) and what happened while it was fitted."""

    model: M
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # tensors and plain numbers, kept in the checkpoint

    def at(self, state: str) -> M:
        """The model with the named state loaded (in place); evaluation mode for modules.

        Raises:
            KeyError: there is no such state; the message lists those there are.
        """
        if state not in self.states:
            if state != "last":
                raise KeyError(f"the fitted model has no state '{state}', only {sorted(self.states) or ['last']}")
        else:
            self.model.load_state_dict(self.states[state])
        if isinstance(self.model, nn.Module):
            self.model.eval()
        return self.model


class Trainer:
    """Fits a model: `Trainer(*, <config>).fit(task, model, run)`.

    Raises:
        ConfigError: options exclude each other.
    """

    closed_form = False  # the model may be a least-squares fit of the training set
    differentiates_twice = False  # it needs gradients of the model's gradients

    def fit(self, task: Task, model: Any, run: Run) -> Fitted:
        """Fit the model, in place; `run` keeps checkpoints, from which a resumed job goes on to the same bits.

        Raises:
            ConfigError: the options do not suit the task or the model.
            Stopped: a signal asked the job to leave, after a checkpoint.
        """
        raise NotImplementedError
