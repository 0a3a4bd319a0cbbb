"""What an encoder's output depends on, and a key for it: whatever differs there has another key.

Weights alone do not tell: an option such as a grid is in no tensor, a transform may change under the same name, and a
new version of a library may resize in another way. So the key takes in what can be described (weights, options, source
code, versions) and what comes out: pixels and features of probe images, bit for bit. The last also parts machines and
thread counts that round differently; they keep features of their own, and what a run gives never depends on who filled
the store.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as images
from torch import Tensor, nn

from mmcl.model.probe import probe_images

if TYPE_CHECKING:
    from PIL.Image import Image

LIBRARIES: Mapping[str, str] = types.MappingProxyType(
    {
        "torch": "torch",
        "torchvision": "torchvision",
        "transformers": "transformers",
        "timm": "timm",
        "open_clip": "open_clip_torch",
        "PIL": "pillow",
        "numpy": "numpy",
    }
)
"""Packages that are known by their version instead of their source, with the name of the distribution."""

_DECODER = "mmcl.data.images"  # from the image's bytes to what a transform gets
_MODULE = frozenset(vars(nn.Module()))  # what every module has; its tensors are in the fingerprint
_SIZES = ((64, 64), (37, 91), (320, 200), (7, 5))
_DEEP = 8


def identity(
    encoder: nn.Module,
    transform: Callable[[Image], Tensor],
    fingerprint: str,
    encode: Callable[[Sequence[Tensor]], Tensor],
) -> dict[str, Any]:
    """All that the features of an image depend on beside the image.

    Args:
        encoder: frozen.
        transform: of the encoder.
        fingerprint: of the encoder's weights.
        encode: runs the encoder as it is run for the store: pixels of each image -> features [I, T, W].

    Returns:
        Plain values for JSON; `key_of` makes the key.
    """
    modules = {_DECODER}
    described = [_describe(encoder, modules), _describe(transform, modules)]
    pixels = [transform(image) for image in _probes()]
    return {
        "encoder": _class(type(encoder)),
        "source": getattr(encoder.info, "source", ""),
        "fingerprint": fingerprint,
        "options": _digest(json.dumps(described, sort_keys=True).encode()),
        "code": _digest(json.dumps(code_of(modules), sort_keys=True).encode()),
        "pixels": _digest(*map(_bytes, pixels)),
        "features": _digest(_bytes(encode(pixels))),
        "versions": {package: _version(name) for package, name in LIBRARIES.items()},
    }


def key_of(about: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of plain values."""
    return _digest(json.dumps(about, sort_keys=True).encode())


def options_of(part: nn.Module) -> str:
    """Class and plain options of a module, its children not counted: what its weights do not tell."""
    plain = (bool, int, float, str, type(None))

    def is_plain(value: Any) -> bool:
        return isinstance(value, plain) or (isinstance(value, (list, tuple)) and all(map(is_plain, value)))

    own = {name: value for name, value in vars(part).items() if name not in _MODULE and is_plain(value)}
    return json.dumps([type(part).__qualname__, sorted((name, repr(value)) for name, value in own.items())])


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the source of modules, and of all that these import from their own top-level package."""
    found: dict[str, str] = {}
    todo = [name for name in modules if name.partition(".")[0] not in LIBRARIES]
    while todo:
        name = todo.pop()
        module = sys.modules.get(name)
        if name in found or module is None:
            continue
        path = getattr(module, "__file__", None) or ""
        if path.endswith(".py") and Path(path).is_file():
            found[name] = _digest(Path(path).read_bytes())
        else:  # a notebook or a compiled module: the functions themselves are described
            found[name] = ""
        for value in list(vars(module).values()):
            other = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(other, str) and other.partition(".")[0] == name.partition(".")[0]:
                todo.append(other)
    return found


def _probes() -> list[Image]:
    """Smooth images and noise, of several sizes: larger and smaller than what encoders take, no squares and squares."""
    noise = []
    for width, height in _SIZES:
        data = hashlib.shake_256(f"{width} {height}".encode()).digest(3 * width * height)
        noise.append(images.frombytes("RGB", (width, height), data))
    return [*probe_images(), *noise]


def _describe(value: Any, modules: set[str], above: tuple[int, ...] = ()) -> Any:
    """Plain values that tell an object by its class, attributes and code; adds the modules where these are defined."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, complex)):
        return repr(value)
    if isinstance(value, enum.Enum) or type(value).__module__ == "torch":
        return repr(value) if not isinstance(value, Tensor) else _digest(_bytes(value))
    if id(value) in above or len(above) > _DEEP:
        return _class(type(value))
    above = (*above, id(value))
    inside = functools.partial(_describe, modules=modules, above=above)
    if isinstance(value, (Tensor, np.ndarray)):
        return _digest(_bytes(torch.as_tensor(value)))
    if isinstance(value, (list, tuple)):
        return [inside(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return sorted([repr(key), inside(entry)] for key, entry in value.items())
    if isinstance(value, functools.partial):
        return ["partial", inside(value.func), inside(value.args), inside(value.keywords)]
    if isinstance(value, types.MethodType):
        return [inside(value.__func__), inside(value.__self__)]
    if isinstance(value, types.FunctionType):
        modules.add(value.__module__)
        closed = [inside(cell.cell_contents) for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, _code(value.__code__), inside(value.__defaults__), closed]
    if isinstance(value, type):
        return _class(value)
    classes = [cls for cls in type(value).__mro__ if cls.__module__.partition(".")[0] not in sys.stdlib_module_names]
    modules.update(cls.__module__ for cls in classes)
    names = {name for cls in classes for name in getattr(cls, "__slots__", ())} | set(getattr(value, "__dict__", ()))
    if isinstance(value, nn.Module):
        names -= _MODULE
    attributes = {name: inside(getattr(value, name)) for name in sorted(names) if hasattr(value, name)}
    content: list[Any] = [_class(type(value)), attributes]
    if isinstance(value, nn.Module):
        content += [value.extra_repr(), {name: inside(child) for name, child in value.named_children()}]
        content.append({name: inside(buffer) for name, buffer in value.named_buffers(recurse=False)})
    if any(cls.__module__ == "__main__" for cls in classes):  # perhaps in a notebook, without a file
        content.append([inside(part) for cls in classes for part in vars(cls).values() if callable(part)])
    return content


def _code(code: types.CodeType) -> str:
    """Of a function's instructions and constants; line numbers do not count."""
    constants = [_code(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return _digest(code.co_code, json.dumps([constants, code.co_names]).encode())


def _class(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
