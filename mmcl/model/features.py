"""Encoder outputs of a frozen encoder are constants: computed once per image content, then looked up.

What is computed goes through batches of one shape, the last one filled up with zeros. The kernels of a CPU then give
each image the same bits whatever lies beside it (tested for the encoders here), so that a run's results do not depend
on what was computed before it and what now. Batches of another size may differ in the last bit.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mmcl.data.images import EncodedImage, decode
from mmcl.data.types import ImageSource, Samples
from mmcl.errors import UserError
from mmcl.fetch import cache_folder
from mmcl.model.identity import identity, key_of, options_of
from mmcl.model.rounding import Codec, RoundingError
from mmcl.model.store import FeatureStore
from mmcl.model.transfer import upload
from mmcl.model.views import Views, join
from mmcl.protocols import Encoder, EncoderInfo
from mmcl.recipe.spec import FeaturesSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmcl.model.assembly import Assembly
    from mmcl.progress import Progress

IN_MEMORY = FeaturesSpec(store=False)
FORMAT = 1

# Pixels per batch, over all of its images: small images fill a batch by their number.
_CPU_PIXELS, _GPU_PIXELS = 2**19, 2**22
_READERS = min(4, os.cpu_count() or 1)


def fingerprint(encoder: nn.Module, source: str) -> str:
    """SHA-256 of the encoder's source, every tensor of its state, and its class and plain options.

    Of the modules inside, those that are encoders themselves count with their options too.
    """
    parts = [
        part for part in encoder.modules() if part is encoder or isinstance(getattr(part, "info", None), EncoderInfo)
    ]
    digest = hashlib.sha256(" ".join([source, *map(options_of, parts)]).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Features:
    """Features of a frozen encoder: on disk, or in memory where there is no store or no room in it.

    Args:
        encoder: follows `mmcl.protocols.Encoder`.
        spec: of the recipe.
        fingerprint: of the encoder.
    """

    def __init__(self, encoder: nn.Module, spec: FeaturesSpec, fingerprint: str) -> None:
        self.spec = spec
        self.fingerprint = fingerprint
        self._notes: dict[str, bool] = {}  # and whether it was told
        self._memory = FeatureCache()
        self._error = RoundingError()
        self._take(encoder)

    def renew(self, encoder: nn.Module, fingerprint: str) -> None:
        """Forget everything: the encoder changed."""
        self.fingerprint = fingerprint
        self._take(encoder)

    def _take(self, encoder: nn.Module) -> None:
        info = cast(Encoder, encoder).info
        self.encoder = encoder
        self.transform = cast(Encoder, encoder).transform()
        self.views = Views(encoder)
        self.codec = Codec(self.spec.dtype, self.views.per_entry * info.tokens, info.width)
        self._memory.clear()
        self._store: FeatureStore | None = None
        self._opened = False
        self._state = self._tensors()

    def stale(self, encoder: nn.Module) -> bool:
        """Whether this is another encoder, or its tensors were exchanged or written to since the last `renew`."""
        return encoder is not self.encoder or self._state != self._tensors()

    def get(self, images: Iterable[ImageSource], device: torch.device) -> dict[str, Tensor]:
        """Features [views * T, W] (float32, on the device) by digest; computed where there are none yet.

        Raises:
            UserError: an image can't be read; the encoder breaks its promise.
        """
        wanted = {image.digest: image for image in images}
        whole = {digest: image.stored_features(self.fingerprint) for digest, image in wanted.items()}
        names = {d: self._names(image) for d, image in wanted.items() if whole[d] is None}
        found: dict[str, Tensor] = {}
        for name in chain.from_iterable(names.values()):
            kept = self._memory.get(name)
            if kept is not None:
                found[name] = kept
        self._open(device)
        absent = [name for name in chain.from_iterable(names.values()) if name not in found]
        if self._store is not None and absent:
            found |= self._store.get(absent)
        todo = [wanted[digest] for digest, views in names.items() if not all(name in found for name in views)]
        for made in self._compute(todo, device):
            found |= made
        for digest, entries in names.items():
            joined = torch.cat([found[name] for name in entries]) if len(entries) > 1 else found[entries[0]]
            whole[digest] = joined[: self.views.of(wanted[digest], self.fingerprint) * self.views.info.tokens]
        return {digest: upload(kept, device).float() for digest, kept in whole.items() if kept is not None}

    def missing(self, images: Iterable[ImageSource], device: torch.device) -> list[ImageSource]:
        """Those, each once, whose features must be computed."""
        self._open(device)
        wanted: dict[str, ImageSource] = {}  # by the names of their views
        for image in images:
            if image.stored_features(self.fingerprint) is None:
                wanted |= {name: image for name in self._names(image) if name not in self._memory}
        absent = self._store.missing(wanted) if self._store else list(wanted)
        return list({wanted[name].digest: wanted[name] for name in absent}.values())

    def fill(self, images: Sequence[ImageSource], device: torch.device) -> Iterator[int]:
        """Compute and keep features of different images, batch by batch; yields the views of each batch."""
        for made in self._compute(images, device):
            yield len(made)

    def batch_size(self, device: torch.device) -> int:
        """Images per batch: the same for every call on a kind of device."""
        values = math.prod(cast(Encoder, self.encoder).info.pixel_shape)
        budget = 3 * (_CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS)
        exponent: int = (budget // values).bit_length() - 1
        return 1 << max(2, min(6, exponent))

    def tell(self, notify: Callable[[str], None]) -> None:
        """Say, once, what became of the store and what rounding costs."""
        error = self._store.error if self._store is not None else self._error
        if self.spec.dtype != "fp32" and error.images:
            self._note(
                f"image features kept as {self.spec.dtype}: off by {error.relative:.2%} (root mean square), by at most "
                f"{error.largest:.2%} of a token's largest value; measured on {error.images} images"
            )
        for note, told in self._notes.items():
            if not told:
                notify(note)
        self._notes = dict.fromkeys(self._notes, True)

    # ------------------------------------------------------------------------------------------------------ inside

    def _compute(self, images: Sequence[ImageSource], device: torch.device) -> Iterator[dict[str, Tensor]]:
        """Entries of the store by name (float32, CPU) of each batch, as the store gives them back."""
        for batch, pixels in read_ahead(images, self.transform, self.batch_size(device)):
            names = list(chain.from_iterable(map(self._names, batch)))
            exact = self._encode(self._split(batch, pixels), device)
            records = self.codec.encode(exact)
            rounded = self.codec.decode(records)
            error = RoundingError()
            if self.spec.dtype != "fp32":
                error.measure(exact, rounded)
                self._error.add(error)
            made = dict(zip(names, rounded, strict=True))
            if not self._keep(lambda store: store.put(names, records, error)):  # noqa: B023 (called at once)
                for name, features in made.items():
                    self._memory.put(name, features.clone())
            yield made

    def _names(self, image: ImageSource) -> list[str]:
        return self.views.names(image, self.fingerprint)

    def _split(self, images: Sequence[ImageSource], pixels: Sequence[Tensor]) -> list[Tensor]:
        """Pixels of images -> of what each forward pass takes, as many views of each image as `names` has."""
        parts: list[Tensor] = []
        for image, made in zip(images, pixels, strict=True):
            own = self.views.split(made, image.name)
            count = math.prod(made.shape[:2]) if self.views.whole else len(own)
            if count != self.views.of(image, self.fingerprint):
                raise UserError(
                    f"the transform made {count} views, promised {self.views.of(image, self.fingerprint)}",
                    where=image.name,
                    hint="make `views` or `grid` say how many views `transform` gives",
                )
            parts += own
        return parts

    def _encode(self, pixels: Sequence[Tensor], device: torch.device) -> Tensor:
        """Pixels -> entries of the store [E, tokens, W] (float32, CPU), in batches of one shape or image by image."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if self.views.whole:
                return torch.cat([self.views.entries(encode(self.encoder, one.to(device)).cpu()) for one in pixels])
            size = self.batch_size(device)
            parts = []
            for start in range(0, len(pixels), size):
                chunk = torch.stack(list(pixels[start : start + size]))
                full = torch.cat([chunk, chunk.new_zeros(size - len(chunk), *chunk.shape[1:])]).to(device)
                parts.append(encode(self.encoder, full)[: len(chunk)].cpu())
            return torch.cat(parts)

    def _open(self, device: torch.device) -> None:
        """Find the folder for this encoder, once, when the first image comes."""
        if self._opened:
            return
        self._opened = True
        if not self.spec.store:
            return

        def run(pixels: Sequence[Tensor]) -> Tensor:
            views = [view for each in pixels for view in self.views.split(each, "a probe image")]
            return self._encode(views, device)

        about = identity(self.encoder, self.transform, self.fingerprint, run)
        about |= {"format": FORMAT, "dtype": self.spec.dtype}
        try:
            self._store = FeatureStore(
                cache_folder() / "features",
                key_of(about),
                self.codec,
                limit_bytes=int(self.spec.limit_gb * 1e9),
                about=about,
            )
        except OSError as error:
            self._without(error)

    def _keep(self, write: Callable[[FeatureStore], bool]) -> bool:
        """Write into the store, if there is one that can be written."""
        if self._store is None:
            return False
        try:
            kept = write(self._store)
        except OSError as error:
            self._without(error)
            return False
        if not kept:
            self._note(
                f"the features of this run's images are more than model.features.limit_gb: {self.spec.limit_gb:g}; "
                "the rest are kept in memory as far as they fit"
            )
        return kept

    def _without(self, error: OSError) -> None:
        self._store = None
        self._note(
            f"image features are kept in memory alone: {error}; set MMCL_CACHE to a folder that you may write in, "
            "with room, or set model.features.store: false"
        )

    def _note(self, text: str) -> None:
        self._notes.setdefault(text, False)

    def _tensors(self) -> list[tuple[int, int]]:
        """Address and version of each tensor of the encoder: whoever writes to one or exchanges it changes these."""
        return [
            (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
            for tensor in chain(self.encoder.parameters(), self.encoder.buffers())
        ]


class FeatureCache:
    """Least-recently-used features in main memory, by image digest.

    Args:
        limit_bytes: the cache never holds more than this.
    """

    def __init__(self, limit_bytes: int = 2 * 1024**3) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._items: OrderedDict[str, Tensor] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._items

    def get(self, digest: str) -> Tensor | None:
        """Features [T, W], or None."""
        found = self._items.get(digest)
        if found is not None:
            self._items.move_to_end(digest)
        return found

    def put(self, digest: str, features: Tensor) -> None:
        """Keep features [T, W]; drops the oldest if need be."""
        size = features.numel() * features.element_size()
        if digest in self._items or size > self.limit_bytes:
            return
        self._items[digest] = features
        self.bytes += size
        while self.bytes > self.limit_bytes:
            _, dropped = self._items.popitem(last=False)
            self.bytes -= dropped.numel() * dropped.element_size()

    def clear(self) -> None:
        """Forget everything (the encoder changed)."""
        self._items.clear()
        self.bytes = 0


def preload(model: Assembly, samples: Iterable[Samples], progress: Progress, label: str) -> None:
    """Encode images once, ahead of their use, while the encoder is frozen.

    Args:
        model: keeps the features.
        samples: lists of samples; images may come many times.
        progress: shows the batches.
        label: of the work.
    """
    if model.encoder_trains:
        return
    images = {image.digest: image for each in samples for sample in each for image in sample.images}
    if not images:
        return
    features, device = model.features, model.device
    if features.stale(model.encoder):
        model.renew_features()
    todo = features.missing(images.values(), device)
    total = -(-len(todo) // features.batch_size(device))
    for _ in progress.track(features.fill(todo, device), label=f"encode {label}", total=total, unit="batch of images"):
        pass
    features.tell(progress.message)


def encode(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels [V, *info.pixel_shape], or one image's [rows, columns, *info.pixel_shape] -> features [V, T, W], float32.

    Raises:
        UserError: the encoder's `info` promised another shape.
    """
    features: Tensor = encoder(pixels).float()
    info = cast(Encoder, encoder).info
    count = math.prod(pixels.shape[: pixels.ndim - len(info.pixel_shape)])
    if tuple(features.shape) != (count, info.tokens, info.width):
        raise UserError(
            f"the encoder promised [{count}, {info.tokens}, {info.width}] (images, tokens, width), "
            f"but forward gave {list(features.shape)}",
            where=f"encoder {type(encoder).__name__}",
            hint="make `info` say what `forward` returns",
        )
    return features


def run_encoder(encoder: nn.Module, images: Sequence[ImageSource], device: torch.device) -> list[Tensor]:
    """Features [views * T, W] of each image, with gradients: for an encoder that trains."""
    views = Views(encoder)
    transform = cast(Encoder, encoder).transform()
    (loaded,) = (pixels for _, pixels in read_ahead(images, transform, len(images)))
    parts = [views.split(pixels, image.name) for image, pixels in zip(images, loaded, strict=True)]
    if views.whole:
        return [encode(encoder, whole.to(device)).flatten(0, 1) for (whole,) in parts]
    pixels = torch.stack(list(chain.from_iterable(parts))).to(device)
    return join(encode(encoder, pixels), list(map(len, parts)))


def read_ahead(
    images: Sequence[ImageSource], transform: Callable[[Image], Tensor], size: int
) -> Iterator[tuple[Sequence[ImageSource], list[Tensor]]]:
    """Batches of images with the pixels of each; threads read the next batch while the caller works on this one.

    Raises:
        UserError: an image can't be read or has changed since its digest was taken.
    """
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    if not batches:
        return
    pool = ThreadPoolExecutor(min(_READERS, len(images)), thread_name_prefix="mmcl-images")
    pending: deque[list[Future[Tensor]]] = deque()
    try:
        for number, batch in enumerate(batches):
            for ahead in batches[number + len(pending) : number + 2]:
                pending.append([pool.submit(_pixels, image, transform) for image in ahead])
            yield batch, [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(image: ImageSource, transform: Callable[[Image], Tensor]) -> Tensor:
    if not isinstance(image, EncodedImage):
        return transform(image.open())
    data = image.read()
    if hashlib.sha256(data).hexdigest() != image.digest:  # its features would be kept under the old content's name
        raise UserError("the image was changed after it was first read", where=image.where, hint="run it again")
    return transform(decode(data, image.where))
