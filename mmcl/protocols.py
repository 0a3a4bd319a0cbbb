"""The whole plug-in contract on one page; plug-ins import this module and `mmcl.data.types`, nothing else of mmcl.

A constructor's keyword annotated `Encoder` or `tuple[Encoder, ...]` (or any contract here) takes plug-ins by name.
Shapes: B rows of a batch, L positions of a row, N supervised positions of a batch, V vocabulary, I images, T visual
tokens of one image, W width of the encoder, D width of the language model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, device, nn
from torch.nn.functional import cross_entropy

from mmcl.data.types import ImageSource, Sample, Samples, Task
from mmcl.errors import Problem

if TYPE_CHECKING:
    from PIL.Image import Image

# --------------------------------------------------------------------------------------------------------- model parts


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What an encoder promises.

    Attributes:
        tokens: visual tokens per image (T).
        width: size of each token (W).
        image_size: height = width, in pixels, of the image that the encoder sees.
        source: where the weights come from, such as `timm:vit_base_patch16_siglip_224`, or `random:<seed>`.
        pixels: the shape of what `transform` returns, where that is not [3, image_size, image_size].
    """

    tokens: int
    width: int
    image_size: int
    source: str
    pixels: tuple[int, ...] = ()

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """The shape of what `transform` returns."""
        return self.pixels or (3, self.image_size, self.image_size)


@runtime_checkable
class Encoder(Protocol):
    """A vision encoder: any `nn.Module` with these, no base class needed. The core adds its weights' fingerprint.

    With a method `views((width, height)) -> int`, an image is seen in that many views: `transform` then gives [views,
    *info.pixel_shape], and the image's tokens follow view by view. With `grid((width, height)) -> (rows, columns)`, an
    image is seen as one, in its own shape: `transform` gives [rows, columns, *info.pixel_shape], `forward` takes that
    of a single image, and the features [rows * columns, T, W] follow row by row.
    """

    info: EncoderInfo

    def transform(self) -> Callable[[Image], Tensor]:
        """A picklable function from an RGB image to float32 of `info.pixel_shape`: preprocessing goes with weights."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [I, *info.pixel_shape] -> features [I, T, W]."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is asked of each of I images: input embeddings, without gradient, and where there is a token."""

    embeddings: Tensor  # [I, S, D]
    present: Tensor  # bool [I, S]


@runtime_checkable
class Projector(Protocol):
    """A projector: any `nn.Module` whose constructor takes `in_width` and `out_width` among its keywords.

    If it also has `calibrate(features, spread)`, the core calls that before the first training on images, with encoder
    features [I, T, in_width] of some of these and the standard deviation of the language model's input embeddings.
    If its `reads_text` is true, `forward` takes a `Text` as its second argument (None where there is none).
    """

    def tokens(self, tokens_in: int) -> int:
        """How many tokens leave when `tokens_in` enter."""

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, T, in_width] -> tokens [I, tokens(T), out_width]."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which expert parts a sample goes through.

    `experts` are projector experts with weights that sum to 1; `base` is the base projector, which empty means alone.
    `adapters` are names of LoRA adapters that are active beside the shared one.
    """

    experts: tuple[tuple[str, float], ...] = ()
    adapters: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For reports: the expert with the largest weight, or `base`."""
        return max(self.experts, key=lambda pair: pair[1])[0] if self.experts else "base"


