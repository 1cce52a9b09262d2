"""Answers in the form in which they are compared: case, articles, number words and common synonyms aside."""

import re
import unicodedata
from functools import lru_cache

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
