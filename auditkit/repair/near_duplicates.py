"""Probes that teach the same twice: nearly the same words, about nearly the same picture, with the same answer.

Words are compared without what carries no meaning in a question ("what is the colour of the ball", "what colour is the
ball?"), in their order, which does. Pictures are compared by a thumbnail: 16 x 16 in brightness and 8 x 8 in colour, in
which nothing may differ by more than a few of 256 levels. So a copy that was saved as JPEG or enlarged is found, one
that was cropped or shifted is not, and a difference in one small place is enough for another picture. Where the two
aims collide, a picture is kept: a repeated lesson costs little, a lost one more. tests/test_near.py measures both.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

from auditkit.consensus.normalise import normalise
from auditkit.data.source import Picture

BRIGHTNESS, COLOUR = 6, 4  # largest difference, in levels of 256, that a copy may have in some part of its thumbnail
SIDES = 16, 8, 8  # of the thumbnails in brightness and two colours
UNITS = np.repeat(np.array((BRIGHTNESS, COLOUR, COLOUR), dtype=float), [side * side for side in SIDES])
FEW, LARGEST = 256, 0.65  # thumbnails that a tree takes at once; share of them that either part may have
EMPTY = set("is are was were does do did the a an of this that these there here picture image photo".split())
ALIKE = {"which": "what", "color": "colour"}


def near_duplicates(rows: Sequence[dict], picture: Callable[[str], Picture]) -> dict[str, str]:
    """The key of each row that nearly repeats an earlier one -> the key of that one, which is kept.

    Args:
        rows: scored records, with key, picture, question and consensus; of two alike, the first is kept.
        picture: a picture's key -> the picture. Looked at only where words and answer are the same.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((content_words(row["question"]), normalise(row["consensus"])), []).append(row)
    dropped: dict[str, str] = {}
    for group in groups.values():
        if len(group) > 1:
            looks = {key: _levels(picture(key).image).tobytes() for key in {row["picture"]: None for row in group}}
            same: dict[bytes, list[str]] = {}  # many may look exactly alike, and each pair of them is near
            for row in group:
                same.setdefault(looks[row["picture"]], []).append(row["key"])
            levels = np.frombuffer(b"".join(same), dtype=np.uint8).reshape(len(same), -1)
            keys = list(same.values())
            for i, j in sorted(_near_pairs(levels)):  # i < j, so whether i is kept is known by now
                if keys[i][0] not in dropped:
                    dropped.setdefault(keys[j][0], keys[i][0])
            for first, *others in keys:
                dropped |= dict.fromkeys(others, dropped.get(first, first))
    return dropped


def _near_pairs(levels: np.ndarray) -> set[tuple[int, int]]:
    """The pairs (i, j), i < j, of n thumbnails [n, 384] in levels of 256 that are near.

    A tree over 384 dimensions takes their number squared, so they are parted before, dimension by dimension.
    """
    pairs: set[tuple[int, int]] = set()
    todo = [np.arange(len(levels))]
    while todo:
        rows = todo.pop()
        parts = _parted(levels, rows)
        todo += parts
        if not parts:
            found = cKDTree(levels[rows] / UNITS).query_pairs(1, p=np.inf, output_type="ndarray")
            pairs.update((int(rows[i]), int(rows[j])) for i, j in found)
    return pairs


def _parted(levels: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Some thumbnails in two parts, such that two near ones are together in one of them; [] where they are few, or too
    much alike. Those just below the border are in both.
    """
    if len(rows) <= FEW:
        return []
    sample = levels[rows[:: len(rows) // FEW]].astype(int)
    borders = np.median(sample, 0).astype(int)
    sizes = np.maximum((sample <= borders).mean(0), (sample > borders - UNITS).mean(0))
    best = int(sizes.argmin())
    of = levels[rows, best].astype(int)
    parts = [rows[of <= borders[best]], rows[of > borders[best] - UNITS[best]]]
    return parts if max(map(len, parts)) < LARGEST * len(rows) else []


def content_words(question: str) -> str:
    """What a question asks, without its empty words.

    >>> content_words("What is the colour of the ball?"), content_words("which color is the ball")
    ('what colour ball', 'what colour ball')
    >>> content_words("Is the ball left of the box?") == content_words("Is the box left of the ball?")
    False
    """
    found = re.sub(r"[^\w\s:-]", " ", normalise(question)).split()
    return " ".join(ALIKE.get(word, word) for word in found if word not in EMPTY)


def thumbnail(image: Image.Image) -> np.ndarray:
    """A picture as 384 numbers, [16 x 16 of brightness, 8 x 8 of each of two colours], in units of what a copy may
    differ by: two are near if none of them is further apart than 1.
    """
    return _levels(image) / UNITS


def _levels(image: Image.Image) -> np.ndarray:
    """The same numbers in levels of 256."""
    channels = image.convert("YCbCr").split()
    small = [channel.resize((n, n), Image.Resampling.BILINEAR) for channel, n in zip(channels, SIDES, strict=True)]
    return np.concatenate([np.asarray(channel).ravel() for channel in small])
