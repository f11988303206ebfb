"""Fitting patch filters by reconstruction ICA: no label is looked at.

Source: Le, Karpenko, Ngiam and Ng (NIPS 2011).
"""

import torch

from robustrun.data import DeviceLoader
from robustrun.methods.features import contrast_normalised, random_patches, rica_loss, zca
from robustrun.numbers import NonNegative, Positive, PositiveInt
from robustrun.registry import trainers
from robustrun.roles import ClassificationTask, Fitted, PatchEncoder, Trainer
from robustrun.runtime import Run, TrainingLoop
from robustrun.trainers.recipe import Optimizer, Schedule


@trainers.register("rica")
class RicaTraining(Trainer):
    """Whiten random patches of the training images, then learn filters that are sparse and rebuild them.

    Args:
        patches: how many.
        whitening: added to the eigenvalues of their covariance (ZCA).
        beta: weight of the reconstruction error.
        epochs, batch_size, optimizer, schedule: the recipe, over patches.
    """

    def __init__(
        self,
        *,
        patches: PositiveInt = 100_000,
        whitening: NonNegative = 0.1,
        beta: Positive = 0.5,
        epochs: PositiveInt = 10,
        batch_size: PositiveInt = 1000,
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        schedule: Schedule = Schedule(),  # noqa: B008
    ):
        self.patches, self.whitening, self.beta, self.epochs = patches, whitening, beta, epochs
        self.batch_size, self.optimizer, self.schedule = batch_size, optimizer, schedule

    def fit(self, task: ClassificationTask, model: PatchEncoder, run: Run) -> Fitted:
        # the same patches after a resume: they depend on the seed alone
        patches = self.draw(task, model.patch, run)
        mean, matrix = zca(contrast_normalised(patches), self.whitening)
        model.mean.copy_(mean)
        model.whitening.copy_(matrix)
        loader = DeviceLoader(
            model.whitened(patches),
            torch.zeros(len(patches), dtype=torch.int64),
            self.batch_size,
            device=run.device,
            seed_for=run.seed_for,
            shuffle=True,
        )
        optimizer = self.optimizer.build(model)
        loop = TrainingLoop(run, model=model, optimizer=optimizer, loader=loader, epochs=self.epochs)
        for _ in loop:
            for batch in loop.batches():
                self.schedule.apply(optimizer, self.optimizer, loop.fraction, self.epochs)
                loss = rica_loss(model.filters, batch.inputs, self.beta)
                loop.minimize(loss)
                loop.log(loss=loss.detach())
            loop.end_epoch()
        self.standardise(task, model, run)
        model.eval()
        return Fitted(model, loop.states(), loop.history, {"train_seconds": loop.train_seconds})

    def draw(self, task: ClassificationTask, size: int, run: Run) -> torch.Tensor:
        """`patches` random patches of the training images, equally many of each as far as that goes."""
        found, passes = [], 0
        while sum(len(part) for part in found) < self.patches:
            generator = run.generator("patches", passes)
            batches = task.loader("train", 1000, run).epoch(0)
            found += [random_patches(batch.inputs, size, generator) for batch in batches]
            passes += 1
        return torch.cat(found)[: self.patches]

    @torch.no_grad()
    def standardise(self, task: ClassificationTask, model: PatchEncoder, run: Run) -> None:
        """Shift and scale the features so that those of the training images have mean 0 and deviation 1."""
        count, total, squares = 0, 0.0, 0.0
        for batch in task.loader("train", 100, run).epoch(0):
            features = model.raw_features(batch.inputs).double()
            count, total, squares = count + len(features), total + features.sum(0), squares + features.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        model.centre.copy_(mean)
        model.scale.copy_(torch.where(deviation > 0, 1 / deviation, 0.0))
