from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from mmcl.progress import Progress


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100), stream


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_items_pass_unchanged_and_once(terminal: bool, delay: float) -> None:
    target, _ = console(terminal=terminal)
    progress = Progress(target, delay=delay)
    assert list(progress.track(iter("abc"), label="x", total=3, unit="step")) == list("abc")
    assert list(progress.track(iter(()), label="x", total=0)) == []
    assert list(Progress.silent().track("abc", label="x")) == list("abc")


def test_short_work_is_not_shown() -> None:
    for terminal in (False, True):
        target, stream = console(terminal=terminal)
        list(Progress(target).track(range(5), label="work", total=5))
        assert stream.getvalue() == ""


def test_log_files_get_a_line_at_the_start_and_at_the_end() -> None:
    target, stream = console(terminal=False)
    list(Progress(target, delay=0).track(range(50), label="train [1]", total=50, unit="step"))
    first, last = stream.getvalue().splitlines()
    assert first.startswith("train [1]: 1 of 50, about ")
    assert last.startswith("train [1]: 50 in 0 s, ")
    assert last.endswith(" step/s")


def test_a_terminal_gets_a_bar_with_rate_and_time_left_that_goes_away() -> None:
    target, stream = console(terminal=True)
    progress = Progress(target, delay=0)
    for item in progress.track(range(3), label="outer", total=3, unit="step"):
        if item == 2:
            list(progress.track(range(2), label="inner", total=2, unit="row"))
            progress.message("a [line]")
    text = stream.getvalue()
    assert all(word in text for word in ("outer", "inner", "step/s", "row/s", "left", "a [line]"))
    assert text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K") or "\x1b[?25h" in text, "the cursor is back"
    assert progress._bars is None


def test_an_error_inside_leaves_no_bar() -> None:
    target, _ = console(terminal=True)
    progress = Progress(target, delay=0)

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError

    with pytest.raises(ValueError):
        list(progress.track(failing(), label="x", total=3))
    assert progress._bars is None
    for _ in progress.track(range(3), label="x", total=3):
        pass
    progress.close()
    progress.close()


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress.silent()
    progress.message("x")
    list(progress.track(range(3), label="x"))
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    Progress().message("y")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "y\n")
