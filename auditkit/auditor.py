"""The auditor looks at a picture and writes a question that may trip the target: its prompt, and probes from its words.

(paper, Sec. 3.2; the paper's prompts are not public, ours are the files in prompts/)
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from auditkit import vlm as models
from auditkit.errors import AuditError
from auditkit.images import Picture
from auditkit.vlm import VLM

SHORTEST, LONGEST = 3, 40  # words in a question
LEAD = re.compile(r"^(?:question|q)\s*:\s*", re.IGNORECASE)
SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z]{2,}\]")  # <end_of_turn>, <loc0001>, [INST]
QUOTES = "\"'`*“”‘’ "


@dataclass(frozen=True)
class Probe:
    """One (picture, question) pair to put to the models, and how it was made."""

    key: str
    picture: str  # the picture's key
    question: str | None  # None: what the auditor wrote is no question
    text: str  # what it wrote, word for word
    way: str = "question"  # question | regenerate | edit
    pairing: str = "(Q*, I)"  # which of question and image are the auditor's: (Q*, I*), (Q*, I), (Q, I*)
    checkpoint: str = ""  # of the auditor
    rarest: float | None = None  # probability of the question's least likely token to the untrained auditor


@cache
def prompt() -> str:
    """What the auditor is asked for beside a picture (prompts/question.txt)."""
    return (Path(__file__).parent / "prompts" / "question.txt").read_text(encoding="utf-8").strip()


def parse(text: str) -> str | None:
    """The question in what an auditor wrote, or None if it is not exactly one well-formed question.

    One line may come before it: the note of what it aims at. What is noted first can be chosen by what is there to be
    seen, before the first words of a question commit to a kind of it.

    >>> parse("a busy street, a bus far away\\nWhat colour is the bus?")
    'What colour is the bus?'
    >>> parse(" What colour is the bus? ")
    'What colour is the bus?'
    >>> parse('Question: "how many dogs are there?"')
    'how many dogs are there?'
    >>> [parse(text) for text in ("a red bus", "why?", "what is it?\\nA bus.", "is is is is it?", "what <pad> is it?")]
    [None, None, None, None, None]
    """
    *before, text = text.strip().split("\n") if text.strip() else [""]
    if len(before) > 1 or any("?" in line for line in before) or SPECIAL.search(text):
        return None
    question = " ".join(LEAD.sub("", text.strip(QUOTES)).strip(QUOTES).split())
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", question.lower())
    if not question.endswith("?") or question.count("?") > 1 or not SHORTEST <= len(words) <= LONGEST:
        return None
    if "\ufffd" in question or not question.isprintable():  # half a character: bytes that are no text
        return None
    stutters = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return None if stutters else question


def rarest(untrained: VLM, pictures: Sequence[Picture], texts: Sequence[str]) -> list[float | None]:
    """How probable the least likely token of each text's question is to the untrained auditor; None without a question.

    A policy paid for disagreement learns sentences that are no questions but that references happen to answer alike
    ("what shape is the same colour?"). The auditor before training would hardly have written them: one word of them is
    next to impossible there, whatever was noted before.
    """
    asked = [i for i, text in enumerate(texts) if parse(text)]
    images = [pictures[i].image for i in asked]
    found = models.probabilities(untrained, images, [prompt()] * len(asked), [texts[i].strip() for i in asked])
    least: list[float | None] = [None] * len(texts)
    for i, chances in zip(asked, found, strict=True):
        question = texts[i].strip().split("\n")[-1]
        n = len(untrained.processor.tokenizer(question, add_special_tokens=False)["input_ids"])
        least[i] = min(chances[-n:])
    return least


def propose(
    vlm: VLM, pictures: Sequence[Picture], temperature: float, max_new_tokens: int, seed: int | None
) -> list[Probe]:
    """Have the auditor write one question about each picture.

    Raises AuditError when nothing it writes is a question, with an example of what it wrote.
    """
    probes = write(vlm, pictures, temperature, max_new_tokens, seed)
    refuse_nonsense(vlm.name, probes)
    return probes


def write(
    vlm: VLM, pictures: Sequence[Picture], temperature: float, max_new_tokens: int, seed: int | None
) -> list[Probe]:
    """As `propose`, but taking whatever comes: for batches of which a later one may fare better."""
    images = [picture.image for picture in pictures]
    texts = models.generate(vlm, images, [prompt()] * len(images), max_new_tokens, temperature, seed)
    probes, times = [], Counter()
    for picture, text in zip(pictures, texts, strict=True):
        times[picture.key] += 1
        probes.append(Probe(f"{picture.key}/probe-{seed}-{times[picture.key]}", picture.key, parse(text), text))
    return probes


def refuse_nonsense(name: str, probes: Sequence[Probe]) -> None:
    """Raise AuditError when not one of an auditor's probes has a question."""
    if probes and all(probe.question is None for probe in probes):
        wrote = max((probe.text for probe in probes), key=len)[:120]
        raise AuditError(
            f'the auditor "{name}" wrote no question about any of {len(probes)} pictures, but for example {wrote!r}; '
            "name another auditor, lower `temperature` or raise `max_question_tokens`."
        )
