"""What a training of the auditor wrote, read back from its folder."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from auditkit.models.answers import answers_by_model
from auditkit.runs import jsonl

ROLLOUTS_FILE = "rollouts.jsonl"
LEFT_FILE = "rollouts.left.jsonl"  # those of steps that a training has gone back over (closed.py)


def read_rollouts(folder: Path) -> list[dict]:
    """All that was written and answered in a training, what it has gone back over first."""
    return jsonl.read(folder / LEFT_FILE) + jsonl.read(folder / ROLLOUTS_FILE)


def rollout_counts(folder: Path, target: str) -> dict[str, int]:
    """What was written, read and answered in a training: {"asked", "parsed", "target_called", "references_called",
    "images_made"}.

    Args:
        target: the target's name; every other model in answers.jsonl is a reference.
    """
    written, answers = read_rollouts(folder), answers_by_model(folder / "answers.jsonl")
    return {
        "asked": len(written),
        "parsed": sum(row["question"] is not None for row in written),
        "target_called": answers[target],
        "references_called": answers.total() - answers[target],
        "images_made": len({row["made"] for row in written if row["made"]}),
    }


def last_successful_wishes(folder: Path, n: int) -> list[dict]:
    """The last n wishes whose picture was made and then got the target wrong, of each way in turn, the last first.

    Of one picture only the last counts, for the texts of a step repeat each other.
    """
    of_way: dict[str, dict[str, dict]] = {}
    for row in reversed(read_rollouts(folder)):
        if row["made"] and row["success"]:
            of_way.setdefault(row["way"], {}).setdefault(row["picture"], row)
    turns = zip_longest(*(its.values() for its in of_way.values()))
    return [row for turn in turns for row in turn if row is not None][:n]


def sample_records(asked: Mapping[str, Mapping[str, Sequence[str]]], picture: str) -> Iterator[dict]:
    """What each checkpoint wrote about one picture, one record a text.

    Args:
        asked: checkpoint -> what `write_samples` gives.
        picture: its key.
    """
    for name, texts in asked.items():
        for way, some in texts.items():
            about = {"checkpoint": name, "way": way, "picture": picture}
            yield from (about | {"key": f"{name}/{way}/{i}", "text": text} for i, text in enumerate(some))
