"""A classifier in an ONNX file, run by onnxruntime."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.errors import ConfigError, DataError


class OnnxClassifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] to logits (B, classes); has no gradients.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is missing or is no such network.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError("a classifier in an ONNX file needs onnxruntime: pip install onnxruntime") from None
        if not Path(path).is_file():
            raise DataError(f"there is no ONNX file {path}")
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has exception types of its own, none of them public
            raise DataError(f"{path} is no ONNX network: {str(error).splitlines()[0]}") from None
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            raise ConfigError(
                "a classifier in an ONNX file has no gradients: give trainer.surrogates, or train for mse"
            )
        array = np.ascontiguousarray(images.detach().float().cpu().numpy())
        logits = self._session.run([self._output], {self._input: array})[0]
        return torch.from_numpy(np.asarray(logits)).to(images.device)
