"""Contrastive training of an encoder: two random views of each image, and no label (SimCLR: Chen et al., ICML 2020)."""

from torch import Tensor

from robustrun.data import augmentations
from robustrun.errors import ConfigError
from robustrun.methods.features import nt_xent
from robustrun.numbers import Positive
from robustrun.registry import trainers
from robustrun.roles import Batch, ClassificationTask, Encoder, Fitted
from robustrun.runtime import Run
from robustrun.trainers.supervised import Session, Supervised


@trainers.register("contrastive")
class ContrastiveTraining(Supervised):
    """Minimise the normalised cross-entropy of picking a view's partner among the batch's other views.

    Args:
        views: augmentations that make a view, in order; the task's own come before them.
        temperature: of the similarities.
        common: see `Supervised`; nothing that needs labels.
    """

    def __init__(
        self,
        *,
        views: tuple[str, ...] = ("resized_crop:0.2", "flip", "colour:0.8", "grey:0.2"),
        temperature: Positive = 0.5,
        **common,
    ):
        super().__init__(**common)
        if self.mixup or self.monitor.splits:
            raise ConfigError("contrastive training knows no labels: leave trainer.mixup and trainer.monitor.splits")
        self.views, self.temperature = augmentations(views), temperature

    def fit(self, task: ClassificationTask, model: Encoder, run: Run) -> Fitted:
        return super().fit(task, model, run)

    def view(self, session: Session, images: Tensor, number: int) -> Tensor:
        """View `number` of images (B, C, H, W), drawn anew at every step."""
        generator = session.run.generator("view", number, session.loop.step)
        for augmentation in self.views:
            draws = augmentation.draw(len(images), images.shape[1:], generator)
            images = augmentation(images, *(draw.to(images.device) for draw in draws))
        return images

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        self.advance(session)
        with session.run.precision.autocast():
            first, second = (session.model(self.view(session, batch.inputs, number)) for number in range(2))
        loss = nt_xent(first.float(), second.float(), self.temperature)
        self.minimize(session, loss)
        return {"loss": loss.detach()}