BASE = Route()


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed or padded rows, ready for the language model.

    A packed batch is one row (B = 1) that holds several documents: each document's images and shared prefix once, then
    every question with its answer as a branch that sees the prefix and itself, never its siblings. A padded batch has
    one row per sample. Both give the same loss and gradients.

    Attributes:
        samples: the samples, in a fixed order; other fields refer to them by index.
        routes: one per sample.
        input_ids: [B, L]; image slots and padding hold the padding token.
        position_ids: [B, L], or [3, B, L] where the language model has positions in time, height and width; a branch
            continues the positions of its prefix.
        visible: bool [B, L, L]; True where a query position (dim 1) may attend to a key position (dim 2).
        block: long [B, L]; positions of one block (>= 0) see each other, both ways; -1 where attention is causal.
        owner: long [B, L]; index of a position's sample (of a prefix too that it alone uses), -1 if shared or padding.
        is_image: bool [B, L]; True at image slots.
        is_padding: bool [B, L]; True at padding.
        images: the images to encode, one entry per image and expert route (and question, where the projector reads it).
        image_routes: the route of each entry of `images`.
        image_texts: what the projector reads beside each entry of `images`; empty where it reads no text.
        image_slots: one (row, start, entry of `images`, first, count) per place where `count` visual tokens of an image
            are spliced in, from its token `first` on.
        where: long [N]; flat positions (row * L + column) whose next token is supervised.
        targets: long [N]; the supervised tokens.
        target_sample: long [N]; index of the sample of each target.
        lengths: of a packed row's documents, in order, or of a padded batch's rows.
    """

    samples: tuple[Sample, ...]
    routes: tuple[Route, ...]
    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    block: Tensor
    owner: Tensor
    is_image: Tensor
    is_padding: Tensor
    images: tuple[ImageSource, ...]
    image_routes: tuple[Route, ...]
    image_texts: tuple[str, ...]
    image_slots: tuple[tuple[int, int, int, int, int], ...]
    where: Tensor
    targets: Tensor
    target_sample: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """Logits at the supervised positions, in order; if asked for, hidden states after the embedding and each layer."""

    logits: Tensor  # [N, V]
    hidden: tuple[Tensor, ...] = ()  # each [B, L, D]


@dataclass(frozen=True, slots=True)
class LossSum:
    """A part of the loss as a sum and what to divide it by, once per optimiser step over all of its batches."""

    total: Tensor  # a scalar with a gradient, already multiplied by the part's weight
    count: float  # how many things were summed (tokens, samples; 1 for a penalty), as `Method.loss_counts` said


class Model(Protocol):
    """The assembled model, as methods see it (`mmcl.model.assembly.Assembly`)."""

    encoder: nn.Module
    encoder_info: EncoderInfo
    fingerprint: str
    projector: nn.Module
    experts: nn.ModuleDict
    recipe_train: tuple[str, ...]  # the parts that the recipe trains in this stage

    @property
    def language(self) -> nn.Module:
        """The causal language model, adapters included."""

    @property
    def device(self) -> device:
        """Where the language model lives."""

    def forward(self, batch: Batch, *, hidden: bool = False) -> Output:
        """Run the batch; with `hidden`, also return hidden states."""

    def pack(
        self, samples: Samples, routes: Sequence[Route], *, supervise: Sequence[Sequence[bool]] | None = None
    ) -> list[Batch]:
        """Make batches for a forward pass of whole samples; `supervise` says which turns (default: the assistant's)."""

    def generate(self, samples: Samples, routes: Sequence[Route] | None = None) -> list[str]:
        """Greedy answers to the last user turn of each sample, in order."""

    def image_features(self, images: Sequence[ImageSource]) -> list[Tensor]:
        """Encoder output of each image, [views * T, W] float32 on the device, computed once while it is frozen."""

    def views(self, image: ImageSource) -> int:
        """How many times the encoder looks at this image (1 but for encoders with `views`)."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Frozen text embedding [len(texts), D]: the mean of the language model's input embeddings of each text."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train now, by their full name (`projector.…`, `experts.NAME.…`, `language.…`)."""

    def set_trainable(self, patterns: Iterable[str]) -> None:
        """Only these parts train: `encoder`, `projector`, `experts.NAME`, `language.lora`[`.NAME`], `language`."""

    def add_expert(self, name: str, module: nn.Module) -> None:
        """Add a projector expert: it maps features [I, T, W] to the base projector's output shape."""

    def remove_expert(self, name: str) -> None:
        """Forget an expert of that name."""

    def add_adapter(self, name: str) -> None:
        """Add a LoRA adapter with the recipe's LoRA settings, a no-op at initialisation, inactive unless routed to."""

    def snapshot(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Copies of the named parameters (default: those that train now)."""

    def using(self, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside the context the named parameters have these values (a teacher); afterwards their own again."""


# ------------------------------------------------------------------------------------------------------------- methods


class Method:
    """A continual-learning method. Every hook is a no-op; a recipe lists several and they compose in order.

    Class attributes:
        needs_task_id: True if `select` reads the task at test time (an oracle); every report says so.
        owns: what only one method of a list may own, such as `route`; a clash is refused before anything loads.
        needs_boundaries: False if the method works on a stream without task boundaries (may depend on its options).
    """

    needs_task_id: ClassVar[bool] = False
    needs_boundaries: ClassVar[bool] = True
    owns: ClassVar[frozenset[str]] = frozenset()

    def setup(self, model: Model) -> None:
        """Once, before the method's first stage: add parameters, choose what trains."""

    def begin_task(self, model: Model, task: Task, seen: Sequence[Task]) -> None:
        """Before a task: grow, freeze, take a teacher. `seen`: the earlier tasks; their data are for `joint` only."""

    def training_samples(self, model: Model, task: Task, samples: Samples, rng: random.Random) -> Samples:
        """Before each epoch: what to train on, in order. `samples` are the task's own, shuffled; replay mixes here."""
        return samples

    def assign(self, model: Model, samples: Samples) -> Sequence[Route] | None:
        """Routes of training samples (their task may be read), asked before each step. None: no opinion."""
        return None

    def needs_hidden(self) -> bool:
        """Whether `loss` reads hidden states in the current task."""
        return False

    def loss_counts(self, batch: Batch) -> Mapping[str, float]:
        """The count of each part that `loss` will return for this batch, known without running the model."""
        return {}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """Named parts that are added to the objective's loss. The names must be those of `loss_counts`."""
        return {}

    def after_backward(self, model: Model) -> None:
        """Before the optimiser step, when gradients are complete: gradient projection."""

    def end_task(self, model: Model, task: Task) -> None:
        """After a task: fill the memory, Fisher, prototypes."""

    def select(self, model: Model, samples: Samples) -> Sequence[Route] | None:
        """Test time: each sample's experts, on its own; `Sample.hidden` unless `needs_task_id`. None: no opinion."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must survive: nested dicts and lists of tensors, numbers, strings, bytes and None."""
        return {}

    def load_state_dict(self, model: Model, state: Mapping[str, Any]) -> None:
        """The reverse, on a fresh method after `setup`: make experts and adapters anew; the core loads their values."""

    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes that the method keeps between tasks beside model parameters, by name, such as {"memory": 120_000}."""
        return {}


# ------------------------------------------------------------------------------------ objectives, metrics, data sources


class Objective:
    """What a stage trains: which positions are supervised, and the loss over them."""

    def begin(self, model: Model, samples: Samples, routes: Sequence[Route]) -> None:
        """Before the first step: all that the stage will train on; the model is still the stage's parent."""

    def rows(self, sample: Sample) -> Samples:
        """What goes through the model for a sample; they keep its id, and one batch holds them all."""
        return (sample,)

    def supervise(self, row: Sample) -> tuple[bool, ...]:
        """For each turn of a row, whether its tokens are supervised. Default: the assistant's."""
        return tuple(turn.role == "assistant" for turn in row.turns)

    def counts(self, batch: Batch) -> Mapping[str, float]:
        """The count of each part that `loss` will return, known without running the model."""
        return {"tokens": float(len(batch.targets))}

    def loss(self, model: Model, batch: Batch, out: Output) -> Mapping[str, LossSum]:
        """Named parts, which are added. The names must be those of `counts`. Default: cross-entropy of the targets."""
        wanted = batch.targets.to(out.logits.device)
        return {"tokens": LossSum(cross_entropy(out.logits.float(), wanted, reduction="sum"), len(wanted))}

    def summary(self) -> Mapping[str, float]:
        """After the stage: what is worth writing into its manifest."""
        return {}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question asked and the answer given.

    Attributes:
        id: of the sample.
        task: of the sample.
        prompt: the question as asked, without special tokens.
        text: the model's answer.
        answers: the references.
        route: label of the route taken.
        group: the sample's question group.
        images: names of the images.
        metadata: further keys for answer files and metrics.
    """

    id: str
    task: str
    prompt: str
    text: str
    answers: tuple[str, ...]
    route: str = "base"
    group: str = ""
    images: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of all questions asked."""

    rows: tuple[float, ...]  # per question, in [0, 1], higher is better
    corpus: float  # of the whole set, normally the mean of the rows (0 for no rows)
    details: Mapping[str, float] = field(default_factory=dict)  # further values of the whole set, by name


class Metric(Protocol):
    """A metric: constructed with `mode`, `strict` or `paper`, where the two differ."""

    definition: str  # one line that is printed with the value
    follows: str  # the reference (paper, script) that the mode follows

    def __call__(self, rows: Sequence[Prediction]) -> Score:
        """Score every row; an empty answer is wrong, no row is dropped."""


class Format(Protocol):
    """A file format that holds samples."""

    def sniff(self, path: Path) -> bool:
        """Whether the file looks like this format; cheap, raises nothing."""

    def read(self, path: Path, *, task: str, images: Path | None) -> Samples:
        """Samples of the file, all mistakes at once as a UserError that names file, row and key."""

    def validate(self, path: Path, *, task: str, images: Path | None) -> list[Problem]:
        """Every mistake in the file, without raising."""


class Stream(Protocol):
    """A sequence of tasks. The constructor's keywords are its options in the recipe."""

    def tasks(self) -> Sequence[Task]:
        """The tasks in order. Deterministic: the same options give the same samples on every machine."""
