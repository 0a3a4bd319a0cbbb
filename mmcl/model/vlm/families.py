"""How each family of ready vision-language models is built: where its parts are, and how its images become tokens.

Shapes: V views (or cells of a grid) of one image, T features of each, W their width, T' tokens after the projector, D
width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import LlavaNextModel, LlavaOnevisionModel
from transformers.models.internvl.modeling_internvl import InternVLModel

from mmcl.model.packing import Look

Size = tuple[int, int]


class Family:
    """A vision tower, a projector beside it, square views; LLaVA (arXiv 2304.08485) is exactly this.

    Subclasses say where theirs is different.

    Args:
        config: of the whole model.

    Attributes:
        tower: name of the vision tower in the inner model.
        projector: name of the projector in the inner model.
        language: name of the language model in the inner model.
        look: which positions also see what follows them.
        projector_inside: whether the projector stands in the vision tower.
        grid: whether an image is seen as one, in its own shape.
        deep_positions: whether positions are (time, height, width).
        first_position: of a row.
        bos_after_images: whether images come first of all and the beginning-of-sequence token after them.
    """

    tower: ClassVar[str] = "vision_tower"
    projector: ClassVar[str] = "multi_modal_projector"
    language: ClassVar[str] = "language_model"
    projector_inside: ClassVar[bool] = False
    look: ClassVar[Look] = "causal"
    grid: ClassVar[bool] = False
    deep_positions: ClassVar[bool] = False
    first_position: ClassVar[int] = 0
    bos_after_images: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def take_projector(self, inner: Any) -> nn.Module:
        """The projector, taken out of the inner model."""
        return cast(nn.Module, getattr(inner, self.projector))

    def pixels(self, processed: Mapping[str, Any]) -> Tensor:
        """What the image processor made of one image -> [V, ...], or [rows, columns, ...] of a grid."""
        pixels = as_tensor(processed["pixel_values"])
        return pixels.flatten(0, -4)  # [1, 3, H, W], [V, 3, H, W] or [1, V, 3, H, W]

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[V, ...], or [rows, columns, ...] of one image -> features [V, T, W] as the projector takes them."""
        layers = self.config.vision_feature_layer
        out = tower(pixels, output_hidden_states=True)
        chosen = [out.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [states[:, 1:] for states in chosen]
        return torch.cat(chosen, -1)

    def project(self, projector: Any, features: Tensor) -> Tensor:
        """Features [V, T, W] -> [V, T', D]."""
        return cast(Tensor, projector(features))

    def arrange(self, tokens: Tensor, size: Size, newline: Tensor | None) -> Tensor:
        """An image's [V, T', D] -> its visual tokens [n, D]; `size` is (width, height), `newline` [D]."""
        return tokens.flatten(0, 1)


class LlavaNext(Family):
    """Tiles of the image on a grid and the whole; what pads the grid is cut off, lines end with a learned token."""

    def arrange(self, tokens: Tensor, size: Size, newline: Tensor | None) -> Tensor:
        """As the family's own class does it."""
        pack: Any = LlavaNextModel.pack_image_features  # it reads nothing of the model but its configuration
        packed, _ = pack(
            SimpleNamespace(config=self.config),
            [tokens],
            [size[::-1]],
            self.config.vision_feature_select_strategy,
            image_newline=newline,
        )
        return cast(Tensor, packed[0])


class LlavaOnevision(Family):
    """As LLaVA-NeXT, and large grids are scaled down. In its own code, samples of several images have no tiles."""

    def arrange(self, tokens: Tensor, size: Size, newline: Tensor | None) -> Tensor:
        """As the family's own class does it."""
        pack: Any = LlavaOnevisionModel.pack_image_features
        packed, _ = pack(
            SimpleNamespace(config=self.config),
            [tokens],
            [size[::-1]],
            image_newline=newline,
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return cast(Tensor, packed[0])


class InternVL(Family):
    """Tiles and a thumbnail; neighbouring patches are stacked before the projector (arXiv 2404.16821)."""

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[V, 3, S, S] -> [V, T, W]."""
        layer = self.config.vision_feature_layer
        out = tower(pixel_values=pixels, output_hidden_states=True)
        states = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        if self.config.vision_feature_select_strategy == "default":
            states = states[:, 1:]
        side = int(states.shape[1] ** 0.5)
        grid = states.reshape(len(states), side, side, -1)
        shuffle: Any = InternVLModel.pixel_shuffle  # it reads nothing of the model
        return cast(Tensor, shuffle(None, grid, scale_factor=self.config.downsample_ratio)).flatten(1, 2)


class Idefics3(Family):
    """Tiles and the whole, each named in the text; the connector stacks neighbouring patches (arXiv 2408.12637).

    A fourth channel of the pixels says where an image is, and not padding.
    """

    tower = "vision_model"
    projector = "connector"
    language = "text_model"

    def pixels(self, processed: Mapping[str, Any]) -> Tensor:
        """[V, 4, S, S]."""
        pixels = as_tensor(processed["pixel_values"]).flatten(0, -4)
        mask = processed.get("pixel_attention_mask")
        inside = torch.ones_like(pixels[:, 0]) if mask is None else as_tensor(mask).flatten(0, -3).to(pixels)
        return torch.cat([pixels, inside[:, None]], 1)

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[V, 4, S, S] -> [V, T, W]."""
        patch = self.config.vision_config.patch_size
        inside = nn.functional.max_pool2d(pixels[:, 3:], patch)[:, 0] > 0
        # Padding of a batch has no patch inside, and attention needs one.
        inside = inside | ~inside.flatten(1).any(1)[:, None, None]
        return cast(Tensor, tower(pixel_values=pixels[:, :3], patch_attention_mask=inside).last_hidden_state)


class PaliGemma(Family):
    """All that comes before the answer sees itself both ways; no chat template (arXiv 2407.07726)."""

    look = "prefix"
    first_position = 1
    bos_after_images = True

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[V, 3, S, S] -> [V, T, W]."""
        return cast(Tensor, tower(pixels).last_hidden_state)


class Gemma3(Family):
    """The tokens of an image see each other both ways; the projector pools (arXiv 2503.19786)."""

    look = "images"

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[V, 3, S, S] -> [V, T, W]."""
        return cast(Tensor, tower(pixel_values=pixels).last_hidden_state)


class Pixtral(Family):
    """Images in their own shape, a token that ends each line (arXiv 2410.07073); a cell of the grid is one patch."""

    grid = True

    @property
    def merge(self) -> int:
        """Patches along each side of a cell."""
        return 1

    def pixels(self, processed: Mapping[str, Any]) -> Tensor:
        """[rows, columns, 3, cell, cell]."""
        height, width = map(int, processed["image_sizes"][0])
        pixels = as_tensor(processed["pixel_values"]).flatten(0, -4)[0, :, :height, :width]
        cell = self.merge * self.config.vision_config.patch_size
        return pixels.unfold(1, cell, cell).unfold(2, cell, cell).permute(1, 2, 0, 3, 4).contiguous()

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[rows, columns, 3, cell, cell] -> [rows * columns, merge^2, W]."""
        rows, columns, channels, cell, _ = pixels.shape
        whole = pixels.permute(2, 0, 3, 1, 4).reshape(1, channels, rows * cell, columns * cell)
        layers = self.config.vision_feature_layer
        out = tower(whole, image_sizes=[(rows * cell, columns * cell)], output_hidden_states=True)
        chosen = [out.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        states = torch.cat(chosen, -1)
        merge = self.merge
        cells = states.view(rows, merge, columns, merge, -1).transpose(1, 2)
        return cells.reshape(rows * columns, merge**2, -1)


class Mistral3(Pixtral):
    """As Pixtral; the projector merges the patches of a cell."""

    @property
    def merge(self) -> int:
        """Patches along each side of a cell."""
        return int(self.config.spatial_merge_size)

    def project(self, projector: Any, features: Tensor) -> Tensor:
        """Features [V, merge^2, W] -> [V, 1, D]: what the projector does after it has found the cells."""
        merged = projector.patch_merger.merging_layer(projector.norm(features).transpose(1, 2).flatten(1))
        return cast(Tensor, projector.linear_2(projector.act(projector.linear_1(merged))))[:, None]


class QwenVL(Family):
    """Images in their own shape, positions in time, height and width (arXiv 2409.12191, 2502.13923).

    A cell of the grid is what the merger makes one token of. The merger comes out of the vision model, where it stands.
    """

    tower = "visual"
    projector = "merger"
    projector_inside = True
    grid = True
    deep_positions = True

    def take_projector(self, inner: Any) -> nn.Module:
        """The merger; what stands in its place gives the cells."""
        merger: nn.Module = inner.visual.merger
        inner.visual.merger = Cells(inner.config.vision_config.spatial_merge_size**2)
        return merger

    def pixels(self, processed: Mapping[str, Any]) -> Tensor:
        """[rows, columns, merge^2, values of a patch]."""
        merge = self.config.vision_config.spatial_merge_size
        _, height, width = map(int, processed["image_grid_thw"][0])
        pixels = as_tensor(processed["pixel_values"])
        return pixels.view(height // merge, width // merge, merge**2, -1)

    def features(self, tower: Any, pixels: Tensor) -> Tensor:
        """[rows, columns, merge^2, values] -> [rows * columns, merge^2, W]."""
        rows, columns, patches, _ = pixels.shape
        merge = self.config.vision_config.spatial_merge_size
        grid = torch.tensor([[1, rows * merge, columns * merge]], device=pixels.device)
        out = tower(pixels.flatten(0, 2), grid_thw=grid)
        return self.collect(out, patches)

    def collect(self, out: Any, patches: int) -> Tensor:
        """What the vision model gave -> [V, merge^2, W]."""
        return cast(Tensor, out.pooler_output).view(len(out.pooler_output), patches, -1)

    def project(self, projector: Any, features: Tensor) -> Tensor:
        """Features [V, merge^2, W] -> [V, 1, D]."""
        return cast(Tensor, projector(features.flatten(0, 1)))[:, None]


class Qwen3VL(QwenVL):
    """As Qwen2-VL; features of several depths, which go into the lower layers of the language model (DeepStack)."""

    def take_projector(self, inner: Any) -> nn.Module:
        """All mergers: the last layer's and those of the depths below."""
        vision = inner.visual
        mergers = nn.ModuleList([super().take_projector(inner), *vision.deepstack_merger_list])
        vision.deepstack_merger_list = nn.ModuleList(Cells(vision.merger.patches) for _ in mergers[1:])
        return mergers

    def collect(self, out: Any, patches: int) -> Tensor:
        """[V, merge^2, W (1 + depths)]."""
        levels = [out.pooler_output, *out.deepstack_features]
        return torch.cat([level.view(len(level), patches, -1) for level in levels], -1)

    def project(self, projector: Any, features: Tensor) -> Tensor:
        """[V, merge^2, W (1 + depths)] -> [V, 1, D (1 + depths)]."""
        levels = features.chunk(len(projector), -1)
        done = [merger(level.flatten(0, 1).contiguous()) for merger, level in zip(projector, levels, strict=True)]
        return torch.cat(done, -1)[:, None]


class Cells(nn.Module):
    """Stands where a merger stood: patches [n, W] -> cells [n / patches, patches * W]."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, states: Tensor) -> Tensor:
        """[n, W] -> [n / patches, patches * W]."""
        return states.reshape(len(states) // self.patches, -1)


FAMILIES: Mapping[str, type[Family]] = MappingProxyType(
    {
        "gemma3": Gemma3,
        "idefics3": Idefics3,
        "internvl": InternVL,
        "llava": Family,
        "llava_next": LlavaNext,
        "llava_onevision": LlavaOnevision,
        "mistral3": Mistral3,
        "paligemma": PaliGemma,
        "qwen2_vl": QwenVL,
        "qwen2_5_vl": QwenVL,
        "qwen3_vl": Qwen3VL,
        "smolvlm": Idefics3,
    }
)
"""By `model_type` of transformers. Another model of image and text whose parts are like these needs one line here."""


def family_of(config: Any) -> Family | None:
    """The family of a model's configuration; None for one that can't be taken apart."""
    if config.model_type == "llava" and config.vision_config.model_type == "pixtral":
        return Pixtral(config)
    found = FAMILIES.get(config.model_type)
    return found(config) if found else None


def as_tensor(value: Any) -> Tensor:
    """A tensor from what image processors give: tensors, arrays, or lists of these of one shape."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Sequence):
        return torch.stack([as_tensor(part) for part in value])
    return torch.as_tensor(value)
