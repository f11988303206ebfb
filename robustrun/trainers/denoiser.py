"""Training on noisy images: a denoiser before a frozen classifier, or the classifier itself (arXiv 2003.01908)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.methods.smoothing import Law, noise_law
from robustrun.numbers import Positive
from robustrun.registry import trainers
from robustrun.roles import Batch, ClassificationTask, DenoisedClassifier, Fitted, QueriedClassifier
from robustrun.runtime import Run
from robustrun.saved import load, load_fitted
from robustrun.trainers.supervised import Session, Supervised, accuracy


class _OnNoise(Supervised):
    """Fresh noise for every image at every step, whatever the batch is made of.

    Args:
        law, sigma: of the noise, in units of the inputs.
        common: see `Supervised`.
    """

    def __init__(self, *, law: Law = "gaussian", sigma: Positive = 0.25, **common):
        super().__init__(**common)
        self.noise = noise_law(law, sigma)

    def noisy(self, run: Run, batch: Batch, *key: object) -> Tensor:
        """The batch's inputs under the noise named `key`."""
        inputs = batch.inputs
        draws = torch.zeros_like(batch.indices)
        return inputs + self.noise.draw(run.seed_for("noise", *key), batch.indices, tuple(inputs.shape[1:]), draws)

    @torch.no_grad()
    def measure(self, session: Session, split: str, epoch: int) -> dict[str, float]:
        """Accuracy on clean images and, called robust, on one noisy copy of each, and what the trainer minimises."""
        run, monitor = session.run, self.monitor
        count = min(monitor.examples or session.task.size(split), session.task.size(split))
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(
            session.task.loader(split, monitor.batch_size, run, indices=range(count)).epoch(0)
        ):
            with run.precision.autocast():
                figures = self.look(session, batch, self.noisy(run, batch, "monitor", split, number))
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * len(batch.targets)
        return {name: float(value) / count for name, value in sums.items()}

    def look(self, session: Session, batch: Batch, noisy: Tensor) -> dict[str, Tensor]:
        """Means over a batch, in evaluation mode."""
        model = session.result
        return {
            "clean_accuracy": accuracy(model(batch.inputs), batch.targets),
            "robust_accuracy": accuracy(model(noisy), batch.targets),
        }


@trainers.register("gaussian_augmentation")
class GaussianAugmentation(_OnNoise):
    """Cross-entropy on noisy inputs: the classifier that is smoothed itself (Cohen, Rosenfeld, Kolter, ICML 2019)."""

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        noisy = self.noisy(session.run, batch, session.loop.step)
        loss, logits = self.update(session, noisy, batch.targets)
        return {"loss": loss, "train_accuracy": accuracy(logits, batch.targets)}


@trainers.register("denoiser")
class DenoiserTraining(_OnNoise):
    """Train the denoiser D before a frozen classifier, on images x under noise.

    Args:
        objective: `mse` of D(noisy) against x; `stab`, cross-entropy of F(D(noisy)) against argmax F(x), no labels;
            `clf`, against the label.
        surrogates: finished runs whose classifiers F take turns, one a batch, from the first one on in every epoch;
            none: the model's own classifier (white-box). With surrogates the model's own is never asked.
        common: see `Supervised`; `initial` is a run with a denoiser from which training starts (STAB+MSE).
    """

    def __init__(self, *, objective: Literal["mse", "stab", "clf"] = "mse", surrogates: tuple[str, ...] = (), **common):
        super().__init__(**common)
        if self.mixup or self.average.name != "none":
            raise ConfigError("a denoiser is trained without trainer.mixup and trainer.average")
        self.objective, self.surrogates = objective, surrogates
        self.judges: list[nn.Module] = []

    def fit(self, task: ClassificationTask, model: DenoisedClassifier | QueriedClassifier, run: Run) -> Fitted:
        self.judges = [
            run.precision.place(load(path), run.device).requires_grad_(False) for path in self.surrogates
        ] or [model.classifier]
        return super().fit(task, model, run)

    def start_from(self, session: Session) -> None:
        fitted, _ = load_fitted(self.initial, session.run.device)
        if not isinstance(fitted.model, DenoisedClassifier):
            raise ConfigError(f"trainer.initial={self.initial} holds no denoiser, but a {type(fitted.model).__name__}")
        try:
            session.model.denoiser.load_state_dict(fitted.at("last").denoiser.state_dict())
        except RuntimeError:
            raise ConfigError(f"trainer.initial={self.initial} holds a denoiser of another architecture") from None

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        judge = self.judges[session.loop.position % len(self.judges)]
        noisy = self.noisy(session.run, batch, session.loop.step)
        self.advance(session)
        with session.run.precision.autocast():
            loss = denoising_loss(session.model.denoiser, judge, batch, noisy, self.objective)
        self.minimize(session, loss)
        return {"loss": loss.detach()}

    def look(self, session: Session, batch: Batch, noisy: Tensor) -> dict[str, Tensor]:
        denoised = session.model.denoiser(noisy)
        judge = self.judges[0]
        return {
            "clean_accuracy": accuracy(judge(session.model.denoiser(batch.inputs)), batch.targets),
            "robust_accuracy": accuracy(judge(denoised), batch.targets),
            "mse": F.mse_loss(denoised.float(), batch.inputs),
        }


def denoising_loss(
    denoiser: nn.Module, judge: nn.Module, batch: Batch, noisy: Tensor, objective: Literal["mse", "stab", "clf"]
) -> Tensor:
    """The objectives of arXiv 2003.01908, section 3: a mean over the batch, in float32."""
    denoised = denoiser(noisy)
    if objective == "mse":
        return F.mse_loss(denoised.float(), batch.inputs.float())
    targets = batch.targets
    if objective == "stab":
        with torch.no_grad():
            targets = judge(batch.inputs).argmax(1)
    logits = judge(denoised)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets)
