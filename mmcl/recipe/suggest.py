"""Hints for names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """The closest of the choices, or all of them where none is close.

    Args:
        word: what the user wrote.
        choices: what is known.

    Returns:
        A sentence for `Problem.hint`; empty where there is nothing to choose from.
    """
    by_folded = {choice.casefold().replace("-", "_"): choice for choice in choices}
    wanted = str(word).casefold().replace("-", "_")
    close = difflib.get_close_matches(wanted, by_folded, n=1, cutoff=0.6)
    if not close and len(wanted) > 2:
        close = [choice for choice in by_folded if wanted in choice or choice in wanted]
    if close:
        return f"Did you mean {' or '.join(f'`{by_folded[choice]}`' for choice in close)}?"
    return f"Choose from: {', '.join(sorted(by_folded.values()))}." if by_folded else ""
