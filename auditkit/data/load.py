"""One text of a parameter file becomes a source of images: a folder, a data set, or what a package adds."""

from importlib.metadata import entry_points
from pathlib import Path

from auditkit.data.folder import ImageFolder
from auditkit.data.source import Source
from auditkit.errors import AuditError
from auditkit.params import is_folder, project_root

SOURCES = (
    "auditkit.images"  # the entry points by which a package adds sources, as our pyproject.toml adds the miniature
)


def load_images(spec: str) -> Source:
    """Open a source of images.

    Args:
        spec: "hub:ID?..." (a Hugging Face data set), a folder (options: FOLDER_OPTIONS), counted from the working
            folder and then from the project's, or NAME or NAME:REST of an entry point of SOURCES, which is
            called with REST.

    Raises AuditError when there is no such folder or data set, or nothing in it that can be used.
    """
    name, _, rest = spec.partition(":")
    if name == "hub":
        from auditkit.data.hf_dataset import HubDataset  # brings `datasets` along

        return HubDataset(spec)
    for found in entry_points(group=SOURCES, name=name):
        return found.load()(rest)
    return ImageFolder(_folder(spec), spec.partition("?")[2])


def refuse_absent_images(spec: str) -> None:
    """Raise AuditError for a folder of images that is not there; a source that has to be asked is not."""
    name = spec.partition(":")[0]
    if name != "hub" and not entry_points(group=SOURCES, name=name):
        _folder(spec)


def _folder(spec: str) -> Path:
    path = spec.partition("?")[0]
    for folder in (Path(path).expanduser(), project_root() / path):
        if is_folder(folder):
            return folder
    known = ", ".join(f'"{name}"' for name in sorted(entry_points(group=SOURCES).names))
    raise AuditError(
        f'images: "{spec}" is neither {known} nor "hub:ID" nor an existing folder; name a folder of images, '
        "or make this one first, if the top of the parameter file says how."
    )
