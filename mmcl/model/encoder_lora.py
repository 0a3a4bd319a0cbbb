"""LoRA adapters of a vision encoder, whatever it is made of, through peft."""

from __future__ import annotations

import warnings

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from mmcl.errors import UserError
from mmcl.recipe.spec import LoRASpec

WHERE = "model.encoder_lora.targets"
IN_PROJECTION = "in_proj_weight"
"""Query, key and value of `nn.MultiheadAttention`: a parameter without a layer of its own."""


def adapt_encoder(encoder: nn.Module, spec: LoRASpec) -> None:
    """Add an adapter to an encoder, in place; at first it changes nothing.

    `all-linear` means every linear layer, and in `nn.MultiheadAttention`, which never calls its output layer, the joint
    projection of query, key and value; in an encoder without linear layers, every plain convolution.

    Args:
        encoder: any module; its parameters keep their values, those with an adapter get `base_layer` into their name.
        spec: rank, scale, dropout (not for joint projections), and targets.

    Raises:
        UserError: no layer is called as `targets` says.
    """
    attentions = [name for name, module in encoder.named_modules() if isinstance(module, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name in attentions)
    joint = [
        f"{name}.{IN_PROJECTION}"
        for name in attentions
        if getattr(encoder.get_submodule(name), IN_PROJECTION) is not None
    ]
    linear = [name for name in _layers(encoder, nn.Linear) if not name.startswith(inside or "no attention.")]
    convolutions = [name for name in _layers(encoder, nn.Conv2d) if _plain(encoder.get_submodule(name))]
    layers, parameters = linear or convolutions, joint
    if spec.targets != "all-linear":
        wanted = (spec.targets,) if isinstance(spec.targets, str) else spec.targets
        layers = [name for name in linear + convolutions if _named(name, wanted)]
        parameters = [name for name in joint if _named(name, wanted)]
        if not layers and not parameters:
            known = sorted({name.rpartition(".")[2] for name in linear + convolutions + joint})
            raise UserError(
                f"no layer of the encoder is called {' or '.join(f'`{name}`' for name in wanted)}",
                where=WHERE,
                hint=f"there are {', '.join(known)}; `all-linear` takes all linear ones",
            )
    if not layers and not parameters:
        raise UserError(
            "the encoder has no layer that can have an adapter",
            where="model.encoder_lora",
            hint="leave it out, and train `encoder` if that is wanted",
        )
    settings = {"r": spec.rank, "lora_alpha": spec.alpha if spec.alpha is not None else 2 * spec.rank}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        if layers:
            config = LoraConfig(**settings, lora_dropout=spec.dropout, target_modules=layers)  # type: ignore[arg-type]
            inject_adapter_in_model(config, encoder)
        if parameters:
            config = LoraConfig(**settings, target_modules=[], target_parameters=parameters)  # type: ignore[arg-type]
            inject_adapter_in_model(config, encoder)
    for name, parameter in encoder.named_parameters():
        if ".lora_" in name:  # masters of what trains stay in float32, whatever the base is in
            parameter.data = parameter.data.float()


def _layers(encoder: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in encoder.named_modules() if isinstance(module, kind)]


def _plain(layer: nn.Module) -> bool:
    """Whether a convolution does what its settings say (some pad on their own), over all channels."""
    return type(layer) is nn.Conv2d and layer.groups == 1


def _named(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a full name is, or ends in, one of these."""
    return any(name == each or name.endswith(f".{each}") for each in wanted)
