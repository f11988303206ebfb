import pytest
import torch
from torch import nn

from robustrun.data import Batch
from robustrun.errors import ConfigError
from robustrun.roles import DenoisedClassifier
from robustrun.runtime import Run
from robustrun.tasks.images import Images
from robustrun.trainers.denoiser import DenoiserTraining, GaussianAugmentation, denoising_loss
from robustrun.trainers.recipe import Optimizer


class Net(DenoisedClassifier):
    def __init__(self, denoiser, classifier):
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier.eval().requires_grad_(False)

    def forward(self, x):
        return self.classifier(self.denoiser(x))


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)
    ).eval()


def denoiser():
    torch.manual_seed(1)
    last = nn.Conv2d(4, 1, 3, padding=1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), last)


@pytest.fixture
def task(run):
    task = Images(dataset="digits", limit=224)
    task.load(run)
    return task


def trainer(**options):
    return DenoiserTraining(
        batch_size=32, optimizer=Optimizer(name="adam", lr=1e-3), sigma=0.3, **{"epochs": 1} | options
    )


@pytest.mark.parametrize("objective", ["mse", "stab", "clf"])
def test_only_the_denoiser_moves(objective, task, run):
    model = Net(denoiser(), classifier())
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    start = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    fitted = trainer(objective=objective).fit(task, model, run)
    assert all(torch.equal(before[name], value) for name, value in model.classifier.state_dict().items())
    moved = [name for name, value in model.denoiser.state_dict().items() if not torch.equal(value, start[name])]
    assert len(moved) == len(start)
    assert not any(module.training for module in model.classifier.modules())
    assert all(name.startswith("denoiser.") for name in fitted.states["last"])


def test_training_mode_leaves_the_classifier_in_evaluation_mode():
    model = Net(denoiser(), classifier()).train()
    assert model.denoiser.training
    assert not any(module.training for module in model.classifier.modules())


@pytest.mark.parametrize("objective", ["mse", "stab", "clf"])
def test_losses_have_the_right_gradients(objective):
    torch.manual_seed(0)
    first = nn.Conv2d(1, 2, 3, padding=1).double()
    second = nn.Conv2d(2, 1, 3, padding=1).double()
    judge = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double().requires_grad_(False)
    images, targets = torch.rand(3, 1, 3, 3).double(), torch.tensor([0, 3, 1])
    noisy = images + 0.3 * torch.randn_like(images)

    def loss(weight):
        def net(x):
            return second(torch.tanh(nn.functional.conv2d(x, weight, padding=1)))

        batch = Batch(images, targets, torch.arange(3))
        if objective == "mse":  # computed in float32 in training
            return ((net(noisy) - images) ** 2).mean()
        return denoising_loss(net, judge, batch, noisy, objective)

    assert torch.autograd.gradcheck(loss, (first.weight.detach().clone().requires_grad_(True),))


def test_stability_is_against_the_clean_answer():
    judge = classifier()
    images = torch.rand(6, 1, 8, 8)
    wrong = (judge(images).argmax(1) + 1) % 10
    loss = denoising_loss(nn.Identity(), judge, Batch(images, wrong, torch.arange(6)), images, "stab")
    logits = judge(images).detach()
    assert float(loss.detach()) == pytest.approx(float(nn.functional.cross_entropy(logits, logits.argmax(1))))


def test_surrogates_take_turns_from_the_first_on_in_every_epoch(task, run, monkeypatch):
    calls = []

    class Recording(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number, self.net = number, classifier(number)

        def forward(self, x):
            if torch.is_grad_enabled():
                calls.append(self.number)
            return self.net(x)

    monkeypatch.setattr("robustrun.trainers.denoiser.load", lambda path: Recording(int(path)))

    class Untouchable(nn.Module):
        def forward(self, x):
            raise AssertionError("the deployed classifier is a black box")

    model = Net(denoiser(), Untouchable())
    trainer(objective="stab", surrogates=("0", "1", "2"), epochs=2).fit(task, model, run)
    assert calls == [0, 1, 2, 0, 1, 2, 0] * 2


def test_the_linear_optimum_is_found(run):
    """x ~ N(0, tau^2), D(y) = a y: a = tau^2 / (tau^2 + sigma^2), loss tau^2 sigma^2 / (tau^2 + sigma^2)."""
    tau, sigma = 1.5, 1.0
    torch.manual_seed(0)
    images = tau * torch.randn(4096, 1, 4, 4)
    images *= tau / images.square().mean().sqrt()

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.a * x

    from robustrun.data import DeviceLoader
    from robustrun.roles import ClassificationSpec, ClassificationTask

    class Normals(ClassificationTask):
        spec = ClassificationSpec((1, 4, 4), 2, box=None)

        def size(self, split):
            return len(images)

        def loader(self, split, batch_size, run, *, train=False, indices=None):
            labels = torch.zeros(len(images), dtype=torch.int64)
            return DeviceLoader(images, labels, batch_size, seed_for=run.seed_for, shuffle=train)

    model = Net(Scale(), nn.Identity())
    options = {"batch_size": 512, "epochs": 4, "optimizer": Optimizer(lr=0.1, momentum=0.0)}
    fitted = DenoiserTraining(sigma=sigma, **options).fit(Normals(), model, run)
    assert float(model.denoiser.a.detach()) == pytest.approx(tau**2 / (tau**2 + sigma**2), rel=0.01)
    assert fitted.history[-1]["loss"] == pytest.approx(tau**2 * sigma**2 / (tau**2 + sigma**2), rel=0.02)


def test_noise_depends_on_the_example_and_the_step_alone(task, run):
    noisy = trainer().noisy
    batch = next(iter(task.loader("test", 8, run).epoch(0)))
    part = Batch(batch.inputs[3:5], batch.targets[3:5], batch.indices[3:5])
    assert torch.equal(noisy(run, batch, 7)[3:5], noisy(run, part, 7))
    assert not torch.equal(noisy(run, batch, 7), noisy(run, batch, 8))


def test_gaussian_augmentation_learns_under_noise(task, tmp_path):
    found = {}
    for sigma in (1e-6, 0.4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        with Run.create(tmp_path / str(sigma), device="cpu", threads=1) as run:
            options = {"epochs": 15, "batch_size": 32, "optimizer": Optimizer(name="adam", lr=3e-3)}
            GaussianAugmentation(sigma=sigma, **options).fit(task, model, run)
            batch = next(iter(task.loader("test", 300, run).epoch(0)))
            noisy = GaussianAugmentation(sigma=0.4).noisy(run, batch, 0)
            found[sigma] = float((model(noisy).argmax(1) == batch.targets).float().mean())
    assert found[0.4] > found[1e-6] + 0.03


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="mixup"):
        trainer(mixup=0.5)
