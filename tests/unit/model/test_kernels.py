"""The leaner modules against the stock ones that they stand for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft.tuners.lora.layer import Linear as StockLoRALinear
from torch import Tensor, nn

from mmcl.model.adapters import Adapters
from mmcl.model.assembly import Assembly
from mmcl.model.attention import NAME, attend, attend_by_document, by_products
from mmcl.model.build import build_model
from mmcl.model.capability import why_not_packed
from mmcl.model.kernels import LoRALinear, RMSNorm, casts_kept, lean_norms
from mmcl.model.tiny import FAMILIES
from mmcl.recipe.spec import LanguageSpec, LoRASpec, ModelSpec, PluginSpec
from mmcl.testing import tiny_language, tiny_tasks
from mmcl.training.objectives.answers import Answers

FREE_OF_MASKS = [family for family in FAMILIES if not why_not_packed(tiny_language(family)[0])]


def assembled(kernels: str, family: str = "llama", dtype: str = "fp32", dropout: float = 0.0) -> Assembly:
    """A tiny model whose adapters are at work."""
    spec = ModelSpec(
        encoder=PluginSpec("tiny"),
        projector=PluginSpec("mlp"),
        language=LanguageSpec(f"tiny:{family}", lora=LoRASpec(rank=2, dropout=dropout), dtype=dtype),  # type: ignore[arg-type]
        kernels=kernels,  # type: ignore[arg-type]
    )
    model = build_model(spec, folder=Path(), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def losses_and_gradients(model: Assembly) -> tuple[float, dict[str, Tensor]]:
    samples = [sample for task in tiny_tasks() for sample in task.train[:6]]
    random.Random(0).shuffle(samples)
    model.train()
    total = 0.0
    for batch in model.pack(samples):
        loss = Answers().loss(model, batch, model.forward(batch))["tokens"].total
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.trainable().items() if p.grad is not None}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of the gradients, relative to their size."""
    assert one.keys() == other.keys()
    square = sum(float((one[name] - other[name]).square().sum()) for name in one)
    return float((square / sum(float(g.square().sum()) for g in other.values())) ** 0.5)


@pytest.mark.parametrize("family", FREE_OF_MASKS)
def test_lean_is_stock(family: str) -> None:
    lean, stock = assembled("lean", family), assembled("stock", family)
    assert stock.language.config._attn_implementation in ("sdpa", "eager") and not stock.apart
    assert not any(isinstance(module, LoRALinear | RMSNorm) for module in stock.modules())
    mine, reference = losses_and_gradients(lean), losses_and_gradients(stock)
    assert mine[0] == pytest.approx(reference[0], rel=1e-6)
    assert distance(mine[1], reference[1]) < 1e-5
    assert list(dict(lean.named_parameters())) == list(dict(stock.named_parameters()))


@pytest.mark.gpu  # it runs on CPUs as well, but compiling takes minutes there
def test_compiled_is_stock() -> None:
    compiled, stock = assembled("compiled"), assembled("stock")
    mine, reference = losses_and_gradients(compiled), losses_and_gradients(stock)
    assert mine[0] == pytest.approx(reference[0], rel=1e-5)
    assert distance(mine[1], reference[1]) < 1e-4


def test_lean_is_stock_in_bfloat16() -> None:
    lean, stock, exact = assembled("lean", dtype="bf16"), assembled("stock", dtype="bf16"), assembled("stock")
    truth = losses_and_gradients(exact)
    mine, reference = losses_and_gradients(lean), losses_and_gradients(stock)
    assert mine[0] == pytest.approx(truth[0], rel=1e-2)
    # Not further from float32 than what it stands for.
    assert distance(mine[1], truth[1]) < 1.5 * distance(reference[1], truth[1])


def test_a_llama_is_lean_all_through() -> None:
    model = assembled("lean")
    kinds = [type(module) for module in model.language.modules()]
    assert LoRALinear in kinds and RMSNorm in kinds and StockLoRALinear not in kinds
    assert not any(kind.__name__ == "LlamaRMSNorm" for kind in kinds)
    assert model.apart and model.language.config._attn_implementation == NAME


def test_dropout_runs_the_stock_layer() -> None:
    lean, stock = assembled("lean", dropout=0.5), assembled("stock", dropout=0.5)
    torch.manual_seed(3)
    expected = losses_and_gradients(stock)
    torch.manual_seed(3)
    assert losses_and_gradients(lean)[0] == pytest.approx(expected[0], rel=1e-6)


