"""For all tests."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before torch is imported, and for subprocesses too: on tiny tensors, threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Features go into a cache of this session's own; fetched weights are found where they are.
_cache = Path(tempfile.mkdtemp(prefix="mmcl-tests-"))
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
_models = Path(os.environ.get("MMCL_CACHE") or Path.home() / ".cache" / "mmcl").expanduser() / "models"
if _models.is_dir():
    (_cache / "models").symlink_to(_models.resolve(), target_is_directory=True)
os.environ["MMCL_CACHE"] = str(_cache)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs an accelerator is skipped where there is none."""
    import torch  # after the environment is set

    if not torch.accelerator.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no accelerator"))


_TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 1, "layers": 1}
_VIT = {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 3}
OPEN_CLIP = {
    "tiny-vit": {"vision_cfg": _VIT},
    "tiny-coca": {"vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2}},
    "tiny-clipa": {"vision_cfg": {**_VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "tiny-quickgelu": {"vision_cfg": _VIT, "quick_gelu": True},
    "tiny-other-text": {"vision_cfg": _VIT, "text_cfg": {"hf_model_name": "nobody/nothing"}},
    "tiny-resnet": {"vision_cfg": {"image_size": 64, "width": 8, "layers": [1, 2, 1, 1]}},
    "tiny-siglip": {"vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map"}},
    "tiny-timm": {"vision_cfg": {"image_size": 160, "timm_model_name": "test_vit"}},
    "tiny-convnext": {"vision_cfg": {"image_size": 64, "timm_model_name": "test_convnext"}},
    "tiny-wide": {"vision_cfg": {**_VIT, "image_size": [64, 96]}},
}


@pytest.fixture(scope="session")
def open_clip_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configurations of models of a few thousand weights, which OpenCLIP now knows by name."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in OPEN_CLIP.items():
        content = {"embed_dim": 16, "text_cfg": _TEXT, **config}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    open_clip.add_model_config(folder)
    return folder
