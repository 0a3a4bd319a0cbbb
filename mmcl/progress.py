"""How far the work is: bars on a terminal, a few plain lines elsewhere, both on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

Item = TypeVar("Item")


class Progress:
    """Shows long work; short work stays unseen.

    Args:
        console: where to; default: standard error.
        delay: seconds that a piece of work must last to be shown.
        visible: False shows nothing at all.
    """

    def __init__(self, console: Console | None = None, *, delay: float = 2.0, visible: bool = True) -> None:
        from rich.console import Console

        self._console = (console or Console(stderr=True, highlight=False)) if visible else None
        self.delay = delay
        self._bars: Bars | None = None

    @classmethod
    def silent(cls) -> Progress:
        """Shows nothing."""
        return cls(visible=False)

    def message(self, text: str) -> None:
        """One line, above the bars."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def track(
        self, iterable: Iterable[Item], *, label: str, total: int | None = None, unit: str = "item"
    ) -> Iterator[Item]:
        """The items of `iterable`, one by one, with a bar if that takes long.

        Args:
            iterable: of the work.
            label: what is done, such as `train 01-shape`.
            total: how many items there are, if that is known.
            unit: what an item is, such as `step`; for the rate.
        """
        if self._console is None:
            yield from iterable
            return
        started = time.monotonic()
        view: _Bar | _Lines | None = None
        done = 0
        try:
            for item in iterable:
                yield item
                done += 1
                seconds = time.monotonic() - started
                if view is None and seconds >= self.delay:
                    view = self._view(label, total, unit)
                if view is not None:
                    view.show(done, seconds)
        finally:
            if view is not None:
                view.end(done, time.monotonic() - started)

    def close(self) -> None:
        """Take the bars off the terminal, after an exception."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _view(self, label: str, total: int | None, unit: str) -> _Bar | _Lines:
        assert self._console is not None
        if not self._console.is_terminal:
            return _Lines(self, label, total, unit)
        if self._bars is None:
            self._bars = _make_bars(self._console)
            self._bars.start()
        return _Bar(self, self._bars, label, total, unit)


class _Bar:
    """One bar, drawn from the main thread so that nothing runs beside the work."""

    def __init__(self, owner: Progress, bars: Bars, label: str, total: int | None, unit: str) -> None:
        self.owner, self.bars, self.unit = owner, bars, unit
        self.task = bars.add_task(label, total=total, rate="", left="")
        self.total = total
        self.drawn = 0.0

    def show(self, done: int, seconds: float) -> None:
        if seconds - self.drawn < 0.2 and done != self.total:
            return
        self.drawn = seconds
        left = _duration(seconds / done * (self.total - done)) + " left" if self.total else ""
        self.bars.update(self.task, completed=done, rate=_rate(done, seconds, self.unit), left=left)
        self.bars.refresh()

    def end(self, done: int, seconds: float) -> None:
        self.bars.remove_task(self.task)
        if not self.bars.task_ids:
            self.owner.close()


class _Lines:
    """A line when the work has turned out to be long and a line at its end, for log files."""

    def __init__(self, owner: Progress, label: str, total: int | None, unit: str) -> None:
        self.owner, self.label, self.total, self.unit = owner, label, total, unit
        self.begun = False

    def show(self, done: int, seconds: float) -> None:
        remaining = seconds / done * (self.total - done) if self.total else 0.0
        if not self.begun and self.total and remaining > self.owner.delay:
            self.owner.message(f"{self.label}: {done} of {self.total}, about {_duration(remaining)} left")
        self.begun = True

    def end(self, done: int, seconds: float) -> None:
        amount = f"{done}" if done == self.total or not self.total else f"stopped at {done} of {self.total}"
        self.owner.message(f"{self.label}: {amount} in {_duration(seconds)}, {_rate(done, seconds, self.unit)}")


def _make_bars(console: Console) -> Bars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        auto_refresh=False,
    )


def _rate(done: int, seconds: float, unit: str) -> str:
    return f"{done / seconds:.3g} {unit}/s" if seconds > 0 else ""


def _duration(seconds: float) -> str:
    """`43 s`, `2 min 05 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
