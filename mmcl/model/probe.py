"""Does a model part keep its promises? Asked at build time, before anything trains."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmcl.errors import Problem, UserError
from mmcl.model.views import has_grid, has_views
from mmcl.protocols import EncoderInfo

PROBES = 2
ROUNDING = 1e-4  # relative; convolutions may sum in another order when the batch is larger


def probe_images() -> list[Image.Image]:
    """Two different RGB images, no squares, without a file."""
    across = Image.linear_gradient("L").resize((96, 64))
    round_ = Image.radial_gradient("L").resize((64, 80))
    return [
        Image.merge("RGB", (across, across.transpose(Image.Transpose.ROTATE_180), across)),
        Image.merge("RGB", (round_, round_, round_.point([255 - value for value in range(256)]))),
    ]


def probe_encoder(encoder: nn.Module) -> None:
    """Run an encoder on two small images and compare what it gives with what its `info` says.

    Raises:
        UserError: every broken promise, with the class's name.
    """
    _raise(encoder_problems(encoder))


def probe_projector(projector: nn.Module, info: EncoderInfo, out_width: int) -> None:
    """Run a projector on two images' worth of features.

    Args:
        projector: built with `in_width=info.width`.
        info: of the encoder whose features it will get.
        out_width: width of the language model.

    Raises:
        UserError: every broken promise, with the class's name.
    """
    _raise(projector_problems(projector, info, out_width))


def encoder_problems(encoder: nn.Module) -> list[Problem]:
    """The promises that an encoder breaks; empty if it keeps them all. Its mode and the random state stay."""
    where = _where(encoder, "model.encoder")
    info = getattr(encoder, "info", None)
    if not isinstance(info, EncoderInfo):
        return [Problem(where, f"`info` is {info!r}, not an EncoderInfo", "set `self.info = EncoderInfo(...)`")]
    sizes = {"tokens": info.tokens, "width": info.width, "image_size": info.image_size}
    sizes |= {f"pixels[{axis}]": size for axis, size in enumerate(info.pixels)}
    problems = [
        Problem(where, f"`info.{name}` is {value!r}, not a positive integer")
        for name, value in sizes.items()
        if not isinstance(value, int) or value < 1
    ]
    if problems:
        return problems
    transform = encoder.transform()  # type: ignore[operator]
    problems += _pickling_problems(where, transform)
    images = probe_images()
    pixels = [transform(image) for image in images]
    for image, tensor in zip(images, pixels, strict=True):
        views: tuple[int, ...] = ()
        if has_grid(encoder):
            views = tuple(encoder.grid(image.size))  # type: ignore[operator]
        elif has_views(encoder):
            views = (encoder.views(image.size),)  # type: ignore[operator]
        expected = (*views, *info.pixel_shape)
        if not isinstance(tensor, Tensor):
            problems.append(Problem(where, f"`transform()` gives {type(tensor).__name__}, not a tensor"))
        elif tensor.dtype != torch.float32 or tuple(tensor.shape) != expected:
            problems.append(Problem(where, f"`transform()` gives {_describe(tensor)}, promised float32 {expected}"))
        if problems:
            return problems
    if has_grid(encoder):
        batch = pixels[0]
    else:
        batch = torch.cat(pixels) if has_views(encoder) else torch.stack(pixels)
    with _undisturbed(encoder):
        features = encoder(batch.to(_device(encoder)))
    count = math.prod(batch.shape[: batch.ndim - len(info.pixel_shape)])
    return _output_problems(where, features, (count, info.tokens, info.width))


def projector_problems(projector: nn.Module, info: EncoderInfo, out_width: int) -> list[Problem]:
    """The promises that a projector breaks; empty if it keeps them all. Its mode and the random state stay."""
    where = _where(projector, "model.projector")
    tokens: Any = projector.tokens(info.tokens)  # type: ignore[operator]
    if not isinstance(tokens, int) or tokens < 1:
        return [Problem(where, f"`tokens({info.tokens})` is {tokens!r}, not a positive integer")]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(PROBES, info.tokens, info.width, generator=generator)
    with _undisturbed(projector):
        projected = projector(features.to(_device(projector)))
    return _output_problems(where, projected, (PROBES, tokens, out_width))


def forward_problems(module: nn.Module, batch: Tensor, other: int = 1) -> list[str]:
    """In evaluation mode: the same every time, whatever else is in the batch; rows 0 and `other` differ in image."""
    module.eval()
    with torch.no_grad():
        first, second = module(batch), module(batch)
        alone = torch.cat([module(row[None]) for row in batch])
    problems = []
    if not torch.equal(first, second):
        problems.append("`forward` gives something else the second time, in evaluation mode")
    elif (first - alone).abs().max() > ROUNDING * first.abs().max():
        problems.append("what `forward` gives for an image depends on the others in its batch")
    if torch.equal(first[0], first[other]):
        problems.append("two different images have the same features")
    return problems


def repeat_problems(encoder: nn.Module, images: Sequence[Tensor]) -> list[str]:
    """In evaluation mode: the same every time; images are different."""
    encoder.eval()
    with torch.no_grad():
        first, second, other = encoder(images[0]), encoder(images[0]), encoder(images[1])
    if not torch.equal(first, second):
        return ["`forward` gives something else the second time, in evaluation mode"]
    return ["two different images have the same features"] if torch.equal(first[:1], other[:1]) else []


def _output_problems(where: str, output: Any, expected: tuple[int, ...]) -> list[Problem]:
    if not isinstance(output, Tensor):
        return [Problem(where, f"`forward` gives {type(output).__name__}, not a tensor")]
    problems = []
    if not output.is_floating_point():
        problems.append(Problem(where, f"`forward` gives {_describe(output)}, not floating point"))
    if tuple(output.shape) != expected:
        names = ("images", "tokens", "width")
        wrong = [
            f"{name} {got} instead of {want}"
            for name, got, want in zip(names, output.shape, expected, strict=False)
            if got != want
        ]
        told = ": " + ", ".join(wrong) if output.ndim == len(expected) else ""
        message = f"`forward` gives shape {tuple(output.shape)}, promised {expected}{told}"
        problems.append(Problem(where, message, "mend `forward`, or what is promised (`info`, `tokens`)"))
    elif not output.isfinite().all():
        problems.append(Problem(where, "`forward` gives NaN or infinity"))
    return problems


def _pickling_problems(where: str, transform: Callable[..., Any]) -> list[Problem]:
    try:
        pickle.dumps(transform)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        hint = "make it a function or class at the top of its module: a lambda or a local function can't be pickled"
        return [Problem(where, f"`transform()` can't be pickled: {error}", hint)]
    return []


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; each submodule's mode and the random state are put back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _device(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _where(part: nn.Module, place: str) -> str:
    return f"{place} ({type(part).__name__})"


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise UserError(problems=problems)
