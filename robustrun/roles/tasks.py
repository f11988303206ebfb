"""What is to be solved: tasks by what they consist of and what they ask of a model."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from torch import Tensor

from robustrun.data import Batch
from robustrun.methods.safe_exploration import Knowledge, Scene, TabularMDP
from robustrun.runtime import Run
from robustrun.specs import (
    ClassificationSpec,
    DynamicsSpec,
    MDPSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
    VideoSpec,
)


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
    """What is to be solved. The constructor takes keyword-only configuration and reads nothing.

    Raises:
        ConfigError: options exclude each other.
    """

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