def test_two_adapters_and_a_training_base() -> None:
    lean, stock = assembled("lean"), assembled("stock")
    for model in (lean, stock):
        model.add_adapter("extra")
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if ".extra." in name:
                nn.init.normal_(parameter, std=0.05)
        model.set_trainable(["language.lora", "language.lora.extra", "projector"])
    with lean.adapters.active(["extra"]), stock.adapters.active(["extra"]):
        x = torch.randn(3, lean.language.config.hidden_size)
        layers = [next(m for m in model.modules() if isinstance(m, StockLoRALinear)) for model in (lean, stock)]
        assert torch.allclose(layers[0](x), layers[1](x), atol=1e-6)
        assert not torch.allclose(layers[0](x), layers[0].base_layer(x), atol=1e-3)
    for model in (lean, stock):
        model.set_trainable(["language"])
    gradients = [losses_and_gradients(model)[1] for model in (lean, stock)]
    assert any("base_layer" in name for name in gradients[0])
    assert distance(*gradients) < 1e-5


class OtherRMSNorm(nn.Module):
    """Adds one to its weight, as Gemma does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


def test_a_norm_that_computes_something_else_stays() -> None:
    module = nn.Sequential(OtherRMSNorm())
    lean_norms(module)
    assert type(module[0]) is OtherRMSNorm


def test_attention_that_looks_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    language, _ = tiny_language("llama")
    from transformers.models.llama import modeling_llama

    stock = modeling_llama.ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(type(modeling_llama.ALL_ATTENTION_FUNCTIONS), "get_interface", lambda *_: stock)
    assert not attend_by_document(language)
    assert language.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("heads", [4, 2])
def test_products_are_attention(heads: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 7, 8), torch.randn(1, heads, 7, 8), torch.randn(1, heads, 7, 8)
    mask = torch.zeros(1, 1, 7, 7).masked_fill_(~torch.ones(7, 7).tril().bool(), torch.finfo(torch.float32).min)
    got = by_products(query, key, value, mask, 0.3)
    key, value = key.repeat_interleave(4 // heads, 1), value.repeat_interleave(4 // heads, 1)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    assert torch.allclose(got, expected.transpose(1, 2), atol=1e-6)


def test_gradients_stop_where_nothing_below_trains() -> None:
    language, _ = tiny_language("llama")
    Adapters(language, LoRASpec(rank=2))
    layer = next(module for module in language.modules() if isinstance(module, LoRALinear))
    out = layer(torch.randn(3, language.config.hidden_size))
    assert not out.requires_grad  # adapters are frozen until a recipe trains them
    layer.lora_A["default"].weight.requires_grad_(True)
    layer(torch.randn(3, language.config.hidden_size)).sum().backward()
    assert layer.lora_A["default"].weight.grad is not None and layer.lora_B["default"].weight.grad is None


def test_a_mask_of_padding_still_works() -> None:
    lean, stock = assembled("lean"), assembled("stock")
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 7, 9]])  # padded on the left
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    got, expected = (model.language(input_ids=ids, attention_mask=mask).logits for model in (lean, stock))
    assert torch.allclose(got[1, 2:], expected[1, 2:], atol=1e-5)


def test_adapters_are_cast_once_and_never_too_late() -> None:
    """Within one generation the float32 masters are cast once; what trains between two counts in the second."""
    model, fresh = assembled("lean", dtype="bf16"), assembled("lean", dtype="bf16")
    questions = [sample for task in tiny_tasks() for sample in task.test]
    before = model.generate(questions)
    for side in (model, fresh):
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in side.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn_like(parameter))
    after = model.generate(questions)
    assert after != before
    assert after == fresh.generate(questions)
    layer = next(module for module in model.modules() if isinstance(module, LoRALinear))
    with casts_kept(), torch.no_grad():
        x = torch.randn(1, 3, layer.in_features, dtype=torch.bfloat16)
        first = layer(x)
        layer.lora_B["default"].weight.zero_()
        assert torch.equal(layer(x), first)
    with torch.no_grad():
        assert torch.equal(layer(x), layer.base_layer(x))


def test_bfloat16_answers_over_a_cache_are_products() -> None:
    """Decoding, where queries are fewer than keys and no layout is set."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 8).bfloat16() for heads, length in ((4, 3), (2, 9), (2, 9)))
    mask = torch.zeros(1, 1, 3, 9, dtype=torch.bfloat16).masked_fill_(torch.rand(3, 9) < 0.4, -1e30)
    layer = nn.Module()
    layer.num_key_value_groups = 2  # type: ignore[assignment]
    got, _ = attend(layer, query, key, value, mask)
    wide = [tensor.float().repeat_interleave(4 // tensor.shape[1], 1) for tensor in (query, key, value)]
    expected = nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask.float()).transpose(1, 2)
    assert torch.allclose(got.float(), expected, atol=2e-2)
    assert torch.equal(got, by_products(query, key, value, mask, 8**-0.5))
