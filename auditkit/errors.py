"""One kind of error for what a user can put right, and how a notebook says it: in one sentence."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from auditkit.text import for_a_person


class AuditError(ValueError):
    """Something the user can put right: the message names the key, file or record, and what to do.

    What others wrote may stand in it: it is shown as `text.for_a_person`. All such classes stand in this module, by
    which the runner of notebooks knows them.
    """

    def __init__(self, message: object = ""):
        super().__init__(for_a_person(str(message)))


class Unfinished(AuditError):
    """A batch that failed in part. `answers` holds what came back, None for the rest, so that nothing is paid twice."""

    def __init__(self, message: str, answers: Sequence[str | None] = ()):
        super().__init__(message)
        self.answers = answers


_at: list[tuple[int, int, Path | None]] = []  # how far a training in this process is, for when it is stopped


def note_step(step: int, steps: int, checkpoints: Path | None = None) -> None:
    """Remember how far a training is, and the folder where its checkpoints are, from the last of which it goes on."""
    _at[:] = [(step, steps, checkpoints)] if step < steps else []


def say_errors_in_one_sentence() -> None:
    """From now on this notebook says an AuditError, and that it was stopped, in one sentence without a traceback, and
    nothing of what libraries will change in their next version.

    The error still ends the cell, so papermill and "Run All" stop at it. With AUDITKIT_DEBUG=1, and outside of IPython,
    all stays as it was.
    """
    if "IPython" in sys.modules and os.environ.get("AUDITKIT_DEBUG") != "1":
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None:
            warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own next version
            shell.set_custom_exc((AuditError, KeyboardInterrupt), _say)


def _say(shell, kind, error, trace, tb_offset=None) -> None:
    sentence = str(error)
    if isinstance(error, KeyboardInterrupt):
        sentence = _stopped()
    shell._showtraceback(kind, error, [sentence])


def _stopped() -> str:
    where, again = "", "What was done is kept: run this notebook again to go on."
    for step, steps, folder in _at:
        where = f" at step {step} of {steps}"
        if folder is not None:
            kept = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*[0-9]")]
            again = f"Run this notebook again to go on after step {max(kept, default=0)}, its last checkpoint."
            if not kept:
                again = (
                    "There is no checkpoint yet: run again, it starts with step 1, and asks no model anything twice."
                )
    return f"Stopped{where}. {again}"
