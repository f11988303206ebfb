"""The contracts between the four axes: job = task x model x trainer x certifier -> report.

Implementations meet only through these types. What an implementation works on is stated by its annotations:
a trainer whose `fit` takes a `ClassificationTask` is refused beside a task of another kind before any data is
read (see `robustrun.fit`).
"""

from robustrun.data import Batch
from robustrun.roles.certifiers import Certifier, Figure, Report
from robustrun.roles.models import (
    DenoisedClassifier,
    Encoder,
    EquilibriumClassifier,
    EquilibriumNetwork,
    LinearClassifier,
    Model,
    ODEClassifier,
    PatchEncoder,
    QueriedClassifier,
    TabularAgent,
    device_of,
)
from robustrun.roles.tasks import (
    BinaryTask,
    ClassificationTask,
    DynamicsTask,
    ExampleTask,
    Loader,
    MDPTask,
    RegressionTask,
    SegmentationTask,
    SensorTask,
    Split,
    Task,
    VideoTask,
)
from robustrun.roles.trainers import Fitted, Trainer
from robustrun.specs import (
    ClassificationSpec,
    DynamicsSpec,
    MDPSpec,
    PendulumSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
    VideoSpec,
)

__all__ = [
    "Batch",
    "BinaryTask",
    "Certifier",
    "ClassificationSpec",
    "ClassificationTask",
    "DenoisedClassifier",
    "DynamicsSpec",
    "DynamicsTask",
    "Encoder",
    "EquilibriumClassifier",
    "EquilibriumNetwork",
    "ExampleTask",
    "Figure",
    "Fitted",
    "LinearClassifier",
    "Loader",
    "MDPSpec",
    "MDPTask",
    "Model",
    "ODEClassifier",
    "PatchEncoder",
    "PendulumSpec",
    "QueriedClassifier",
    "RegressionSpec",
    "RegressionTask",
    "Report",
    "SegmentationSpec",
    "SegmentationTask",
    "SensorTask",
    "Split",
    "TabularAgent",
    "Task",
    "TaskSpec",
    "Trainer",
    "VideoSpec",
    "VideoTask",
    "device_of",
]
