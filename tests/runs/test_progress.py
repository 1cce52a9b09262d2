"""One line about work that takes a while."""

import sys
import time
from types import SimpleNamespace

import pytest

from auditkit.runs import progress
from auditkit.runs.progress import Progress, as_last_shown


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock of the test's own, and a screen that is looked at."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    return now


def test_it_says_what_n_of_how_many_how_long_and_how_long_still(clock, capsys):
    with Progress("answers of gemma3", 1200, done=200) as line:
        clock.seconds += 1
        line.add(50)
        assert capsys.readouterr().out == "", "nothing is said of what may be over in two seconds"
        clock.seconds += 9
        line.add(50)
        assert capsys.readouterr().out == "\ranswers of gemma3: 300 of 1,200, 0:10 so far, 1:30 left"
        clock.seconds += 0.2
        line.add(1)
        assert capsys.readouterr().out == "", "nor more than twice a second"
        clock.seconds += 79.8
        line.at(1200, ", loss 0.125")
        capsys.readouterr()
    end = capsys.readouterr().out
    assert end.rstrip() == "\ranswers of gemma3: 1,200 of 1,200, loss 0.125, done in 1:30" and end.endswith("\n")


def test_work_within_work_stands_behind_and_the_screen_keeps_one_line(clock, capsys):
    with Progress("answered by all models", 2, done=0) as line:
        for _ in range(2):
            with Progress("answers of target", 10) as inner:
                clock.seconds += 3
                inner.add(4)
            line.add()
    shown = capsys.readouterr().out
    assert "answered by all models: 0 of 2, 0:03 so far · answers of target: 4 of 10" in shown
    assert shown.count("\n") == 1
    assert as_last_shown(shown) == "answered by all models: 2 of 2, done in 0:06\n"


def test_what_was_stopped_says_so_and_leaves_nothing_open(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Progress("training step", 90) as line:
        clock.seconds += 4
        line.at(7)
        Progress("answers of target", 10).__enter__()  # as if the kernel had been stopped within
        raise KeyboardInterrupt
    assert "training step: 7 of 90, stopped after 0:04" in as_last_shown(capsys.readouterr().out)
    assert progress._under_way == []


def test_nobody_looks_at_a_file(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SOON", 0)
    with Progress("answers of target", 10) as line:
        line.add()
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_it_though_texts_of_others_go_through_an_escape(clock, monkeypatch):
    written: list[str] = []
    below = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(stream=below))
    with Progress("answers of \x1b[31m", 2) as line:
        clock.seconds += 3
        line.add()
    assert written[0].startswith("\ranswers of \\x1b[31m: 1 of 2")
