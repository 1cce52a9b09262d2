"""Records with their pictures, as `plots.gallery` and `plots.pairs` show them.

Where a source knows the truth it stands on the card, for a reader alone: nothing that trains or decides reads a card.
"""

from collections.abc import Mapping, Sequence

from auditkit.counterfactual.store import ImageStore
from auditkit.data.source import Example, Picture, Source
from auditkit.runs.probe import parse_wish


def probe_cards(rows: Sequence[Mapping], source: Source, truth: bool = True) -> list[dict]:
    """Records of an audit with their pictures and, where the source knows it, the true answer.

    Args:
        rows: with "picture" and "question", and what `plots.gallery` shows besides.
        source: images of the run, those that were made among them (with_counterfactuals).
        truth: False for cards that a person is to judge.
    """
    found = [{**row, "image": source.picture(row["picture"]).image} for row in rows]
    return [{**row, "truth": source.truth(row["picture"], row["question"])} for row in found] if truth else found


def picture_cards(pictures: Sequence[Picture], texts: Sequence[str | None] | None = None) -> list[dict]:
    """Pictures under their keys, or under one text each."""
    texts = [picture.key for picture in pictures] if texts is None else texts
    return [{"image": picture.image, "question": text} for picture, text in zip(pictures, texts, strict=True)]


def example_cards(examples: Sequence[Example]) -> list[dict]:
    """Training examples, with the answer that is to be learnt as the consensus."""
    return [{"image": example.image, "question": example.question, "consensus": example.answer} for example in examples]


def answer_cards(examples: Sequence[Example], answers: Mapping[str, Sequence[str]], target: str) -> list[dict]:
    """Labelled examples with what every model says to them.

    Args:
        answers: model's name -> its answers, one for each example.
        target: the name of the model under audit; all others are shown as references.
    """
    found = []
    for i, example in enumerate(examples):
        others = {name: said[i] for name, said in answers.items() if name != target}
        row = {"image": example.image, "question": example.question, "truth": example.answer or None}
        found.append(row | {"target": answers[target][i], "references": others})
    return found


def repaired_cards(rows: Sequence[Mapping], source: Source) -> list[dict]:
    """Probes put to the repaired target: what it says ("after") against the consensus, and what it said ("before").

    Args:
        rows: as `repair.before_after.ask_again` gives them.
    """
    return [
        {"image": source.picture(row["picture"]).image, "question": row["question"], "consensus": row["consensus"]}
        | {"target": row["after"], "references": {"before": row["before"]}}
        | {"truth": source.truth(row["picture"], row["question"])}
        for row in rows
    ]


def wish_cards(rollouts: Sequence[Mapping], source: Source, store: ImageStore) -> list[dict]:
    """Wishes of the auditor's training, painted again from their words, beside the pictures they were made about.

    Args:
        rollouts: rows of rollouts.jsonl whose "text" is a wish that was made.
        store: without a folder, so that nothing is kept.
    """
    found = []
    for row in rollouts:
        wish, before = parse_wish(row["text"]), source.picture(row["picture"])
        assert wish is not None  # it was made
        (made,) = store.make(row["way"], [before], [wish.text])
        pictures = {"before_image": before.image, "image": store.picture(made.key).image, "box": made.box}
        said = {name: row[name] for name in ("question", "target", "consensus")}
        found.append(pictures | {"made": wish.text} | said)
    return found
