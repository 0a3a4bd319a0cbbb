"""Options of methods that are out of range."""

from __future__ import annotations

from mmcl.errors import Problem, UserError
from mmcl.protocols import Method


def check(method: Method, **fine: bool) -> None:
    """Raise a UserError that names every option that is not fine."""
    name = type(method).__module__.rpartition(".")[2]
    problems = [Problem(f"{name}.{option}", "is out of range") for option, good in fine.items() if not good]
    if problems:
        raise UserError(problems=problems)
