"""Kinds of question, and which of them can be asked beside a question: from the words of what was asked alone.

Words that took each other's place are of one class ("red", "blue"), and questions that differ only within classes are
of one kind: "is there a … …?". A kind that was asked of many pictures makes a *probing question*: its variable parts
are filled from the question at hand, or with what the references answered to it. So what a picture shows can be asked
for without a list of what pictures show.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from auditkit.findings.grouping import ELLIPSIS

Words = tuple[str, ...]
WIDELY = 20  # a kind asked of so many different pictures makes a probing question
FEW_WORDS = 4  # a variable part that has no more words than this is tried with each of them
MOST = 40  # probing questions of a kind
ANSWER = -1  # a part is filled with what the references answered
ORDINALS = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫"


@dataclass(frozen=True)
class Kind:
    """Questions that differ only in their variable parts.

    `words` has None at each variable part; `vocabulary` the words that stood there, part by part.
    """

    words: tuple[str | None, ...]
    vocabulary: tuple[frozenset[str], ...]
    pictures: int  # different ones that were asked about so
    seen: frozenset[
        Words
    ]  # what stood together in the parts that have few words: "pattern" with "has", never with "is"

    def parts(self, question: str) -> Words:
        """What stands in the variable parts of a question of this kind."""
        return tuple(word for word, own in zip(words_of(question), self.words, strict=True) if own is None)

    def asks(self, question: str) -> bool:
        """Whether a question is of this kind."""
        words = words_of(question)
        return len(words) == len(self.words) and all(
            own in (None, word) for word, own in zip(words, self.words, strict=True)
        )

    def text(self, filled: Sequence[str] = ()) -> str:
        """The question with these parts, or with numbers for them ("…" where there is one)."""
        parts = iter(filled or (ORDINALS if len(self.vocabulary) > 1 else ELLIPSIS))
        return _joined(next(parts) if word is None else word for word in self.words)


@dataclass(frozen=True)
class Probing:
    """A kind of question to ask beside another: each part is a number, that of the other's part (ANSWER: what the
    references answered to the other), or a word.
    """

    kind: Kind
    filled: tuple[int | str, ...]

    def ask(self, parts: Words, answer: str) -> str | None:
        """The question to ask; None where the parts would be words that this kind was never asked with."""
        said = tuple(one if isinstance(one, str) else answer if one == ANSWER else parts[one] for one in self.filled)
        known = all(word in allowed for word, allowed in zip(said, self.kind.vocabulary, strict=True))
        known = known and _in_few(said, self.kind.vocabulary) in self.kind.seen
        return self.kind.text(said) if known else None

    def told(self, several: bool) -> str:
        """The question in a reader's words.

        Args:
            several: whether the other's parts have numbers, or there is only one.
        """
        name = {ANSWER: "[the answer]"}
        said = [
            one if isinstance(one, str) else name.get(one, ORDINALS[one] if several else ELLIPSIS)
            for one in self.filled
        ]
        return self.kind.text(said)


def words_of(question: str) -> Words:
    """The words of a question in small letters, and the stops that end words, each by itself.

    >>> words_of("There is a star at a3. What is at b1?")
    ('there', 'is', 'a', 'star', 'at', 'a3', '.', 'what', 'is', 'at', 'b1', '?')
    """
    return tuple(part for word in question.lower().split() for part in re.split(r"([.,;:?!]+)$", word) if part)


def _joined(words: Iterable[str]) -> str:
    return re.sub(r" ([.,;:?!]+)(?= |$)", r"\1", " ".join(words))


def question_kinds(asked: Iterable[tuple[str, str]]) -> dict[str, Kind]:
    """The kind of each question.

    Args:
        asked: (picture, question), once or more often.
    """
    pictures: dict[str, set[str]] = defaultdict(set)
    for picture, question in asked:
        pictures[question].add(picture)
    classes = _word_classes({words_of(question) for question in pictures})
    alike: dict[Words, list[str]] = defaultdict(list)
    for question in pictures:
        alike[tuple(classes.get(word, word) for word in words_of(question))].append(question)
    found = {}
    for questions in alike.values():
        columns = list(zip(*map(words_of, questions), strict=True))
        words = tuple(column[0] if len(set(column)) == 1 else None for column in columns)
        vocabulary = tuple(frozenset(column) for column, word in zip(columns, words, strict=True) if word is None)
        about = set().union(*(pictures[question] for question in questions))
        own = [
            tuple(w for w, one in zip(words_of(question), words, strict=True) if one is None) for question in questions
        ]
        kind = Kind(words, vocabulary, len(about), frozenset(_in_few(parts, vocabulary) for parts in own))
        found |= dict.fromkeys(questions, kind)
    return found


def _in_few(parts: Sequence[str], vocabulary: Sequence[frozenset[str]]) -> Words:
    """Of what stands in the variable parts, the words in those that have few."""
    return tuple(word for word, allowed in zip(parts, vocabulary, strict=True) if len(allowed) <= FEW_WORDS)


def _word_classes(questions: set[Words]) -> dict[str, str]:
    """Word -> a word that stands for its class: words are of one if they took each other's place in some question."""
    stands: dict[str, str] = {}

    def top(word: str) -> str:
        while word in stands:
            word = stands[word]
        return word

    forms = questions
    while True:
        places: dict[tuple, set[str]] = defaultdict(set)
        for form in forms:
            for place, word in enumerate(form):
                places[form[:place], form[place + 1 :]].add(word)
        together = Counter(pair for words in places.values() for pair in itertools.combinations(sorted(words), 2))
        changed = False
        for words in places.values():
            for one, other in itertools.combinations(sorted(words), 2):
                if top(one) != top(other) and (len(words) > 2 or together[one, other] > 1):  # once may be a slip
                    stands[max(top(one), top(other))], changed = min(top(one), top(other)), True
        if not changed:
            return {word: top(word) for word in itertools.chain.from_iterable(questions)}
        forms = {tuple(top(word) for word in form) for form in forms}


def probing_questions(of: Kind, answers: Iterable[str], kinds: Iterable[Kind]) -> list[Probing]:
    """What can be asked beside questions of a kind, of what was asked of many pictures.

    Args:
        of: the kind of the questions at hand.
        answers: what the references answered to them.
        kinds: all that were asked.
    """
    told, found = Counter(answers), []
    sources: list[tuple[int, frozenset[str]]] = list(enumerate(of.vocabulary))
    sources.append((ANSWER, frozenset(told)))
    for kind in sorted(set(kinds), key=lambda kind: (-kind.pictures, kind.text())):
        if kind.pictures < WIDELY:
            continue
        choices: list[list[int | str]] = []
        for allowed in kind.vocabulary:
            from_question: list[int | str] = [source for source, words in sources if _mostly(words, allowed)]
            choices.append(from_question + (sorted(allowed) if len(allowed) <= FEW_WORDS else []))
        for filled in itertools.product(*choices):
            numbers = [one for one in filled if isinstance(one, int)]
            itself = kind == of and filled == tuple(range(len(of.vocabulary)))
            if len(set(numbers)) == len(numbers) and not itself:
                found.append(Probing(kind, filled))
    return list(dict.fromkeys(found))[:MOST]


def _mostly(words: frozenset[str], allowed: frozenset[str]) -> bool:
    return len(words & allowed) >= max(1, len(words) / 2)


def is_code(value: str) -> bool:
    """Whether a word is a code of a letter and a number, such as "b3", which has two parts."""
    return re.fullmatch(r"[a-z]\d{1,2}", value) is not None
