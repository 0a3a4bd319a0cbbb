"""One projector expert per task, and a router that chooses one for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mmcl.data.types import Samples, Task
from mmcl.errors import Problem, UserError
from mmcl.methods.expert_units import ResidualUnit, Unit, check_unit, expert_name, make_unit, unit_parameters
from mmcl.methods.routers import (
    PARTS,
    Matcher,
    Part,
    Prototype,
    Vectors,
    fit_keys,
    image_scale,
    mean_vectors,
    prototype,
    sample_vectors,
    thresholds,
)
from mmcl.protocols import BASE, Method, Model, Route

MEASURED = 64
"""Images on which the input of a residual expert is standardised."""
Decision = Literal["both", "image", "text"]


class ProjectorExperts(Method):
    """A projector expert per task beside the frozen base projector, chosen per sample by a router.

    Per-task copies of the projector with key routing are EProj (He et al., 2311.16206); the mixture with the base
    projector is MVP (2508.00260); prototypes by image and instruction, and an expert paired with a LoRA adapter, follow
    HiDe-LLaVA (2503.12941). While a task trains, only its own expert (and adapter) trains, and whatever the recipe
    trains beside the projector. Earlier experts stay as they are, so replayed rows reach shared parts only. With a
    shared LoRA that trains, experts alone do not prevent forgetting; with `freeze_shared` and router `oracle`,
    forgetting is 0.

    A task's prototype is made at its end from its own training samples, without training and without old data. Samples
    are routed one by one; the task of a test sample is read by router `oracle` alone. Candidates are the experts whose
    task is done, if its training samples had the parts (image, text) that decide.

    Deviations. EProj also offers experts that are not learned yet. MVP weights the experts by a trained router and its
    tokens, 1/(K+1) (P(x) + sum_j w_j E_j(x)), shrink with K; here the weights come from nearness, base gets 1/(K+1) and
    the experts share K/(K+1), so that the weights sum to 1. HiDe takes plain cosines; see `calibrated`.

    Args:
        unit: `copy` of the base projector; `lora` on its linear layers; `residual`, P(x) + E(x) with E = 0 at first.
        rank: of the LoRA updates, or width of the residual's bottleneck.
        init: where a new expert starts: `base`; the `nearest` earlier expert, if nearer than `init_threshold`; the
            `last`.
        init_threshold: least nearness of tasks for `init: nearest`; below it the expert starts from base.
        expansion: `always` a new expert, or by `similarity`: a task at least `tau` near to an earlier one trains that
            task's expert further.
        tau: least nearness of tasks for reuse; 1 is the same task, 0 as far as a usual sample is from its prototype.
        router: `prototype` takes the nearest; `key` the nearest learned key; `mixture` averages experts by nearness;
            `oracle` is told the task; `base` never takes an expert.
        text_weight: a in nearness = a * text + (1 - a) * image.
        calibrated: divide cosine distances by their usual size within tasks, and image channels by their deviation in
            the first task; False compares plain cosines.
        temperature: of the mixture's softmax over nearness.
        top_k: the mixture takes this many experts, and base beside them; None takes all experts, without base.
        fallback: share of a task's own training samples that would be sent to base; test samples less near than that
            are. None never falls back.
        adapter: pair each expert with a LoRA adapter of the language model, under the same route. A mixture uses the
            adapter of its largest weight.
        freeze_shared: train nothing but the task's expert (and adapter).
        key_steps: optimisation steps for a task's keys.
        key_learning_rate: their learning rate.

    Raises:
        UserError: an option is out of its range; all such problems at once.
    """

    owns = frozenset({"route", "projector"})

    def __init__(
        self,
        *,
        unit: Unit = "copy",
        rank: int = 16,
        init: Literal["base", "nearest", "last"] = "base",
        init_threshold: float = 0.0,
        expansion: Literal["always", "similarity"] = "always",
        tau: float = 0.9,
        router: Literal["prototype", "key", "mixture", "oracle", "base"] = "prototype",
        text_weight: float = 0.5,
        calibrated: bool = True,
        temperature: float = 0.1,
        top_k: int | None = None,
        fallback: float | None = 0.01,
        adapter: bool = False,
        freeze_shared: bool = False,
        key_steps: int = 2000,
        key_learning_rate: float = 0.01,
    ) -> None:
        ranges = [
            ("rank", rank, rank >= 1, "at least 1"),
            ("tau", tau, tau <= 1, "at most 1"),
            ("text_weight", text_weight, 0 <= text_weight <= 1, "between 0 and 1"),
            ("temperature", temperature, temperature > 0, "above 0"),
            ("top_k", top_k, top_k is None or top_k >= 1, "at least 1, or null"),
            ("fallback", fallback, fallback is None or 0 <= fallback < 1, "at least 0 and below 1, or null"),
            ("key_steps", key_steps, key_steps >= 1, "at least 1"),
            ("key_learning_rate", key_learning_rate, key_learning_rate > 0, "above 0"),
        ]
        problems = [
            Problem(f"projector_experts.{name}", f"{value} is out of range", f"make it {wanted}")
            for name, value, fits, wanted in ranges
            if not fits
        ]
        if problems:
            raise UserError(problems=problems)
        self.unit, self.rank = unit, rank
        self.init, self.init_threshold = init, init_threshold
        self.expansion, self.tau = expansion, tau
        self.router, self.text_weight, self.calibrated = router, text_weight, calibrated
        self.temperature, self.top_k, self.fallback = temperature, top_k, fallback
        self.adapter, self.freeze_shared = adapter, freeze_shared
        self.key_steps, self.key_learning_rate = key_steps, key_learning_rate
        # Declared per class in general; here it depends on an option.
        self.needs_task_id = router == "oracle"  # type: ignore[misc]
        self._units: dict[str, dict[str, Any]] = {}  # expert -> how to make it again
        self._experts: dict[str, str] = {}  # task -> its expert
        self._guests: dict[str, str] = {}  # task without an expert whose samples came in another's stage -> that expert
        self._prototypes: dict[str, Prototype] = {}  # task -> prototype, in the order in which they were learned
        self._scale: Tensor | None = None  # deviations of image channels, measured once

    # ------------------------------------------------------------------------------------------------------- training

    def setup(self, model: Model) -> None:
        """Check that the base projector can have such experts.

        Raises:
            UserError: it can't.
        """
        check_unit(self.unit, model.projector, **_sizes(model))

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Give the task an expert, new or reused, and let that train.

        A task that comes again trains its own expert further. Samples of other tasks in the task's training set train
        this expert too, unless their task has one.

        Raises:
            UserError: the recipe trains base or an earlier expert through a pattern such as `*`, or the features that
                routes compare.
        """
        if task.name not in self._experts:
            self._experts[task.name] = self._choose(model, task)
            self._guests.pop(task.name, None)
        expert = self._experts[task.name]
        for name in sorted({sample.task for sample in task.train} - self._experts.keys()):
            self._guests[name] = expert
        recipe = () if self.freeze_shared else model.recipe_train
        shared = [pattern for pattern in recipe if pattern.split(".")[0] not in ("projector", "experts")]
        own = [f"experts.{expert}", f"language.lora.{expert}"] if self.adapter else [f"experts.{expert}"]
        model.set_trainable([*shared, *own])
        self._check_isolated(model, expert)
        self._check_frozen(model)

    def _choose(self, model: Model, task: Task) -> str:
        """Name of the expert for a new task."""
        nearest, near = "", -torch.inf
        if self._prototypes and (self.expansion == "similarity" or self.init == "nearest"):
            scores = self._matcher().between(prototype(mean_vectors(model, task.train, self._scale)))
            best = int(scores.argmax())
            nearest, near = self._experts[list(self._prototypes)[best]], float(scores[best])
        if self.expansion == "similarity" and near >= self.tau:
            return nearest
        source = ""
        if self.init == "nearest" and near > self.init_threshold:
            source = nearest
        elif self.init == "last" and self._units:
            source = list(self._units)[-1]
        name = expert_name(task.name, self._units)
        self._add(model, name, {"unit": self.unit, "rank": self.rank})
        unit = model.experts[name]
        images = list({image.digest: image for sample in task.train for image in sample.images}.values())
        if isinstance(unit, ResidualUnit) and images:
            features = torch.cat(model.image_features(images[:MEASURED]))
            unit.measure(features.view(-1, model.encoder_info.tokens, features.shape[-1]))
        if source:
            unit.load_state_dict(model.experts[source].state_dict())
        return name

    def _add(self, model: Model, name: str, how: Mapping[str, Any]) -> None:
        self._units[name] = dict(how)
        module = make_unit(how["unit"], model.projector, name=name, rank=how["rank"], **_sizes(model))
        model.add_expert(name, module)
        if self.adapter:
            model.add_adapter(name)

    def _check_isolated(self, model: Model, expert: str) -> None:
        others = [f".{name}." for name in self._units if name != expert]
        for name in model.trainable():
            part, _, rest = name.partition(".")
            stray = part == "projector" or (part == "experts" and not rest.startswith(expert + "."))
            if stray or (".lora_" in name and any(other in name for other in others)):
                raise UserError(
                    f"`{name}` must stay frozen while expert `{expert}` trains, but the recipe trains it",
                    where="model.train",
                    hint="name parts, such as `language.lora`, instead of a pattern that also means this",
                )

    def _check_frozen(self, model: Model) -> None:
        if not self._keeps_prototypes():
            return
        embedding = cast(Any, model.language).get_input_embeddings()
        moving = {
            "image": any(name.startswith("encoder.") for name in model.trainable()),
            "text": any(parameter.requires_grad for parameter in embedding.parameters()),
        }
        names = {"image": "the encoder", "text": "the language model's input embeddings"}
        weights = {"image": 1 - self.text_weight, "text": self.text_weight}
        for part in PARTS:
            if moving[part] and weights[part]:
                raise UserError(
                    f"routes compare features of {names[part]}, so it must stay frozen, but it trains",
                    where="model.train",
                    hint="leave it out of `model.train`, or set `freeze_shared: true` or `router: oracle`",
                )

    def assign(self, model: Model, samples: Samples) -> Sequence[Route]:
        """Each sample to the expert of its own task; to base where that has none."""
        return [self._route(self.expert_of(sample.task)) for sample in samples]

    def end_task(self, model: Model, task: Task) -> None:
        """Make the task's prototype (or keys), and the thresholds of the fallback."""
        if not self._keeps_prototypes():
            return
        if self.calibrated and self._scale is None:
            self._scale = image_scale(model, task.train)
        mean = mean_vectors(model, task.train, self._scale)
        keys = None
        if self.router == "key":
            keys = fit_keys(mean, steps=self.key_steps, learning_rate=self.key_learning_rate)
        made = prototype(mean, keys=keys)
        if self.fallback is not None:
            alone = self._matcher({task.name: made})
            limits = thresholds(model, task.train, self._scale, alone, task.name, self.fallback)
            made = Prototype(made.anchors, made.spread, limits)
        self._prototypes[task.name] = made

    # -------------------------------------------------------------------------------------------------------- routing

    def select(self, model: Model, samples: Samples) -> Sequence[Route]:
        """A route per sample, which depends on that sample alone."""
        if self.router == "oracle":
            return self.assign(model, samples)
        if self.router == "base" or not self._prototypes:
            return [BASE] * len(samples)
        matcher = self._matcher()
        return [self._decide(matcher, vectors) for vectors in sample_vectors(model, samples, self._scale)]

    def decisions(self, model: Model, samples: Samples) -> Mapping[Decision, Sequence[str]]:
        """Labels of the routes by both parts, by the image alone and by the text alone, for the report.

        Routers `oracle` and `base` compare nothing and give an empty mapping. The true label of a sample is
        `expert_of(sample.task)`.
        """
        if self.router in ("oracle", "base") or not self._prototypes:
            return {}
        matcher = self._matcher()
        labels: dict[Decision, list[str]] = {"both": [], "image": [], "text": []}
        for vectors in sample_vectors(model, samples, self._scale):
            labels["both"].append(self._decide(matcher, vectors).label)
            for part in PARTS:
                labels[part].append(self._decide(matcher, vectors, part).label)
        return labels

    def expert_of(self, task: str) -> str:
        """Name of the expert that the task's samples train and should be routed to; `base` if there is none."""
        return self._experts.get(task) or self._guests.get(task, "base")

    def _decide(self, matcher: Matcher, vectors: Vectors, only: Part | None = None) -> Route:
        parts = matcher.parts(vectors, only)
        if not parts:
            return BASE
        near = matcher.nearness(vectors, parts)
        best = int(near.argmax())
        task = matcher.tasks[best]
        if near[best] == -torch.inf or not matcher.accepts(vectors, parts, task):
            return BASE
        return self._route(self._experts[task]) if self.router != "mixture" else self._mix(matcher, near)

    def _mix(self, matcher: Matcher, near: Tensor) -> Route:
        """Weights by softmax(nearness / temperature); an expert of several tasks is as near as the nearest of them."""
        by_expert: dict[str, float] = {}
        for task, value in zip(matcher.tasks, near.tolist(), strict=True):
            expert = self._experts[task]
            by_expert[expert] = max(value, by_expert.get(expert, -torch.inf))
        names = sorted((name for name in by_expert if by_expert[name] > -torch.inf), key=lambda name: -by_expert[name])
        names = names[: self.top_k]
        weights = (
            torch.tensor([by_expert[name] for name in names], dtype=torch.float64).div(self.temperature).softmax(0)
        )
        share = 1.0 if self.top_k is None else len(names) / (len(names) + 1)
        mixed = [(name, share * weight) for name, weight in zip(names, weights.tolist(), strict=True)]
        if self.top_k is not None:
            mixed.append(("base", 1 - share))
        return Route(tuple(mixed), (names[0],) if self.adapter else ())

    def _route(self, expert: str) -> Route:
        return BASE if expert == "base" else Route(((expert, 1.0),), (expert,) if self.adapter else ())

    def _matcher(self, prototypes: Mapping[str, Prototype] | None = None) -> Matcher:
        known = self._prototypes if prototypes is None else prototypes
        return Matcher(known, text_weight=self.text_weight, calibrated=self.calibrated)

    def _keeps_prototypes(self) -> bool:
        routed = self.router in ("prototype", "key", "mixture")
        return routed or self.expansion == "similarity" or self.init == "nearest"

    # ---------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """How the experts are made, which task has which, and the prototypes; the core keeps the experts' values."""
        return {
            "units": {name: dict(how) for name, how in self._units.items()},
            "experts": dict(self._experts),
            "guests": dict(self._guests),
            "prototypes": {task: known.state() for task, known in self._prototypes.items()},
            "scale": self._scale,
        }

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse; adds the experts (and adapters) to the model."""
        for name, how in state["units"].items():
            self._add(model, name, how)
        self._experts = dict(state["experts"])
        self._guests = dict(state["guests"])
        self._prototypes = {task: Prototype.from_state(known) for task, known in state["prototypes"].items()}
        self._scale = state["scale"]

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes of the prototypes or keys, and of the deviations of image channels."""
        if not self._keeps_prototypes():
            return {}
        name = "keys" if self.router == "key" else "prototypes"
        scale = 0 if self._scale is None else self._scale.numel() * self._scale.element_size()
        return {name: sum(known.nbytes for known in self._prototypes.values()), "scale": scale}

    def growth(self, model: Model) -> Mapping[str, int]:
        """What one more task adds, from sizes alone: `parameters` of its expert and `bytes` of its prototype.

        The adapter is not counted. The bytes are those of a task whose samples have an image and a text.
        """
        parameters = unit_parameters(self.unit, model.projector, rank=self.rank, **_sizes(model))
        text_width = int(model.text_features(["?"]).shape[1])
        numbers = 2 + (0 if self.fallback is None else 3)
        kept = 4 * (model.encoder_info.width + text_width) + 8 * numbers if self._keeps_prototypes() else 0
        return {"parameters": parameters, "bytes": kept}


def _sizes(model: Model) -> dict[str, int]:
    return {"tokens": model.encoder_info.tokens, "width": model.encoder_info.width}
