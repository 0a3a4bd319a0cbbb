"""What lmms-eval registers: the entry point `mmcl` of the group `lmms_eval.models`.

lmms-eval loads it in the middle of its own imports, so nothing of it may be imported here but the registry.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Where the model class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mmcl", simple_class_path="mmcl.export.lmms_eval.Mmcl")
