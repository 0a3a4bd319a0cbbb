"""A trained model's tensors under the names of the model that it was made of, with adapters merged into them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmcl.errors import UserError
from mmcl.model.adapters import SHARED
from mmcl.model.assembly import Assembly
from mmcl.protocols import Route

BASE_LAYER = "base_layer"


def plain(module: nn.Module, adapters: Iterable[str]) -> dict[str, Tensor]:
    """Parameters of a module by the names that they had before adapters came in, these adapters added to them.

    A sum is formed in float32 and rounded once to the number format of the base.

    Args:
        module: with or without LoRA layers of peft.
        adapters: names of those that count.
    """
    wanted = tuple(adapters)
    tensors = {
        name.replace(f".{BASE_LAYER}.", "."): parameter.detach().clone()
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }
    for name, layer in module.named_modules():
        if not hasattr(layer, "lora_A") or not hasattr(layer, "get_delta_weight"):
            continue
        target = f"{name}.{getattr(layer, 'parameter_name', 'weight')}"
        for adapter in wanted:
            if adapter in cast(Any, layer).lora_A:
                base = tensors[target]
                delta = cast(Any, layer).get_delta_weight(adapter)
                tensors[target] = (base.float() + delta.detach().float().view_as(base)).to(base.dtype)
    return tensors


def projector_of(model: Assembly, route: Route, name: str) -> nn.Module:
    """The projector of a route as one module of the base projector's class.

    Raises:
        UserError: the route mixes several experts, or its expert is no such module.
    """
    if not route.experts:
        return model.projector
    if len(route.experts) > 1 or route.experts[0][1] != 1.0:
        raise UserError(
            f"the route of `{name}` mixes {len(route.experts)} experts, and one model has one projector",
            where="--route",
            hint="choose a route with one expert, or train with a router that picks one",
        )
    expert = model.projector if route.experts[0][0] == "base" else model.experts[route.experts[0][0]]
    if type(expert) is type(model.projector):
        return expert
    merged = getattr(expert, "merged", None)
    if merged is None:
        raise UserError(
            f"the expert of `{name}` is a {type(expert).__name__} beside the projector, and a model has one projector",
            where="--route",
            hint="experts of the units `copy` and `lora` can be exported; or take `--route base`",
        )
    return cast(nn.Module, merged())


def adapters_of(route: Route) -> tuple[str, ...]:
    """The language model's adapters that act on a route."""
    return SHARED, *route.adapters


def put(target: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters of these names.

    Raises:
        KeyError: there is no such parameter; a fault of ours.
    """
    own = dict(target.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def low_rank(module: nn.Module, adapters: Iterable[str]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Per layer (by the name that it had before adapters) A [R, in], B [out, R] and scale of these adapters together.

    Adapters of one scale add up to one: their A one below the other, their B side by side.
    """
    wanted = tuple(adapters)
    found = {}
    for name, layer in module.named_modules():
        sides: Any = layer
        names = [each for each in wanted if each in getattr(layer, "lora_A", ())]
        if names:
            down = torch.cat([sides.lora_A[each].weight.detach() for each in names])
            up = torch.cat([sides.lora_B[each].weight.detach() for each in names], 1)
            found[name] = (down, up, float(sides.scaling[names[0]]))
    return found
