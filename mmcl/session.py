"""A model with its methods, as they stand after one stage: built new, trained on, saved, loaded."""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmcl import __version__
from mmcl.data.types import Task
from mmcl.errors import UserError
from mmcl.evaluation.curve import Curve
from mmcl.files import write_json
from mmcl.model.build import build_model
from mmcl.model.capability import why_not_packed
from mmcl.progress import Progress
from mmcl.protocols import Method, Objective
from mmcl.recipe import registry
from mmcl.recipe.spec import PluginSpec, Recipe
from mmcl.stages import Stage, asked
from mmcl.training import checkpoint
from mmcl.training.loop import Cost, train_task
from mmcl.training.methods import Methods
from mmcl.training.selection import select

IMAGES_COUNTED = 64
"""Samples of a stage whose images tell how many tokens an image takes; resolutions may differ."""


class Session:
    """The model and the methods of one variant, at one stage.

    Args:
        recipe: of one variant.
        accelerator: of `accelerate`; where the model runs.
        progress: shows what goes on.
        encoder: used instead of the one that the recipe names.
    """

    def __init__(self, recipe: Recipe, accelerator: Any, progress: Progress, encoder: nn.Module | None = None) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.progress = progress
        self.model = build_model(
            recipe.model, folder=recipe.folder, seed=recipe.seed, encoder=encoder, device=accelerator.device
        )
        self.model.max_new_tokens = recipe.evaluate.max_new_tokens
        if not self.model.packed:
            reason = why_not_packed(self.model.language) or "the recipe asks for it"
            progress.message(f"one padded row per question: {reason}")
        swapped = recipe.model.vlm is not None and (recipe.model.encoder or recipe.model.projector) is not None
        if swapped and recipe.stages[0].kind != "align":
            progress.message("the new projector starts at random: let a stage `{kind: align}` on captions come first")
        self.at = ""
        self.methods: dict[str, Method] = {}
        self.seen: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}

    # ---------------------------------------------------------------------------------------------------- methods

    def method_names(self, specs: Sequence[PluginSpec]) -> list[str]:
        """Keys of these methods; one that is not there yet is made and set up."""
        names = []
        for spec in specs:
            text = json.dumps({"name": spec.name, **spec.options}, sort_keys=True, default=str)
            if text not in self._names:
                count = sum(name.split("#")[0] == spec.name for name in self.methods)
                name = f"{spec.name}#{count + 1}" if count else spec.name
                method: Method = registry.build("methods", spec, self.recipe.folder, seed=self.recipe.seed)
                method.setup(self.model)
                self.methods[name] = method
                self._names[text] = name
            names.append(self._names[text])
        return names

    def active(self, stage: Stage) -> Methods:
        """The methods of a stage."""
        return Methods({name: self.methods[name] for name in self.method_names(stage.methods)})

    # ------------------------------------------------------------------------------------------- train, save, load

    def open(self, stage: Stage, task: Task) -> Methods:
        """The stage's methods, with its parts set to train and the projector measured on the task's images."""
        methods = self.active(stage)
        self.model.recipe_train = stage.trainable
        self.model.set_trainable(stage.trainable)
        self.model.calibrate(task.train)
        return methods

    def begin(self, methods: Methods, task: Task, tasks: Mapping[str, Task]) -> None:
        """Let methods begin a task; `tasks` by name are at least those that they have been through."""
        seen = {name: [tasks[key] for key in self.seen.get(name, [])] for name in methods.methods}
        methods.begin_task(self.model, task, seen)

    def train(self, stage: Stage, tasks: Mapping[str, Task], folder: Path) -> dict[str, Any]:
        """Train the stage and write its folder; returns the manifest.

        Raises:
            UserError: see `train_task`; the disk is full.
        """
        assert stage.task is not None
        task = stage.task
        seed = int(stage.hash[:15], 16)
        torch.manual_seed(seed)
        rng = random.Random(seed)
        started = time.perf_counter()
        methods = self.open(stage, task)
        objective: Objective = registry.build("objectives", stage.objective, self.recipe.folder)
        selection: dict[str, list[str]] = {}
        if stage.select is not None:
            before = [sample for key in list(tasks)[: list(tasks).index(task.name)] for sample in tasks[key].train]
            routes = methods.assign(self.model, task.train)
            kept, selection = select(self.model, task.train, routes, stage.select, objective, earlier=before)
            task = replace(task, train=kept)
        self.begin(methods, task, tasks)
        trainable = sum(parameter.numel() for parameter in self.model.trainable().values())
        curve = self._curve(stage) if self.recipe.evaluate.curve and stage.columns else None
        cost = train_task(
            self.model,
            methods,
            task,
            stage.train,
            objective,
            accelerator=self.accelerator,
            rng=rng,
            progress=self.progress,
            label=stage.label,
            watch=curve,
        )
        methods.end_task(self.model, task)
        for name in methods.methods:
            self.seen.setdefault(name, []).append(task.name)
        self.at = stage.hash
        cost.seconds = time.perf_counter() - started
        manifest = self._manifest(stage, methods, objective, cost, trainable)
        manifest["selection"] = selection
        manifest["curve"] = curve.points if curve else []
        first = [each.train[0] for name, each in tasks.items() if any(name in names for names in self.seen.values())]
        routes = methods.assign(self.model, first)
        manifest["experts"] = {
            part: route.label for sample, route in zip(first, routes, strict=True) for part in sample.task.split("+")
        }
        if self.accelerator.is_main_process:
            self._save(stage, manifest, folder)
        self.accelerator.wait_for_everyone()
        return manifest

    def _curve(self, stage: Stage) -> Curve:
        spec = self.recipe.evaluate
        columns = [replace(column, test=asked(column, spec)) for column in stage.columns]
        metrics = [
            registry.build("metrics", PluginSpec(column.metric, column.metric_options), self.recipe.folder)
            for column in columns
        ]
        return Curve(columns, metrics, spec)

    def _manifest(
        self, stage: Stage, methods: Methods, objective: Objective, cost: Cost, trainable: int
    ) -> dict[str, Any]:
        state = self.model.state()
        buffers = dict(self.model.named_buffers())
        everything = sum(parameter.numel() for parameter in self.model.language.parameters())
        experts = [
            tensor
            for name, tensor in state.items()
            if name.startswith("experts.") or (".lora_" in name and ".default." not in name)
        ]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "name": stage.name,
            "label": stage.label,
            "kind": stage.kind,
            "tasks": stage.tasks,
            "hash": stage.hash,
            "parent": stage.parent,
            "mmcl": __version__,
            "methods": describe_methods(stage.methods, methods.methods),
            "packed": self.model.packed,
            "cost": {
                "seconds": cost.seconds,
                "tokens": cost.tokens,
                "samples": cost.samples,
                "steps": cost.steps,
                "image_tokens": self._image_tokens(stage),
                "encoder_parameters": sum(parameter.numel() for parameter in self.model.encoder.parameters()),
                "trainable_parameters": trainable,
                "stored_parameters": sum(tensor.numel() for name, tensor in state.items() if name not in buffers),
                "memory_bytes": sum(methods.stored_bytes().values()),
                "expert_bytes": sum(tensor.numel() * tensor.element_size() for tensor in experts),
                # Linux counts in KiB, macOS in bytes.
                "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
                # A frozen parameter takes part in forward and in the gradient of the activations (2 + 2 per token),
                # a trainable one also in its own gradient (+ 2).
                "flops": cost.tokens * (4 * everything + 2 * trainable) if trainable else 0,
            },
            "loss": {"first": cost.losses[0], "last": cost.losses[-1]} if cost.losses else None,
            "losses": cost.losses,
            "mixture": dict(cost.mixture),
            "objective": {"name": stage.objective.name, **objective.summary()},
            "overrides": dict(stage.overrides),
        }

    def _image_tokens(self, stage: Stage) -> float | None:
        """Visual tokens of an image, the mean over the stage's first images; None where it has none."""
        samples = stage.task.train[:IMAGES_COUNTED] if stage.task is not None else ()
        images = {image.digest: image for sample in samples for image in sample.images}
        counts = [sum(self.model.picture(image).runs) for image in images.values()]
        return sum(counts) / len(counts) if counts else None

    def _save(self, stage: Stage, manifest: dict[str, Any], folder: Path) -> None:
        final = folder / stage.folder
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            checkpoint.save_tensors(self.model.state(), temporary / "trainable.safetensors")
            state = {
                "methods": {name: method.state_dict() for name, method in self.methods.items()},
                "names": dict(self._names),
                "seen": dict(self.seen),
            }
            checkpoint.save_tree(state, temporary / "state")
            manifest["cost"]["checkpoint_bytes"] = checkpoint.bytes_of(temporary)
            write_json(temporary / "manifest.json", manifest)
            (temporary / checkpoint.DONE).touch()
            checkpoint.replace_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load(self, stage: Stage, stages: Sequence[Stage], folder: Path) -> None:
        """Bring a fresh session to the state after `stage`.

        Args:
            stage: a finished one, or the start.
            stages: of the variant; methods are set up in the order in which they came in.
            folder: of the run.

        Raises:
            UserError: the stage's files are broken or do not fit the recipe.
        """
        if stage.task is not None:
            path = folder / stage.folder
            for earlier in stages[: stage.index + 1]:
                self.method_names(earlier.methods)
            state = checkpoint.load_tree(path / "state")
            if state["names"] != self._names:
                raise UserError("the methods are not those of the recipe", where=str(path))
            for name, method in self.methods.items():
                method.load_state_dict(self.model, state["methods"][name])
            self.model.load_state(checkpoint.load_tensors(path / "trainable.safetensors"))
            self.seen = {name: list(names) for name, names in state["seen"].items()}
        self.at = stage.hash


def describe_methods(specs: Sequence[PluginSpec], methods: Mapping[str, Method]) -> list[dict[str, Any]]:
    """Name, options and need of the task id, for manifests and reports."""
    return [
        {"name": spec.name, "options": dict(spec.options), "needs_task_id": method.needs_task_id}
        for spec, method in zip(specs, methods.values(), strict=True)
    ]
