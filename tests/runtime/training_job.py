"""A small training job for the tests to start, kill and resume, alone or as several processes.

It prints one JSON line when it is done. Exit codes are those of the command line.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustrun.errors import RobustrunError
from robustrun.runtime import Run, TrainingLoop


class Batch(NamedTuple):
    inputs: Tensor
    targets: Tensor


class Loader:
    """Random data whose order in epoch e depends on (seed, e) alone; each rank gets its slice."""

    def __init__(self, run: Run, n: int, batch_size: int = 32) -> None:
        generator = run.generator("data")
        self.inputs = torch.randn(n, 1, 8, 8, generator=generator)
        self.targets = (self.inputs[:, 0, :4].sum(dim=(1, 2)) > 0).long()
        self.run, self.batch_size = run, batch_size

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0):
        order = torch.randperm(len(self.inputs), generator=self.run.generator("order", epoch))
        for chosen in order.split(self.batch_size)[start:]:
            mine = self.run.distributed.local(chosen)
            yield Batch(self.inputs[mine], self.targets[mine])


def build(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, 2),
    )


def fit(run: Run, args: argparse.Namespace) -> dict:
    loader = Loader(run, 301 if args.ragged else 320)
    model = build(args.dropout)
    average = build(args.dropout)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2 * len(loader)], gamma=0.5)
    shift = torch.zeros(1, 1, 8, 8)
    loop = TrainingLoop(
        run,
        model=model,
        optimizer=optimizer,
        loader=loader,
        epochs=args.epochs,
        state={"average": average, "scheduler": scheduler, "shift": shift},
        checkpoint_every=args.checkpoint_every,
    )
    for _ in loop:
        for batch in loop.batches():
            joined = min(loader.batch_size, len(loader.inputs) - loop.step % len(loader) * loader.batch_size)
            noise = torch.randn(joined, 1, 8, 8, generator=run.generator("noise", loop.step))
            logits = model(batch.inputs + 0.1 * run.distributed.local(noise) + shift)
            loss = nn.functional.cross_entropy(logits, batch.targets)
            if args.explode == loop.step:
                loss = loss * float("nan")
            if args.plain_step:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            else:
                loop.minimize(loss, clip_norm=5.0)
            scheduler.step()
            shift.mul_(0.9).add_(0.01)
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 0.1)
            loop.log(loss=loss, accuracy=(logits.argmax(1) == batch.targets).float().mean())
            time.sleep(args.pause)
        loop.end_epoch(lr=scheduler.get_last_lr()[0])
        if loop.is_best("loss"):
            loop.save_state("best", average)
    states = loop.states()
    digest = {name: [v.double().sum().item() for v in state.values()] for name, state in states.items()}
    return {"history": loop.history, "states": digest, "steps": loop.step, "shift": shift[0, 0, 0, 0].item()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--checkpoint-every", type=float, default=300.0)
    parser.add_argument("--explode", type=int, default=-1)
    parser.add_argument("--ragged", action="store_true")
    parser.add_argument("--plain-step", action="store_true")
    args = parser.parse_args(arguments)
    try:
        with Run.create(args.dir, seed=5, device="cpu", threads=1) as run:
            result = fit(run, args)
            if run.distributed.is_main:
                print(json.dumps(result))
        return 0
    except RobustrunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
