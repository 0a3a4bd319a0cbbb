"""What a projector expert is made of: a full copy of the base projector, LoRA on its linear layers, or a residual.

Shapes: I images, T visual tokens of one image, W width of the encoder, D width of the language model. Each unit maps
features [I, T, W] to the base projector's output, and at initialisation gives exactly that output. `LoRAUnit` and
`ResidualUnit` compute with the base projector but do not own it: their parameters are only what they add.
"""

from __future__ import annotations

import copy
import math
import re
import zlib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mmcl.errors import UserError
from mmcl.protocols import Text

Unit = Literal["copy", "lora", "residual"]

LORA_SCALE = 2.0
"""alpha / rank, the default of the language model's LoRA as well."""

LEAST_DEVIATION = 1e-3
"""Channels that vary less than this share of the mean deviation are not blown up further."""


_LACKS: Mapping[Unit, str] = MappingProxyType(
    {
        "copy": "the projector has no parameters, so that a copy of it could learn nothing",
        "lora": "the projector has no linear layer for a LoRA expert",
        "residual": "a residual expert needs a projector that keeps the number of visual tokens",
    }
)


class LoRAUnit(nn.Module):
    """The base projector with a low-rank update in each linear layer: W x + b becomes (W + scale * up @ down) x + b.

    LoRA (Hu et al., 2106.09685, section 4.1) on a projector. The sum W + update is formed before the product, so with
    `up` = 0 the output equals the base projector's bit for bit.

    Args:
        base: the base projector, frozen while the expert trains.
        rank: of each update.
        generator: draws `down`.
    """

    base: nn.Module

    def __init__(self, base: nn.Module, *, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)  # not a submodule: its parameters belong to the assembly
        self.names: tuple[str, ...] = tuple(linear_layers(base))
        self.down = nn.ParameterList()
        self.up = nn.ParameterList()
        for layer in linear_layers(base).values():
            weight = layer.weight
            bound = 1 / math.sqrt(layer.in_features)
            down = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
            self.down.append(nn.Parameter(down.to(weight)))
            self.up.append(nn.Parameter(weight.new_zeros(layer.out_features, rank)))

    def forward(self, features: Tensor, *text: Text | None) -> Tensor:
        """Features [I, T, W], and what else the base projector takes -> tokens [I, tokens(T), D]."""
        output: Tensor = functional_call(self.base, self._weights(), (features, *text))
        return output

    def merged(self) -> nn.Module:
        """A copy of the base projector that gives the same."""
        projector = copy.deepcopy(self.base)
        with torch.no_grad():
            for name, weight in self._weights().items():
                projector.get_parameter(name).copy_(weight)
        return projector

    def _weights(self) -> dict[str, Tensor]:
        weights = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            layer = self.base.get_submodule(name)
            weights[f"{name}.weight" if name else "weight"] = layer.weight + LORA_SCALE * (up @ down)
        return weights


