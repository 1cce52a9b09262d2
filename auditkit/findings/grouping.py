"""Groups of findings that ask alike and are answered alike, and a name for each: from their words alone.

The paper sorts its findings into failure types by hand (Sec. 4). Here word n-grams are clustered; the name is what a
group's questions share ("…" for what varies) and what the target says instead. Nothing here knows what a picture shows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import HDBSCAN
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import silhouette_score

from auditkit.consensus.embeddings import ANSWERS, SMALLEST, sentence_encoder
from auditkit.consensus.normalise import normalise
from auditkit.text import visible

ASKS = 1.25  # weight of what is asked against what is answered, when two findings are compared
DOMINANT = 0.7  # an answer given to this share of a group's questions stands for the group
SHARED = 0.6  # a word belongs to a group's name if this share of its questions has it
FILLERS = 5  # groups that differ in one word, and by which it is seen not to matter
AT_ONCE = 2000  # more findings than this are put to the nearest group: linkage costs their number squared
ROWS = 50_000  # findings whose nearest group is looked for together
ELLIPSIS, DASH = "…", "—"
NO_TEMPLATE = "questions of several kinds"


def group_findings(findings: Sequence[dict], most: int, by: str = "text") -> list[list[dict]]:
    """Records in at most `most` groups, by their question, the target's answer and the consensus.

    Args:
        by: text, their words, or embedding, their meaning (consensus/embeddings.py).

    Clusters that share a template and one dominant answer are one group to a reader, and so are five or more that
    differ in one word alone and are answered alike: what stands there, such as a place, does not matter.
    """
    alike = defaultdict(list)
    if by == "embedding":
        found = clusters_by_meaning(findings, most)
    else:
        found = clusters_by_text([_vector_text(r) for r in findings], most)
    for cluster in found:
        members = [findings[i] for i in cluster]
        said, n = Counter(normalise(r["target"]) for r in members).most_common(1)[0]
        answer = said if n >= DOMINANT * len(members) else says(members)
        alike[common_template(Counter(r["question"] for r in members)), answer].extend(members)
    return _whatever_the_word(list(alike.values()))


def _whatever_the_word(groups: Sequence[list[dict]]) -> list[list[dict]]:
    """Groups, those joined that ask the same but for one word, which varies, and have the same dominant confusion."""
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, members in enumerate(groups):
        first = confusions(members)[0]
        words = common_template(Counter(r["question"] for r in members)).rstrip("?").split()
        if first["count"] < DOMINANT * len(members):
            continue
        for word in dict.fromkeys(words):
            form = tuple(ELLIPSIS if one == word else one for one in words)
            if sum(one != ELLIPSIS for one in form) >= SHARED * len(form):
                alike[form, first["target"], first["consensus"]].append(i)
    joined, left = [], set(range(len(groups)))
    for some_alike in sorted(alike.values(), key=len, reverse=True):
        own = [i for i in some_alike if i in left]
        if len(own) >= FILLERS:
            joined.append([row for i in own for row in groups[i]])
            left -= set(own)
    return [*joined, *(groups[i] for i in sorted(left))]


def common_template(questions: Iterable[str]) -> str:
    """The words that most of the questions share, in the order of the question that has most of them; the rest is "…".

    Where most of the questions are not of that form, they are of several kinds, and none of them names the others.

    Args:
        questions: one after another, or counted already (a Counter).

    >>> common_template(["what time does the clock at b3 show?", "what time does the clock at a1 show?"])
    'what time does the clock at … show?'
    """
    counts, frequency = Counter(questions), Counter[str]()
    for question, n in counts.items():
        for word in set(_words(question)):
            frequency[word] += n
    asked = counts.total()
    shared = {word for word, n in frequency.items() if n >= SHARED * asked}

    def typical(question):
        common = [word in shared for word in _words(question)]
        return sum(common) - 0.5 * (len(common) - sum(common)), counts[question], question

    words = _words(max(counts, key=typical))
    if not set(words) & shared:
        return NO_TEMPLATE
    kept = [word if word in shared or len(counts) == 1 else ELLIPSIS for word in words]
    template = " ".join(w for i, w in enumerate(kept) if i == 0 or (w, kept[i - 1]) != (ELLIPSIS, ELLIPSIS)) + "?"
    is_of_it = matcher(template, list(counts))
    of_it = sum(n for question, n in counts.items() if is_of_it(question))
    return template if of_it >= SHARED * asked else NO_TEMPLATE


def matcher(template: str, questions: Sequence[str]) -> Callable[[str], bool]:
    """Whether a question is of a template: its words around any others, as long as the group's own questions."""
    matches = _words_matcher(template, questions)
    return lambda question: matches(_words(question))


