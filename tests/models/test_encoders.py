"""Encoders learnt without labels: what their features are, training them at tiny size, and a classifier on them."""

import pytest
import torch
import torch.nn.functional as F

from robustrun.certifiers.neighbours import Neighbours
from robustrun.errors import ConfigError
from robustrun.models.contrastive import Contrastive
from robustrun.models.rica import Rica
from robustrun.roles import ClassificationSpec
from robustrun.tasks.images import Images
from robustrun.trainers.contrastive import ContrastiveTraining
from robustrun.trainers.recipe import Optimizer
from robustrun.trainers.rica import RicaTraining


def test_rica_features_patch_by_patch():
    torch.manual_seed(0)
    model = Rica(ClassificationSpec((3, 9, 11), 2), filters=5, patch=4)
    model.mean.normal_()
    model.whitening.normal_()
    x = torch.rand(2, 3, 9, 11)
    features = model.raw_features(x).view(2, 4, 2, 5)  # quarter, sign, filter
    w = F.normalize(model.filters, dim=1)

    def code(i, j):
        return model.whitened(x[:, :, i : i + 4, j : j + 4].flatten(1)) @ w.T

    for quarter in range(4):
        top, left = 3 * (quarter // 2), 4 * (quarter % 2)
        codes = torch.stack([code(i, j) for i in range(top, top + 3) for j in range(left, left + 4)])
        torch.testing.assert_close(features[:, quarter, 0], codes.clamp(min=0).sum(0), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(features[:, quarter, 1], (-codes).clamp(min=0).sum(0), atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match="patch"):
        Rica(ClassificationSpec((1, 6, 6), 2), patch=6)


def test_training_rica_lowers_its_loss_and_standardises(run):
    task = Images(dataset="digits", limit=300, test_limit=100)
    task.load(run)
    torch.manual_seed(0)
    model = Rica(task.spec, filters=20, patch=4)
    trainer = RicaTraining(patches=1000, epochs=6, batch_size=100, optimizer=Optimizer(name="adam", lr=0.02))
    fitted = trainer.fit(task, model, run)
    losses = [row["loss"] for row in fitted.history]
    assert losses[-1] < 0.9 * losses[0]
    (batch,) = task.loader("train", 300, run).epoch(0)
    features = model.features(batch.inputs).detach()
    torch.testing.assert_close(features.mean(0), torch.zeros(160), atol=1e-3, rtol=0)
    moving = features.std(0, correction=0)
    assert ((moving - 1).abs() < 1e-2).float().mean() > 0.9
    report = Neighbours(neighbours=5).certify(task, fitted, run)
    assert report.metrics["accuracy"] > 0.8  # of ten digits, without a label in the features


def test_contrastive_training_knows_which_views_belong_together(run):
    task = Images(dataset="digits", limit=200)
    task.load(run)
    torch.manual_seed(0)
    model = Contrastive(task.spec, width=4, projection=8)
    assert model.features(torch.rand(2, 1, 8, 8)).shape == (2, 32)
    trainer = ContrastiveTraining(
        views=("resized_crop:0.5",), epochs=6, batch_size=50, optimizer=Optimizer(name="adam", lr=3e-3)
    )
    fitted = trainer.fit(task, model, run)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"] - 0.2
    assert len(fitted.history) == 6
    with pytest.raises(ConfigError, match="no labels"):
        ContrastiveTraining(mixup=1.0)


def test_the_papers_network_has_512_features():
    model = Contrastive(ClassificationSpec((3, 32, 32), 10))
    assert model.dimension == 512
    assert sum(p.numel() for p in model.backbone.parameters()) == 11_172_170 - 5_130


@pytest.mark.parametrize(
    ("exp", "small"),
    [
        ("label_flip_rica", ["model.filters=10", "model.patch=4", "trainer.patches=500", "trainer.epochs=1"]),
        ("label_flip_contrastive", ["model.width=4", "trainer.batch_size=50", "trainer.epochs=1"]),
    ],
)
def test_a_linear_model_on_an_encoder(cli, exp, small):
    data = ["task=digits", "task.limit=200", "task.test_limit=40"]
    done = cli(f"+exp={exp}", *data, *small)
    assert done.returncode == 0, done.stderr
    encoder = f"model.encoder={done.stdout.strip().splitlines()[-1]}"
    flips = ["trainer=least_squares", "certifier=label_flip_quick", "certifier.exact=false"]
    done = cli(*data, "model=linear_on_encoder", encoder, *flips)
    assert done.returncode == 0, done.stderr
    assert "median_np" in done.stdout
