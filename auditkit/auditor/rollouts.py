"""What a training of the auditor wrote, read back from its folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from auditkit.models.answers import answers_by_model
from auditkit.runs import jsonl

ROLLOUTS_FILE = "rollouts.jsonl"


def rollout_counts(folder: Path, target: str) -> dict[str, int]:
    """What was written, read and answered in a training: {"asked", "parsed", "target_called", "references_called",
    "images_made"}.

    Args:
        target: the target's name; every other model in answers.jsonl is a reference.
    """
    written, answers = jsonl.read(folder / ROLLOUTS_FILE), answers_by_model(folder / "answers.jsonl")
    return {
        "asked": len(written),
        "parsed": sum(row["question"] is not None for row in written),
        "target_called": answers[target],
        "references_called": answers.total() - answers[target],
        "images_made": len({row["made"] for row in written if row["made"]}),
    }


def last_successful_wishes(folder: Path, texts: int) -> list[dict]:
    """The wishes among the last so many texts whose picture was made and then got the target wrong."""
    rows = jsonl.read(folder / ROLLOUTS_FILE)[-texts:]
    return [row for row in rows if row["made"] and row["success"]]


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
