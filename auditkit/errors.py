"""One kind of error for what a user can put right."""


class AuditError(ValueError):
    """Something the user can put right: the message names the key, file or record, and what to do."""
