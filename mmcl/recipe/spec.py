"""What a recipe says, as frozen objects. Standard library only; `mmcl.recipe.load` makes them from YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmcl.data.types import StageKind
from mmcl.recipe.repeats import Repeat, expand

Order = Literal["given", "reversed", "random", "time"]

Number = TypeVar("Number", int, float, "int | None", "float | None")


def _bounded(
    default: Number,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Number:
    """A field with a default and the range that `mmcl.recipe.schema` enforces."""
    bounds = {"least": least, "most": most, "above": above, "below": below}
    result: Number = field(default=default, metadata={key: value for key, value in bounds.items() if value is not None})
    return result


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """A plug-in with options, in YAML `mlp` or `{name: mlp, depth: 2}`.

    Attributes:
        name: the registered name, or `./file.py:Class` relative to the recipe's folder.
        options: keywords of the constructor, as plain YAML values; a plug-in among them as the recipe names it.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def plugin_spec(data: Any) -> PluginSpec | None:
    """The plug-in that YAML data name (`mlp` or `{name: mlp, depth: 2}`); None where they name none."""
    if isinstance(data, str) and data:
        return PluginSpec(data)
    if isinstance(data, Mapping) and isinstance(data.get("name"), str) and all(isinstance(key, str) for key in data):
        return PluginSpec(data["name"], {key: value for key, value in data.items() if key != "name"})
    return None


@dataclass(frozen=True, slots=True)
class LoRASpec:
    """Low-rank adapters of the language model.

    Attributes:
        rank: inner size of the adapters.
        alpha: scale, which is divided by the rank; None means twice the rank.
        dropout: share of the adapter's inputs dropped in training.
        targets: `all-linear`, or the names of the modules that get an adapter.
    """

    rank: int = _bounded(16, least=1)
    alpha: float | None = _bounded(None, above=0)
    dropout: float = _bounded(0.0, least=0, below=1)
    targets: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True, slots=True)
