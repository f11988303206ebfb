"""A finished classifier behind a denoiser: what denoised smoothing certifies (arXiv 2003.01908)."""

from torch import Tensor

from robustrun.models.denoisers import Denoiser
from robustrun.models.normalize import image_shape
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, DenoisedClassifier
from robustrun.saved import load


@models.register("denoised")
class Denoised(DenoisedClassifier):
    """logits = classifier(denoiser(images)).

    Args:
        classifier: a finished run directory, or an ONNX file that maps images (B, C, H, W) to logits.
        state: which state of the run.
        denoiser: what stands before it; only this is trained.
        clamp: cut what the denoiser gives to [0, 1].
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        classifier: str,
        state: str = "last",
        denoiser: Denoiser = Denoiser(),  # noqa: B008
        clamp: bool = False,
    ):
        super().__init__()
        self.denoiser = denoiser.build(image_shape(spec)[0])
        self.classifier = _classifier(classifier, state).eval().requires_grad_(False)
        self.clamp = clamp

    def forward(self, images: Tensor) -> Tensor:
        images = self.denoiser(images)
        return self.classifier(images.clamp(0, 1) if self.clamp else images)


def _classifier(path: str, state: str):
    if path.endswith(".onnx"):
        from robustrun.query.onnx_file import OnnxClassifier

        return OnnxClassifier(path)
    return load(path, state)
