"""Saving the replay memory: columns of plain values, and one tensor for all images, which costs what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmcl.data.images import BytesImage
from mmcl.data.types import ImageSource, Turn
from mmcl.memory.records import Record, StoredFeatures, TopLogits

PLAIN = ("task", "id", "modality", "answer", "group", "time", "language", "rejected", "key", "step", "score", "drift")


def pack_state(records: Sequence[Record], images: Mapping[str, ImageSource]) -> dict[str, Any]:
    """Records and the images that they refer to, as nested dicts and lists of tensors, numbers, strings and None."""
    place = {digest: index for index, digest in enumerate(images)}
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in PLAIN}
    columns["question"] = [[[turn.role, turn.text] for turn in record.question] for record in records]
    columns["images"] = [[place[image.digest] for image in record.images] for record in records]
    return {
        "records": columns,
        "images": [_pack_image(image) for image in images.values()],
        "pixels": _pack_bytes([image.read() for image in images.values() if not isinstance(image, StoredFeatures)]),
        "features": _join([image.features for image in images.values() if isinstance(image, StoredFeatures)]),
        "logits": _pack_logits([record.logits for record in records]),
    }


def unpack_state(state: Mapping[str, Any]) -> list[Record]:
    """The reverse of `pack_state`."""
    images: list[ImageSource] = []
    start = features = 0
    for image in state["images"]:
        if "digest" in image:
            tensor = state["features"][features : features + image["tokens"]].clone()
            about = {key: image[key] for key in ("fingerprint", "digest", "name")}
            images.append(StoredFeatures(tensor, dimensions=tuple(image["dimensions"]), **about))
            features += image["tokens"]
        else:
            data = state["pixels"][start : start + image["bytes"]].numpy().tobytes()
            images.append(BytesImage(data, image["name"]))
            start += image["bytes"]
    columns = state["records"]
    logits = _unpack_logits(state["logits"], len(columns["task"]))
    return [
        Record(
            question=tuple(Turn(role, text) for role, text in columns["question"][row]),
            images=tuple(images[index] for index in columns["images"][row]),
            logits=logits[row],
            **{name: columns[name][row] for name in PLAIN},
        )
        for row in range(len(columns["task"]))
    ]


def _pack_image(image: ImageSource) -> dict[str, Any]:
    if isinstance(image, StoredFeatures):
        return {
            "name": image.name,
            "digest": image.image_digest,
            "fingerprint": image.fingerprint,
            "dimensions": list(image.dimensions),
            "tokens": len(image.features),
        }
    return {"name": image.name, "bytes": len(image.read())}


def _pack_bytes(parts: Sequence[bytes]) -> Tensor | None:
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8) if parts else None


def _join(tensors: Sequence[Tensor]) -> Tensor | None:
    """Features [tokens, W] of images, one after another: not all have equally many tokens."""
    return torch.cat(list(tensors)) if tensors else None


def _pack_logits(logits: Sequence[TopLogits | None]) -> dict[str, Any] | None:
    kept = [top for top in logits if top is not None]
    if not kept:
        return None
    return {
        "positions": [None if top is None else len(top.rest) for top in logits],
        "index": torch.cat([top.index for top in kept]),
        "top": torch.cat([top.top for top in kept]),
        "rest": torch.cat([top.rest for top in kept]),
    }


def _unpack_logits(state: Mapping[str, Any] | None, rows: int) -> list[TopLogits | None]:
    if state is None:
        return [None] * rows
    result: list[TopLogits | None] = []
    start = 0
    for positions in state["positions"]:
        if positions is None:
            result.append(None)
            continue
        part = slice(start, start + positions)
        result.append(TopLogits(*(state[name][part].clone() for name in ("index", "top", "rest"))))
        start += positions
    return result
