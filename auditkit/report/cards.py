"""Records with their pictures, as `plots.gallery` and `plots.pairs` show them.

Where a source knows the truth it stands on the card, for a reader alone: nothing that trains or decides reads a card.
"""

from collections.abc import Mapping, Sequence

from auditkit.consensus.normalise import same_text
from auditkit.counterfactual.store import ImageStore
from auditkit.data.source import Example, Picture, Source
from auditkit.findings.grading import known_truth, told_truth
from auditkit.runs.probe import parse_wish

KINDS = {"finding": "a finding", "agreed": "all agreed", "original": "an original, with its label"}


def probe_cards(rows: Sequence[Mapping], source: Source) -> list[dict]:
    """Records of an audit with their pictures and, where the source knows it, the true answer.

    Args:
        rows: with "picture" and "question", and what `plots.gallery` shows besides.
        source: images of the run, those that were made among them (with_counterfactuals).
    """
    found = [{**row, "image": source.picture(row["picture"]).image} for row in rows]
    return [row | known_truth(source, row["picture"], row["question"]) for row in found]


def asked_cards(rows: Sequence[Mapping], source: Source) -> list[dict]:
    """Records of an audit as picture and question alone, for whoever is to judge them."""
    return [{"image": source.picture(row["picture"]).image, "question": row["question"]} for row in rows]


def picture_cards(
    pictures: Sequence[Picture], texts: Sequence[str | None] | None = None, edges: tuple[str, str] = ("", "")
) -> list[dict]:
    """Pictures under their keys, or under one text each, with the names of columns and rows along their edges."""
    texts = [picture.key for picture in pictures] if texts is None else texts
    return [
        {"image": picture.image, "question": text, "edges": edges}
        for picture, text in zip(pictures, texts, strict=True)
    ]


def example_cards(
    examples: Sequence[Example], kind_of: Mapping[str, str], scored: Sequence[Mapping], source: Source
) -> list[dict]:
    """A few examples of a training set, each under what it is: two findings, one that all agreed on, one original.

    Args:
        kind_of: an example's key -> finding, agreed or original (`TrainingSet.kind_of`).
        scored: the probes behind the first two kinds.
        source: images of the run, those that were made among them (with_counterfactuals).
    """
    rows, found = {row["key"]: row for row in scored}, []
    different = list({example.key: example for example in examples}.values())
    for kind, n in (("finding", 2), ("agreed", 1), ("original", 1)):
        for example in [one for one in different if kind_of[one.key] == kind][:n]:
            card = {"image": example.image, "question": example.question, "note": KINDS[kind]}
            if kind == "original":
                found.append(card | {"truth": example.answer})
            else:
                said = {"target": rows[example.key]["target"], "consensus": example.answer}
                found.append(card | said | known_truth(source, rows[example.key]["picture"], example.question))
    return found


def answer_cards(examples: Sequence[Example], answers: Mapping[str, Sequence[str]], target: str) -> list[dict]:
    """Labelled examples with what every model says to them.

    Args:
        answers: model's name -> its answers, one for each example.
        target: the name of the model under audit; all others are shown as references.
    """
    found = []
    for i, example in enumerate(examples):
        others = {name: said[i] for name, said in answers.items() if name != target}
        row = {"image": example.image, "question": example.question, "target": answers[target][i]}
        found.append(row | {"references": others} | (told_truth(example.accepted) if example.answer else {}))
    return found


def alone_first(rows: Sequence[dict]) -> list[dict]:
    """The cards on which the target stands alone before the rest."""
    return sorted(rows, key=lambda row: not stands_alone(row))


def stands_alone(row: Mapping) -> bool:
    """Whether the references say the same and the target something else."""
    first, *others = row["references"].values()
    return all(same_text(first, said) for said in others) and not same_text(row["target"], first)


def repaired_cards(rows: Sequence[Mapping], source: Source) -> list[dict]:
    """Probes put to the repaired target: what it says ("after") against the consensus, and what it said ("before").

    Args:
        rows: as `repair.before_after.ask_again` gives them.
    """
    return [
        {"image": source.picture(row["picture"]).image, "question": row["question"], "consensus": row["consensus"]}
        | {"target": row["after"], "references": {"before": row["before"]}}
        | known_truth(source, row["picture"], row["question"])
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
        image = store.picture(made.key).image
        pictures = {"before_image": before.image, "image": image, "box": made.box}
        said = {name: row[name] for name in ("question", "target", "consensus")}
        shows = source.read(image)  # by what is to be seen there, whatever was wished for
        known = known_truth(source, shows, row["question"]) if shows else {}
        found.append(pictures | {"made": wish.text} | said | known)
    return found
