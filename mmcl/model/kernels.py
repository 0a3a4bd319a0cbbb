"""Leaner forms of two stock modules of a language model, found by structure, with the stock ones as the reference.

- A LoRA layer of peft around a frozen `nn.Linear`: one autograd function in the base weight's number format, instead
  of a chain of casts, products and sums that each keep their inputs for the backward pass. The adapters' weights stay
  float32 masters.
- A root-mean-square norm (Zhang and Sennrich, 1910.07467) whose weight is frozen: one autograd function that keeps its
  input and one number per position.

Whatever is not exactly of that kind (other adapters, dropout at work, quantised or training weights, a norm that
computes something else) runs its stock forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as StockLoRALinear
from torch import Tensor, nn

_CASTS: ContextVar[dict[int, Tensor] | None] = ContextVar("mmcl_casts", default=None)


@contextlib.contextmanager
def casts_kept() -> Iterator[None]:
    """Inside, nothing trains: adapters' weights are cast to the base's number format once, not in every call."""
    token = _CASTS.set({})
    try:
        yield
    finally:
        _CASTS.reset(token)


def _cast(master: Tensor, dtype: torch.dtype) -> Tensor:
    kept = _CASTS.get()
    if kept is None or master.dtype == dtype:
        return master.to(dtype)
    if id(master) not in kept:
        kept[id(master)] = master.to(dtype)
    return kept[id(master)]


def _lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[float, ...], ab: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Y of x [positions, in], and x A^T of each adapter; all in one number format."""
    y = nn.functional.linear(x, weight, bias)
    inner = [x @ a.t() for a in ab[::2]]
    for scale, narrow, b in zip(scales, inner, ab[1::2], strict=True):
        y.addmm_(narrow, b.t(), alpha=scale)
    return y, inner


class _LoRALinear(torch.autograd.Function):
    """y = x W^T + b + sum over adapters of s (x A^T) B^T; gradients for x, A and B.

    Shapes: x [..., in], W [out, in], A [rank, in], B [out, rank], y [..., out].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[float, ...], *ab: Tensor
    ) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        narrow = [matrix.to(weight.dtype) for matrix in ab]
        y, inner = _lora_linear(flat, weight, bias, scales, narrow)
        ctx.scales = scales
        ctx.save_for_backward(
            flat, weight, *(part for k in range(len(scales)) for part in (*narrow[2 * k : 2 * k + 2], inner[k]))
        )
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        flat, weight, *saved = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        into_x = grad @ weight if ctx.needs_input_grad[0] else None
        result: list[Tensor | None] = []
        for place, scale in enumerate(ctx.scales):
            a, b, inner = saved[3 * place : 3 * place + 3]
            wants_a, wants_b = ctx.needs_input_grad[4 + 2 * place : 6 + 2 * place]
            through = grad @ b if wants_a or into_x is not None else None
            if into_x is not None:
                into_x.addmm_(cast(Tensor, through), a, alpha=scale)
            result.append((cast(Tensor, through).t() @ flat).float().mul_(scale) if wants_a else None)
            # The narrow matrix on the left: the other way round is slower on CPUs.
            result.append((inner.t() @ grad).t().float().mul_(scale) if wants_b else None)
        shape = (*grads[0].shape[:-1], flat.shape[-1])
        return into_x.view(shape) if into_x is not None else None, None, None, None, *result


class LoRALinear(StockLoRALinear):
    """peft's LoRA layer with a leaner forward and backward; `lean` turns the one into the other in place."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        base: Any = self.base_layer
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = (
            not args
            and not kwargs
            and not self.disable_adapters
            and not self.merged
            and x.dtype == base.weight.dtype
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and not any(name in self.lora_variant or self.lora_bias[name] for name in names)
            and not any(self.training and isinstance(self.lora_dropout[name], nn.Dropout) for name in names)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        layers: list[Any] = [side[name] for name in names for side in (self.lora_A, self.lora_B)]
        ab: list[Tensor] = [layer.weight for layer in layers]
        scales = tuple(float(self.scaling[name]) for name in names)
        if torch.is_grad_enabled():
            return cast(Tensor, _LoRALinear.apply(x, base.weight, base.bias, scales, *ab))
        kept = [_cast(matrix, x.dtype) for matrix in ab]
        y, _ = _lora_linear(x.reshape(-1, x.shape[-1]), base.weight, base.bias, scales, kept)
        return y.view(*x.shape[:-1], y.shape[-1])


class _RMSNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + eps) over the last dimension, computed in float32; a gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Any:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (wide * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, inverse, weight = ctx.saved_tensors
        grad = (grads[0] * weight).float()  # one number format per product: mixed ones are slow
        normed = x.float().mul_(inverse) if x.dtype != torch.float32 else x * inverse
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1).div_(-x.shape[-1])
        return grad.addcmul_(normed, along).mul_(inverse).to(x.dtype), None, None


class RMSNorm(nn.Module):
    """A root-mean-square norm that shares the weight of the stock module it stands for.

    Args:
        stock: has a `weight` [D]; it runs while that trains.
        eps: added to the mean square.
    """

    def __init__(self, stock: nn.Module, eps: float) -> None:
        super().__init__()
        self.weight = cast(nn.Parameter, stock.weight)
        self.eps = eps
        self._stock = (stock,)  # in a tuple: its weight is already registered here

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if self.weight.requires_grad or x.dtype != self.weight.dtype:
            return cast(Tensor, self._stock[0](x))
        return cast(Tensor, _RMSNorm.apply(x, self.weight, self.eps))


def lean_adapters(language: nn.Module) -> None:
    """Give peft's LoRA layers around plain linear layers the leaner form, in place."""
    for module in language.modules():
        if type(module) is StockLoRALinear and type(module.base_layer) is nn.Linear and not module.fan_in_fan_out:
            module.__class__ = LoRALinear


def lean_norms(language: nn.Module) -> None:
    """Replace the root-mean-square norms that compute what `RMSNorm` does, as a trial on random numbers tells."""
    found: dict[int, nn.Module] = {}
    for parent in list(language.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm) or not type(child).__name__.endswith("RMSNorm"):
                continue
            if id(child) not in found:
                found[id(child)] = _lean_norm(child)
            setattr(parent, name, found[id(child)])


def _lean_norm(stock: nn.Module) -> nn.Module:
    eps = next((getattr(stock, key) for key in ("variance_epsilon", "eps") if hasattr(stock, key)), None)
    weight = getattr(stock, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.ndim != 1:
        return stock
    if [name for name, _ in stock.named_parameters()] != ["weight"]:
        return stock
    lean = RMSNorm(stock, eps)
    x = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        same = torch.allclose(stock(x), _RMSNorm.apply(x, weight, eps), rtol=1e-2 if x.element_size() < 4 else 1e-5)
    return lean if same else stock
