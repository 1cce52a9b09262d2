"""What an audit is about: the probe, one question about one image. How an auditor's text is read as one, and what may
become of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST, LONGEST = 3, 40  # words in a question
LONGEST_WISH, LONGEST_ANSWER = 100, 8  # words in a caption or command, and in the answer to its check
LEAD = re.compile(r"^(?:question|q)\s*:\s*", re.IGNORECASE)
WISH_LEAD = re.compile(r"^(?:(?:new |image )*caption|description|edit(?: command)?|command)\s*:\s*", re.IGNORECASE)
CHECK_LEAD = re.compile(r"^(?:check|question|q)\s*:\s*", re.IGNORECASE)
ANSWER_LEAD = re.compile(r"^(?:right )?(?:answer|a)\s*:\s*", re.IGNORECASE)
SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z]{2,}\]")  # <end_of_turn>, <loc0001>, [INST]
QUOTES = "\"'`*“”‘’ "


# What becomes of a probe, in words, in the order in which it meets them: the first that holds, else "finding".
OUTCOMES = {
    "malformed": "neither a question nor a wish, so nobody was asked",
    "bad picture": "about a picture that could not be made, is not what was wished for, or was so already",
    "implausible": "worded as the untrained auditor would hardly ever put it",
    "duplicate": "asked before, of the same picture",
    "no consensus": "the references did not agree",
    "no answer": "to which the target said nothing",
    "agrees": "the target said what the references say",
    "not reproduced": "a departure that the target does not repeat",
    "ill-posed": "on which the references do not stay with their consensus",
    "not visual": "answered alike on pictures that have nothing to do with it",
    "finding": "findings: the target departs from the consensus",
}
TRAINING = "training"  # for a checkpoint: what the auditor's training has met (findings/from_training.py)
SUMMARY_KEYS = {"finding": "ok"}  # summary.json says it so, and its keys are never renamed


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
    gain: float | None = None  # how far it moved towards the wish, by the picture check


@dataclass(frozen=True)
class Wish:
    """A picture the auditor wishes for, and how to see whether it got it."""

    text: str  # caption or edit command
    check: str  # a question
    expected: str  # its answer, if the wish came true


def parse_question(text: str) -> str | None:
    """The question in what an auditor wrote, or None if it is not exactly one well-formed question.

    One line may come before it: the note of what it aims at. What is noted first can be chosen by what is there to be
    seen, before the first words of a question commit to a kind of it.

    >>> parse_question("a busy street, a bus far away\\nWhat colour is the bus?")
    'What colour is the bus?'
    >>> parse_question(" What colour is the bus? ")
    'What colour is the bus?'
    >>> parse_question('Question: "how many dogs are there?"')
    'how many dogs are there?'
    >>> bad = "a red bus", "why?", "what is it?\\nA bus.", "is is is is it?", "what <pad> is it?"
    >>> [parse_question(text) for text in bad]
    [None, None, None, None, None]
    """
    *before, text = text.strip().split("\n") if text.strip() else [""]
    if len(before) > 1 or any("?" in line for line in before) or SPECIAL.search(text):
        return None
    question = _without_lead(text, LEAD)
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
    wished, expected = _without_lead(lines[0], WISH_LEAD), _without_lead(answer, ANSWER_LEAD)
    question = parse_question(_without_lead(check, CHECK_LEAD))
    if question is None or "?" in wished + expected or "|" in wished or not (_is_text(wished) and _is_text(expected)):
        return None
    if not (2 <= len(_words(wished)) <= LONGEST_WISH and 1 <= len(_words(expected)) <= LONGEST_ANSWER):
        return None
    return Wish(wished, question, expected)


def _without_lead(text: str, lead: re.Pattern) -> str:
    """One line without its lead ("Question:"), quotes and markdown."""
    return " ".join(lead.sub("", text.strip(QUOTES)).strip(QUOTES).split())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def _is_text(text: str) -> bool:
    """Whether there is neither half a character in it (bytes that are no text) nor a word three times running."""
    words = _words(text)
    stutters = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return "\ufffd" not in text and text.isprintable() and not stutters


def only_findings(records: Sequence[dict]) -> list[dict]:
    """The records on which the target departed from a consensus and every gate held."""
    return [record for record in records if record.get("outcome") == "finding"]


def audit_probes(records: Sequence[dict]) -> list[dict]:
    """The records that the audit has asked, by which rates are measured: all but those of the auditor's training."""
    return [record for record in records if record.get("checkpoint") != TRAINING]