class ResidualUnit(nn.Module):
    """P(x) + E(x), where P is the base projector and E a bottleneck whose last layer starts at zero.

    E reads standardised features, since encoder channels differ in mean and spread by orders of magnitude.

    Args:
        base: the base projector, frozen while the expert trains.
        rank: width of the bottleneck.
        in_width: W.
        out_width: D.
        generator: draws the first layer.
    """

    base: nn.Module
    shift: Tensor
    scale: Tensor

    def __init__(
        self, base: nn.Module, *, rank: int, in_width: int, out_width: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)  # not a submodule: its parameters belong to the assembly
        like = next(base.parameters(), torch.empty(0))
        bound = 1 / math.sqrt(in_width)
        down = torch.empty(rank, in_width).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(like))
        self.down_bias = nn.Parameter(like.new_zeros(rank))
        self.up = nn.Parameter(like.new_zeros(out_width, rank))
        self.up_bias = nn.Parameter(like.new_zeros(out_width))
        self.register_buffer("shift", like.new_zeros(in_width))
        self.register_buffer("scale", like.new_ones(in_width))

    def measure(self, features: Tensor) -> None:
        """Take mean and standard deviation per channel of features [I, T, W]; before that E reads them as they are."""
        flat = features.detach().flatten(0, 1)
        deviation = flat.std(0, correction=0)
        self.shift.copy_(flat.mean(0))
        self.scale.copy_(deviation.clamp_min(max(float(deviation.mean()) * LEAST_DEVIATION, 1e-8)))

    def forward(self, features: Tensor, *text: Text | None) -> Tensor:
        """Features [I, T, W], and what else the base projector takes -> tokens [I, T, D]."""
        inputs = (features - self.shift) / self.scale
        hidden = nn.functional.gelu(nn.functional.linear(inputs, self.down, self.down_bias))  # [I, T, rank]
        tokens: Tensor = self.base(features, *text)
        return tokens + nn.functional.linear(hidden, self.up, self.up_bias)


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a module by their names in it, in order."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def output_shape(base: nn.Module, tokens: int, width: int) -> tuple[int, int]:
    """Tokens and width that leave the projector for one image of [tokens, width]; found by running it on zeros."""
    like = next(base.parameters(), torch.empty(0))
    with torch.no_grad():
        out: Tensor = base(like.new_zeros(1, tokens, width))
    return int(out.shape[1]), int(out.shape[2])


def check_unit(kind: Unit, base: nn.Module, *, tokens: int, width: int) -> None:
    """Refuse a unit that this base projector cannot have.

    Raises:
        UserError: a copy of a projector without parameters, LoRA on one without linear layers, or a residual to one
            that changes the number of tokens.
    """
    able: dict[Unit, bool] = {
        "copy": next(base.parameters(), None) is not None,
        "lora": bool(linear_layers(base)),
        "residual": output_shape(base, tokens, width)[0] == tokens,
    }
    if not able[kind]:
        others = " or ".join(f"`{unit}`" for unit, fits in able.items() if fits)
        raise UserError(
            _LACKS[kind],
            where="projector_experts.unit",
            hint=f"use {others}" if others else "take a projector that has parameters, such as `mlp`",
        )


def make_unit(kind: Unit, base: nn.Module, *, name: str, rank: int, tokens: int, width: int) -> nn.Module:
    """A new expert that gives the base projector's output.

    Random numbers come from a generator of its own, seeded with the run's seed and the expert's name: an expert starts
    the same whatever was drawn before it, and making it changes no other random number.

    Args:
        kind: the unit.
        base: the base projector.
        name: of the expert.
        rank: of the LoRA updates, or width of the residual's bottleneck.
        tokens: T.
        width: W.
    """
    generator = torch.Generator().manual_seed((torch.initial_seed() + zlib.crc32(name.encode())) % 2**63)
    if kind == "copy":
        return copy.deepcopy(base)
    if kind == "lora":
        return LoRAUnit(base, rank=rank, generator=generator)
    out_width = output_shape(base, tokens, width)[1]
    return ResidualUnit(base, rank=rank, in_width=width, out_width=out_width, generator=generator)


def unit_parameters(kind: Unit, base: nn.Module, *, rank: int, tokens: int, width: int) -> int:
    """How many parameters one more expert adds, from sizes alone."""
    if kind == "copy":
        return sum(parameter.numel() for parameter in base.parameters())
    if kind == "lora":
        return sum(rank * (layer.in_features + layer.out_features) for layer in linear_layers(base).values())
    out_width = output_shape(base, tokens, width)[1]
    return rank * (width + 1) + out_width * (rank + 1)


def expert_name(task: str, taken: Collection[str]) -> str:
    """The task's name, with what may not stand in a module's name replaced, and told apart from names in use."""
    name = re.sub(r"[^\w +-]", "_", task) or "_"
    # `base` is the base projector, `default` the shared adapter; a module can't be named like a method of its parent.
    while name in taken or name in ("base", "default") or hasattr(nn.ModuleDict(), name):
        name += "_"
    return name
