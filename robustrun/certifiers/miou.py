"""Mean intersection over union of networks that give every pixel a label.

Source: Everingham et al., "The PASCAL visual object classes challenge", IJCV 88 (2010).
"""

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.certifiers.examplewise import Examplewise, judge_examples
from robustrun.methods.segmentation import confusion_matrix, intersection_over_union, recall, segment
from robustrun.numbers import Positive, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, EquilibriumNetwork, Figure, Fitted, Report, SegmentationTask
from robustrun.runtime import Run


@certifiers.register("miou")
class MeanIntersectionOverUnion(Examplewise):
    """Mean intersection over union over the classes, and of every class; pixel accuracy; a record an image.

    The confusion matrix is summed over all images; a class that never occurs counts 0. Where the network has an
    equilibrium, the records and metrics say how well it was found (in the last look at each image).

    Args:
        batch_size: images at a time.
        scales: every image is looked at in these sizes, and the probabilities averaged.
        flip: and mirrored.
        window: (height, width) of a window that slides over the image; null: the whole image at once.
        common: see `Examplewise`.
    """

    def __init__(
        self,
        *,
        batch_size: PositiveInt = 1,
        scales: tuple[Positive, ...] = (1.0,),
        flip: bool = False,
        window: tuple[PositiveInt, PositiveInt] | None = None,
        **common,
    ):
        super().__init__(batch_size=batch_size, **common)
        self.looks = {"scales": scales, "flip": flip, "window": window}

    def certify(self, task: SegmentationTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        model, spec = fitted.at(self.state), task.spec

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, Tensor]:
            with run.precision.autocast():
                predicted = segment(model, batch.inputs, **self.looks).argmax(1)
            confusion = confusion_matrix(predicted, batch.targets, spec.classes, spec.ignore_index)
            return {"confusion": confusion} | _equilibrium(model)

        columns = judge_examples(judge, task, run, description="evaluating", **self.selection)
        # A confusion matrix an image stays in the records that a run resumes from; examples.csv has what it says.
        each = torch.from_numpy(columns.pop("confusion").astype(np.int64))
        total = each.sum(0)
        names = task.class_names or tuple(str(label) for label in range(spec.classes))
        metrics = _figures(total) | _solved(columns)
        for name, value in zip(names, intersection_over_union(total).tolist(), strict=True):
            metrics[f"iou_{name.replace(' ', '_')}"] = value
        examples = columns | {
            "pixels": each.sum((1, 2)).numpy(),
            "pixel_accuracy": _pixel_accuracy(each).numpy(),
            "miou_present": _over_present(each).numpy(),
        }
        shares = total / total.sum(1, keepdim=True).clamp_min(1)
        figure = Figure("Predictions (columns) of each class' pixels (rows)", kind="image", image=shares.numpy())
        return Report(metrics, examples, {"confusion": figure}, counts={"examples": len(each)})


def _figures(total: Tensor) -> dict[str, float]:
    return {
        "miou": float(intersection_over_union(total).mean()),
        "pixel_accuracy": float(_pixel_accuracy(total)),
        "mean_class_accuracy": float(recall(total).mean()),
    }


def _pixel_accuracy(confusion: Tensor) -> Tensor:
    hits = confusion.diagonal(dim1=-2, dim2=-1).sum(-1).double()
    return hits / confusion.sum((-2, -1)).clamp_min(1)


def _over_present(each: Tensor) -> Tensor:
    """Of each image, the mean over the classes that its labels or its predictions have."""
    present = (each.sum(1) + each.sum(2)) > 0
    return intersection_over_union(each).sum(1) / present.sum(1).clamp_min(1)


def _equilibrium(model: nn.Module) -> dict[str, Tensor]:
    if not isinstance(model, EquilibriumNetwork) or (found := model.layer.statistics.forward) is None:
        return {}
    return {"iterations": found.iterations, "residual": found.residual, "converged": found.converged}


def _solved(columns: dict[str, np.ndarray]) -> dict[str, float]:
    if "residual" not in columns:
        return {}
    return {
        "converged": float(columns["converged"].mean()),
        "iterations": float(columns["iterations"].mean()),
        "residual": float(np.median(columns["residual"])),
        "largest_residual": float(columns["residual"].max()),
    }
