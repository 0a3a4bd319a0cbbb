"""Tiny ready VLMs: real classes of transformers with random weights and their own processors, built in memory.

They serve tests and dry runs of a recipe (`vlm: "tiny:llava"`): no file, no network.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import transformers

from mmcl.errors import UserError
from mmcl.model.tiny import BOS, EOS, FAMILIES, PAD, tiny_tokenizer

hf: Any = transformers  # its classes are annotated in part

_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ IMAGE }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ EOS }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_LEFT = ("image_newline", "mm_input_projection_weight")
"""Parameters that the classes leave at zero or as memory has it."""
IMAGE = "<image>"
SIDE = 32
PATCH = 8
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_SQUARE = {"height": SIDE, "width": SIDE}
_PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}

Built = tuple[Any, Any]
"""A configuration and a processor."""


def tiny_vlm(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Built:
    """A random model of image and text, and its processor.

    Args:
        family: a key of `TINY_VLMS`.
        seed: of the random weights; the global random state is left as it was.
        dtype: of the weights.

    Raises:
        UserError: there is no such family.
    """
    config, processor = tiny_config(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(_LEFT):
                torch.nn.init.normal_(parameter, std=0.02)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, processor


def tiny_config(family: str) -> Built:
    """Its configuration and processor.

    Raises:
        UserError: there is no such family.
    """
    if family not in TINY_VLMS:
        close = difflib.get_close_matches(family, list(TINY_VLMS), n=1)
        raise UserError(
            f"no tiny model `tiny:{family}`",
            where="model.vlm",
            hint=f"did you mean `tiny:{close[0]}`?" if close else f"there are: {', '.join(TINY_VLMS)}",
        )
    return TINY_VLMS[family]()


def _text(kind: str, tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        **FAMILIES.get(kind, FAMILIES["llama"]),
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
        "bos_token_id": tokenizer.convert_tokens_to_ids(BOS),
        "eos_token_id": tokenizer.convert_tokens_to_ids(EOS),
        **more,
    }


def _template(image: str) -> str:
    return _TEMPLATE.replace("IMAGE", repr(image)).replace("EOS", repr(EOS))


def _clip(**more: Any) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **_VISION, **more}


def _siglip(**more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "vision_use_head": False, **_VISION, **more}


def _llava() -> Built:
    tokenizer = tiny_tokenizer(image_token=IMAGE)
    config = hf.LlavaConfig(
        vision_config=_clip(),
        text_config=_text("llama", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=_SQUARE)
    return config, hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template(IMAGE),
    )


def _llava_next() -> Built:
    tokenizer = tiny_tokenizer(image_token=IMAGE)
    config = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=_text("mistral", tokenizer, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=_SQUARE, image_grid_pinpoints=_PINPOINTS
    )
    return config, hf.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template(IMAGE),
    )


def _llava_onevision() -> Built:
    tokenizer = tiny_tokenizer(image_token=IMAGE, video_token="<video>")
    config = hf.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=_text("qwen2", tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    images = hf.LlavaOnevisionImageProcessor(size=_SQUARE, image_grid_pinpoints=_PINPOINTS)
    return config, hf.LlavaOnevisionProcessor(
        images,
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=_SQUARE),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        chat_template=_template(IMAGE),
    )


def _internvl() -> Built:
    context = "<IMG_CONTEXT>"
    tokenizer = tiny_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token=context, video_token="<video>"
    )
    config = hf.InternVLConfig(
        vision_config={"model_type": "internvl_vision", **_VISION, "image_size": [SIDE, SIDE], "patch_size": [8, 8]},
        text_config=_text("qwen2", tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids(context),
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    images = hf.GotOcr2ImageProcessor(size=_SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    return config, hf.InternVLProcessor(
        images,
        tokenizer,
        hf.InternVLVideoProcessor(size=_SQUARE),
        image_seq_length=(SIDE // PATCH) ** 2 // 4,
        chat_template=_template(context),
    )


def _idefics3() -> Built:
    return _splitting(hf.Idefics3Config, hf.Idefics3VisionConfig, hf.Idefics3ImageProcessor, hf.Idefics3Processor)


def _smolvlm() -> Built:
    return _splitting(hf.SmolVLMConfig, hf.SmolVLMVisionConfig, hf.SmolVLMImageProcessor, hf.SmolVLMProcessor)


def _splitting(build_config: Any, vision: Any, images: Any, processor: Any) -> Built:
    places = {f"place_{row}_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
    tokenizer = tiny_tokenizer(
        image_token=IMAGE,
        fake_token="<fake_token_around_image>",
        global_token="<global-img>",
        end_token="<end_of_utterance>",
        **places,
    )
    config = build_config(
        vision_config=vision(**_VISION),
        text_config=_text("llama", tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    pictures = images(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    more = [hf.SmolVLMVideoProcessor()] if processor is hf.SmolVLMProcessor else []
    return config, processor(
        pictures, tokenizer, *more, image_seq_len=(SIDE // PATCH) ** 2 // 4, chat_template=_template(IMAGE)
    )


def _paligemma() -> Built:
    tokenizer = tiny_tokenizer(image_token=IMAGE)
    images = hf.SiglipImageProcessor(size=_SQUARE)
    images.image_seq_length = (SIDE // PATCH) ** 2
    processor = hf.PaliGemmaProcessor(images, tokenizer)
    text = _text("gemma", tokenizer, head_dim=16)
    config = hf.PaliGemmaConfig(
        vision_config=_siglip(projection_dim=text["hidden_size"]),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        projection_dim=text["hidden_size"],
    )
    tokenizer.chat_template = None
    return config, processor


def _gemma3() -> Built:
    soft, begin = "<image_soft_token>", "<start_of_image>"
    tokenizer = tiny_tokenizer(image_token=soft, boi_token=begin, eoi_token="<end_of_image>")
    config = hf.Gemma3Config(
        vision_config=_siglip(),
        text_config=_text(
            "gemma3_text", tokenizer, sliding_window=12, layer_types=["sliding_attention", "full_attention"]
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(soft),
        boi_token_index=tokenizer.convert_tokens_to_ids(begin),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        mm_tokens_per_image=4,
    )
    images = hf.Gemma3ImageProcessor(size=_SQUARE)
    return config, hf.Gemma3Processor(images, tokenizer, chat_template=_template(begin), image_seq_length=4)


def _pixtral_parts(merge: int) -> tuple[Any, Any, Any]:
    image = "[IMG]"
    tokenizer = tiny_tokenizer(image_token=image, break_token="[IMG_BREAK]", end_token="[IMG_END]")
    images = hf.PixtralImageProcessor(size={"longest_edge": 2 * SIDE}, patch_size={"height": PATCH, "width": PATCH})
    processor = hf.PixtralProcessor(
        images, tokenizer, patch_size=PATCH, spatial_merge_size=merge, chat_template=_template(image)
    )
    vision = {"model_type": "pixtral", **_VISION, "image_size": 2 * SIDE, "head_dim": 16}
    return tokenizer, processor, vision


def _pixtral() -> Built:
    tokenizer, processor, vision = _pixtral_parts(1)
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=_text("mistral", tokenizer, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return config, processor


def _mistral3() -> Built:
    tokenizer, processor, vision = _pixtral_parts(2)
    config = hf.Mistral3Config(
        vision_config=vision,
        text_config=_text("mistral", tokenizer, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )
    return config, processor


def _qwen(config: Any, vision: dict[str, Any], kind: str, processor: Any) -> Built:
    pad = "<|image_pad|>"
    tokenizer = tiny_tokenizer(
        image_token=pad, video_token="<|video_pad|>", start="<|vision_start|>", end="<|vision_end|>"
    )
    ids = tokenizer.convert_tokens_to_ids
    built = config(
        vision_config={"depth": 3, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision},
        text_config=_text(kind, tokenizer, head_dim=16, rope_parameters=_ROPE, tie_word_embeddings=False),
        image_token_id=ids(pad),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 4 * SIDE * SIDE}
    images = hf.Qwen2VLImageProcessor(size=size, patch_size=PATCH, merge_size=2, temporal_patch_size=2)
    videos: Any = hf.Qwen3VLVideoProcessor if kind == "qwen3_vl_text" else hf.Qwen2VLVideoProcessor
    template = _template(f"<|vision_start|>{pad}<|vision_end|>")
    return built, processor(images, tokenizer, videos(), chat_template=template)


def _qwen2_vl() -> Built:
    vision = {"embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2}
    return _qwen(hf.Qwen2VLConfig, vision, "qwen2_vl_text", hf.Qwen2VLProcessor)


def _qwen2_5_vl() -> Built:
    vision = {
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return _qwen(hf.Qwen2_5_VLConfig, vision, "qwen2_5_vl_text", hf.Qwen2_5_VLProcessor)


def _qwen3_vl() -> Built:
    vision = {
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return _qwen(hf.Qwen3VLConfig, vision, "qwen3_vl_text", hf.Qwen3VLProcessor)


TINY_VLMS: Mapping[str, Callable[[], Built]] = MappingProxyType(
    {
        "gemma3": _gemma3,
        "idefics3": _idefics3,
        "internvl": _internvl,
        "llava": _llava,
        "llava_next": _llava_next,
        "llava_onevision": _llava_onevision,
        "mistral3": _mistral3,
        "paligemma": _paligemma,
        "pixtral": _pixtral,
        "qwen2_vl": _qwen2_vl,
        "qwen2_5_vl": _qwen2_5_vl,
        "qwen3_vl": _qwen3_vl,
        "smolvlm": _smolvlm,
    }
)
"""Builders, by name."""
