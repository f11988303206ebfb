"""What robust_overfitting adds to adversarial training, and the remedies since, each against a step by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustrun.data import Arrays, DeviceLoader, Split
from robustrun.errors import ConfigError, DataError
from robustrun.runtime import Run
from robustrun.tasks.images import Images
from robustrun.trainers.adversarial import Adversarial
from robustrun.trainers.awp import AWP
from robustrun.trainers.grad_align import GradAlign
from robustrun.trainers.recipe import Optimizer, Schedule
from robustrun.trainers.supervised import Average, Monitor, Session, Standard, accuracy
from robustrun.trainers.trades import Trades
from tests.trainers.test_adversarial import FLAT, Tiny, fresh, network, same, trained

SGD = {"optimizer": Optimizer(lr=0.1, momentum=0.0), "schedule": Schedule(), "batch_size": 8}


def batches(tmp_path, epochs=1, batch_size=8):
    with fresh(tmp_path, "hand") as run:
        for epoch in range(epochs):
            yield from Tiny().loader("train", batch_size, run, train=True).epoch(epoch)


def test_the_l1_penalty_pulls_weights_by_their_sign_and_nothing_else(tmp_path):
    c = 0.01
    with_penalty = trained(Standard(epochs=1, l1=c, batch_size=20, **_but_batch(SGD)), tmp_path, "l1").states["last"]
    without = trained(Standard(epochs=1, batch_size=20, **_but_batch(SGD)), tmp_path, "plain").states["last"]
    for name, start in network().state_dict().items():
        pull = 0.1 * c * start.sign() if start.ndim > 1 else torch.zeros_like(start)
        assert torch.allclose(without[name] - with_penalty[name], pull, atol=1e-7)


def _but_batch(recipe):
    return {name: value for name, value in recipe.items() if name != "batch_size"}


def test_mixed_batches_mix_images_and_labels_alike(tmp_path):
    trainer = Standard(epochs=1, mixup=1.4, **SGD)
    seen = []

    def step(session, batch):
        seen.append(batch)
        return Standard.step(trainer, session, batch)

    trainer.step = step
    trained(trainer, tmp_path, "run")
    shares = []
    for mixed, batch in zip(seen, batches(tmp_path), strict=True):
        assert torch.allclose(mixed.targets.sum(1), torch.ones(len(batch.targets)), atol=1e-6)
        x, y, same_label = batch.inputs, F.one_hot(batch.targets, 4).float(), 0
        own = mixed.targets.gather(1, batch.targets[:, None])[:, 0]
        share = own.min()  # of an example mixed with another class: its own share
        for i in range(len(x)):  # the mixture that explains both image and label
            fits = [
                j
                for j in range(len(x))
                if torch.allclose(mixed.inputs[i], share * x[i] + (1 - share) * x[j], atol=1e-5)
                and torch.allclose(mixed.targets[i], share * y[i] + (1 - share) * y[j], atol=1e-5)
            ]
            same_label += bool(fits)
        assert same_label == len(x)
        shares.append(float(share))
    assert len(set(shares)) == len(shares), "each batch draws its own share"


def test_accuracy_on_mixed_labels_is_the_share_of_the_predicted_class():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([[0.7, 0.3], [0.9, 0.1]])) == pytest.approx(0.4)
    assert accuracy(logits, torch.tensor([0, 0])) == pytest.approx(0.5)


def test_the_mixed_loss_is_the_mixture_of_losses():
    logits, y, z, share = torch.randn(5, 4), torch.randint(4, (5,)), torch.randint(4, (5,)), 0.3
    soft = share * F.one_hot(y, 4) + (1 - share) * F.one_hot(z, 4)
    both = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, z)
    assert F.cross_entropy(logits, soft) == pytest.approx(both.item(), abs=1e-6)


def test_the_average_returned_is_the_exponential_one_of_the_weights(tmp_path):
    decay = 0.7
    fitted = trained(Standard(epochs=2, average=Average(name="ema", decay=decay), **SGD), tmp_path, "run")
    model, average = network(), None
    for batch in batches(tmp_path, epochs=2):
        gradients = torch.autograd.grad(F.cross_entropy(model(batch.inputs), batch.targets), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        now = {name: value.clone() for name, value in model.state_dict().items()}
        average = now if average is None else {n: decay * average[n] + (1 - decay) * now[n] for n in now}
    assert same(fitted.states["last"], average, atol=1e-6)
    assert same(fitted.model.state_dict(), average, atol=1e-6)


def test_swa_is_the_mean_over_the_ends_of_epochs_from_its_start_on(tmp_path):
    ends = []

    class Watched(Standard):
        def epoch_end(self, session, epoch):
            ends.append({name: value.clone() for name, value in session.model.state_dict().items()})
            return super().epoch_end(session, epoch)

    fitted = trained(Watched(epochs=4, average=Average(name="swa", start=0.5), **SGD), tmp_path, "run")
    mean = {name: torch.stack([end[name] for end in ends[1:]]).mean(0) for name in ends[0]}
    assert same(fitted.states["last"], mean, atol=1e-6)


def test_an_average_survives_a_resume(tmp_path):
    def trainer(epochs):
        return Adversarial(epochs=epochs, average=Average(name="ema", decay=0.9), **FLAT)

    whole = trained(trainer(4), tmp_path, "whole", model=network(True)).states["last"]
    trained(trainer(2), tmp_path, "cut", model=network(True))
    with Run.create(tmp_path / "cut", seed=0, device="cpu", precision="float32", threads=1) as run:
        resumed = trainer(4).fit(Tiny(), network(True), run).states["last"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_monitor_measures_the_average(tmp_path):
    monitor = Monitor(splits=("test",))
    fitted = trained(
        Standard(epochs=3, average=Average(name="ema", decay=1.0), monitor=monitor, **SGD), tmp_path, "run"
    )
    values = [row["test_clean_accuracy"] for row in fitted.history]
    assert len(set(values)) == 1, "with decay 1 the average stays where it was after the first update"


def test_clean_accuracy_is_recorded_at_one_more_pass(tmp_path):
    fitted = trained(Adversarial(epochs=1, steps=3, log_clean=True, **FLAT), tmp_path, "run", model=network(True))
    assert fitted.states["last"]["1.num_batches_tracked"] == 3 * (3 + 1 + 1)
    assert 0 <= fitted.history[0]["train_clean_accuracy"] <= 1


@pytest.mark.parametrize(
    "options", [{"freeze": True, "mixup": 1.0}, {"early_stop": True, "average": Average(name="ema")}]
)
def test_options_that_exclude_each_other_are_refused(options):
    with pytest.raises(ConfigError):
        Adversarial(**options)


def test_trades_with_beta_zero_is_plain_training(tmp_path):
    plain = trained(Standard(epochs=2, **FLAT), tmp_path, "plain")
    trades = trained(Trades(epochs=2, beta=0.0, start="gaussian", **FLAT), tmp_path, "trades")
    assert same(plain.states["last"], trades.states["last"], atol=1e-6)


def test_a_trades_step_by_hand(tmp_path):
    beta, epsilon = 6.0, 8 / 255
    kept = []

    class Watched(Trades):
        def learn(self, session, batch, delta):
            kept.append(delta)
            return super().learn(session, batch, delta)

    fitted = trained(
        Watched(epochs=1, beta=beta, epsilon=epsilon, alpha=0.007, steps=5, start="gaussian", **SGD), tmp_path, "run"
    )
    model = network()
    for batch, delta in zip(batches(tmp_path), kept, strict=True):
        assert delta.abs().max() <= epsilon + 1e-7
        assert ((batch.inputs + delta) >= 0).all()
        assert ((batch.inputs + delta) <= 1 + 1e-7).all()
        clean, moved = model(batch.inputs), model(batch.inputs + delta)
        p = clean.softmax(1)
        divergence = (p * (p.log() - moved.log_softmax(1))).sum(1).mean()
        assert divergence > 0
        loss = F.cross_entropy(clean, batch.targets) + beta * divergence
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert same(fitted.states["last"], model.state_dict(), atol=1e-6)


def test_trades_attacks_in_evaluation_mode(tmp_path):
    fitted = trained(Trades(epochs=1, steps=4, start="gaussian", **FLAT), tmp_path, "run", model=network(True))
    assert fitted.states["last"]["1.num_batches_tracked"] == 3 * 2


def test_grad_align_with_weight_zero_is_fgsm_training(tmp_path):
    fgsm = trained(Adversarial(epochs=1, **FLAT), tmp_path, "fgsm")
    aligned = trained(GradAlign(epochs=1, align=0.0, **FLAT), tmp_path, "aligned")
    assert same(fgsm.states["last"], aligned.states["last"], atol=1e-6)
    regularised = trained(GradAlign(epochs=1, align=5.0, **FLAT), tmp_path, "regularised")
    assert not same(fgsm.states["last"], regularised.states["last"], atol=1e-6)


def test_grad_align_takes_no_compiled_network(tmp_path):
    session = Session(Tiny(), network(), None, SimpleNamespace(precision=SimpleNamespace(compiled=True)))
    with pytest.raises(ConfigError, match=r"leave out runtime\.compile"):
        GradAlign(**FLAT).prepare(session)


def test_awp_takes_its_gradient_at_the_attacked_weights(tmp_path):
    gamma = 0.05
    fitted = trained(AWP(epochs=1, gamma=gamma, epsilon=0.0, alpha=0.1, **SGD), tmp_path, "run")
    model = network()
    for batch in batches(tmp_path):
        parameters = list(model.parameters())
        before = [p.detach().clone() for p in parameters]
        gradients = torch.autograd.grad(F.cross_entropy(model(batch.inputs), batch.targets), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                if p.ndim > 1:
                    p += gamma * p.norm() * g / g.norm()
        gradients = torch.autograd.grad(F.cross_entropy(model(batch.inputs), batch.targets), parameters)
        with torch.no_grad():
            for p, old, g in zip(parameters, before, gradients, strict=True):
                p.copy_(old - 0.1 * g)
    assert same(fitted.states["last"], model.state_dict(), atol=1e-6)


def test_awp_with_gamma_zero_or_before_its_start_is_plain_adversarial_training(tmp_path):
    plain = trained(Adversarial(epochs=1, steps=2, **FLAT), tmp_path, "plain").states["last"]
    for name, options in {"zero": {"gamma": 0.0}, "later": {"gamma": 0.5, "warm_up": 1.0}}.items():
        assert same(plain, trained(AWP(epochs=1, steps=2, **options, **FLAT), tmp_path, name).states["last"], 1e-6)


# ------------------------------------------------------------------------------------------------- extra data


def test_each_example_is_followed_by_a_companion():
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 2, 2)
    loader = DeviceLoader(
        images, torch.arange(10), 4, seed_for=lambda *key: hash(key) % 2**31, shuffle=True,
        indices=range(6), companions=range(6, 10),
    )  # fmt: skip
    assert loader.size == 12
    assert len(loader) == 3
    labels = torch.cat([batch.targets for batch in loader.epoch(0)])
    assert sorted(labels[::2].tolist()) == list(range(6))
    assert (labels[1::2] >= 6).all()
    assert not torch.equal(labels[1::2], torch.cat([batch.targets for batch in loader.epoch(1)])[1::2])
    assert torch.equal(labels[4:], torch.cat([batch.targets for batch in loader.epoch(0, 1)]))


def digits_with(extra, run, **options):
    task = Images(dataset="digits", extra=str(extra), **options)
    task.load(run)
    return task


def test_extra_images_fill_half_of_every_batch_and_no_other_split(run, tmp_path):
    file = tmp_path / "extra.npz"
    np.savez(file, images=np.full((30, 8, 8), 255, np.uint8), labels=np.full(30, 3))
    task = digits_with(file, run)
    plain = Images(dataset="digits")
    plain.load(run)
    assert task.size("train") == plain.size("train")
    for batch in task.loader("train", 64, run, train=True).epoch(0):
        assert (batch.inputs.flatten(1).amin(1) == 1).sum() == len(batch.targets) // 2
        assert (batch.targets[1::2] == 3).all()
    for split in ("train", "test"):
        shown = torch.cat([batch.inputs for batch in task.loader(split, 500, run).epoch(0)])
        assert len(shown) == plain.size(split)
        assert (shown.flatten(1).amin(1) < 1).all()


def test_the_label_fault_of_the_released_code_is_an_option(run, tmp_path):
    file = tmp_path / "extra.npz"
    np.savez(file, images=np.full((30, 8, 8), 255, np.uint8), labels=np.full(30, 3))
    task = digits_with(file, run, extra_labels="training")
    batch = next(iter(task.loader("train", 200, run, train=True).epoch(0)))
    own = next(iter(task.loader("train", 30, run).epoch(0))).targets
    assert set(batch.targets[1::2].tolist()) <= set(own.tolist())
    assert (batch.targets[1::2] != 3).any()


@pytest.mark.parametrize(
    ("images", "labels"), [(np.zeros((3, 9, 9), np.uint8), [0, 1, 2]), (np.zeros((3, 8, 8), np.uint8), [0, 1, 10])]
)
def test_extra_data_that_does_not_fit_is_refused(run, tmp_path, images, labels):
    file = tmp_path / "extra.npz"
    np.savez(file, images=images, labels=np.array(labels))
    with pytest.raises(DataError, match=r"task\.extra"):
        digits_with(file, run)


def test_the_noise_of_a_batch_covers_its_companions(tmp_path):
    task = Tiny(12)
    arrays = task._arrays
    task._arrays = Arrays(
        Split(
            torch.cat((arrays.train.images, arrays.test.images)), torch.cat((arrays.train.labels, arrays.test.labels))
        ),
        arrays.test,
    )
    task._companions = np.arange(12, 24)
    fitted = trained(Adversarial(epochs=1, **FLAT), tmp_path, "run", task=task)
    assert fitted.extra["updates"] == 3
