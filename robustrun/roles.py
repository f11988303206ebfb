"""The contracts between the four axes: job = task x model x trainer x certifier -> report.

Implementations meet only through these types. What an implementation works on is stated by its annotations:
a trainer whose `fit` takes a `ClassificationTask` is refused beside a task of another kind before any data is
read (see `robustrun.fit`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.data import Batch
from robustrun.methods.equilibrium import DeepEquilibrium, Equation, MonotoneLayer
from robustrun.methods.safe_exploration import Knowledge, Scene, TabularMDP
from robustrun.runtime import Run
from robustrun.specs import ClassificationSpec as ClassificationSpec  # the contracts' own words: found here too
from robustrun.specs import DynamicsSpec as DynamicsSpec
from robustrun.specs import MDPSpec as MDPSpec
from robustrun.specs import PendulumSpec as PendulumSpec
from robustrun.specs import RegressionSpec as RegressionSpec
from robustrun.specs import SegmentationSpec as SegmentationSpec
from robustrun.specs import TaskSpec as TaskSpec
from robustrun.specs import VideoSpec as VideoSpec

# --------------------------------------------------------------------------------------------- task


class Loader(Protocol):
    """Minibatches of a split; everything random about epoch `e` depends on (seed, e) alone."""

    batch_size: int
    size: int  # examples an epoch

    def __len__(self) -> int:
        """Steps an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on (so that a resumed run sees the same ones)."""
        ...


class Task:
    """What is to be solved. The constructor takes keyword-only configuration and reads nothing."""

    spec: TaskSpec

    def load(self, run: Run) -> None:
        """Obtain and read the data or make the environment; called once, before the model is built.

        Raises:
            DataError: the data cannot be obtained.
        """


Split = Literal["train", "valid", "test"]


class ExampleTask(Task):
    """A task that consists of examples in splits."""

    def size(self, split: Split) -> int:
        """How many examples a split has (0: no such split)."""
        raise NotImplementedError

    def loader(
        self,
        split: Split,
        batch_size: int,
        run: Run,
        *,
        train: bool = False,
        indices: Sequence[int] | None = None,
    ) -> Loader:
        """Batches of a split: shuffled and augmented if `train`, else in order and as they are.

        `indices` restricts to those examples, in that order. Under torch.distributed a training loader
        yields each rank's slice of the joined batch.
        """
        raise NotImplementedError


class ClassificationTask(ExampleTask):
    """Inputs to one of `spec.classes` labels (int64)."""

    spec: ClassificationSpec


class BinaryTask(ClassificationTask):
    """Two classes: label 1 is the positive one, the one that precision and recall speak of."""


class SegmentationTask(ExampleTask):
    """Images (B, C, H, W) to one of `spec.classes` labels for every pixel: targets (B, H, W) int64.

    A model returns logits (B, classes, H, W), of the size of its inputs. Training batches are crops, which may be
    smaller than `spec.input_shape`; the images of other splits come whole.
    """

    spec: SegmentationSpec
    class_names: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()  # of the cross-entropy; empty for ones


class RegressionTask(ExampleTask):
    """Inputs to real targets (B, outputs)."""

    spec: RegressionSpec


class SensorTask(RegressionTask):
    """One positive quantity, a fraction of its maximum, from sensor readings scaled to about [0, 1].

    Every reading comes with a tolerance; a threat of epsilon means noise of epsilon times the tolerances.
    """

    sensors: tuple[str, ...] = ()
    quantity: str = "quantity"  # its name and unit, for sentences and figures
    maximum: float = 1.0  # of the quantity, in its unit: what a target of 1 stands for

    def tolerance(self, inputs: Tensor) -> Tensor:
        """The tolerance of every reading of (B, sensors), in the units of the inputs; broadcasts against them."""
        raise NotImplementedError


class DynamicsTask(Task):
    """A dynamical system on states, to be learned from examples of its motion."""

    spec: DynamicsSpec

    def size(self, split: Split) -> int:
        """How many examples a split has (0: no such split)."""
        raise NotImplementedError

    def loader(self, split: Split, batch_size: int, run: Run, *, train: bool = False, horizon: int = 0) -> Loader:
        """Batches of a split, shuffled if `train`: states (B, n) as inputs.

        Targets are the states' time derivatives (B, n); with `horizon` k > 0, the next k states (B, k, n).
        """
        raise NotImplementedError

    def trajectories(self, count: int, steps: int, run: Run) -> tuple[Tensor, Tensor | None]:
        """Starts (B, n), at most `count`, and the true states (1 + T, B, n) from there on, T <= `steps`; float64.

        No truth (None) where nothing is known but the starts.
        """
        raise NotImplementedError

    def derivative(self, states: Tensor) -> Tensor | None:
        """The true time derivative at any states (B, n), where the task knows the equations."""
        return None


class VideoTask(Task):
    """A clip of moving pictures to be continued."""

    spec: VideoSpec

    def frames(self, split: Split) -> Tensor:
        """The frames in order, (T, C, H, W) uint8 on the CPU."""
        raise NotImplementedError

    def loader(self, split: Split, batch_size: int, run: Run, *, train: bool = False) -> Loader:
        """Batches of successive frames in [0, 1]: the earlier as inputs, the later as targets, (B, C, H, W)."""
        raise NotImplementedError


class MDPTask(Task):
    """A finite Markov decision process to be explored; its attributes are there once it is loaded.

    `mdp` is the truth, which only the world and certifiers look at, `knowledge` what agents are told. Values are
    discounted by `gamma` over `horizon` decisions, transition probabilities are 0 or at least `tau`, and a trial
    takes `steps` decisions. `scene` lays the states out as a picture.
    """

    spec: MDPSpec
    mdp: TabularMDP
    knowledge: Knowledge
    scene: Scene
    gamma: float
    horizon: int
    tau: float
    steps: int


# --------------------------------------------------------------------------------------------- model


@runtime_checkable
class Model(Protocol):
    """The thing that is fitted: `Model(spec, *, <config>)`. Its whole state is a flat dict of tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


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


