"""Images as services take them: 8-bit PNG, a fixed function of what the denoiser gives."""

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustrun.errors import DataError


def to_bytes(images: Tensor, *, upscale: int | None = None, colour: bool = False, stretch: bool = False) -> np.ndarray:
    """(B, H, W, C) uint8 of images (B, C, H, W), cut to [0, 1] and rounded.

    Args:
        upscale: enlarge to this side (nearest pixel), for services that refuse small images.
        colour: repeat the channel of grey images.
        stretch: map each image's least and largest value to 0 and 255, as the published client did.
    """
    images = images.detach().float()
    if stretch:
        flat = images.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        images = (images - low.view(-1, 1, 1, 1)) / (high - low).clamp_min(1e-12).view(-1, 1, 1, 1)
    whole = (images.clamp(0, 1) * 255 + 0.5).floor_().to(torch.uint8)
    if upscale is not None and upscale != whole.shape[-1]:
        whole = F.interpolate(whole, (upscale, upscale), mode="nearest")
    if colour and whole.shape[1] == 1:
        whole = whole.expand(-1, 3, -1, -1)
    return whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def encode(image: np.ndarray) -> bytes:
    """PNG of (H, W, C) uint8, C = 1 or 3; the same bytes for the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(content: bytes, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 from an image file.

    Raises:
        DataError: it is no image, or has other channels.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # decoders raise whatever they like
        raise DataError(f"not an image: {error}") from None
    wanted = {1: "L", 3: "RGB"}[channels]
    if image.mode != wanted:
        raise DataError(f"an image of mode {image.mode} where {wanted} is expected")
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def to_base64(images: Sequence[bytes]) -> list[str]:
    """Files as text."""
    return [base64.b64encode(image).decode() for image in images]