class LanguageSpec:
    """The language model.

    Attributes:
        weights: a name known to `mmcl fetch`, a folder, or a Hugging Face id; with `model.vlm` it has its own.
        lora: adapters, or None for a model without.
        dtype: number format of the weights.
    """

    weights: str = ""
    lora: LoRASpec | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """How turns become text.

    Attributes:
        style: `chat` is the model's chat template, `plain` a simple question-answer layout; `auto` takes the template
            where the tokenizer has one.
        system: system message before the first turn.
    """

    style: Literal["auto", "chat", "plain"] = "auto"
    system: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturesSpec:
    """Where the outputs of a frozen encoder are kept.

    Attributes:
        store: on disk, in the folder MMCL_CACHE, for all runs that use the same encoder; false keeps them in memory.
        dtype: number format. `fp32` is exact; `fp16` takes half and `int8` a quarter of the room, and what they lose is
            measured and told.
        limit_gb: largest size of the store in 10^9 bytes, all encoders together; what was unused longest goes first.
    """

    store: bool = True
    dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    limit_gb: float = _bounded(4.0, above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The assembly: encoder -> projector -> language model, or a ready model of image and text.

    Attributes:
        vlm: a ready model, whose parts are found: a folder, or a Hugging Face id. None: the parts below are needed.
        encoder: the vision encoder; with `vlm` it takes the place of the model's own.
        projector: maps visual features to the language model's width; with `vlm` and `encoder`, `mlp` by default.
        language: the language model; with `vlm`, its adapters and number format.
        encoder_lora: adapters of the vision encoder, or None.
        train: parts that train, of `encoder`, `encoder.lora`, `projector`, `experts`, `language.lora`, `language`, or
            paths into these, such as `encoder.network.blocks.11`.
        prompt: how turns become text.
        packing: rows as trees of shared prefixes (`packed`), or one row per sample (`padded`); `auto` packs where the
            language model can.
        kernels: `lean` runs leaner forms of the language model's modules where they give the same results, `stock` runs
            what transformers and peft have, `compiled` that through `torch.compile` (minutes at the start).
        max_length: longest prompt and answer, in tokens; None means what the language model takes.
        features: where the outputs of a frozen encoder are kept.
    """

    vlm: str | None = None
    encoder: PluginSpec | None = None
    projector: PluginSpec | None = None
    language: LanguageSpec = LanguageSpec()
    encoder_lora: LoRASpec | None = None
    train: tuple[str, ...] = ("projector", "language.lora")
    prompt: PromptSpec = PromptSpec()
    packing: Literal["auto", "packed", "padded"] = "auto"
    kernels: Literal["lean", "stock", "compiled"] = "lean"
    max_length: int | None = _bounded(None, least=1)
    features: FeaturesSpec = FeaturesSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """How a stage trains.

    Attributes:
        epochs: passes over the stage's samples; a fraction stops in between.
        max_steps: stop after so many optimiser steps, if that is earlier.
        batch_size: samples per optimiser step.
        row_tokens: tokens per packed row; None: 1024 on a CPU, 8192 on an accelerator, with the same results.
        learning_rate: peak learning rate.
        learning_rates: peak learning rate of single parts (keys as in `model.train`; the longest that fits counts).
        weight_decay: decoupled weight decay.
        warmup: share of the steps in which the learning rate rises, in [0, 1].
        schedule: how the learning rate falls after the warm-up.
        clip: largest gradient norm; 0 switches clipping off.
        shuffle: `image` keeps the questions of an image together, `sample` does not.
        max_samples: train on the first so many samples of each task.
    """

    epochs: float = _bounded(1.0, above=0)
    max_steps: int | None = _bounded(None, least=1)
    batch_size: int = _bounded(16, least=1)
    row_tokens: int | None = _bounded(None, least=1)
    learning_rate: float = _bounded(1e-4, above=0)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = _bounded(0.0, least=0)
    warmup: float = _bounded(0.03, least=0, most=1)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    clip: float = _bounded(1.0, least=0)
    shuffle: Literal["image", "sample"] = "image"
    max_samples: int | None = _bounded(None, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec:
    """What is asked after each stage.

    Attributes:
        tasks: `seen` asks the tasks trained so far, `all` every task of the stream.
        zero_shot: also ask every task before the first task is trained (row 0 of the matrix).
        max_new_tokens: longest answer, in tokens.
        sample: ask only so many questions of each task, chosen by a hash of their ids: the same on every machine, and
            whatever the order of the file. Scores come with a 95 % interval. None asks all.
        row_tokens: tokens per packed row; None: 1024 on a CPU, 8192 on an accelerator, with the same results.
        answers: `greedy` writes the answer freely; `likelihood` takes the most likely one of the task's choices, or of
            the answers of its training set. Scores of the two can't be compared.
        choices: what `likelihood` chooses from: the `task`'s own choices, or those of all tasks `seen` so far (class-
            incremental: an old class can be a wrong answer to a question about a new one).
        corpus_loss: samples on which the loss of each corpus (`align`, `pretrain`, `domain`) is measured after every
            stage, held-out ones where the stream has some, else training samples; 0 for none.
        curve: measure the task being trained so many times while it trains, for a learning curve.
        reuse: take over answers that are provably the same as at an earlier stage (same weights, route and prompt);
            False asks every question at every stage.
    """

    tasks: Literal["seen", "all"] = "seen"
    zero_shot: bool = True
    max_new_tokens: int = _bounded(16, least=1)
    sample: int | None = _bounded(None, least=1)
    row_tokens: int | None = _bounded(None, least=1)
    answers: Literal["greedy", "likelihood"] = "greedy"
    choices: Literal["task", "seen"] = "task"
    reuse: bool = True
    corpus_loss: int = _bounded(64, least=0)
    curve: int = _bounded(0, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSpec:
    """How the stream's tasks come.

    Attributes:
        order: `time` sorts by the tasks' period tags, `random` shuffles by the recipe's seed.
        cycles: how often the tasks come. A task that returns is a version with a column of its own (`NAME-2`).
        boundaries: between tasks: `clear`; `blurry`, where the share `leak` of a task trains with its neighbours; or
            `none`, where one task fades into the next. Methods that need boundaries refuse the last two.
        leak: share of a task's training samples that train with its neighbours.
    """

    order: Order = "given"
    cycles: int = _bounded(1, least=1)
    boundaries: Literal["clear", "blurry", "none"] = "clear"
    leak: float = _bounded(0.2, least=0, most=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectSpec:
    """Which of a stage's samples are worth training on; what is left out is listed in the stage's manifest.

    Attributes:
        dedupe: leave out samples whose images and texts occurred before, in this stage or an earlier one.
        min_tokens: fewest supervised tokens.
        max_tokens: most tokens in all, those of images included.
        min_loss: lowest loss per token before the stage; easier samples are left out.
        max_loss: highest loss per token before the stage; noise is left out.
    """

    dedupe: bool = False
    min_tokens: int | None = _bounded(None, least=1)
    max_tokens: int | None = _bounded(None, least=1)
    min_loss: float | None = _bounded(None, least=0)
    max_loss: float | None = _bounded(None, above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One entry of `stages`: tasks that are trained one after another in the same way.

    Attributes:
        kind: place on the vertical axis.
        tasks: names of the tasks in order; None means all tasks of the stream that are meant for this kind.
        together: train the tasks as one, each with its own column.
        methods: continual-learning methods; None means the recipe's.
        objective: what is trained; None means the kind's.
        train: keys of `TrainSpec` that differ from the recipe's.
        trainable: parts that train; None means `model.train`.
        select: which samples are trained on; None means all.
    """

    kind: StageKind = "instruct"
    tasks: tuple[str, ...] | None = None
    together: bool = False
    methods: tuple[PluginSpec, ...] | None = None
    objective: PluginSpec | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    trainable: tuple[str, ...] | None = None
    select: SelectSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole experiment.

    Attributes:
        name: names the run's folder.
        seed: of everything random that has no seed of its own.
        model: the assembly.
        stream: the tasks.
        setting: how they come.
        probes: streams whose test questions are asked after every stage to see what general ability is lost; they are
            reported apart from the matrix, and never trained on.
        stages: in order.
        methods: continual-learning methods, composed in order.
        train: how stages train.
        evaluate: what is asked after each stage.
        variants: named overrides of the recipe.
        seeds: run every variant with each of these seeds; its report gives means and intervals.
        orders: run every variant with the tasks in each of these orders (see `setting.order`).
        folder: relative paths and `./file.py:Class` start here: the folder of the recipe's file.
    """

    name: str
    seed: int = _bounded(0, least=0)
    model: ModelSpec
    stream: PluginSpec
    setting: SettingSpec = SettingSpec()
    probes: tuple[PluginSpec, ...] = ()
    stages: tuple[StageSpec, ...] = (StageSpec(),)
    methods: tuple[PluginSpec, ...] = (PluginSpec("finetune"),)
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    orders: tuple[Order, ...] = ()
    folder: Path = Path()

    @property
    def repeats(self) -> Mapping[str, Repeat]:
        """Every variant with every seed and order, by name; `default` alone where the recipe has none of these."""
        return expand(self.variants, self.seeds, self.orders)

    @property
    def variant_names(self) -> tuple[str, ...]:
        """Names of the runs: of the variants, in order, each with every seed and order."""
        return tuple(self.repeats)

    def runs_of(self, name: str) -> tuple[str, ...]:
        """The runs of a variant, with every seed and order; of a single run's name, that run.

        Raises:
            UserError: there is neither.
        """
        runs = tuple(run for run, repeat in self.repeats.items() if name in (run, repeat.group))
        for run in runs or (name,):
            self.variant(run)
        return runs

    def variant(self, name: str) -> Recipe:
        """The recipe with the overrides of one variant, and without variants, seeds and orders.

        Args:
            name: one of `variant_names`.

        Raises:
            UserError: there is no such variant, or its overrides make no valid recipe.
        """
        from mmcl.recipe.load import resolve_variant  # the loader imports this module

        return resolve_variant(self, name)

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe in plain YAML types; `recipe_from_dict` reads it back."""
        return {**_plain(self), "folder": str(self.folder.resolve())}


def _plain(value: Any) -> Any:
    if isinstance(value, PluginSpec):
        return {"name": value.name, **{key: _plain(option) for key, option in value.options.items()}}
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
