"""How much of adversarial training's time is forward and backward passes.

The trainer's own loop (data, attack, schedule, logging, checkpoints) against a bare loop of the same network
passes on one fixed batch, in turns in one process; the share is bare time / loop time. The plain loop is the
obvious implementation of the same recipe: a per-image data loader, parameter gradients in the attack too.

    python scripts/bench/training.py --task mnist
    python scripts/bench/training.py --task cifar10 --steps 10 --batch 32
    python scripts/bench/training.py --task cifar10 --steps 10 --batch 32 --precision bfloat16

Times are of the processor with OMP_NUM_THREADS=1 (those of a quiet machine), of the wall with more threads or a GPU.
The plain loop is always in float32. On CPUs with AVX512-BF16 or AMX the trainer's passes may be in bfloat16
(`runtime.precision=bfloat16`; weights and their updates stay float32).
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from _measure import claim, clock, clock_name, ratios
from rich.console import Console
from rich.table import Table

from robustrun.models.mnist_cnn import MnistCNN
from robustrun.models.preact_resnet import PreActResNet18
from robustrun.roles import Batch
from robustrun.runtime import Run
from robustrun.tasks.images import Images
from robustrun.trainers.adversarial import Adversarial
from robustrun.trainers.recipe import Optimizer, Schedule
from robustrun.trainers.supervised import Session


class Timed(Adversarial):
    """Notes when its steps begin and end."""

    def mixed(self, session: Session, batch: Batch) -> Batch:
        if session.loop.step == 0:
            self.began = clock()
        return super().mixed(session, batch)

    def epoch_end(self, session: Session, epoch: int) -> dict[str, float]:
        self.seconds = clock() - self.began
        return super().epoch_end(session, epoch)


EPSILON = {"mnist": 0.3, "cifar10": 8 / 255}


def loop_seconds(name: str, steps: int, batch: int, attack_steps: int, runtime: dict) -> float:
    """The trainer's loop, as a job runs it."""
    task = make_task(name, steps * batch)
    epsilon = EPSILON[name]
    trainer = Timed(
        epochs=1,
        batch_size=batch,
        epsilon=epsilon,
        alpha=1.25 * epsilon,
        steps=attack_steps,
        init_box="none" if name == "mnist" else "project",
        optimizer=Optimizer(lr=1e-3),
        schedule=Schedule(name="cyclic"),
    )
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder), seed=0, **runtime) as run:
        task.load(run)
        model = run.precision.place(make_model(name, task), run.device)
        trainer.fit(task, model, run)
        return trainer.seconds


def bare_seconds(name: str, steps: int, batch: int, attack_steps: int, runtime: dict) -> float:
    """The same passes on one fixed batch, and nothing else."""
    task = make_task(name, batch)
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder), seed=0, **runtime) as run:
        task.load(run)
        model = run.precision.place(make_model(name, task), run.device).train()
        fixed: Batch = next(iter(task.loader("train", batch, run).epoch(0)))
        parameters = list(model.parameters())
        start = clock()
        for _ in range(steps):
            for parameter in parameters:
                parameter.requires_grad_(False)
            for _ in range(attack_steps):
                points = fixed.inputs.detach().requires_grad_()
                with run.precision.autocast():
                    loss = F.cross_entropy(model(points).float(), fixed.targets)
                torch.autograd.grad(loss, points)
            for parameter in parameters:
                parameter.requires_grad_(True)
            with run.precision.autocast():
                loss = F.cross_entropy(model(fixed.inputs).float(), fixed.targets)
            torch.autograd.grad(loss, parameters)
        return clock() - start


def plain_seconds(name: str, steps: int, batch: int, attack_steps: int, runtime: dict) -> float:
    """The obvious loop: a per-image torchvision loader, parameter gradients everywhere, `.item()` a step."""
    from torch.utils.data import DataLoader, Dataset

    from robustrun.data import import_torchvision, obtain

    import_torchvision()
    from torchvision import transforms

    arrays = obtain(name)
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if name == "cifar10" else []
    to_tensor = transforms.Compose([transforms.ToPILImage(), *augment, transforms.ToTensor()])

    class PerImage(Dataset):
        def __len__(self) -> int:
            return steps * batch

        def __getitem__(self, index: int):
            return to_tensor(arrays.train.images[index]), arrays.train.labels[index]

    model = make_model(name, make_task(name, 1)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    epsilon = EPSILON[name]
    start = clock()
    for inputs, targets in DataLoader(PerImage(), batch_size=batch, shuffle=True):
        delta = torch.empty_like(inputs).uniform_(-epsilon, epsilon).requires_grad_()
        for _ in range(attack_steps):
            F.cross_entropy(model(inputs + delta), targets).backward()
            moved = (delta.detach() + 1.25 * epsilon * delta.grad.sign()).clamp(-epsilon, epsilon)
            delta = ((inputs + moved).clamp(0, 1) - inputs).requires_grad_()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs + delta), targets)
        loss.backward()
        optimizer.step()
        loss.item()
    return clock() - start


def make_task(name: str, limit: int) -> Images:
    return Images(dataset=name, limit=limit, augment=["pad_crop", "flip"] if name == "cifar10" else [])


def make_model(name: str, task: Images) -> torch.nn.Module:
    torch.manual_seed(0)
    return MnistCNN(task.spec) if name == "mnist" else PreActResNet18(task.spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("mnist", "cifar10"), default="mnist")
    parser.add_argument("--steps", type=int, default=200, help="training steps a round")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--attack-steps", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--channels-last", action="store_true", help="runtime.channels_last=true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runtime = {"precision": arguments.precision, "channels_last": arguments.channels_last or None}
    work = (arguments.task, arguments.steps, arguments.batch, arguments.attack_steps, runtime)
    kinds = {"bare passes": bare_seconds, "robustrun": loop_seconds, "plain loop": plain_seconds}
    for function in kinds.values():
        function(arguments.task, 2, *work[2:])  # warm up
    rounds = [{kind: function(*work) for kind, function in kinds.items()} for _ in range(arguments.rounds)]
    times = {kind: [seconds[kind] for seconds in rounds] for kind in kinds}
    title = f"{vars(arguments)}, torch {torch.__version__}, {torch.get_num_threads()} threads, {clock_name()} time"
    table = Table(title=title, title_justify="left")
    for column in ("loop", "images/s (median)", "bare / loop", "plain / loop"):
        table.add_column(column)
    for kind in kinds:
        seconds = statistics.median(times[kind])
        share = statistics.median(ratios(times["bare passes"], times[kind]))
        speed_up = statistics.median(ratios(times["plain loop"], times[kind]))
        images = arguments.steps * arguments.batch / seconds
        table.add_row(kind, f"{images:,.0f}", f"{share:.3f}", f"{speed_up:.2f}")
    Console().print(table)
    layout = ", channels last" if arguments.channels_last else ""
    name = f"{arguments.task} training, PGD-{arguments.attack_steps}, {arguments.precision}{layout}"
    shares = ratios(times["bare passes"], times["robustrun"])
    claim(f"{name}: bare passes' share of the loop", shares, at_least=0.9, unit="")
    if arguments.task == "cifar10":
        faster = ratios(times["plain loop"], times["robustrun"])
        claim(f"{name}: images a second", faster, at_least=1.5, against="a plain loop in float32")


if __name__ == "__main__":
    main()
