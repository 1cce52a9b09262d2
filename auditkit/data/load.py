"""TODO."""

from pathlib import Path

from auditkit.data.folder import ImageFolder
from auditkit.data.source import Source
from auditkit.errors import AuditError


def load_images(spec: str) -> Source:
    """Open a source: "miniature" or "miniature:SHIFT" (boards), "hub:ID?..." (a Hugging Face data set), or a folder.

    A relative path counts from the working folder, then from the project's.
    Raises AuditError when there is no such folder or data set, or nothing in it that can be used.
    """
    if spec == "miniature" or spec.startswith("miniature:"):
        from auditkit.miniature.boards import Boards

        return Boards(spec.partition(":")[2])
    if spec.startswith("hub:"):
        from auditkit.data.hf_dataset import HubDataset

        return HubDataset(spec)
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        from auditkit.params import project_root

        folder = project_root() / folder
    if not folder.is_dir():
        raise AuditError(
            f'images: "{spec}" is neither "miniature" nor "hub:ID" nor an existing folder; name a folder of images, '
            "or make this one first, if the top of the parameter file says how."
        )
    return ImageFolder(folder)
