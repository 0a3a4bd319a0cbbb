"""Selective tuning: only some matrices of the language model train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.protocols import Method, Model

PARTS: Mapping[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "out_proj"),
    "mlp": ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h"),
}
"""How the matrices of a part are called in the model families of transformers."""


class Selective(Method):
    """Train only the projections of the self-attention, or only gate and up of the MLP with down frozen.

    "How to teach large multimodal models new skills" (LMM_CL): both learn new skills nearly as well as the whole
    language model, and forget much less. Adapters on other matrices stay where they are. What the recipe trains outside
    the language model trains as ever; without adapters in `train`, the language model's own matrices train.

    Args:
        part: `attention` or `mlp`.
    """

    def __init__(self, *, part: Literal["attention", "mlp"] = "attention") -> None:
        if part not in PARTS:
            raise UserError(f"there is no part `{part}`", where="selective.part", hint="attention, or mlp")
        self.part = part

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Choose what trains.

        Raises:
            UserError: the language model has no such matrices among what the recipe trains.
        """
        names = [name for name in model.trainable() if name.startswith("language.")]
        chosen = [name for name in names if any(word in PARTS[self.part] for word in name.split("."))]
        if not chosen:
            raise UserError(
                f"the language model has no matrices of the part `{self.part}` among what trains",
                where="selective.part",
                hint="let `train` have `language` or `language.lora`, with LoRA on all linear layers",
            )
        others = [pattern for pattern in model.recipe_train if not pattern.startswith("language")]
        model.set_trainable([*others, *sorted({name.rpartition(".")[0] for name in chosen})])
