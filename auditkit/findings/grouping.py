"""Groups of findings that ask alike and are answered alike, and a name for each: from their words alone.

The paper sorts its findings into failure types by hand (Sec. 4). Here word n-grams are clustered; the name is what a
group's questions share ("…" for what varies) and what the target says instead. Nothing here knows what a picture shows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
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
AT_ONCE = 2000  # more findings than this are put to the nearest group: linkage costs their number squared
ELLIPSIS, DASH = "…", "—"
NO_TEMPLATE = "questions of several kinds"


def group_findings(findings: Sequence[dict], most: int, by: str = "text") -> list[list[dict]]:
    """Records in at most `most` groups, by their question, the target's answer and the consensus.

    Args:
        by: text, their words, or embedding, their meaning (consensus/embeddings.py).

    Clusters that share a template and one dominant answer are one group to a reader.
    """
    alike = defaultdict(list)
    if by == "embedding":
        pass

        found = clusters_by_meaning(findings, most)
    else:
        found = clusters_by_text([_vector_text(r) for r in findings], most)
    for cluster in found:
        members = [findings[i] for i in cluster]
        said, n = Counter(normalise(r["target"]) for r in members).most_common(1)[0]
        answer = said if n >= DOMINANT * len(members) else says(members)
        alike[common_template([r["question"] for r in members]), answer].extend(members)
    return list(alike.values())


def common_template(questions: Sequence[str]) -> str:
    """The words that most of the questions share, in the order of the question that has most of them; the rest is "…".

    Where most of the questions are not of that form, they are of several kinds, and none of them names the others.

    >>> common_template(["what time does the clock at b3 show?", "what time does the clock at a1 show?"])
    'what time does the clock at … show?'
    """
    frequency = Counter(word for question in questions for word in set(_words(question)))
    shared = {word for word, n in frequency.items() if n >= SHARED * len(questions)}
    counts = Counter(questions)

    def typical(question):
        common = [word in shared for word in _words(question)]
        return sum(common) - 0.5 * (len(common) - sum(common)), counts[question], question

    words = _words(max(counts, key=typical))
    if not set(words) & shared:
        return NO_TEMPLATE
    kept = [word if word in shared or len(counts) == 1 else ELLIPSIS for word in words]
    template = " ".join(w for i, w in enumerate(kept) if i == 0 or (w, kept[i - 1]) != (ELLIPSIS, ELLIPSIS)) + "?"
    of_it = sum(map(matcher(template, questions), questions))
    return template if of_it >= SHARED * len(questions) else NO_TEMPLATE


def matcher(template: str, questions: Sequence[str]) -> Callable[[str], bool]:
    """Whether a question is of a template: its words around any others, as long as the group's own questions."""
    if template == NO_TEMPLATE:
        return lambda question: True
    lengths = [len(_words(question)) for question in questions]
    parts = [r"\S+(?: \S+)*" if word == ELLIPSIS else re.escape(word) for word in template.rstrip("?").split()]
    pattern = re.compile(" ".join(parts))

    def matches(question: str) -> bool:
        words = _words(question)
        return min(lengths) <= len(words) <= max(lengths) and pattern.fullmatch(" ".join(words)) is not None

    return matches


def group_name(findings: Sequence[dict]) -> str:
    """What a group of findings asks and how it is answered.

    >>> group_name([{"question": "what time is it?", "target": "6", "consensus": hour} for hour in ("7", "8")])
    'what time is it? — says “6” for 7, 8'
    """
    return visible(f"{common_template([r['question'] for r in findings])} {DASH} {says(findings)}", keep="")


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
    frequent = [f"“{pair['target']}” for {pair['consensus']}" for pair in pairs[:3] if pair["count"] >= 0.15 * n]
    if frequent:
        return f"says {', '.join(frequent)}"
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
    if len(pairs) < 3 or len(set(pairs)) < 3 or most < 2:
        return [list(range(len(pairs)))] if pairs else []
    vectors = _vectors(pairs)
    fitted = np.random.default_rng(0).permutation(len(pairs))[:AT_ONCE]
    tree, seen = linkage(vectors[fitted], "ward"), vectors[fitted]
    best, labels = -2.0, np.ones(len(fitted), dtype=int)
    for k in range(2, min(most, len(fitted) - 1) + 1):
        cut = fcluster(tree, k, "maxclust")
        if 1 < cut.max() < len(fitted):
            score = silhouette_score(seen, cut, sample_size=min(len(fitted), 800), random_state=0)
            if score > best:
                best, labels = score, cut
    centres = np.stack([seen[labels == c].mean(0) for c in range(1, labels.max() + 1)])
    nearest = ((centres**2).sum(1) - 2 * vectors @ centres.T).argmin(1)
    nearest[fitted] = labels - 1
    return [np.flatnonzero(nearest == c).tolist() for c in range(len(centres)) if (nearest == c).any()]


def _vectors(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Word 1-2-grams of the questions beside the answers, as rows. No idf: what varies in a template is rare."""
    ask = TfidfVectorizer(tokenizer=_words, token_pattern=None, ngram_range=(1, 2), use_idf=False, max_features=3000)
    said = TfidfVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False, use_idf=False, max_features=1000)
    parts = [ASKS * ask.fit_transform([q for q, _ in pairs]).toarray()]
    if any(answers for _, answers in pairs):
        parts.append(said.fit_transform([answers for _, answers in pairs]).toarray())
    return np.hstack(parts).astype(np.float32)


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
