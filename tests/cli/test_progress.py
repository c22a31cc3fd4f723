from __future__ import annotations

import io
import sys

import pytest

from graphopt.cli.progress import progress_bars


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_one_bar_per_step_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress_bars(True) as progress:
        assert progress is not None
        for done in (0, 5, 10):
            progress("writing", done, 10)
        progress("measuring", 0.5, 1)
    text = terminal.getvalue()
    assert "writing" in text
    assert "measuring" in text
    assert "50 %" in text


@pytest.mark.parametrize(("stream", "wanted"), [(io.StringIO, True), (Terminal, False)])
def test_no_bars_elsewhere(stream: type[io.StringIO], wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    output = stream()
    monkeypatch.setattr(sys, "stderr", output)
    with progress_bars(wanted) as progress:
        assert progress is None
    assert output.getvalue() == ""
