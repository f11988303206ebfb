"""Training of networks that give every pixel a label, explicit ones and those with an equilibrium.

Source: Bai, Koltun and Kolter (arXiv 2006.08656), whose Cityscapes recipe this is.
"""

import torch
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.methods.segmentation import confusion_matrix, intersection_over_union, pixel_cross_entropy
from robustrun.registry import trainers
from robustrun.roles import EquilibriumNetwork, Fitted, SegmentationTask
from robustrun.runtime import Run
from robustrun.saved import load_fitted
from robustrun.trainers.implicit import Implicit
from robustrun.trainers.supervised import Session, Standard, Supervised


class _PerPixel(Supervised):
    """Cross-entropy over the pixels that count, weighted by class as the task says."""

    def __init__(self, **common):
        super().__init__(**common)
        if self.mixup:
            raise ConfigError("trainer.mixup mixes one label an image; here every pixel has its own")
        if self.monitor.steps:
            raise ConfigError("trainer.monitor.steps attacks one label an image; here every pixel has its own")

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        weights = session.task.class_weights
        self._weights = torch.tensor(weights, device=session.run.device) if weights else None

    def loss(self, session: Session, logits: Tensor, targets: Tensor) -> Tensor:
        classes = session.task.spec.classes
        if logits.ndim != 4 or logits.shape[1] != classes:
            found = f"of {len(targets)} images this model makes {tuple(logits.shape)}"
            raise ConfigError(f"{found}: a label for every pixel takes (B, {classes}, H, W)")
        ignore = session.task.spec.ignore_index
        return pixel_cross_entropy(logits, targets, weights=self._weights, ignore_index=ignore)

    def right(self, session: Session, logits: Tensor, targets: Tensor) -> Tensor:
        counted = targets != session.task.spec.ignore_index
        return (logits.argmax(1) == targets).sum() / counted.sum().clamp_min(1)

    @torch.no_grad()
    def measure(self, session: Session, split: str, epoch: int) -> dict[str, float]:
        """Mean intersection over union and the fraction of pixels that are right, on a split."""
        model, run, spec = session.result.eval(), session.run, session.task.spec
        count = min(self.monitor.examples or session.task.size(split), session.task.size(split))
        total = torch.zeros(spec.classes, spec.classes, dtype=torch.int64, device=run.device)
        for batch in session.task.loader(split, self.monitor.batch_size, run, indices=range(count)).epoch(0):
            with run.precision.autocast():
                predicted = model(batch.inputs).argmax(1)
            total += confusion_matrix(predicted, batch.targets, spec.classes, spec.ignore_index).sum(0)
        return {
            "miou": float(intersection_over_union(total).mean()),
            "pixel_accuracy": float(total.trace() / total.sum().clamp_min(1)),
        }

    def start_from(self, session: Session) -> None:
        """Whatever has the same name and shape: the trunk of a classifier, whose head is another."""
        fitted, _ = load_fitted(self.initial, session.run.device)
        own = session.model.state_dict()
        given = fitted.states["last"].items()
        same = {name: value for name, value in given if name in own and own[name].shape == value.shape}
        if not same:
            raise ConfigError(
                f"trainer.initial={self.initial}: no weight there has name and shape of one of this model"
            )
        session.model.load_state_dict(own | same)


@trainers.register("segmentation")
class Segmentation(_PerPixel, Standard):
    """Training of any network with one output a class and pixel; arguments as of `standard`.

    `initial` takes every weight whose name and shape match, and leaves the others as they are.
    """

    def fit(self, task: SegmentationTask, model: nn.Module, run: Run) -> Fitted:
        return super().fit(task, model, run)


@trainers.register("implicit_segmentation")
class ImplicitSegmentation(_PerPixel, Implicit):
    """Training of a network with an equilibrium; arguments as of `implicit`, `initial` as of `segmentation`."""

    def fit(self, task: SegmentationTask, model: EquilibriumNetwork, run: Run) -> Fitted:
        return super().fit(task, model, run)
