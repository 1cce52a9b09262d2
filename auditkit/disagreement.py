"""Does the target say something else than its references?  (paper, Sec. 3.1)

Departs from the paper in three ways:
1) a tie among the references, or too few behind one answer (`quorum`), is no consensus: the probe is dropped;
2) what counts as "the same answer" is an argument: the paper does not say which judge it used;
3) the consensus is the wording most references chose, since it becomes the label when the target is repaired.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

TEENS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
WORDS = f"zero one two three four five six seven eight nine ten {TEENS}".split()
NUMBERS = {word: str(value) for value, word in enumerate(WORDS)}
SYNONYMS = {
    "yeah": "yes", "yep": "yes", "yup": "yes", "true": "yes", "correct": "yes",
    "nope": "no", "nah": "no", "false": "no", "incorrect": "no", "not": "no",
    "nothing": "none", "nobody": "none", "empty": "none",
    "gray": "grey", "violet": "purple", "color": "colour", "colored": "coloured", "center": "centre",
    "solid": "plain", "unpatterned": "plain", "stripes": "striped", "stripy": "striped", "stripey": "striped",
    "dots": "dotted", "spotted": "dotted", "spots": "dotted", "checkered": "checked", "chequered": "checked",
    "large": "big", "little": "small", "sofa": "couch", "automobile": "car", "bike": "bicycle", "tv": "television",
    "kid": "child", "kids": "child", "children": "child", "men": "man", "women": "woman", "people": "person",
    "upwards": "up", "downwards": "down", "leftwards": "left", "rightwards": "right", "upward": "up",
    "downward": "down", "leftward": "left", "rightward": "right", "nighttime": "night", "daytime": "day",
    "photo": "picture", "middle": "centre",
}  # fmt: skip
OPENING = re.compile(
    r"^(?:answer:\s*|(?:the\s+)?answer\s+is:?\s+|(?:it|this|that|there|they|he|she)(?:\s+(?:is|are|was|were)|['’]s|['’]re)\s+)+"
)
ARTICLES = {"a", "an", "the"}


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """Bring an answer to the form in which answers are compared.

    >>> normalise("It is a Gray circle.")
    'grey circle'
    >>> normalise("There are two."), normalise("2"), normalise("2.0")
    ('2', '2', '2')
    >>> normalise("Yes, it is striped") == normalise("yes striped")
    True
    >>> normalise("8:30"), normalise("-3"), normalise("b3."), normalise("A")
    ('8:30', '-3', 'b3', 'a')
    """
    text = unicodedata.normalize("NFKC", text).strip().lower()
    text = OPENING.sub("", text)
    text = re.sub(r"^(yes|no)\s*,\s*(?:it|there|they|this|that)\s+(?:is|are)(?:\s+not|n['’]t)?\b", r"\1 ", text)
    text = re.sub(r"(\d),(?=\d{3}\b)", r"\1", text)  # 1,000
    text = re.sub(r"\b(\d+)\.0+\b", r"\1", text)  # 2.0
    text = re.sub(r"['’]s\b|['’]", "", text)
    # a sign, point or colon inside a number or a clock time means something; any other punctuation does not
    text = re.sub(r"(?<!\d)[.:](?=\d)|(?<=\d)[.:](?!\d)|(?<!\d)[.:](?!\d)|(?<=\w)-|-(?!\d)|[^\w\s.:%$€£+-]", " ", text)
    words = text.split()
    if len(words) > 1:  # "A" alone may be the letter on a sign
        words = [word for word in words if word not in ARTICLES]
    return " ".join(_singular(SYNONYMS.get(word, NUMBERS.get(word, word))) for word in words)


def _singular(word: str) -> str:
    if len(word) > 3 and word.isalpha() and word.endswith("s") and not word.endswith(("ss", "us", "is", "yes")):
        return word[:-1]
    return word


def same_text(a: str, b: str) -> bool:
    """Whether two answers say the same, by their normalised text alone.

    >>> same_text("purple", "It's violet!"), same_text("three", "3"), same_text("a star", "stars")
    (True, True, True)
    >>> same_text("left", "right"), same_text("", "")
    (False, True)
    """
    return normalise(a) == normalise(b)


Pair = tuple[str, str, str]  # question, answer, answer


def normal(question: str, a: str, b: str) -> Pair:
    """A pair under which all those are filed that differ only in form, or in which answer comes first.

    >>> normal("What  is it?", "It's a sofa.", "Chair") == normal("what is it?", "a chair", "sofa")
    True
    """
    return " ".join(question.lower().split()), *sorted((normalise(a), normalise(b)))


class Same:
    """Whether two answers to a question mean the same. Equal normalised texts do; others are put to `decide`.

    `decide` takes many pairs at once, as they were first worded, and is asked about each pair once, in either order:
    call `prepare` with all pairs before asking for single ones. Without it, different texts mean different things.
    `asked` counts what was decided.

    >>> alike = Same()
    >>> alike("three", "3"), alike("sofa", "chair", "what is it?")
    (True, False)
    """

    def __init__(self, decide: Callable[[list[Pair]], list[bool]] | None = None):
        self.decide, self.asked = decide, 0
        self._known: dict[Pair, bool] = {}

    def __call__(self, a: str, b: str, question: str = "") -> bool:
        self.prepare([(question, a, b)])
        return same_text(a, b) or self._known.get(normal(question, a, b), False)

    def prepare(self, pairs: Iterable[Pair]) -> None:
        """Decide all pairs that are not decided yet, together."""
        todo: dict[Pair, Pair] = {}
        for pair in pairs if self.decide else ():
            _, first, second = known = normal(*pair)
            if first and first != second and known not in self._known:  # "" is like nothing but itself
                todo.setdefault(known, pair)
        if todo:
            self._known |= zip(todo, self.decide(list(todo.values())), strict=True)
            self.asked += len(todo)


def same(p, folder: Path | None = None) -> Same:
    """The test for sameness that a parameter file names: "text", "embedding", or the spec of a model to ask.

    Args:
        p: uses same, and for a model device, dtype, batch_size and memory.
        folder: where a model's verdicts are kept (judged.jsonl): a pair that is on file is not asked again, and where
            all are, the model is not even loaded.

    Raises AuditError when what it needs is not installed.
    """
    if p.same == "text":
        return Same()
    if p.same == "embedding":
        return Same(embedding())
    from auditkit.judge import Judge

    return Same(Judge(p, folder))


def embedding(threshold: float = 0.8) -> Callable[[list[Pair]], list[bool]]:
    """Decides by the cosine of sentence embeddings: two answers mean the same where it reaches `threshold`.

    The model is meaning.py's. Numbers, times, codes, yes and no are never the same: an embedding cannot tell "2" from
    "3". Below 0.8 it takes colours for one another ("purple" and "blue": 0.75).
    Raises AuditError when the package is missing.
    """
    from auditkit import meaning

    encode = meaning.encoder("same")

    def decide(pairs: list[Pair]) -> list[bool]:
        pairs = [normal(*pair) for pair in pairs]
        texts = sorted({text for _, *both in pairs for text in both})
        at = {text: vector for text, vector in zip(texts, encode(texts), strict=True)}
        return [not _exact(a) and not _exact(b) and float(at[a] @ at[b]) >= threshold for _, a, b in pairs]

    return decide


def _exact(text: str) -> bool:
    words = text.split()
    return bool({"yes", "no", "none"} & set(words)) or any(len(w) == 1 or any(c.isdigit() for c in w) for w in words)


@dataclass(frozen=True)
class Verdict:
    """What a target's answer is worth against its references' answers."""

    consensus: str | None  # None: the references do not agree
    agreement: float  # share of the references behind the most common answer, 0 to 1
    disagrees: bool  # the target departs from the consensus


def judge(
    target: str, references: Sequence[str], same: Callable = same_text, quorum: float = 0.6, question: str | None = None
) -> Verdict:
    """Compare a target's answer with its references' answers to the same probe.

    Args:
        same: takes two answers, and the question where one is given (`Same`).
        quorum: the share of all references that must stand behind one answer; one that says nothing stands behind none.

    Raises ValueError when there are no references.

    >>> judge("two", ["2", "2", "3"])
    Verdict(consensus='2', agreement=0.67, disagrees=False)
    >>> judge("blue", ["purple", "violet", "purple"], quorum=1.0)
    Verdict(consensus='purple', agreement=1.0, disagrees=True)
    >>> judge("blue", ["purple", "green"], quorum=0.5)
    Verdict(consensus=None, agreement=0.5, disagrees=False)
    """
    if not references:
        raise ValueError("judge: there are no references to compare with")
    alike = same if question is None else lambda a, b: same(a, b, question)
    groups: list[list[str]] = []
    for answer in references:
        if not answer.strip():
            continue
        for group in groups:
            if alike(answer, group[0]):
                group.append(answer)
                break
        else:
            groups.append([answer])
    groups.sort(key=len, reverse=True)  # stable: among equals the first to speak stays first
    if not groups:
        return Verdict(None, 0.0, False)
    share = len(groups[0]) / len(references)
    tie = len(groups) > 1 and len(groups[1]) == len(groups[0])
    if tie or share + 1e-9 < quorum:
        return Verdict(None, round(share, 2), False)
    consensus = Counter(answer.strip() for answer in groups[0]).most_common(1)[0][0]
    # who says what one behind the consensus says does not depart from it, even if a judge finds the two wordings unlike
    joins = any(same_text(target, answer) for answer in groups[0]) or alike(target, consensus)
    return Verdict(consensus, round(share, 2), not joins)


def verdicts(rows: Sequence[tuple[str, str, Sequence[str]]], alike: Same, quorum: float) -> list[Verdict]:
    """`judge` for many (question, target's answer, references' answers), in two large calls of what decides.

    First any two references are compared, then each target with its consensus, where there is one.
    """
    alike.prepare((question, a, b) for question, _, references in rows for a, b in combinations(references, 2))
    agreed = [judge("", references, alike, quorum, question).consensus for question, _, references in rows]
    alike.prepare((row[0], row[1], said) for row, said in zip(rows, agreed, strict=True) if said is not None)
    return [judge(target, references, alike, quorum, question) for question, target, references in rows]


def unfulfilled(rows: Sequence[tuple[str, str, Sequence[str]]], alike: Same, quorum: float) -> list[str]:
    """Why painted pictures are not what was wished for: "" where they are.

    Args:
        rows: (the wish's check question, the answer it expects, the references' answers on the painted picture).

    Returns "implausible" where the references do not agree on what they see, "not applied" where it is not the wish.

    >>> expected = "what colour is the bus?", "red"
    >>> unfulfilled([(*expected, said) for said in (["red", "red"], ["blue", "blue"], ["red", "blue"])], Same(), 1.0)
    ['', 'not applied', 'implausible']
    """
    found = verdicts(rows, alike, quorum)
    return ["implausible" if v.consensus is None else "not applied" if v.disagrees else "" for v in found]