def of_templates(groups: Iterable[tuple[str, Iterable[str]]], questions: Iterable[str]) -> list[set[str]]:
    """Which of many questions are of each template, as `matcher` decides it for one; each is taken to words once.

    Args:
        groups: a template, and the group's own questions.
    """
    matchers = [_words_matcher(template, own) for template, own in groups]
    found: list[set[str]] = [set() for _ in matchers]
    for question in dict.fromkeys(questions):
        words = _words(question)
        for matches, alike in zip(matchers, found, strict=True):
            if matches(words):
                alike.add(question)
    return found


def _words_matcher(template: str, questions: Iterable[str]) -> Callable[[list[str]], bool]:
    """`matcher` for a question that is taken to words already."""
    if template == NO_TEMPLATE:
        return lambda words: True
    lengths = {len(_words(question)) for question in set(questions)}
    shortest, longest = min(lengths), max(lengths)
    parts = [r"\S+(?: \S+)*" if word == ELLIPSIS else re.escape(word) for word in template.rstrip("?").split()]
    pattern = re.compile(" ".join(parts))
    return lambda words: shortest <= len(words) <= longest and pattern.fullmatch(" ".join(words)) is not None


def group_name(findings: Sequence[dict], template: str = "") -> str:
    """What a group of findings asks and how it is answered.

    Args:
        template: what their questions share, where that is known.

    >>> group_name([{"question": "what time is it?", "target": "6", "consensus": hour} for hour in ("7", "8")])
    'what time is it? — says “6” for 7, 8'
    """
    template = template or common_template(Counter(r["question"] for r in findings))
    return visible(f"{template} {DASH} {says(findings)}", keep="")


def says(findings: Sequence[dict]) -> str:
    """The dominant confusion in words: one answer for many, many for one, or the most frequent pairs."""
    pairs, n = confusions(findings), len(findings)
    sides = {}
    for side in ("target", "consensus"):
        counts = Counter()
        for pair in pairs:
            counts[pair[side]] += pair["count"]
        sides[side] = counts.most_common(1)[0]
    (said, often), (right, asked) = sides["target"], sides["consensus"]
    if often >= DOMINANT * n:
        return f"says “{said}” for {some([pair['consensus'] for pair in pairs if pair['target'] == said])}"
    if asked >= DOMINANT * n:
        return f"says {some([pair['target'] for pair in pairs if pair['consensus'] == right])} for “{right}”"
    frequent = [pair for pair in pairs[:3] if pair["count"] >= 0.15 * n]
    if sum(pair["count"] for pair in frequent) >= n / 2:  # else they would stand for what is mostly something else
        listed = [f"“{pair['target']}” for {pair['consensus']}" for pair in frequent]
        return f"says {', '.join(listed)}"
    return f"wrong in {len(pairs)} ways, e.g. “{pairs[0]['target']}” for {pairs[0]['consensus']}"


def confusions(findings: Sequence[dict]) -> list[dict]:
    """What the target says for what, most frequent first, each in its most frequent wording."""
    wording = {}
    for said, _ in Counter(r[side].strip() for r in findings for side in ("target", "consensus")).most_common():
        wording.setdefault(normalise(said), said)
    pairs = Counter((wording[normalise(r["target"])], wording[normalise(r["consensus"])]) for r in findings)
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [{"target": said, "consensus": right, "count": n} for (said, right), n in ranked]


def some(values: Sequence[str], most: int = 3) -> str:
    """The first few values in words.

    >>> some(["7", "8", "9", "10"])
    '7, 8, 9 …'
    """
    values = list(dict.fromkeys(values))
    return ", ".join(values[:most]) + (" " + ELLIPSIS if len(values) > most else "")


