"""How fast the machine multiplies matrices, and how many operations training needs.

The floating-point operations that one optimiser step needs (multiply and add count as two), summed over its rows:

    positions * (4 P + 6 A)  +  4 V D targets  +  12 pairs * sum over layers of (H d)  +  visual * (6 J - 2 J_first)

- `positions`: of the language model, padding not counted;
- `P`: weights of its frozen linear layers without the head: 2 forward, 2 for the gradient of the activations;
- `A`: weights of the LoRA layers: 2 forward, 4 backward (activations and weights);
- `targets`: supervised positions; only these go through the head (V x D): 2 forward, 2 backward;
- `pairs`: (query, key) pairs of which one sees the other; two products forward and four backward in each layer, over
  H heads of width d;
- `visual`: visual tokens of the row's images, each image once; `J`: weights of the projector's linear layers:
  2 forward, 4 backward; its first layer (`J_first`) needs no gradient of its input.

The encoder is frozen and its output cached: not counted. Norms, softmax, rotations, the optimiser: not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmcl.model.assembly import Assembly
from mmcl.protocols import Batch


def matmul_peak(dtype: torch.dtype, device: str, *, size: int = 2048, tries: int = 3) -> float:
    """Operations per second of a square matrix product, the best of several tries."""
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(tries + 1):
        _wait(device)
        begin = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class FlopCount:
    """What the formula above needs to know of a model.

    Args:
        model: of stock modules; kernels of other classes may hide linear layers.
    """

    def __init__(self, model: Assembly) -> None:
        language: Any = model.language
        head = language.get_output_embeddings()
        self.head: int = head.weight.numel()
        self.frozen: int = sum(
            module.weight.numel()
            for name, module in language.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name
        )
        self.lora: int = sum(parameter.numel() for name, parameter in language.named_parameters() if ".lora_" in name)
        config = language.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.attention: int = config.num_hidden_layers * heads * width
        linear = [module.weight.numel() for module in model.projector.modules() if isinstance(module, nn.Linear)]
        self.projector: int = 6 * sum(linear) - 2 * linear[0]
        self.visual_tokens = model.visual_tokens

    def of(self, batches: Iterable[Batch]) -> float:
        """Operations that training on these batches needs."""
        return float(sum(self._of_one(batch) for batch in batches))

    def _of_one(self, batch: Batch) -> int:
        real = ~batch.is_padding
        positions = int(real.sum())
        pairs = int((batch.visible & real[:, :, None] & real[:, None, :]).sum())
        return (
            positions * (4 * self.frozen + 6 * self.lora)
            + 4 * self.head * len(batch.targets)
            + 12 * self.attention * pairs
            + self.projector * self.visual_tokens * len(batch.images)
        )
