"""Answers in the form in which they are compared: case, articles, number words and common synonyms aside."""

import re
import unicodedata
from collections.abc import Iterable
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
KEPT = ".:/%-_#"  # punctuation that may be part of a number, a time or a name; what is not was taken out before
JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"  # they make other letters, or one symbol out of several


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
    >>> normalise("काला") == normalise("केला"), normalise("↑"), normalise("<5"), normalise("...")
    (False, '↑', '<5', '')
    """
    text = _spelt_out(text).strip().lower()
    text = OPENING.sub("", text)
    text = re.sub(r"^(yes|no)\s*,\s*(?:it|there|they|this|that)\s+(?:is|are)(?:\s+not|n['’]t)?\b", r"\1 ", text)
    text = re.sub(r"(\d),(?=\d{3}\b)", r"\1", text)  # 1,000
    text = re.sub(r"\b(\d+)\.0+\b", r"\1", text)  # 2.0
    text = re.sub(r"['’]s\b|['’]", "", text)
    # a sign, point, colon or slash inside a number, date or clock time means something; any other punctuation does not
    text = re.sub(
        r"(?<!\d)[./:](?=\d)|(?<=\d)[./:](?!\d)|(?<!\d)[./:](?!\d)|(?<=\w)-(?!$)|(?<!\w)-(?!\d)|-(?=\s)", " ", text
    )
    text = re.sub(r"(?<=\w\w)-$|(?<![^\W\d_])#", " ", text)  # "A-" is a grade, "cat-" is a slip; C# is not C
    text = "".join(" " if _says_nothing(character) else character for character in text)
    text = re.sub(r"([<>≤≥=~≈±])\s+(?=\d)|(?<=\d)\s+(?=%)", r"\1", text)  # < 5, 5 %
    words = text.split()
    if len(words) > 1:  # "A" alone may be the letter on a sign
        words = [word for word in words if word not in ARTICLES]
    return " ".join(_singular(SYNONYMS.get(word, NUMBERS.get(word, word))) for word in words)


def _spelt_out(text: str) -> str:
    """One spelling for what Unicode writes in several ways, without making different numbers alike.

    >>> _spelt_out("5² ½ 1½ −3 ３ ٣")
    '5^2 1/2 1 1/2 -3 3 3'
    """
    found = []
    for character in text:
        kind, plain = unicodedata.category(character), unicodedata.normalize("NFKC", character)
        if kind == "No" and unicodedata.decomposition(character).startswith("<super>"):
            plain = f"^{plain}"  # 5² is not 52
        elif "\N{FRACTION SLASH}" in plain:
            plain = (" " if found and found[-1][-1:].isdigit() else "") + plain.replace("\N{FRACTION SLASH}", "/")
        elif kind == "Nd":
            plain = str(unicodedata.digit(character))
        elif character == "\N{MINUS SIGN}":
            plain = "-"
        elif kind == "Cf" and character not in JOINERS or character == "\N{VARIATION SELECTOR-16}":
            plain = ""  # a byte order mark, a soft hyphen, the coloured form of a symbol
        found.append(plain)
    return unicodedata.normalize("NFKC", "".join(found))


def _says_nothing(character: str) -> bool:
    """Whether a character is punctuation; letters, marks, numbers and symbols of any script tell answers apart."""
    return (
        character not in KEPT
        and (unicodedata.category(character).startswith(("P", "C")) or character in "`´|")
        and (character not in JOINERS)
    )


def has_content(text: str) -> bool:
    """Whether an answer says anything: more than spaces and punctuation.

    >>> [has_content(text) for text in ("...", "?!", "-", "", "↑", "0", "a")]
    [False, False, False, False, True, True, True]
    """
    return bool(normalise(text))


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


def is_one_of(said: str, accepted: Iterable[str]) -> bool:
    """Whether an answer is one of those that are accepted, by their normalised text.

    >>> is_one_of("A mesh.", ("net", "mesh")), is_one_of("net", ())
    (True, False)
    """
    return any(same_text(said, answer) for answer in accepted)
