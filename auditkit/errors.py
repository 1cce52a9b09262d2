"""One kind of error for what a user can put right."""

from collections.abc import Sequence


class AuditError(ValueError):
    """Something the user can put right: the message names the key, file or record, and what to do."""


class Unfinished(AuditError):
    """A batch that failed in part. `answers` holds what came back, None for the rest, so that nothing is paid twice."""

    def __init__(self, message: str, answers: Sequence[str | None] = ()):
        super().__init__(message)
        self.answers = answers
