"""An assembly in the shape of LLaVA, where its parts allow that (LLaVA-1.5, arXiv 2310.03744)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, cast

import torch
import transformers
from PIL import Image as images
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel

from mmcl.data.images import BytesImage
from mmcl.data.types import IMAGE_PLACEHOLDER, Sample, Turn
from mmcl.errors import UserError
from mmcl.export.prompts import template_of
from mmcl.export.weights import adapters_of, low_rank, plain, projector_of, put
from mmcl.model.assembly import Assembly
from mmcl.protocols import Route

hf: Any = transformers  # its classes are annotated in part

IMAGE = "<image>"
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far logits may be apart, relative to the largest: rounding is below, another feature or pixel far above."""
QUESTION = "What is in the picture?"


def llava_of(
    model: Assembly, route: Route, name: str, adapters: tuple[str, ...]
) -> tuple[Any, Any, Callable[[str], str]]:
    """The assembly as `LlavaForConditionalGeneration`, its processor, and where it has the language model's parameters.

    Args:
        model: trained.
        route: whose projector goes in.
        name: of the route, for messages.
        adapters: of the language model, that are merged into its weights.

    Raises:
        UserError: a part has no place in LLaVA, or the result gives other logits than the assembly does.
    """
    acting = adapters_of(route)
    network, layer, strategy = _tower(model.encoder)
    first, second = _maps(projector_of(model, route, name))
    language = model.language
    tokenizer: Any = copy.deepcopy(model.tokenizer)
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_tokens(AddedToken(IMAGE, special=True, normalized=False), special_tokens=True)
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))
    config = hf.LlavaConfig(
        vision_config=copy.deepcopy(network.config),
        text_config=copy.deepcopy(language.config),
        image_token_index=image_id,
        projector_hidden_act="gelu",
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=bool(getattr(language.config, "tie_word_embeddings", False)),
    )
    try:
        whole = hf.LlavaForConditionalGeneration(config).to(language.dtype).eval()
        put(whole, _tensors(model, acting, first, second))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"LLaVA has no place for a {type(language).__name__} with a {type(network).__name__}: {error}",
            where="model.language",
            hint="export takes language models with a base and an `lm_head`, such as Llama, Mistral, Qwen, SmolLM",
        ) from error
    rows = whole.get_input_embeddings().weight.shape[0]
    if image_id >= rows:
        whole.resize_token_embeddings(image_id + 1, mean_resizing=False)
        with torch.no_grad():
            for table in (whole.get_input_embeddings().weight, whole.get_output_embeddings().weight):
                table[rows:] = 0
    _generation(whole, model, image_id)
    whole.tie_weights()
    processor = hf.LlavaProcessor(
        _pixels(model.encoder),
        tokenizer,
        patch_size=network.config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
        image_token=IMAGE,
        chat_template=template_of(model.prompt, IMAGE),
    )
    _check(model, route, whole, processor, image_id)
    without = {f"{name}.weight" for name in low_rank(model.language, set(acting) - set(adapters))}
    put(whole, {_place(model, name): own for name, own in plain(model.language, adapters).items() if name in without})
    return whole, processor, lambda name: _place(model, name)


def _tower(encoder: nn.Module) -> tuple[Any, int, str]:
    """The network of the encoder `transformers`, the layer and the tokens of it that are taken."""
    network: Any = getattr(encoder, "network", None)
    levels = getattr(encoder, "levels", None)
    if not isinstance(network, PreTrainedModel) or not levels:
        raise _no_place("encoder", f"a {type(encoder).__name__}", "the encoder `transformers` with CLIP or SigLIP")
    if len(levels) > 1 or levels[0].side != getattr(encoder, "grid", None) or getattr(encoder, "prefix_tokens", False):
        what = "several levels, an averaged grid, or prefix tokens"
        raise _no_place("encoder", what, "one level, without `grid` and `prefix_tokens`")
    if levels[0].prefix > 1:
        raise _no_place("encoder", "register tokens", "an encoder with at most a class token")
    return network, int(levels[0].state), "default" if levels[0].prefix else "full"


