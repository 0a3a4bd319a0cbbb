"""LoRA adapters of the language model: a shared one and named ones, through peft."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import set_adapter
from torch import nn
from transformers.pytorch_utils import Conv1D

from mmcl.errors import UserError
from mmcl.model.kernels import lean_adapters
from mmcl.recipe.spec import LoRASpec

SHARED = "default"


class Adapters:
    """The adapters of one language model. The shared one always acts; others only when a batch is routed to them.

    Args:
        language: the language model; adapters are injected into it, its class stays.
        spec: LoRA settings; None for a model without adapters.
        lean: use the leaner form of LoRA layers (`mmcl.model.kernels`).
    """

    def __init__(self, language: nn.Module, spec: LoRASpec | None, *, lean: bool = True) -> None:
        self.spec = spec
        self.lean = lean
        self.names: list[str] = []
        self.takes_logits_to_keep = "logits_to_keep" in inspect.signature(language.forward).parameters
        self._language = [language]  # in a list: this is not a submodule of anything
        self._now: tuple[str, ...] = ()
        if spec is not None:
            self.add(SHARED)

    def add(self, name: str) -> None:
        """Add an adapter: a no-op until it has trained."""
        if self.spec is None:
            raise UserError(
                "an adapter was asked for, but the language model has no LoRA settings",
                where="model.language.lora",
                hint="write `lora: {rank: 16}`",
            )
        if name in self.names:
            raise ValueError(f"there is an adapter {name!r} already")
        spec = self.spec
        language = self._language[0]
        trains = {key: parameter.requires_grad for key, parameter in language.named_parameters()}
        config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha if spec.alpha is not None else 2 * spec.rank,  # type: ignore[arg-type]
            lora_dropout=spec.dropout,
            target_modules=_targets(language, spec.targets),
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in language.modules()),
        )
        with warnings.catch_warnings():
            # That there is an adapter already is the point of a second one.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, language, name)
        if self.lean:
            lean_adapters(language)
        self.names.append(name)
        for key, parameter in language.named_parameters():
            parameter.requires_grad_(trains.get(key, False))
            if ".lora_" in key:  # masters of what trains stay in float32, whatever the base is in
                parameter.data = parameter.data.float()
        self._activate((SHARED,))

    def _activate(self, names: Sequence[str]) -> None:
        """Switch, and leave what trains as it is (peft's switch would make the active adapters train)."""
        lora = [(p, p.requires_grad) for key, p in self._language[0].named_parameters() if ".lora_" in key]
        set_adapter(self._language[0], list(names), inference_mode=True)
        for parameter, trains in lora:
            parameter.requires_grad_(trains)
        self._now = tuple(names)

    @contextlib.contextmanager
    def active(self, extra: Sequence[str]) -> Iterator[None]:
        """Inside, the shared adapter and these act."""
        wanted = (SHARED, *extra)
        if self.spec is None or wanted == self._now:
            if extra and self.spec is None:
                raise ValueError(f"routed to adapters {list(extra)}, but the model has none")
            yield
            return
        before = self._now
        self._activate(wanted)
        try:
            yield
        finally:
            self._activate(before)


def _targets(language: Any, targets: str | tuple[str, ...]) -> str | list[str]:
    """Module names for peft. `all-linear` means every linear layer but the output head, on any architecture."""
    if targets != "all-linear":
        return targets if isinstance(targets, str) else list(targets)
    find_head = getattr(language, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    names = {
        name.removesuffix(".base_layer")
        for name, module in language.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name
    }
    return sorted(names)
