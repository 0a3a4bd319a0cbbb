"""Encoder outputs of a frozen encoder are constants: computed once per image content, then looked up."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmcl.data.types import ImageSource
from mmcl.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def fingerprint(encoder: nn.Module, source: str) -> str:
    """SHA-256 of the encoder's source and every tensor of its state: another encoder never has the same."""
    digest = hashlib.sha256(source.encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Least-recently-used features in main memory, by image digest.

    Args:
        limit_bytes: the cache never holds more than this.
    """

    def __init__(self, limit_bytes: int = 2 * 1024**3) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._items: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, digest: str) -> Tensor | None:
        """Features [T, W], or None."""
        found = self._items.get(digest)
        if found is not None:
            self._items.move_to_end(digest)
        return found

    def put(self, digest: str, features: Tensor) -> None:
        """Keep features [T, W]; drops the oldest if need be."""
        size = features.numel() * features.element_size()
        if digest in self._items or size > self.limit_bytes:
            return
        self._items[digest] = features
        self.bytes += size
        while self.bytes > self.limit_bytes:
            _, dropped = self._items.popitem(last=False)
            self.bytes -= dropped.numel() * dropped.element_size()

    def clear(self) -> None:
        """Forget everything (the encoder changed)."""
        self._items.clear()
        self.bytes = 0


def load_pixels(images: Sequence[ImageSource], transform: Callable[[Image], Tensor], device: torch.device) -> Tensor:
    """Open and transform images: float32 [I, 3, H, W] on the device."""
    pixels: list[Tensor] = []
    for image in images:
        tensor = transform(image.open())
        if pixels and tensor.shape != pixels[0].shape:
            raise UserError(
                f"the transform made {tuple(tensor.shape)}, but {tuple(pixels[0].shape)} for another image",
                where=image.name,
                hint="an encoder's transform must give every image the same size",
            )
        pixels.append(tensor)
    return torch.stack(pixels).to(device)
