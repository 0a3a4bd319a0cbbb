"""A ready VLM back into its own class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mmcl.errors import UserError
from mmcl.export.weights import plain, projector_of, put
from mmcl.model.assembly import Assembly
from mmcl.model.vlm.load import load_vlm, take_apart
from mmcl.protocols import Route
from mmcl.recipe.spec import ModelSpec


def vlm_of(
    model: Assembly, spec: ModelSpec, folder: Path, seed: int, route: Route, name: str, adapters: tuple[str, ...]
) -> tuple[Any, Any, Callable[[str], str]]:
    """The VLM with what was trained, its processor, and where it has the language model's parameters.

    Args:
        model: trained.
        spec: the recipe's model.
        folder: of the recipe.
        seed: of the run, for random weights.
        route: whose projector goes in.
        name: of the route, for messages.
        adapters: of the language model, that are merged into its weights.

    Raises:
        UserError: encoder or projector were exchanged, so that no class of transformers holds the parts.
    """
    assert spec.vlm is not None
    changed = [part for part, given in (("encoder", spec.encoder), ("projector", spec.projector)) if given is not None]
    if changed:
        raise UserError(
            f"its class has no place for another {' or '.join(changed)}, and `{spec.vlm}` was given one",
            where=f"model.{changed[0]}",
            hint="a run with the model's own parts can be exported",
        )
    places = _places(spec, folder, seed)
    trained = {
        **_named("encoder", plain(model.encoder, ("default",))),
        **_named("projector", plain(projector_of(model, route, name), ())),
        **_named("language", plain(model.language, adapters)),
    }
    ready = load_vlm(spec.vlm, folder=folder, dtype=spec.language.dtype, seed=seed)
    put(ready.model, {places[key]: tensor for key, tensor in trained.items()})
    return ready.model, ready.processor, lambda name: places[f"language.{name}"]


def _places(spec: ModelSpec, folder: Path, seed: int) -> dict[str, str]:
    """For each parameter of the parts (`PART.NAME`), its name in the whole: a parameter stays the same object."""
    assert spec.vlm is not None
    ready = load_vlm(spec.vlm, folder=folder, dtype=spec.language.dtype, seed=seed)
    whole = {id(parameter): name for name, parameter in ready.model.named_parameters()}
    parts = take_apart(ready)
    modules: dict[str, nn.Module] = {"encoder": parts.encoder, "projector": parts.projector, "language": parts.language}
    return {
        f"{part}.{name}": whole[id(parameter)]
        for part, module in modules.items()
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def _named(part: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}
