"""A-GEM and GEM against their formulas."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from mmcl.errors import UserError
from mmcl.methods.agem import AGEM
from mmcl.methods.gem import GEM, solve
from mmcl.methods.projection import flat
from mmcl.testing import tiny_tasks


def test_agem_projects_only_what_goes_against_the_reference() -> None:
    method = AGEM()
    reference = torch.tensor([1.0, 0.0, 1.0])
    along = torch.tensor([2.0, 5.0, -1.0])
    assert method.project(along, [reference]) is along
    against = torch.tensor([-3.0, 2.0, 1.0])
    found = method.project(against, [reference])
    assert torch.allclose(found, torch.tensor([-2.0, 2.0, 2.0]))  # g + 1 * g_ref: the dot product is -2, the length 2
    assert found @ reference == pytest.approx(0)
    assert method.project(against, [torch.zeros(3)]) is against


def test_gem_takes_the_nearest_step_that_goes_against_none() -> None:
    method = GEM(margin=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = [torch.randn(6, generator=generator) for _ in range(3)]
        gradient = torch.randn(6, generator=generator)
        found = method.project(gradient, rows)
        assert all(float(row @ found) >= -1e-4 for row in rows)
        # Nothing nearer among the points that keep some of the constraints with equality.
        best = min(
            float((gradient - candidate).norm())
            for candidate in candidates(gradient, rows)
            if all(float(row @ candidate) >= -1e-4 for row in rows)
        )
        assert float((gradient - found).norm()) == pytest.approx(best, abs=1e-3)


def candidates(gradient: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Projections onto the faces of the cone."""
    found = [gradient]
    for count in range(1, len(rows) + 1):
        for chosen in itertools.combinations(rows, count):
            matrix = torch.stack(chosen)
            found.append(gradient - matrix.T @ torch.linalg.lstsq(matrix.T, gradient[:, None]).solution[:, 0])
    return found


def test_the_margin_pulls_towards_earlier_tasks() -> None:
    rows, gradient = [torch.tensor([1.0, 0.0])], torch.tensor([-1.0, 1.0])
    assert torch.allclose(GEM(margin=0.0).project(gradient, rows), torch.tensor([0.0, 1.0]))
    assert torch.allclose(GEM(margin=0.5).project(gradient, rows), torch.tensor([0.5, 1.0]))


def test_the_dual_by_hand() -> None:
    assert solve(torch.tensor([[2.0]]), torch.tensor([-4.0])).tolist() == [2.0]
    assert solve(torch.tensor([[2.0]]), torch.tensor([4.0])).tolist() == [0.0]
    assert solve(torch.zeros(1, 1), torch.tensor([4.0])).tolist() == [0.0]


@pytest.mark.parametrize("kind", [AGEM, GEM])
def test_steps_do_not_go_against_the_memory(train: Any, kind: Any) -> None:
    """In a real second task: after `after_backward` the gradient goes along with every reference."""
    first, second = tiny_tasks()

    class Checked(kind):  # type: ignore[misc]
        seen: list[tuple[float, float]]

        def project(self, gradient: Any, references: Any) -> Any:
            found = super().project(gradient, references)
            self.seen.append(
                (float(min(gradient @ row for row in references)), float(min(found @ row for row in references)))
            )
            return found

    method = Checked(batch=4)
    method.seen = []
    train([first, second], method, steps=6)
    assert len(method.seen) == 6  # none in the first task
    assert any(before < 0 for before, _ in method.seen), "nothing was projected: the test says nothing"
    assert all(after >= -1e-4 * abs(before) for before, after in method.seen)


@pytest.mark.parametrize("kind", [AGEM, GEM])
def test_the_reference_is_the_gradient_of_the_mean_loss(model: Any, kind: Any) -> None:
    first, _ = tiny_tasks()
    method = kind()
    found = method.gradient_of(model, first.train)
    from torch.nn.functional import cross_entropy

    batches = model.pack(first.train)
    count = sum(len(batch.targets) for batch in batches)
    loss = sum(cross_entropy(model.forward(b).logits.float(), b.targets, reduction="sum") for b in batches) / count
    parameters = list(model.trainable().values())
    wanted = flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_one_task_is_plain_training(train: Any) -> None:
    plain = train(tiny_tasks()[:1]).snapshot()
    for kind in (AGEM, GEM):
        found = train(tiny_tasks()[:1], kind()).snapshot()
        assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("kind", [AGEM, GEM])
def test_it_goes_on_where_it_was_saved(train: Any, kind: Any) -> None:
    first, second = tiny_tasks()
    method, copy = kind(batch=4), kind(batch=4)
    model = train([first], method)
    copy.load_state_dict(model, method.state_dict())
    whole = train([second], method, model=train([first])).snapshot()
    resumed = train([second], copy, model=train([first])).snapshot()
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
    assert method.stored_bytes()["memory"] > 0


@pytest.mark.parametrize(
    ("kind", "options"), [(AGEM, {"batch": 0}), (GEM, {"margin": -1.0}), (GEM, {"budget": "much"})]
)
def test_options_out_of_range(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        kind(**options)