# ---- from words to clusters ----------------------------------------------------------------------------------------


def clusters_by_text(pairs: Sequence[tuple[str, str]], most: int) -> list[list[int]]:
    """Indices of (question, answers) pairs in at most `most` clusters: Ward's linkage, cut at the best silhouette."""
    if most < 2 or not _has_three(pairs):
        return [list(range(len(pairs)))] if pairs else []
    vectors = _vectors(pairs)
    fitted = np.random.default_rng(0).permutation(len(pairs))[:AT_ONCE]
    seen = vectors[fitted].toarray()
    tree = linkage(seen, "ward")
    best, labels = -2.0, np.ones(len(fitted), dtype=int)
    for k in range(2, min(most, len(fitted) - 1) + 1):
        cut = fcluster(tree, k, "maxclust")
        if 1 < cut.max() < len(fitted):
            score = silhouette_score(seen, cut, sample_size=min(len(fitted), 800), random_state=0)
            if score > best:
                best, labels = score, cut
    centres = np.stack([seen[labels == c].mean(0) for c in range(1, labels.max() + 1)])
    size = (centres**2).sum(1)
    rows = range(0, len(pairs), ROWS)
    nearest = np.concatenate([(size - 2 * vectors[i : i + ROWS] @ centres.T).argmin(1) for i in rows])
    nearest[fitted] = labels - 1
    return [np.flatnonzero(nearest == c).tolist() for c in range(len(centres)) if (nearest == c).any()]


def _has_three(pairs: Iterable[tuple[str, str]]) -> bool:
    """Whether three are different."""
    different: set[tuple[str, str]] = set()
    for pair in pairs:
        different.add(pair)
        if len(different) == 3:
            return True
    return False


def _vectors(pairs: Sequence[tuple[str, str]]) -> sparse.csr_array:
    """Word 1-2-grams of the questions beside the answers, as rows. No idf: what varies in a template is rare."""
    ask = TfidfVectorizer(tokenizer=_words, token_pattern=None, ngram_range=(1, 2), use_idf=False, max_features=3000)
    said = TfidfVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False, use_idf=False, max_features=1000)
    parts = [(ASKS * ask.fit_transform(q for q, _ in pairs)).astype(np.float32)]
    if any(answers for _, answers in pairs):
        parts.append(said.fit_transform(answers for _, answers in pairs).astype(np.float32))
    return sparse.csr_array(sparse.hstack(parts, format="csr"))


def _vector_text(record: dict) -> tuple[str, str]:
    says, not_ = normalise(record["target"]) or "nothing", normalise(record["consensus"] or "")
    return record["question"], f"says:{'_'.join(says.split())} not:{'_'.join(not_.split())}"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def clusters_by_meaning(findings: Sequence[dict], most: int) -> list[list[int]]:
    """Indices of findings in at most `most` clusters: HDBSCAN on the meaning of question, answer and consensus.

    Of the sizes a cluster may have at least, the smallest is taken that leaves no more than `most`. What HDBSCAN holds
    for noise goes to the nearest cluster, since every finding belongs to a type.
    """
    if len(findings) < 2 * SMALLEST[0] or most < 2:
        return [list(range(len(findings)))] if findings else []
    encode = sentence_encoder("types_by")
    said = [[normalise(row[side] or "") or "nothing" for row in findings] for side in ("target", "consensus")]
    parts = [encode([row["question"] for row in findings]), *(ANSWERS * encode(texts) for texts in said)]
    vectors = np.hstack(parts)
    for size in SMALLEST:
        labels = HDBSCAN(min_cluster_size=size, copy=True).fit_predict(vectors)
        if labels.max() < most:
            break
    if labels.max() < 1 or labels.max() >= most:
        return [list(range(len(findings)))]
    centres = np.stack([vectors[labels == c].mean(0) for c in range(labels.max() + 1)])
    nearest = ((centres**2).sum(1) - 2 * vectors @ centres.T).argmin(1)
    nearest = np.where(labels < 0, nearest, labels)
    return [np.flatnonzero(nearest == c).tolist() for c in range(len(centres))]
