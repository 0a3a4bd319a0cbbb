"""The assembled model: encoder -> projector (and its experts) -> language model (and its adapters).

Shapes: B rows, L positions, N supervised positions, V vocabulary, I images, T visual tokens, W and D widths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmcl.data.types import ImageSource, Sample, Samples
from mmcl.errors import UserError
from mmcl.model.adapters import Adapters
from mmcl.model.attention import SHORT_ROW, Layout, attend_by_document, documents_apart, layout_of
from mmcl.model.capability import context_length, packs
from mmcl.model.features import IN_MEMORY, Features, fingerprint, run_encoder
from mmcl.model.kernels import lean_norms
from mmcl.model.layout import ImageLayout
from mmcl.model.masks import Mask, Masks
from mmcl.model.packing import Item, expand, pack, padded, same_block
from mmcl.model.parts import check_state, select_parameters
from mmcl.model.prompt import Encoded, Picture, Prompt
from mmcl.model.visual import questions, spliced
from mmcl.protocols import BASE, Batch, Encoder, EncoderInfo, Output, Projector, Route, Text
from mmcl.recipe.spec import FeaturesSpec, LoRASpec

CALIBRATION_IMAGES = 256


class Assembly(nn.Module):
    """A vision encoder, a projector and a causal language model as one trainable model.

    Args:
        encoder: follows `mmcl.protocols.Encoder`.
        projector: maps [I, T, W] to [I, tokens(T), D].
        language: any causal language model of transformers.
        tokenizer: of the language model.
        lora: adds a shared LoRA adapter (and allows `add_adapter`); None for none.
        train: the parts that train, such as `("projector", "language.lora")`; see `set_trainable`.
        prompt: how conversations become tokens; default: `Prompt(tokenizer)`.
        packing: `auto` packs where the language model can (see `mmcl.model.capability`); `packed` or `padded` insist.
        kernels: `lean` replaces modules of the language model by leaner forms where those give the same results (see
            `mmcl.model.kernels` and `mmcl.model.attention`); `stock` leaves all as it is; `compiled` is stock through
            `torch.compile`.
        max_length: longest sample in tokens; default: the language model's context.
        row_tokens: length of a packed row, for calls that do not say; None: what suits the device.
        features: where the outputs of a frozen encoder are kept; default: in memory.
        layout: how images become tokens where that is not the encoder's views one after another (ready VLMs).
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        projector: nn.Module,
        language: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lora: LoRASpec | None = None,
        train: Sequence[str] = ("projector", "language.lora"),
        prompt: Prompt | None = None,
        packing: str = "auto",
        kernels: str = "lean",
        max_length: int | None = None,
        row_tokens: int | None = None,
        features: FeaturesSpec = IN_MEMORY,
        layout: ImageLayout | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.experts = nn.ModuleDict()
        self.language = language
        self.tokenizer = tokenizer
        self.prompt = prompt or Prompt(tokenizer)
        self.encoder_info: EncoderInfo = cast(Encoder, encoder).info
        self.fingerprint = fingerprint(encoder, self.encoder_info.source)
        self.visual_tokens = cast(Projector, projector).tokens(self.encoder_info.tokens)
        self.packed = packs(language, packing)
        self.image_layout = layout or ImageLayout()
        self.masks = Masks(language)
        # A ready VLM's positions and blocks are told explicitly, in padded rows too.
        self.explicit = self.packed or layout is not None
        self.max_length = max_length or context_length(language)
        self._row_tokens = row_tokens
        self.recipe_train = tuple(train)
        self.max_new_tokens = 16
        self.features = Features(encoder, features, self.fingerprint)
        self._changed: set[str] = set()
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        lean = kernels == "lean"
        if lean:
            lean_norms(language)
        self.apart = lean and self.packed and self.masks.window is None and attend_by_document(language)
        self.adapters = Adapters(language, lora, lean=lean)
        if kernels == "compiled":
            language.compile(dynamic=True)  # rows differ in length
        self.set_trainable(train)
        self.eval()

    # ------------------------------------------------------------------------------------------------ what trains

    @property
    def device(self) -> torch.device:
        """Where the language model lives."""
        return next(self.language.parameters()).device

    @property
    def row_tokens(self) -> int:
        """Length of a packed row, for calls that do not say. Only long rows keep an accelerator busy."""
        return self._row_tokens or (1024 if self.device.type == "cpu" else 8192)

    @property
    def _embedding(self) -> nn.Embedding:
        """The language model's input embeddings."""
        return cast(nn.Embedding, self.language.get_input_embeddings())

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train now, by full name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def set_trainable(self, patterns: Iterable[str]) -> None:
        """Exactly the parameters that the patterns name train from now on (`mmcl.model.parts`).

        Raises:
            UserError: a pattern names nothing.
        """
        chosen = select_parameters(dict(self.named_parameters()), patterns)
        if self.encoder_trains:  # until now: its features and its identity may have changed
            self.renew_features()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
            if name not in chosen:
                parameter.grad = None
        self._changed |= chosen
        self.train(self.training)

    def train(self, mode: bool = True) -> Assembly:
        """As usual, but a frozen encoder stays in evaluation mode, and so do statistics over a batch in any encoder.

        Those of a few images would part training from evaluation, and a stage's checkpoint from what it was.
        """
        self.training = mode
        self.encoder.train(mode and self.encoder_trains)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        self.projector.train(mode)
        self.experts.train(mode)
        # The usual way through a thousand modules, twice in every step, takes a twentieth of a small step's time.
        for module in self.language.modules():
            module.__dict__["training"] = mode
        return self

    def renew_features(self) -> None:
        """Forget features of other weights, and take the encoder's fingerprint anew."""
        self.fingerprint = fingerprint(self.encoder, self.encoder_info.source)
        self.features.renew(self.encoder, self.fingerprint)

    @property
    def encoder_trains(self) -> bool:
        """Whether any parameter of the encoder trains now."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def add_expert(self, name: str, module: nn.Module) -> None:
        """Add a projector expert, a module from [I, T, W] to [I, tokens(T), D]."""
        if name in self.experts:
            raise ValueError(f"there is an expert {name!r} already")
        self.experts[name] = module.to(self.device)
        for parameter in module.parameters():
            parameter.requires_grad_(False)

    def remove_expert(self, name: str) -> None:
        """Forget an expert."""
        del self.experts[name]
        self._changed = {changed for changed in self._changed if not changed.startswith(f"experts.{name}.")}

    def add_adapter(self, name: str) -> None:
        """Add a LoRA adapter of the recipe's settings: a no-op until it has trained, inactive unless routed to."""
        self.adapters.add(name)

    def snapshot(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Copies of the named parameters (default: those that train now)."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name].detach().clone() for name in (self.trainable() if names is None else names)}

    @contextlib.contextmanager
    def using(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the named parameters have these values; afterwards their own again."""
        parameters = dict(self.named_parameters())
        own = {name: parameters[name].data for name in tensors}
        try:
            for name, tensor in tensors.items():
                parameters[name].data = tensor
            yield
        finally:
            for name, data in own.items():
                parameters[name].data = data

    def state(self) -> dict[str, Tensor]:
        """Every tensor that is not given by the recipe's weights: projector, experts, adapters, whatever trained."""
        kept = {}
        for name, parameter in self.named_parameters():
            own = name.startswith(("projector.", "experts.")) or ".lora_" in name
            if own or name in self._changed:
                kept[name] = parameter.detach()
        for name, buffer in self.named_buffers():
            if name.startswith(("projector.", "experts.")):
                kept[name] = buffer.detach()
        return kept

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse of `state`; experts and adapters must exist already.

        Raises:
            UserError: the tensors do not fit this model.
        """
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        check_state(tensors, own, needed=self.state())
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        self._changed |= set(tensors) & set(dict(self.named_parameters()))
        if any(name.startswith("encoder.") for name in tensors):
            self.renew_features()

    # -------------------------------------------------------------------------------------------------- features

    def image_features(self, images: Sequence[ImageSource]) -> list[Tensor]:
        """Encoder output of each image, [views * T, W]; computed once per image while the encoder is frozen."""
        if self.encoder_trains:
            return run_encoder(self.encoder, images, self.device)
        if self.features.stale(self.encoder):
            self.renew_features()
        found = self.features.get(images, self.device)
        return [found[image.digest] for image in images]

    def views(self, image: ImageSource) -> int:
        """How many times the encoder looks at this image; each view gives T features."""
        return self.features.views.of(image, self.fingerprint)

    def calibrate(self, samples: Samples) -> None:
        """Let the projector measure the encoder's features on the first images of a training set, if it wants to.

        A projector does this once in its life; afterwards the call has no effect.
        """
        measure: Callable[[Tensor, float], None] | None = getattr(self.projector, "calibrate", None)
        images = {image.digest: image for sample in samples for image in sample.images}
        if measure is not None and images:
            with torch.no_grad():
                features = torch.cat(self.image_features(list(images.values())[:CALIBRATION_IMAGES]))
                spread = float(self._embedding.weight.float().std())
                measure(features.view(-1, self.encoder_info.tokens, features.shape[-1]), spread)

    @property
    def reads_text(self) -> bool:
        """Whether an image's visual tokens depend on what is asked of it."""
        return bool(getattr(self.projector, "reads_text", False))

    def project(self, features: Tensor, route: Route, text: Text | None = None) -> Tensor:
        """Features [V, T, W] of one route, with what is asked of each view -> visual tokens [V, T', D]."""
        inputs = (features, text) if self.reads_text else (features,)
        if not route.experts:
            return cast(Tensor, self.projector(*inputs))
        parts = [
            weight * (self.projector if name == "base" else self.experts[name])(*inputs)
            for name, weight in route.experts
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Mean of the language model's input embeddings of each text, [len(texts), D]; zeros for an empty text."""
        embed = self._embedding
        result = torch.zeros(len(texts), embed.weight.shape[1], device=self.device)
        with torch.no_grad():
            for row, text in enumerate(texts):
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                if ids:
                    result[row] = embed(torch.tensor(ids, device=self.device)).float().mean(0)
        return result

    # ----------------------------------------------------------------------------------------------------- batches

    def items(
        self, samples: Samples, routes: Sequence[Route] | None, supervise: Sequence[Sequence[bool]] | None = None
    ) -> list[Item]:
        """Tokenised samples; by default the assistant's turns are supervised.

        Raises:
            UserError: a sample is longer than the language model's context.
        """
        items = []
        for index, sample in enumerate(samples):
            turns = supervise[index] if supervise else [turn.role == "assistant" for turn in sample.turns]
            pictures = list(map(self.picture, sample.images))
            ids, targets = expand(self.prompt.encode(sample, turns, pictures), [picture.runs for picture in pictures])
            if len(ids) > self.max_length:
                visual = sum(sum(picture.runs) for picture in pictures)
                raise UserError(
                    f"{len(ids)} tokens (of these {visual} for {len(sample.images)} images), "
                    f"but the language model takes {self.max_length}",
                    where=f"task {sample.task}, sample {sample.id}",
                    hint="shorten the text, use a projector with fewer tokens, or raise model.max_length",
                )
            positions = self.image_layout.positions(ids, sample.images)
            texts = questions(sample, turns) if self.reads_text else ()
            items.append(Item(sample, routes[index] if routes else BASE, ids, targets, positions, texts))
        return items

    def picture(self, image: ImageSource) -> Picture:
        """How an image stands in a prompt."""
        return self.image_layout.picture(image) or Picture("", (self.views(image) * self.visual_tokens,))

    def encode(self, sample: Sample, supervise: Sequence[bool]) -> Encoded:
        """A sample's tokens, with one marker per run of visual tokens."""
        return self.prompt.encode(sample, supervise, list(map(self.picture, sample.images)))

    def pack(
        self,
        samples: Samples,
        routes: Sequence[Route] | None = None,
        *,
        row_tokens: int | None = None,
        supervise: Sequence[Sequence[bool]] | None = None,
    ) -> list[Batch]:
        """Batches that hold these samples, packed or padded as the model can take them."""
        return self.batches(self.items(samples, routes, supervise), row_tokens)

    def batches(
        self, items: Sequence[Item], row_tokens: int | None = None, *, packed: bool | None = None
    ) -> list[Batch]:
        """Batches of tokenised samples, by default as the recipe wants them."""
        layout = pack if (self.packed if packed is None else packed) else padded
        pad = int(cast(int, self.tokenizer.pad_token_id))
        look = self.image_layout.look
        return layout(items, row_tokens=row_tokens or self.row_tokens, pad=pad, look=look)

    # ----------------------------------------------------------------------------------------------------- forward

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the language model gets for a batch's tokens (`mmcl.model.visual`): `inputs_embeds` [B, L, D] ..."""
        return spliced(self, batch)

    def attention(self, batch: Batch) -> Mask:
        """The attention mask as the language model takes it: additive [B, 1, L, L], or 2-D for padded rows."""
        if not self.explicit:
            return (~batch.is_padding).long().to(self.device)
        positions = batch.position_ids.to(self.device)
        block = batch.block.to(self.device)
        windowed = self.masks.window is not None
        return self.masks(
            batch.visible.to(self.device),
            query=positions,
            key=positions,
            block=same_block(block, block) if windowed else None,
        )

    def layout(self, batch: Batch, mask: Mask) -> Layout | None:
        """The documents of a packed row, for attention that takes them apart; None where it does not."""
        # On an accelerator one masked product takes less time than starting many small ones.
        if not self.apart or self.device.type != "cpu" or not isinstance(mask, Tensor) or mask.ndim != 4:
            return None
        return layout_of(mask, batch.lengths) if len(mask) == 1 and mask.shape[-1] > SHORT_ROW else None

    def forward(self, batch: Batch, *, hidden: bool = False) -> Output:
        """Run a batch. Only the supervised positions go through the language model's head."""
        with self.adapters.active(batch.routes[0].adapters):
            return self._forward(batch, hidden)

    def _forward(self, batch: Batch, hidden: bool) -> Output:
        inputs: dict[str, Any] = {"attention_mask": self.attention(batch), "use_cache": False}
        if self.explicit:
            inputs["position_ids"] = batch.position_ids.to(self.device)
        where = batch.where.to(self.device)
        single = batch.input_ids.shape[0] == 1
        if single and self.adapters.takes_logits_to_keep:
            inputs["logits_to_keep"] = where
        with documents_apart(self.layout(batch, inputs["attention_mask"])):
            out = self.language(**self.inputs(batch), output_hidden_states=hidden, return_dict=True, **inputs)
        logits = out.logits.flatten(0, 1)
        if "logits_to_keep" not in inputs:
            logits = logits[where]
        return Output(logits=logits, hidden=tuple(out.hidden_states) if hidden else ())

    def generate(self, samples: Samples, routes: Sequence[Route] | None = None) -> list[str]:
        """Greedy answers to the last user turn of each sample, in order."""
        from mmcl.model.generate import generate

        return generate(self, samples, routes, max_new_tokens=self.max_new_tokens)
