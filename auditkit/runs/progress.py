"""One line about work that takes a while: what, how many of how many, how long so far, and about how long still.

    with Progress("answers of gemma3", 800) as line:
        line.add(64)    # answers of gemma3: 64 of 800, 0:03 so far, 0:35 left

It is drawn on one line, over and over, in a notebook and on a terminal, once the work has taken two seconds; at its end
it says how long it took. Where nobody looks, as in a file or a test, there is none. `auditkit run` shows it as the last
thing that its notebook said. Work within work, as the answers of a model within an audit, stands behind the line.
"""

import os
import sys
import time
from typing import Any, Self

from auditkit.text import clock, visible

SOON = 2.0  # seconds of work before there is a line
EVERY = 0.5  # seconds between two drawings

_under_way: list["Progress"] = []  # from the outermost work to the innermost


class Progress:
    """Counts work that is done; a context manager.

    Args:
        what: the work, as in "answers of gemma3".
        total: how many pieces it has.
        done: how many of them an earlier attempt has done.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done, self.words = visible(what, keep=""), total, done, ""
        self._had = done

    def __enter__(self) -> Self:
        self._began, self._drawn, self._width = time.monotonic(), 0.0, 0
        _under_way.append(self)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        del _under_way[_under_way.index(self) :]  # and what was left open within
        if self._width:
            how = "stopped after" if kind else "done in"
            self._write(f"{self._counted()}{self.words}, {how} {clock(time.monotonic() - self._began)}", "\n")

    def add(self, n: int = 1, words: str = "") -> None:
        """Count n more pieces as done; `words` say more about the last of them."""
        self.at(self.done + n, words)

    def at(self, done: int, words: str = "") -> None:
        """So many pieces are done by now."""
        self.done, self.words = done, words
        _under_way[0]._draw()

    def in_words(self) -> str:
        """What is done, the time it took, and what is left of it at this pace."""
        taken, new = time.monotonic() - self._began, self.done - self._had
        left = f", {clock(taken * (self.total - self.done) / new)} left" if new > 0 else ""
        return f"{self._counted()}{self.words}, {clock(taken)} so far{left}"

    def _counted(self) -> str:
        return f"{self.what}: {self.done:,} of {self.total:,}"

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._began < SOON or now - self._drawn < EVERY or not is_watched():
            return
        self._drawn, inner = now, [one._counted() for one in _under_way[1:] if now - one._began >= SOON]
        self._write(" · ".join([self.in_words(), *inner]))

    def _write(self, text: str, end: str = "") -> None:
        stream: Any = getattr(sys.stdout, "stream", sys.stdout)  # of a VisibleStream, which shows a return as an escape
        stream.write(f"\r{text}{' ' * (self._width - len(text))}{end}")
        stream.flush()
        self._width = len(text)


def is_watched() -> bool:
    """Whether a notebook or a terminal shows what this process writes; one process of several speaks for all."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return os.environ.get("RANK", "0") == "0" and (hasattr(shell, "kernel") or sys.stdout.isatty())


def as_last_shown(text: str) -> str:
    """Text as a terminal leaves it: of what was written over, the last alone.

    >>> as_last_shown("\\ra: 1 of 2\\ra: 2 of 2  \\nend")
    'a: 2 of 2\\nend'
    """
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
