"""Number formats for stored features: how many bytes, and how much is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcl.errors import UserError

FeatureDtype = Literal["fp32", "fp16", "int8"]
Bytes = NDArray[np.uint8]

_STEPS = 127


@dataclass
class RoundingError:
    """What rounding did to the features so far.

    Attributes:
        images: how many were measured.
        squares: sum of the squared values.
        errors: sum of the squared differences.
        largest: the largest difference, as a share of the largest value of its token.
    """

    images: int = 0
    squares: float = 0.0
    errors: float = 0.0
    largest: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the differences over that of the values."""
        return math.sqrt(self.errors / self.squares) if self.squares else 0.0

    def measure(self, exact: Tensor, rounded: Tensor) -> None:
        """Add features [I, T, W]."""
        exact, difference = exact.double(), (exact.double() - rounded.double()).abs()
        share = difference.amax(-1) / exact.abs().amax(-1).clamp_min(torch.finfo(torch.float64).tiny)
        self.add(
            RoundingError(len(exact), float(exact.square().sum()), float(difference.square().sum()), float(share.max()))
        )

    def add(self, other: RoundingError) -> None:
        """Join what was measured elsewhere."""
        self.images += other.images
        self.squares += other.squares
        self.errors += other.errors
        self.largest = max(self.largest, other.largest)

    @classmethod
    def read(cls, data: Any) -> RoundingError:
        """From the JSON object of its attributes; nothing measured where it is not one."""
        if not isinstance(data, dict) or set(data) != {"images", "squares", "errors", "largest"}:
            return cls()
        return cls(int(data["images"]), float(data["squares"]), float(data["errors"]), float(data["largest"]))


@dataclass(frozen=True, slots=True)
class Codec:
    """Features [T, W] of one image to a record of a fixed number of bytes, and back.

    `fp32` is exact. `fp16` rounds each value to 11 significant bits (absolute 2^-25 below 2^-14). `int8` divides each
    token by its largest absolute value over 127 and rounds to whole numbers: at most 1/254 of that value is lost.

    Attributes:
        dtype: the format.
        tokens: T.
        width: W.
    """

    dtype: FeatureDtype
    tokens: int
    width: int

    @property
    def size(self) -> int:
        """Bytes of a record."""
        values = self.tokens * self.width
        return {"fp32": 4 * values, "fp16": 2 * values, "int8": values + 4 * self.tokens}[self.dtype]

    def encode(self, features: Tensor) -> Bytes:
        """Features [I, T, W], float32 on the CPU -> records [I, size].

        Raises:
            UserError: the format has no number for a value (beyond 65,504 in fp16; infinity or NaN in int8).
        """
        values = np.ascontiguousarray(features.numpy(), dtype="<f4")
        if self.dtype == "fp32":
            return self._rows(values)
        if self.dtype == "fp16":
            with np.errstate(over="ignore"):
                halves = values.astype("<f2")
            self._check(bool(np.isfinite(halves).all()), values)
            return self._rows(halves)
        self._check(bool(np.isfinite(values).all()), values)
        scale = (np.abs(values).max(-1) / np.float32(_STEPS)).astype("<f4")  # [I, T]
        whole = np.rint(values / np.where(scale > 0, scale, 1)[..., None]).clip(-_STEPS, _STEPS).astype(np.int8)
        return np.concatenate([self._rows(scale), self._rows(whole)], axis=1)

    def decode(self, records: Bytes) -> Tensor:
        """Records [I, size] -> features [I, T, W], float32 on the CPU, in memory of their own."""
        shape = (len(records), self.tokens, self.width)
        if self.dtype != "int8":
            values = np.ascontiguousarray(records).view("<f4" if self.dtype == "fp32" else "<f2").reshape(shape)
            return torch.from_numpy(values.astype(np.float32, copy=True))
        scale = np.ascontiguousarray(records[:, : 4 * self.tokens]).view("<f4")
        whole = np.ascontiguousarray(records[:, 4 * self.tokens :]).view(np.int8).reshape(shape)
        return torch.from_numpy(whole.astype(np.float32) * scale.astype(np.float32)[..., None])

    @staticmethod
    def _rows(values: NDArray[Any]) -> Bytes:
        return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)

    def _check(self, fits: bool, values: NDArray[Any]) -> None:
        if not fits:
            raise UserError(
                f"the encoder's features do not fit {self.dtype}: largest value {np.abs(values).max():.3g}",
                where="model.features.dtype",
                hint="use `dtype: fp32`",
            )
