"""What is fitted: models by what trainers and certifiers may ask of them beyond their outputs."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.methods.equilibrium import DeepEquilibrium, Equation, MonotoneLayer
from robustrun.roles.tasks import ClassificationTask
from robustrun.runtime import Run


@runtime_checkable
class Model(Protocol):
    """The thing that is fitted: `Model(spec, *, <config>)`. Its whole state is a flat dict of tensors."""

    def state_dict(self) -> dict[str, Any]:
        """All that was fitted, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Take over what `state_dict` gave."""
        ...


class LinearClassifier(nn.Module):
    """logits = features(inputs) @ weight + bias, in float64, with a closed-form fit.

    `weight` (k, classes), `bias` (classes,). The features are fixed: no label of the training set enters them.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def features(self, inputs: Tensor) -> Tensor:
        """(B, k) float64 features of a batch of inputs."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        return self.features(inputs) @ self.weight + self.bias

    @torch.no_grad()
    def training_set(self, task: ClassificationTask, run: Run) -> tuple[Tensor, Tensor]:
        """Features (n, k) and labels (n,) of the task's training split, in its order."""
        batches = task.loader("train", 1000, run).epoch(0)
        features, labels = zip(*((self.features(batch.inputs), batch.targets) for batch in batches), strict=True)
        return torch.cat(features), torch.cat(labels)


class Encoder(nn.Module):
    """Features of inputs that are learnt without labels; `forward` gives what the training objective compares."""

    particular = True  # no classifier: only what asks for encoders takes one
    dimension: int  # of the features

    def features(self, inputs: Tensor) -> Tensor:
        """(B, dimension) of a batch of inputs."""
        raise NotImplementedError


class PatchEncoder(Encoder):
    """Features from linear filters on whitened patches of `patch` x `patch` pixels.

    `filters` (F, d); buffers: `mean` (d,) and `whitening` (d, d) of contrast-normalised patches, `centre` and `scale`
    (dimension,), which standardise the features.
    """

    patch: int
    filters: nn.Parameter
    mean: Tensor
    whitening: Tensor
    centre: Tensor
    scale: Tensor

    def whitened(self, patches: Tensor) -> Tensor:
        """(N, d) of patches (N, d) of pixels in [0, 1]."""
        raise NotImplementedError

    def raw_features(self, inputs: Tensor) -> Tensor:
        """(B, dimension) before `centre` and `scale`."""
        raise NotImplementedError


class DenoisedClassifier(nn.Module):
    """logits = classifier(denoiser(images)): the classifier is finished and frozen, only the denoiser is trained.

    So a checkpoint holds the denoiser alone, and can be put before another classifier.
    """

    denoiser: nn.Module
    classifier: nn.Module

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        state = super().state_dict(*arguments, **options)
        return {name: value for name, value in state.items() if not name.startswith("classifier.")}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        classifier = {f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}
        return super().load_state_dict({**classifier, **state}, strict=strict, assign=assign)

    def train(self, mode: bool = True) -> "DenoisedClassifier":
        super().train(mode)
        self.classifier.eval()  # its statistics are those it was finished with
        return self


class QueriedClassifier(DenoisedClassifier):
    """A classifier that answers labels to queries, which cost; every query is one draw for one example."""

    particular = True  # it has no logits: only what asks for queries takes one

    def open(self, run: Run, *, selection: int, planned: int) -> int:
        """Get ready for at most `planned` queries, the first `selection` draws of an example being of their own kind.

        Returns:
            The number of classes.

        Raises:
            ConfigError: that many queries are more than allowed.
        """
        raise NotImplementedError

    def answers(self, images: Tensor, indices: Tensor, draws: Tensor) -> Tensor:
        """Labels (B,) of images that are the draws (B,) for the examples (B,); -1 for no class, draw -1 is clean."""
        raise NotImplementedError


class EquilibriumClassifier(nn.Module):
    """logits = readout(z) with z the equilibrium of `layer` at `embed(inputs)`.

    `injection_norm` bounds by how much U moves for a unit of (Euclidean) distance of inputs, the normalisation
    included; `pool_norm` is the norm of the linear map between z and what the readout takes, `pool(z)`.
    """

    differentiable_twice = False  # its gradient is a solver's result

    layer: MonotoneLayer
    readout: nn.Linear
    pool_norm: float = 1.0

    def embed(self, inputs: Tensor) -> Tensor:
        """What the layer takes."""
        raise NotImplementedError

    def pool(self, z: Tensor) -> Tensor:
        """What the readout takes of z, (B, k)."""
        return z

    def injection_norm(self) -> float:
        """An upper bound."""
        raise NotImplementedError

    def tune(self, inputs: Tensor) -> None:
        """Choose the solver's step length for the present weights on a batch."""


class EquilibriumNetwork(nn.Module):
    """outputs = readout(z) with z the fixed point of an equation that the inputs give, found by iteration.

    `layer` says how it is solved and differentiated, and keeps what the last solves took.
    """

    differentiable_twice = False  # its gradient is a solver's result

    layer: DeepEquilibrium

    def equation(self, inputs: Tensor) -> tuple[Equation, Tensor]:
        """z = f(z) for a batch, and where to start from, (B, D)."""
        raise NotImplementedError

    def readout(self, z: Tensor, inputs: Tensor) -> Tensor:
        """The outputs at the states z (B, D) that belong to the inputs."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        return self.readout(self.layer(*self.equation(inputs)), inputs)


class ODEClassifier(nn.Module):
    """A classifier behind an ordinary differential equation."""

    evaluations: tuple[int, int]
    """How often the last forward pass called the right-hand side, and how often the backward pass after it."""


class TabularAgent(nn.Module):
    """An agent on a finite MDP: what it has learnt lies in buffers, how it learns in plain attributes.

    `radius` gives the L1 radius of a confidence interval by the number of samples, `pooling` adds up the samples of
    analogous pairs, and `update_frequency` transitions lie between two planning calls. Buffers: `policy` (S,) the
    greedy actions, `safe` (S, A) the safe set, `entered` (S, A) when a pair joined it, `interval` (S, A) the radii in
    use.
    """

    radius: Callable[[np.ndarray], np.ndarray]
    pooling: bool
    update_frequency: int
    policy: Tensor
    safe: Tensor
    entered: Tensor
    interval: Tensor


def device_of(model: Any) -> torch.device:
    """The device of a module's first parameter or buffer (CPU if it has none)."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")
