"""Is a made image of any use?  Checks without a model: is there something to see, was only a part of it changed?"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity

from auditkit.data.pictures import upright

FLAT = 8  # grey levels of 256 between a picture's darkest and lightest value, in which there is nothing to see


@dataclass(frozen=True)
class Change:
    """What is different between two pictures of one size."""

    box: tuple[int, int, int, int] | None  # x0, y0, x1, y1 in pixels, around the region that changed most; None: none
    share: float  # of the picture, that the box covers
    rest: float | None  # structural similarity of what is outside, 1 at most; None: nothing is


def measure_change(before: Image.Image, after: Image.Image, threshold: float = 16.0) -> Change:
    """Where two pictures of one size differ, and how alike they are elsewhere.

    The absolute difference (its largest channel, 0 to 255) is smoothed over a hundredth of the longer side; what is
    above `threshold` falls into connected regions, and that with the largest sum of squares gets the box: what an
    editor does to the rest is faint, though it may cover more than a small change. Outside of the box, structural
    similarity is averaged over the windows that do not reach into it (Wang et al. 2004, skimage's). LPIPS would see
    more of what people see, but its network comes only from torchvision's server, so it is not used.

    Raises ValueError when the sizes differ.
    """
    if before.size != after.size:
        raise ValueError(f"changed: {before.size} and {after.size} pixels cannot be compared")
    a, b = (np.asarray(upright(image), dtype=np.float32) for image in (before, after))
    height, width = a.shape[:2]
    difference = ndimage.gaussian_filter(np.abs(a - b).max(axis=2), sigma=max(1.0, max(height, width) / 100))
    regions, found = ndimage.label(difference > threshold)
    outside, box, share = np.ones((height, width), dtype=bool), None, 0.0
    window = min(7, (min(height, width) - 1) // 2 * 2 + 1)
    if found:
        most = np.bincount(regions.ravel(), weights=np.square(difference).ravel())[1:].argmax()
        rows, columns = ndimage.find_objects(regions)[most]
        box = columns.start, rows.start, columns.stop, rows.stop
        share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        margin = window // 2
        outside[
            max(0, rows.start - margin) : rows.stop + margin, max(0, columns.start - margin) : columns.stop + margin
        ] = 0
    rest = None
    if window >= 3 and outside.any():
        _, similar = structural_similarity(a, b, win_size=window, channel_axis=2, data_range=255, full=True)
        rest = float(similar.mean(axis=2)[outside].mean())
    return Change(box, share, rest)


def incoherence(change: Change, most: float = 0.5, rest: float = 0.8) -> str:
    """Why a change is not a targeted one: "unchanged", "not targeted" or "rest changed"; "" where it is.

    Args:
        most: share of the picture that a targeted change may cover.
        rest: structural similarity that the rest must keep.

    >>> incoherence(Change((0, 0, 8, 8), 0.1, 0.97)), incoherence(Change(None, 0.0, 1.0))
    ('', 'unchanged')
    """
    if change.box is None:
        return "unchanged"
    if change.share > most or change.rest is None:
        return "not targeted"
    return "rest changed" if change.rest < rest else ""


def nothing_to_see(image: Image.Image) -> bool:
    extrema = image.convert("RGB").getextrema()  # of each channel; of one alone, as the stub also has it, only in "L"
    return all(high - low <= FLAT for low, high in extrema)  # type: ignore[misc]
