"""What repeats another is found and dropped; what differs in one small place is not."""

import io

import numpy as np
import pytest
from PIL import Image

from auditkit.data.source import Picture
from auditkit.miniature.boards import Boards, scene_of
from auditkit.repair.near_duplicates import near_duplicates, thumbnail

BOARDS = Boards()


def taken_for_one(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.abs(thumbnail(one) - thumbnail(other)).max() <= 1)


def row(key, picture, question="What is the colour of the ball?", consensus="red"):
    return {"key": key, "picture": picture, "question": question, "consensus": consensus}


def as_jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resized(image, factor):
    return image.resize([round(factor * side) for side in image.size], Image.Resampling.BICUBIC)


def test_of_boards_drawn_at_random_no_two_are_taken_for_one():
    looks = [thumbnail(BOARDS.picture(f"near-0-{i}").image) for i in range(300)]
    apart = [np.abs(a - b).max() for i, a in enumerate(looks) for b in looks[:i]]
    assert len(apart) == 44850 and min(apart) > 3


def test_boards_that_differ_in_one_cell_are_different():
    """But for those where the cell is so dark, or changes so little, that one has to look twice."""
    keys = [f"near-1-{i}" for i in range(150)]
    pairs = [(key, other) for key in keys for _, other in BOARDS.edits(key, 4, 0) if scene_of(key) != scene_of(other)]
    missed = [taken_for_one(BOARDS.picture(a).image, BOARDS.picture(b).image) for a, b in pairs]
    assert len(pairs) > 500 and np.mean(missed) < 0.05


@pytest.mark.parametrize(
    ("how", "least"),
    [
        (lambda image: as_jpeg(image, 90), 0.75),
        (lambda image: resized(image, 1.5), 1),
        (lambda image: as_jpeg(resized(image, 3), 75), 0.97),
        (lambda image: as_jpeg(resized(image, 7), 50), 0.97),
        (lambda image: resized(resized(image, 7), 0.4), 0.97),
    ],
    ids=["jpeg 90", "x 1.5", "x 3, jpeg 75", "x 7, jpeg 50", "x 7, x 0.4"],
)
def test_a_copy_is_found(how, least):
    boards = [BOARDS.picture(f"near-2-{i}").image for i in range(100)]
    assert np.mean([taken_for_one(board, how(board)) for board in boards]) >= least


def test_words_picture_and_answer_must_all_be_alike_and_the_first_is_kept():
    board, other = BOARDS.picture("near-3-0").image, BOARDS.picture("near-3-1").image
    shown = {"a": board, "copy": as_jpeg(resized(board, 4), 85), "again": resized(board, 2), "other": other}
    rows = [
        row("1", "a"),
        row("2", "copy", "what color is the ball"),
        row("3", "again"),
        row("4", "other"),
        row("5", "copy", "What is the shape of the ball?"),
        row("6", "copy", consensus="blue"),
    ]
    looked = []

    def picture(key):
        looked.append(key)
        return Picture(key, shown[key])

    assert near_duplicates(rows, picture) == {"2": "1", "3": "1"}
    assert set(looked) == {"a", "copy", "again", "other"}
    assert near_duplicates(rows[3:], lambda key: pytest.fail("no two ask alike: nothing to look at")) == {}
