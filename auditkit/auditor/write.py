"""The auditor looks at a picture and writes what may trip the target: a question, the caption of a new picture, or an
edit command. Its prompts, and what its words mean.

(paper, Sec. 3.2; the paper's prompts are not public, ours are the files in prompts/)
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.base import Writer, generate_texts
from auditkit.models.transformers import VLM, token_probabilities
from auditkit.runs.probe import Probe, parse_question, parse_wish

PROMPTS = {"question": "question.txt", "regenerate": "caption.txt", "edit": "edit.txt"}  # way -> what it is asked for


@cache
def auditor_prompt(way: str = "question") -> str:
    """What the auditor is asked for beside a picture, by way: question, regenerate or edit (files in prompts/)."""
    return (Path(__file__).parent / "prompts" / PROMPTS[way]).read_text(encoding="utf-8").strip()


def rarest_token(
    untrained: VLM, pictures: Sequence[Picture], texts: Sequence[str], ways: Sequence[str] | None = None
) -> list[float | None]:
    """How probable the least likely token of each text's question is to the untrained auditor; None without a question.

    A policy paid for disagreement learns sentences that are no questions but that references happen to answer alike
    ("what shape is the same colour?"). The auditor before training would hardly have written them: one word of them is
    next to impossible there, whatever was noted before.

    Args:
        ways: in which way each text was written (all of them questions without it). A wish, a caption or command with
            its check, counts as a whole; what is no wish has None.
    """
    ways = ways or ["question"] * len(texts)
    read = {"question": parse_question, "regenerate": parse_wish, "edit": parse_wish}
    asked = [i for i, (text, way) in enumerate(zip(texts, ways, strict=True)) if read[way](text)]
    images, prompts = _images([pictures[i] for i in asked]), [auditor_prompt(ways[i]) for i in asked]
    found = token_probabilities(untrained, images, prompts, [texts[i].strip() for i in asked])
    least: list[float | None] = [None] * len(texts)
    for i, chances in zip(asked, found, strict=True):
        if ways[i] == "question":
            question = texts[i].strip().split("\n")[-1]
            n = len(untrained.processor.tokenizer(question, add_special_tokens=False)["input_ids"])
            chances = chances[-n:]
        least[i] = min(chances)
    return least


def _images(pictures: Sequence[Picture]) -> list[Image.Image]:
    """The image of each picture; one that is given several times is read once and is one object, which models share."""
    different = {id(picture): picture for picture in pictures}
    images = {each: picture.image for each, picture in different.items()}
    return [images[id(picture)] for picture in pictures]


def write_texts(
    vlm: Writer,
    pictures: Sequence[Picture],
    ways: Sequence[str],
    temperature: float,
    max_new_tokens: int,
    seed: int | None,
) -> list[str]:
    """What the auditor writes about each picture, word for word, each in its own way: question, regenerate or edit."""
    images, prompts = _images(pictures), [auditor_prompt(way) for way in ways]
    return generate_texts(vlm, images, prompts, max_new_tokens, temperature, seed)


def write_samples(
    vlm: VLM, picture: Picture, ways: Sequence[str], n: int, temperature: float, max_new_tokens: int, seed: int | None
) -> dict[str, list[str]]:
    """n texts of each way about one picture: {way: texts}. The same way may be given twice and counts once."""
    each = [way for way in dict.fromkeys(ways) for _ in range(n)]
    texts = write_texts(vlm, [picture] * len(each), each, temperature, max_new_tokens, seed)
    return {way: texts[i * n : (i + 1) * n] for i, way in enumerate(dict.fromkeys(ways))}


def propose_questions(
    vlm: Writer, pictures: Sequence[Picture], temperature: float, max_new_tokens: int, seed: int | None
) -> list[Probe]:
    """Have the auditor write one question about each picture.

    Raises AuditError when nothing it writes is a question, with an example of what it wrote.
    """
    probes = write_questions(vlm, pictures, temperature, max_new_tokens, seed)
    refuse_nonsense(vlm.name, probes)
    return probes


def write_questions(
    vlm: Writer, pictures: Sequence[Picture], temperature: float, max_new_tokens: int, seed: int | None
) -> list[Probe]:
    """As `propose_questions`, but taking whatever comes: for batches of which a later one may fare better."""
    texts = write_texts(vlm, pictures, ["question"] * len(pictures), temperature, max_new_tokens, seed)
    probes, times = [], Counter()
    for picture, text in zip(pictures, texts, strict=True):
        times[picture.key] += 1
        probes.append(
            Probe(f"{picture.key}/probe-{seed}-{times[picture.key]}", picture.key, parse_question(text), text)
        )
    return probes


def refuse_nonsense(name: str, probes: Sequence[Probe]) -> None:
    """Raise AuditError when not one of an auditor's probes has a question."""
    if probes and all(probe.question is None for probe in probes):
        wrote = max((probe.text for probe in probes), key=len)[:120]
        raise AuditError(
            f'the auditor "{name}" wrote no question about any of {len(probes)} pictures, but for example {wrote!r}; '
            "name another auditor, lower `temperature` or raise `max_question_tokens`."
        )
