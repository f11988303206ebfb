"""A classifier behind HTTP: the plain format that `robustrun serve` speaks.

GET / describes the model; POST /classify takes {"images": [base64 PNG, ...]} and answers
{"model": version, "labels": [[[name, score], ...], ...]}, the classes' numbers as names, the likeliest first.
"""

import base64
import binascii
import hashlib
import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from torch import nn

from robustrun.errors import DataError
from robustrun.query.images import decode

MOST_BYTES = 64 * 2**20  # of a request


class ClassifierServer:
    """Serves a model on a loopback (or other) address, in threads of its own.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits, in evaluation mode.
        shape: of one image.
        host, port: where to listen; port 0 takes any.
        top: labels an answer.
    """

    def __init__(
        self, model: nn.Module, shape: Sequence[int], *, host: str = "127.0.0.1", port: int = 0, top: int = 10
    ):
        self.model, self.shape, self.top = model, tuple(shape), top
        self.version = version_of(model)
        parameter = next(model.parameters(), None)
        self.device = parameter.device if parameter is not None else torch.device("cpu")
        self._passes = threading.Lock()  # one forward pass at a time
        handler = type("Handler", (_Handler,), {"service": self})
        self._http = ThreadingHTTPServer((host, port), handler)
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._http.server_address[:2]
        return f"http://{host}:{port}"

    def start(self) -> "ClassifierServer":
        """Serve in a thread; returns itself."""
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def serve(self) -> None:
        """Serve until `stop` or an interrupt."""
        self._http.serve_forever()

    def stop(self) -> None:
        """Stop listening, and free the port."""
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> "ClassifierServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @torch.inference_mode()
    def classify(self, images: Sequence[bytes]) -> list[list[tuple[str, float]]]:
        """Ranked (class, probability) of encoded images.

        Raises:
            DataError: one of them is no image of the model's shape.
        """
        channels, height, width = self.shape
        pixels = [decode(image, channels) for image in images]
        wrong = next((p.shape for p in pixels if p.shape != (height, width, channels)), None)
        if wrong is not None:
            raise DataError(f"an image of {wrong[1]} x {wrong[0]} where {width} x {height} is expected")
        batch = torch.from_numpy(np.stack(pixels)).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        with self._passes:
            scores, classes = self.model(batch).float().softmax(1).sort(dim=1, descending=True, stable=True)
        ranked = zip(classes[:, : self.top].tolist(), scores[:, : self.top].tolist(), strict=True)
        return [[(str(c), s) for c, s in zip(names, values, strict=True)] for names, values in ranked]


def version_of(model: nn.Module) -> str:
    """A name for a model's weights: changes if and only if they do."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


class _Handler(BaseHTTPRequestHandler):
    service: ClassifierServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self.path != "/":
            return self._answer(404, {"error": {"code": "NotFound", "message": "POST /classify"}})
        self._answer(200, {"model": self.service.version, "input_shape": self.service.shape})

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MOST_BYTES:
            self.close_connection = True
            return self._answer(413, {"error": {"code": "TooLarge", "message": f"0 to {MOST_BYTES} bytes"}})
        body = self.rfile.read(length)
        if self.path != "/classify":
            return self._answer(404, {"error": {"code": "NotFound", "message": "POST /classify"}})
        try:
            images = [base64.b64decode(text, validate=True) for text in json.loads(body)["images"]]
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            return self._refuse(f"the body is not understood: {error}")
        try:
            labels = self.service.classify(images) if images else []
        except DataError as error:
            return self._refuse(str(error))
        self._answer(200, {"model": self.service.version, "labels": labels})

    def _refuse(self, message: str) -> None:
        self._answer(400, {"error": {"code": "InvalidRequest", "message": message[:200]}})

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence: a line a request would drown everything else."""
