"""What went wrong when the user can mend it: where, what, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: `where` it is (a path in the recipe, or file:row), what is wrong, and a `hint` how to mend it."""

    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n    {self.hint}" if self.hint else text


class UserError(Exception):
    """A mistake of the user's. The command line prints it without a traceback and exits with code 2.

    Args:
        message: what is wrong.
        where: the place, such as `stream.order` or `train.json:17`.
        hint: how to mend it.
        problems: give this instead to report several mistakes at once.
    """

    def __init__(
        self, message: str = "", *, where: str = "", hint: str = "", problems: Sequence[Problem] | None = None
    ) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) if problems else (Problem(where, message, hint),)
        super().__init__("\n".join(str(problem) for problem in self.problems))
