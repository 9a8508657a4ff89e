"""Progress of an evaluator: a bar on a terminal, a line a minute in a log."""

import io

import pytest

from common.evaluation import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    return now


def walk(clock, seconds, shown=True):
    with bar.Bar("AutoAttack", 200, 100, shown=shown) as progress:
        for at, n, text in ((seconds, 110, "apgd-ce: at most 36.0% robust"), (seconds, 150, None),
                            (100 * seconds, 180, "square: at most 35.0% robust"), (2 * seconds, 200, None)):
            clock[0] += at
            progress.to(n, text)


def test_in_a_log_a_line_a_minute_until_the_end(clock, capsys):
    walk(clock, 40.0)
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "AutoAttack: 150 of 200 images, 01:20 so far, 01:20 left, apgd-ce: at most 36.0% robust",
        "AutoAttack: 180 of 200 images, 1:08:00 so far, 17:00 left, square: at most 35.0% robust"]


def test_what_is_done_within_a_minute_says_nothing(clock, capsys):
    walk(clock, 0.5)
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_unasked(clock, capsys):
    walk(clock, 40.0, shown=False)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_and_no_lines(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    walk(clock, 40.0)
    said = terminal.getvalue()
    assert "200/200" in said and "square: at most 35.0% robust" in said and " so far" not in said
