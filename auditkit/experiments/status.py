"""What a run says while its notebooks run: a line for each, and on a terminal all of them below one another."""

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from auditkit.text import clock, for_a_person

if TYPE_CHECKING:
    from rich.live import Live


class StatusBoard:
    """The lines of what runs just now, redrawn at the bottom of a terminal; what has ended stays above them.

    Elsewhere, as in a log, nothing is redrawn: what is said is printed as it comes.
    """

    def __init__(self, stream: Any = None):
        self.stream = stream or sys.stdout
        self.drawn: bool = self.stream.isatty()
        self.lines: list[StatusLine] = []
        self._live: Live | None = None
        self._lock = threading.Lock()  # notebooks that run at once end when they like

    def add(self, line: "StatusLine") -> None:
        """Take up the line of a notebook that begins."""
        with self._lock:
            self.lines.append(line)
            if self.drawn and self._live is None:
                from rich.console import Console
                from rich.live import Live

                console = Console(file=getattr(self.stream, "stream", self.stream))  # its own commands reach it
                self._live = Live(self, console=console, redirect_stdout=False, redirect_stderr=False, transient=True)
                self._live.start()
        if not self.drawn:
            self.say(f"{line.title:<26} ...")

    def remove(self, line: "StatusLine") -> None:
        """Let go of a line, which stays as it is above the others."""
        with self._lock:
            self.lines.remove(line)
            if live := self._live:
                if not self.lines:
                    live.stop()
                    self._live = None
                live.console.print(line)
        if not self.drawn:
            self.say(line.text()[:160])

    def say(self, text: str) -> None:
        """Print something, above the lines."""
        with self._lock:
            if self._live:
                from rich.text import Text

                self._live.console.print(Text(for_a_person(text)), soft_wrap=True)
            else:
                print(text, file=self.stream, flush=True)

    def __rich__(self):
        from rich.console import Group

        return Group(*self.lines)


class StatusLine:
    """One line for a running notebook: its title, the time, and the last thing it printed.

    On a terminal the line is rewritten as things come; elsewhere, as in a log, what is printed comes as lines of its
    own, one every few seconds at most. It is the file that papermill writes a notebook's stdout to.
    """

    LOG_SECONDS = 5

    def __init__(self, title: str, stream: Any = None, board: StatusBoard | None = None):
        self.title, self.board = title, board or StatusBoard(stream)
        self.words, self._line, self._ended = "", "", False

    def __enter__(self) -> "StatusLine":
        self._began = self._shown = time.monotonic()
        self.board.add(self)
        return self

    def __exit__(self, *_) -> None:
        if not self._ended:
            self.end("stopped")

    def __rich__(self):
        """The line as rich shows it: on one line of the terminal, however long."""
        from rich.text import Text

        return Text(self.text(), no_wrap=True, overflow="ellipsis")

    def write(self, text: str) -> int:
        """Take what the notebook printed; the last line with something on it is what is shown."""
        *whole, self._line = (self._line + text.replace("\r", "\n")).split("\n")
        said = [line.strip() for line in (*whole, self._line) if line.strip()]
        if said:
            self.words = for_a_person(said[-1])
            if not self.board.drawn and time.monotonic() - self._shown >= self.LOG_SECONDS:
                self._shown = time.monotonic()
                self.board.say(self.text()[:160])
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self, how: str) -> None:
        """Leave one line that says how it went and how long it took."""
        self._ended, self.words = True, how or self.words
        self.board.remove(self)

    def text(self) -> str:
        """Title, time, and what was said last."""
        return f"{self.title:<26} {clock(time.monotonic() - self._began):>7}  {self.words}".rstrip()
