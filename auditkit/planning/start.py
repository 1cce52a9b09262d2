"""What a stage would refuse is refused before the first: packages, images, models and adapters that are not there.

Only what lies on this machine is looked at, without torch, so `auditkit run` says it in a moment.
"""

from auditkit.data.load import refuse_absent_images
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.param_rules import refuse_missing_packages
from auditkit.params import MODELS, WAYS, Params


def refuse_missing(p: Params) -> None:
    """Raise AuditError for the first setting that needs a package, or a folder of images, of a model or of an adapter,
    that is not there.
    """
    refuse_missing_packages(p)
    refuse_absent_images(p.images)
    refuse_missing_models(p)


def refuse_missing_models(p: Params) -> None:
    """Raise AuditError for the first key that names a model's folder, or an adapter's, that is not there or whole."""
    for key, text in named_models(p):
        try:
            downloads.refuse_absent(text, "model_index.json" if key in WAYS.values() else "config.json")
        except AuditError as error:
            raise AuditError(f"{key}: {error}") from error


def named_models(p: Params) -> list[tuple[str, str]]:
    """Each key that names a model or a pipeline, with each text that it holds."""
    pairs = []
    for key in (*MODELS, *filter(None, WAYS.values())):
        value = getattr(p, key)
        pairs += [(key, text) for text in (value if isinstance(value, list) else [value])]
    return [(key, text) for key, text in pairs if text and not (key == "same" and text in ("text", "embedding"))]
