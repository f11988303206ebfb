"""Counting a classifier's answers under noise: many examples and many draws in one batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustrun.errors import JobFailed
from robustrun.methods.smoothing.gaussian_noise import Noise

# (examples' positions, first draw, number of draws) -> counts (examples, classes) int64. Draws are numbered from 0;
# a vote for no class is in none of the columns.
Votes = Callable[[Tensor, int, int], Tensor]

# (noisy inputs, their examples, their draws) -> logits (R, classes), or labels (R,) int64, -1 for no class.
Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]


class NoisyVotes:
    """Votes of `classify(input + noise)`.

    The noise depends on (seed, index of the example, number of the draw) alone: how draws are packed into batches,
    which examples are judged together and in which process, changes nothing but rounding inside `classify`.

    Args:
        classify: see `Classifier`; deterministic, every row on its own (a module in evaluation mode).
        inputs: (B, *shape) on the device.
        indices: (B,) the examples' numbers, on the device.
        noise: its law.
        seed: in [0, 2**64).
        classes: number of classes.
        batch_size: noisy inputs a call of `classify`.

    Raises:
        ValueError: there is no class, or no input a batch.
        JobFailed: on voting, the classifier answered NaN or an unknown class.
    """

    def __init__(
        self,
        classify: Classifier,
        inputs: Tensor,
        indices: Tensor,
        *,
        noise: Noise,
        seed: int,
        classes: int,
        batch_size: int = 1000,
    ):
        if classes < 1 or batch_size < 1:
            raise ValueError(f"at least one class and one input a batch, not {classes} and {batch_size}")
        self.classify, self.inputs, self.indices = classify, inputs, indices
        self.noise, self.seed, self.classes, self.batch_size = noise, seed, classes, batch_size

    @torch.inference_mode()
    def __call__(self, rows: Tensor, first: int, count: int) -> Tensor:
        """Counts (len(rows), classes) of the draws `first` ... `first + count - 1` for the examples at `rows`.

        Raises:
            JobFailed: the classifier answered NaN, or with a class that there is not.
        """
        device, width = self.inputs.device, self.classes + 1
        rows = rows.to(device)
        totals = torch.zeros(len(rows) * width, dtype=torch.int64, device=device)
        broken = torch.zeros((), dtype=torch.bool, device=device)
        for begin in range(0, len(rows) * count, self.batch_size):
            flat = torch.arange(begin, min(begin + self.batch_size, len(rows) * count), device=device)
            example, draw = flat // count, first + flat % count
            row = rows[example]
            noisy = self.noise.draw(self.seed, self.indices[row], tuple(self.inputs.shape[1:]), draw)
            noisy.add_(self.inputs[row])
            answers = self.classify(noisy, self.indices[row], draw)
            if answers.is_floating_point():
                broken |= answers.isnan().any()
                answers = answers.argmax(1)
            broken |= ((answers < -1) | (answers >= self.classes)).any()
            votes = torch.where(answers < 0, self.classes, answers).clamp_(max=self.classes)
            totals += torch.bincount(example * width + votes, minlength=len(totals))
        if broken:
            raise JobFailed(
                "the classifier answered NaN or an unknown class on a noisy input: nothing can be certified"
            )
        return totals.view(len(rows), width)[:, : self.classes]
