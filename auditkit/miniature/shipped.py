"""The trained models that come with the package: `miniature:NAME` in a parameter file."""

from pathlib import Path

from auditkit.errors import AuditError

WEIGHTS = Path(__file__).parent / "weights"


def folder_of(name: str) -> Path:
    """The folder of a shipped model. Raises AuditError for a name that none has."""
    folder = WEIGHTS / name
    if not (name and folder.is_dir()):
        shipped = ", ".join(sorted(p.name for p in WEIGHTS.glob("*") if p.is_dir())) or "none"
        raise AuditError(f'"miniature:{name}": there is no such miniature model; shipped are: {shipped}.')
    return folder
