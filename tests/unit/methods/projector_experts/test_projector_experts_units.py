from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmcl.errors import UserError
from mmcl.methods.expert_units import LORA_SCALE, check_unit, make_unit, unit_parameters

UNITS = ("copy", "lora", "residual")
SIZES = {"tokens": 4, "width": 12}


@pytest.mark.parametrize("kind", UNITS)
def test_a_new_expert_gives_the_output_of_base_bit_for_bit(world: Any, kind: Any) -> None:
    base, features = world.Bridge(), torch.randn(3, 4, 12)
    unit = make_unit(kind, base, name="a", rank=3, **SIZES)
    assert torch.equal(unit(features), base(features))


@pytest.mark.parametrize(("kind", "size"), [("copy", 680), ("lora", 276), ("residual", 295)])
def test_the_predicted_size_is_the_size(world: Any, kind: Any, size: int) -> None:
    # copy 12*8+8 + 8*64+64; lora 3*(12+8) + 3*(8+64); residual 3*12+3 + 64*3+64
    base = world.Bridge()
    unit = make_unit(kind, base, name="a", rank=3, **SIZES)
    assert sum(parameter.numel() for parameter in unit.parameters()) == size
    assert unit_parameters(kind, base, rank=3, **SIZES) == size


@pytest.mark.parametrize("kind", UNITS)
def test_training_an_expert_moves_all_of_it_and_nothing_of_base(world: Any, kind: Any) -> None:
    base, features = world.Bridge().requires_grad_(False), torch.randn(3, 4, 12)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    unit = make_unit(kind, base, name="a", rank=3, **SIZES).requires_grad_(True)
    first = {name: tensor.detach().clone() for name, tensor in unit.named_parameters()}
    optimiser = torch.optim.SGD(unit.parameters(), lr=0.1)
    for _ in range(3):
        unit(features).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all(not torch.equal(tensor, first[name]) for name, tensor in unit.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert not torch.equal(unit(features), base(features))


def test_lora_adds_its_update_to_the_weights_of_base(world: Any) -> None:
    base, features = world.Bridge(), torch.randn(3, 4, 12)
    unit: Any = make_unit("lora", base, name="a", rank=3, **SIZES)
    for up in unit.up:
        nn.init.normal_(up)
    merged = world.Bridge()
    merged.load_state_dict(base.state_dict())
    with torch.no_grad():
        merged.first.weight += LORA_SCALE * unit.up[0] @ unit.down[0]
        merged.second.weight += LORA_SCALE * unit.up[1] @ unit.down[1]
    assert torch.allclose(unit(features), merged(features), atol=1e-6)


def test_lora_on_a_projector_that_is_one_linear_layer() -> None:
    base, features = nn.Linear(12, 64), torch.randn(2, 4, 12)
    unit: Any = make_unit("lora", base, name="a", rank=2, **SIZES)
    assert torch.equal(unit(features), base(features))
    nn.init.ones_(unit.up[0])
    assert not torch.equal(unit(features), base(features))


def test_a_residual_is_the_base_plus_a_bottleneck(world: Any) -> None:
    base, features = world.Bridge(), torch.randn(2, 4, 12)
    unit: Any = make_unit("residual", base, name="a", rank=3, **SIZES)
    nn.init.constant_(unit.up_bias, 0.5)
    assert torch.allclose(unit(features), base(features) + 0.5)


def test_a_residual_reads_standardised_features(world: Any) -> None:
    base, features = world.Bridge(), torch.randn(8, 4, 12)
    units: list[Any] = [make_unit("residual", base, name="a", rank=3, **SIZES) for _ in range(2)]
    other = features * torch.logspace(-1, 1, 12) + 10
    other[..., 0] = 5.0  # a constant channel
    for unit, inputs in zip(units, (features, other), strict=True):
        nn.init.ones_(unit.up)
        unit.measure(inputs)
        assert torch.equal(unit.shift, inputs.flatten(0, 1).mean(0))
    added = [unit(inputs) - base(inputs) for unit, inputs in zip(units, (features, other), strict=True)]
    with torch.no_grad():
        units[0].down[:, 0] = 0
    assert torch.allclose(units[0](features) - base(features), added[1], atol=1e-2)
    assert not torch.allclose(added[0], added[1], atol=1e-2)


class Halved(nn.Module):
    """Two tokens become one, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * (features[:, ::2] + features[:, 1::2])


@pytest.mark.parametrize(
    ("kind", "base", "hint"),
    [
        ("residual", Halved(), "use `copy`"),
        ("residual", nn.Sequential(Halved(), nn.Linear(12, 64)), "use `copy` or `lora`"),
        ("lora", Halved(), "use `copy`"),
        ("lora", nn.Identity(), "use `residual`"),
        ("copy", nn.Identity(), "use `residual`"),
        ("copy", nn.AdaptiveAvgPool2d((2, 12)), "take a projector that has parameters, such as `mlp`"),
    ],
    ids=str,
)
def test_a_unit_that_the_projector_cannot_have_is_refused(kind: Any, base: nn.Module, hint: str) -> None:
    with pytest.raises(UserError, match=r"projector_experts\.unit") as caught:
        check_unit(kind, base, **SIZES)
    assert caught.value.problems[0].hint == hint
    for other in UNITS:
        if f"`{other}`" in hint:
            check_unit(other, base, **SIZES)


@pytest.mark.parametrize("kind", ["lora", "residual"])
def test_random_numbers_depend_on_seed_and_name_and_leave_the_global_state(world: Any, kind: Any) -> None:
    def first(seed: int, name: str) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(make_unit(kind, base, name=name, rank=3, **SIZES).parameters())

    base = world.Bridge()
    assert torch.equal(first(1, "a"), first(1, "a"))
    assert not torch.equal(first(1, "a"), first(1, "b"))
    assert not torch.equal(first(1, "a"), first(2, "a"))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    make_unit(kind, base, name="a", rank=3, **SIZES)
    assert torch.equal(torch.get_rng_state(), state)