def _maps(projector: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The two linear maps of an MLP of depth 2, the standardisation of its input put into the first."""
    layers = [layer for layer in projector.modules() if isinstance(layer, nn.Linear | nn.GELU)]
    shape = [type(layer) for layer in layers]
    if shape != [nn.Linear, nn.GELU, nn.Linear] or not hasattr(projector, "layers"):
        raise _no_place("projector", f"a {type(projector).__name__}", "`mlp` with `depth: 2`")
    first, second = (copy.deepcopy(cast(nn.Linear, layer)) for layer in (layers[0], layers[2]))
    if first.out_features != second.out_features:
        raise _no_place("projector", f"{first.out_features} hidden units", "`mlp` without `hidden`")
    shift, scale = (getattr(getattr(projector, "norm", None), name, None) for name in ("shift", "scale"))
    if isinstance(shift, Tensor) and isinstance(scale, Tensor):
        with torch.no_grad():
            first.weight.div_(scale)
            first.bias.sub_(first.weight @ shift)
    return first, second


def _place(model: Assembly, name: str) -> str:
    """Where LLaVA has a parameter of the language model."""
    base = f"{cast(Any, model.language).base_model_prefix}."
    return f"model.language_model.{name.removeprefix(base)}" if name.startswith(base) else name


def _tensors(model: Assembly, adapters: tuple[str, ...], first: nn.Linear, second: nn.Linear) -> dict[str, Tensor]:
    tensors = {
        f"model.vision_tower.{name.removeprefix('network.')}": tensor
        for name, tensor in plain(model.encoder, ("default",)).items()
    }
    for number, layer in ((1, first), (2, second)):
        tensors[f"model.multi_modal_projector.linear_{number}.weight"] = layer.weight
        tensors[f"model.multi_modal_projector.linear_{number}.bias"] = layer.bias
    tensors |= {_place(model, name): tensor for name, tensor in plain(model.language, adapters).items()}
    return tensors


def _generation(whole: Any, model: Assembly, image_id: int) -> None:
    tokenizer: Any = model.tokenizer
    config = whole.generation_config
    config.eos_token_id = model.prompt.eos
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.do_sample = False
    config.suppress_tokens = [image_id]  # it was never learned, so nothing speaks against it


def _pixels(encoder: Any) -> Any:
    """An image processor that does what the encoder's transform does."""
    transform = encoder.transform()
    fit = getattr(transform, "fit", None)
    if fit not in ("squash", "crop") or (fit == "crop" and transform.crop != 1.0):
        raise _no_place("encoder", f"images fitted by `{fit}`", "`fit: squash`")
    side = {"height": transform.size, "width": transform.size}
    return hf.CLIPImageProcessorPil(
        size=side if fit == "squash" else {"shortest_edge": transform.size},
        do_center_crop=fit == "crop",
        crop_size=side,
        resample=images.Resampling[transform.interpolation.upper()],
        image_mean=list(transform.mean),
        image_std=list(transform.std),
    )


def _check(model: Assembly, route: Route, whole: Any, processor: Any, image_id: int) -> None:
    """That tokens and logits of a question are those of the assembly."""
    picture = images.radial_gradient("L").resize((50, 40)).convert("RGB")
    data = io.BytesIO()
    picture.save(data, "PNG")
    turn = Turn("user", f"{IMAGE_PLACEHOLDER}\n{QUESTION}")
    sample = Sample(id="probe", task="", turns=(turn,), images=(BytesImage(data.getvalue(), "probe"),))
    (item,) = model.items([sample], [route], [[False]])
    content = [{"type": "image", "image": picture}, {"type": "text", "text": f"\n{QUESTION}"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = [image_id if token < 0 else token for token in item.ids]
    if inputs["input_ids"][0].tolist() != ids:
        raise UserError(
            "transformers' processor gives other tokens for a question than mmcl does",
            where="model.prompt",
            hint=f"{inputs['input_ids'].shape[1]} instead of {len(ids)} tokens; `prompt: {{style: plain}}` may do",
        )
    with torch.no_grad():
        (batch,) = model.pack([sample], [route])
        expected = model.forward(batch).logits[0].float().cpu()
        logits = whole(**{**inputs, "pixel_values": inputs["pixel_values"].to(whole.dtype)}).logits[0, -1].float()
    off = float((logits[: len(expected)] - expected).abs().max() / expected.abs().max())
    if not off <= CLOSE.get(whole.dtype, 5e-2):
        raise UserError(
            f"in LLaVA's shape the model gives other logits (off by {off:.1%})",
            where="model.encoder",
            hint="LLaVA takes hidden states before any final norm: for SigLIP and ViT, train with `levels: [-2]`",
        )


def _no_place(part: str, what: str, instead: str) -> UserError:
    return UserError(f"LLaVA has no place for {what}", where=f"model.{part}", hint=f"what can be exported is {instead}")
