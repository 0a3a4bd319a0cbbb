"""Answers that are provably the same as at an earlier stage are not asked for again.

A greedy answer is a function of the prompt, the images, the options of decoding and the weights that its route goes
through. Everything that training can change is in `Assembly.state()`; what is given by the recipe is the same in the
whole run. So a question's key is a hash of all of these, and an answer under an equal key is taken as it is. The proof
is of the real numbers: which questions share a row with one can change the last bits of its logits, as everywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcl.evaluation.predictions import read_predictions
from mmcl.model.adapters import SHARED
from mmcl.model.assembly import Assembly
from mmcl.model.packing import Item
from mmcl.protocols import Prediction, Route

_ADAPTER = re.compile(r"\.lora_\w+\.([^.]+)(?:\.|$)")
_SCALARS = (bool, int, float, str, type(None))

Part = tuple[str, str]
"""`("expert", NAME)`, `("adapter", NAME)`, or `("shared", "")` for what every answer may depend on."""

EVERYTHING: Part = ("shared", "")


def part_of(name: str) -> Part:
    """The part of the model that a tensor of that full name belongs to."""
    if name.startswith("experts."):
        return "expert", name.split(".")[1]
    adapter = _ADAPTER.search(name)
    return ("adapter", adapter[1]) if adapter and adapter[1] != SHARED else EVERYTHING


class Weights:
    """Digests of a model's weights as they are now, each tensor read once.

    Shared is whatever no route can leave out: the base projector (experts may compute with it), the shared adapter, all
    else that ever trained, and all buffers.

    Args:
        tensors: every tensor that may differ between two stages, by full name.
        structures: for modules whose parameters do not say all about them, what they are; by full name.
        given: what stands for everything else: the same text means the same base weights, architecture and code.
    """

    def __init__(self, tensors: Mapping[str, Tensor], structures: Mapping[str, str], given: str) -> None:
        parts: dict[Part, Any] = {EVERYTHING: hashlib.sha256(given.encode())}
        for name, text in sorted(structures.items()):
            parts.setdefault(part_of(name), hashlib.sha256()).update(f"{name}\0{text}\0".encode())
        for name, tensor in sorted(tensors.items()):
            digest = parts.setdefault(part_of(name), hashlib.sha256())
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        self._parts: dict[Part, str] = {part: digest.hexdigest() for part, digest in parts.items()}
        self._routes: dict[Route, str] = {}

    @classmethod
    def of(cls, model: Assembly, given: str) -> Weights:
        """Of a model; `given` must stand for its recipe."""
        modules: dict[str, nn.Module] = {"projector": model.projector}
        modules |= {f"experts.{name}": module for name, module in model.experts.items()}
        structures = {name: structure(module) for name, module in modules.items()}
        return cls({**dict(model.named_buffers()), **model.state()}, structures, given)

    @property
    def shared(self) -> str:
        """Digest of what every answer may depend on."""
        return self._parts[EVERYTHING]

    def route(self, route: Route) -> str:
        """Digest of all weights that an answer over this route can depend on, with the route's own numbers."""
        if route not in self._routes:
            experts = [
                [weight, "base" if name == "base" else self._parts["expert", name]] for name, weight in route.experts
            ]
            # An adapter without tensors in the state cannot be: peft's are always kept.
            adapters = [self._parts["adapter", name] for name in route.adapters]
            self._routes[route] = _hash([self.shared, experts, adapters])
        return self._routes[route]


def structure(module: nn.Module) -> str:
    """Classes and plain attributes of a module and those below it: what its tensors do not say, such as a scale."""
    rows = []
    for name, each in module.named_modules():
        plain = {key: value for key, value in vars(each).items() if key != "training" and _is_plain(value)}
        rows.append([name, f"{type(each).__module__}.{type(each).__qualname__}", sorted(plain.items())])
    return repr(rows)


def _is_plain(value: object) -> bool:
    return isinstance(value, _SCALARS) or (isinstance(value, tuple) and all(isinstance(v, _SCALARS) for v in value))


def question_key(item: Item, weights: Weights, options: Sequence[object]) -> str:
    """The key of one question.

    Args:
        item: its tokens, images and route.
        weights: of the model that is asked.
        options: of decoding; and the choices, where the answer is chosen among some.
    """
    images = [image.digest for image in item.sample.images]
    return _hash([item.ids, images, weights.route(item.route), list(options)])[:32]


@dataclass(frozen=True, slots=True)
class Known:
    """An answer that was measured.

    Attributes:
        text: the answer.
        origin: folder name of the stage that it was measured at.
    """

    text: str
    origin: str


class Answers:
    """The answers measured so far in a run, as far as the model at hand can give them again.

    Only those under the same shared weights are kept in memory: for a method that trains something shared that is one
    stage's, for isolated experts one answer per question. The others lie in the run's folder, where a variant that
    starts from the same weights, or a run that goes on, finds them.
    """

    def __init__(self) -> None:
        self._files: dict[str, list[tuple[Path, str]]] = {}  # shared digest -> (answer file, its stage)
        self._known: dict[str, Known] = {}
        self._shared = ""

    def add_file(self, shared: str, path: Path, origin: str) -> None:
        """Note an answer file of which some answers were measured under these shared weights, at stage `origin`."""
        self._files.setdefault(shared, []).append((path, origin))

    def under(self, weights: Weights) -> Mapping[str, Known]:
        """The known answers by key, for a model with these weights."""
        if weights.shared != self._shared:
            self._shared = weights.shared
            self._known = {}
            for path, origin in self._files.get(self._shared, ()):
                if path.exists():
                    self.add((row for row, _ in read_predictions(path)), origin)
        return self._known

    def add(self, rows: Iterable[Prediction], origin: str) -> None:
        """Keep the answers among these that were measured at that stage."""
        for row in rows:
            key = row.metadata.get("answer_key")
            if key and row.metadata.get("measured_at") == origin:
                self._known.setdefault(key, Known(row.text, origin))


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
