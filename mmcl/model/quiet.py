"""Loading without noise: transformers' bars and warnings off for a while, and only for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import utils
from transformers.utils import logging

_transformers: Any = logging  # neither module annotates these functions
_hub: Any = utils


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bars and no warnings; afterwards its settings are what they were.

    Bars of real downloads stay. Whoever loads in silence checks for themselves what transformers would only warn of.
    """
    verbosity, bars = _transformers.get_verbosity(), _transformers.is_progress_bar_enabled()
    hub_bars = not _hub.are_progress_bars_disabled()
    _transformers.set_verbosity_error()
    _transformers.disable_progress_bar()
    if hub_bars:  # the call above takes the hub's bars along
        _hub.enable_progress_bars()
    try:
        yield
    finally:
        _transformers.set_verbosity(verbosity)
        if bars:
            _transformers.enable_progress_bar()
        if not hub_bars:
            _hub.disable_progress_bars()
