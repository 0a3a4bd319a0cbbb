"""The three parts of a ready VLM, in the forms that mmcl's assembly takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmcl.data.types import ImageSource
from mmcl.model.language import CACHE
from mmcl.model.layout import ImageLayout
from mmcl.model.packing import Position
from mmcl.model.prompt import Picture
from mmcl.model.views import count_views
from mmcl.model.vlm.families import Family
from mmcl.model.vlm.reading import Reader, Size
from mmcl.protocols import EncoderInfo

if TYPE_CHECKING:
    from PIL.Image import Image

SQUARE = 64


class VLMEncoder(nn.Module):
    """The vision tower of a VLM: pixels -> features as the VLM's projector takes them.

    Args:
        tower: the module.
        reader: of the VLM.
        source: where the weights come from.
    """

    def __init__(self, tower: nn.Module, reader: Reader, source: str) -> None:
        super().__init__()
        self.tower = tower
        self._reader = reader
        pixels = reader(_probe())
        with torch.no_grad():
            features = reader.family.features(tower, pixels)
        _, tokens, width = features.shape
        shape = tuple(pixels.shape[2 if reader.family.grid else 1 :])
        self.info = EncoderInfo(tokens=tokens, width=width, image_size=shape[-1], source=source, pixels=shape)
        self.eval()

    def transform(self) -> Callable[[Image], Tensor]:
        """An image -> pixels [V, *info.pixels], by the VLM's own processor."""
        return self._reader

    def views(self, size: Size) -> int:
        """Views of an image of (width, height)."""
        (count,) = self._reader.plan(size).shape
        return count

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [V, *info.pixels] -> features [V, T, W]."""
        return self._reader.family.features(self.tower, pixels)


class VLMGridEncoder(VLMEncoder):
    """The vision tower of a VLM that sees images in their own shape."""

    views = None  # type: ignore[assignment]

    def grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of an image of (width, height)."""
        rows, columns = self._reader.plan(size).shape
        return rows, columns


class VLMProjector(nn.Module):
    """The projector of a VLM.

    Args:
        module: the module.
        family: how it is called.
        in_width: W of the features.
        newline: the learned token [D] at the end of a line, if the VLM has one.
    """

    def __init__(self, module: nn.Module, family: Family, *, in_width: int, newline: nn.Parameter | None) -> None:
        super().__init__()
        self.module = module
        self.in_width = in_width
        self.newline = newline
        self._family = family
        self._counts: dict[int, int] = {}

    def tokens(self, tokens_in: int) -> int:
        """Tokens that leave when `tokens_in` of one view enter."""
        if tokens_in not in self._counts:
            like = next(self.parameters())
            with torch.no_grad():
                self._counts[tokens_in] = self(like.new_zeros(1, tokens_in, self.in_width)).shape[1]
        return self._counts[tokens_in]

    def forward(self, features: Tensor) -> Tensor:
        """Features [V, T, W] -> tokens [V, tokens(T), D]."""
        return self._family.project(self.module, features)


class VLMLayout(ImageLayout):
    """How images stand in the prompts and rows of a VLM.

    Args:
        reader: of the VLM.
        projector: has the token at the end of a line.
    """

    def __init__(self, reader: Reader, projector: VLMProjector) -> None:
        self._reader = reader
        self._projector = (projector,)  # in a tuple: not a submodule of whatever holds this
        self._sizes: dict[str, Size] = {}
        self.look = reader.family.look
        self.deep_positions = reader.family.deep_positions

    def size(self, image: ImageSource) -> Size:
        """Width and height; an image is opened for them once."""
        if image.digest not in self._sizes:
            self._sizes[image.digest] = image.dimensions
        return self._sizes[image.digest]

    def picture(self, image: ImageSource) -> Picture:
        """As the VLM's processor writes it."""
        return self._reader.plan(self.size(image)).picture

    def arrange(self, tokens: Tensor, image: ImageSource) -> Tensor:
        """[V, T', D] -> [n, D]."""
        return self._reader.family.arrange(tokens, self.size(image), self._projector[0].newline)

    def positions(self, ids: Sequence[int], images: Sequence[ImageSource]) -> tuple[Position, ...]:
        """Positions as the VLM counts them."""
        if self.deep_positions:
            return deep_positions(ids, [self._reader.plan(self.size(image)).shape for image in images])
        first = self._reader.family.first_position
        return tuple(range(first, first + len(ids))) if first else ()


class SwappedLayout(ImageLayout):
    """How images stand in the prompts of a VLM whose encoder or projector is another: in one run, between its tokens.

    Args:
        reader: of the VLM.
        encoder: that takes the place of its own.
        projector: between that and the language model.
    """

    def __init__(self, reader: Reader, encoder: nn.Module, projector: nn.Module) -> None:
        own = reader.plan((SQUARE, SQUARE)).picture
        # Of a tiled image's text the pieces between the tiles would say what is not there.
        self._text = own.text if len(own.runs) == 1 else reader.image_token
        self._first = reader.family.first_position
        self._tokens: int = projector.tokens(encoder.info.tokens)  # type: ignore[operator, union-attr]
        self._encoder = (encoder,)
        self._known: dict[str, int] = {}
        self.look = reader.family.look

    def picture(self, image: ImageSource) -> Picture:
        """One run of all views' tokens."""
        if image.digest not in self._known:
            self._known[image.digest] = count_views(self._encoder[0], image.dimensions)
        return Picture(self._text, (self._known[image.digest] * self._tokens,))

    def positions(self, ids: Sequence[int], images: Sequence[ImageSource]) -> tuple[Position, ...]:
        """One after another, also where the VLM has rows and columns: the new encoder's are not its own."""
        return tuple(range(self._first, self._first + len(ids))) if self._first else ()


def deep_positions(ids: Sequence[int], grids: Sequence[tuple[int, ...]]) -> tuple[tuple[int, int, int], ...]:
    """Positions in time, height and width (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        ids: `-1 - k` for each visual token of image k, row by row.
        grids: rows and columns of each image.
    """
    result: list[tuple[int, int, int]] = []
    now = place = 0
    while place < len(ids):
        if ids[place] >= 0:
            result.append((now, now, now))
            now, place = now + 1, place + 1
            continue
        rows, columns = grids[-1 - ids[place]]
        result += [(now, now + row, now + column) for row in range(rows) for column in range(columns)]
        now, place = now + max(rows, columns), place + rows * columns
    return tuple(result)


class VLMLanguage(PreTrainedModel):  # type: ignore[no-untyped-call]
    """The language model of a VLM with its head, as a causal language model that takes embeddings.

    Args:
        model: the decoder.
        head: from its width to the vocabulary.
        generation_config: of the VLM.
    """

    main_input_name = "inputs_embeds"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, model: PreTrainedModel, head: nn.Module, generation_config: Any) -> None:
        super().__init__(model.config)
        self.model = model
        self.lm_head = head
        self.generation_config = generation_config

    def get_input_embeddings(self) -> nn.Module:
        """Of the decoder."""
        return cast(nn.Module, self.model.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return cast(nn.Module, self.lm_head)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Embeddings [B, L, D] -> logits [B, L, V], or of the positions `logits_to_keep` alone."""
        options.pop("return_dict", None)
        out: Any = cast(Any, self.model)(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **options
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        cache: dict[str, Any] = {CACHE: out[CACHE]} if CACHE in out else {}
        logits = self.lm_head(out.last_hidden_state[:, kept])
        return CausalLMOutputWithPast(logits=logits, hidden_states=out.hidden_states, **cache)


def _probe() -> Image:
    from PIL import Image

    return Image.new("RGB", (64, 48), (90, 120, 150))