# --------------------------------------------------------------------------------------------- fitted

M = TypeVar("M", bound=Model)


@dataclass
class Fitted(Generic[M]):
    """A fitted model with its named states ("last", "best", ...) and what happened while it was fitted."""

    model: M
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # tensors and plain numbers, kept in the checkpoint

    def at(self, state: str) -> M:
        """The model with the named state loaded (in place); evaluation mode for modules.

        Raises:
            KeyError: there is no such state; the message lists those there are.
        """
        if state not in self.states:
            if state != "last":
                raise KeyError(f"the fitted model has no state '{state}', only {sorted(self.states) or ['last']}")
        else:
            self.model.load_state_dict(self.states[state])
        if isinstance(self.model, nn.Module):
            self.model.eval()
        return self.model


class Trainer:
    """Fits a model: `Trainer(*, <config>).fit(task, model, run)`."""

    closed_form = False  # the model may be a least-squares fit of the training set

    def fit(self, task: Task, model: Any, run: Run) -> Fitted:
        raise NotImplementedError


# --------------------------------------------------------------------------------------------- report


@dataclass
class Figure:
    """A figure as data: drawn as PNG/PDF, written as CSV, and drawn again on the HTML page.

    `series` maps a label to (x, y) or (x, y, low, high) arrays of one length. `kind` "image" takes
    `image` (H, W[, 3]) instead; anything else is drawn by `draw(axes)` from the same data.
    """

    title: str
    xlabel: str = ""
    ylabel: str = ""
    series: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    kind: Literal["line", "step", "scatter", "image", "custom"] = "line"
    image: np.ndarray | None = None
    draw: Any = None  # Callable[[matplotlib.figure.Figure], None] for kind "custom"
    xscale: Literal["linear", "log"] = "linear"
    yscale: Literal["linear", "log"] = "linear"


@dataclass
class Report:
    """What may be claimed: flat metrics (name -> number), one record an example, figures, counts.

    `examples` maps a column to an array with one entry an example; the column "index" is required in it.
    """

    metrics: dict[str, float]
    examples: dict[str, np.ndarray] | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # further artefacts: relative path -> content


class Certifier:
    """Says what may be claimed of a fitted model: `Certifier(*, <config>).certify(task, fitted, run)`."""

    closed_form = False  # speaks of least-squares fits alone

    def certify(self, task: Task, fitted: Fitted, run: Run) -> Report:
        raise NotImplementedError


def device_of(model: Any) -> torch.device:
    """The device of a module's first parameter or buffer (CPU if it has none)."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")
