"""The auditor looks at a picture and writes what may trip the target: a question, the caption of a new picture, or an
edit command. Its prompts, and what its words mean.

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

PROMPTS = {"question": "question.txt", "regenerate": "caption.txt", "edit": "edit.txt"}  # way -> what it is asked for
SHORTEST, LONGEST = 3, 40  # words in a question
LONGEST_WISH, LONGEST_ANSWER = 100, 8  # words in a caption or command, and in the answer to its check
LEAD = re.compile(r"^(?:question|q)\s*:\s*", re.IGNORECASE)
WISH_LEAD = re.compile(r"^(?:(?:new |image )*caption|description|edit(?: command)?|command)\s*:\s*", re.IGNORECASE)
CHECK_LEAD = re.compile(r"^(?:check|question|q)\s*:\s*", re.IGNORECASE)
ANSWER_LEAD = re.compile(r"^(?:right )?(?:answer|a)\s*:\s*", re.IGNORECASE)
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
    base: str = ""  # key of the picture from which this one departs
    wish: str = ""  # what the auditor wrote to have it made, word for word
    made: str = ""  # the caption or command in it
    check: str = ""  # a question that tells whether it was made as wished
    expected: str = ""  # the answer to `check` if so
    why: str = ""  # why there is no such picture, or why it is not used
    gain: float | None = None  # how far it moved towards the wish, by the picture judge (likeness.py)


@dataclass(frozen=True)
class Wish:
    """A picture the auditor wishes for, and how to see whether it got it."""

    text: str  # caption or edit command
    check: str  # a question
    expected: str  # its answer, if the wish came true


@cache
def prompt(way: str = "question") -> str:
    """What the auditor is asked for beside a picture, by way: question, regenerate or edit (files in prompts/)."""
    return (Path(__file__).parent / "prompts" / PROMPTS[way]).read_text(encoding="utf-8").strip()


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
    question = _plain(text, LEAD)
    if not question.endswith("?") or question.count("?") > 1 or not SHORTEST <= len(_words(question)) <= LONGEST:
        return None
    return question if _is_text(question) else None


def parse_wish(text: str) -> Wish | None:
    """The wish in what an auditor wrote, or None if it is not exactly a line with a caption or command and a line with
    a well-formed question, a bar and the answer.

    >>> parse_wish("paint the object at b3 purple\\nwhat colour is the object at b3? | purple")
    Wish(text='paint the object at b3 purple', check='what colour is the object at b3?', expected='purple')
    >>> parse_wish('**Caption:** "A street with two buses."\\n\\nCheck: How many buses are there? | **two**').text
    'A street with two buses.'
    >>> [parse_wish(text) for text in ("add a dog", "add a dog\\nis there a dog?", "add a dog\\ndog | yes")]
    [None, None, None]
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) != 2 or lines[1].count("|") != 1 or SPECIAL.search(text):
        return None
    check, _, answer = lines[1].partition("|")
    wished, expected = _plain(lines[0], WISH_LEAD), _plain(answer, ANSWER_LEAD)
    question = parse(_plain(check, CHECK_LEAD))
    if question is None or "?" in wished + expected or "|" in wished or not (_is_text(wished) and _is_text(expected)):
        return None
    if not (2 <= len(_words(wished)) <= LONGEST_WISH and 1 <= len(_words(expected)) <= LONGEST_ANSWER):
        return None
    return Wish(wished, question, expected)


def _plain(text: str, lead: re.Pattern) -> str:
    """One line without its lead ("Question:"), quotes and markdown."""
    return " ".join(lead.sub("", text.strip(QUOTES)).strip(QUOTES).split())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def _is_text(text: str) -> bool:
    """Whether there is neither half a character in it (bytes that are no text) nor a word three times running."""
    words = _words(text)
    stutters = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return "\ufffd" not in text and text.isprintable() and not stutters


def rarest(
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
    read = {"question": parse, "regenerate": parse_wish, "edit": parse_wish}
    asked = [i for i, (text, way) in enumerate(zip(texts, ways, strict=True)) if read[way](text)]
    images, prompts = [pictures[i].image for i in asked], [prompt(ways[i]) for i in asked]
    found = models.probabilities(untrained, images, prompts, [texts[i].strip() for i in asked])
    least: list[float | None] = [None] * len(texts)
    for i, chances in zip(asked, found, strict=True):
        if ways[i] == "question":
            question = texts[i].strip().split("\n")[-1]
            n = len(untrained.processor.tokenizer(question, add_special_tokens=False)["input_ids"])
            chances = chances[-n:]
        least[i] = min(chances)
    return least


def written(
    vlm: VLM,
    pictures: Sequence[Picture],
    ways: Sequence[str],
    temperature: float,
    max_new_tokens: int,
    seed: int | None,
) -> list[str]:
    """What the auditor writes about each picture, word for word, each in its own way: question, regenerate or edit."""
    images, prompts = [picture.image for picture in pictures], [prompt(way) for way in ways]
    return models.generate(vlm, images, prompts, max_new_tokens, temperature, seed)


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
    texts = written(vlm, pictures, ["question"] * len(pictures), temperature, max_new_tokens, seed)
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
