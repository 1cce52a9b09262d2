"""One kind of error for what a user can put right."""

from collections.abc import Sequence

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
