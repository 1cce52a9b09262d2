"""Of several candidate questions about a picture, the one to ask: likely to find a failure, of a kind that has few.

Training an auditor raises the rate of its finds and narrows what they are of. A text costs the auditor a few tokens, a
question asked an answer of the target and of every reference. So with `candidates` above 1 several texts are written
about a picture, by all checkpoints but the last, and one is asked; the last checkpoint's are asked as they come, for
its search success is what the paper measures. No model is asked in order to choose. How likely a text finds a failure
is learnt from the rollouts of the auditor's own training, each of which was asked and scored; how many failures of its
kind are to be expected so far is summed up as the pictures are gone through.

Not of the paper, whose auditor asks the one question it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sklearn.linear_model import LogisticRegression

from auditkit.auditor.clusters import TextClusters, word_vectorizer
from auditkit.consensus.normalise import normalise
from auditkit.runs.probe import Probe

EVENNESS = 2  # a text counts by its chance of a find, over this power of (1 + finds of its kind expected so far)


def select_questions(
    candidates: Sequence[Sequence[Probe]],
    certain: Sequence[Probe],
    rollouts: Sequence[Mapping],
    *,
    min_token_probability: float,
    clusters: int,
    seed: int,
) -> list[Probe]:
    """One probe of each picture's candidates, in the order of the pictures.

    A text that the audit's first gates would drop anyway, no question, an implausible one or one that is asked of the
    same picture already, is chosen only where there is nothing else.

    Args:
        candidates: for each picture, what the auditors wrote about it.
        certain: questions that are asked whatever is chosen; their clusters need less beside them.
        rollouts: rows of the auditor's training (Rollout), the questions among which are learnt from.
        min_token_probability: what each token of a question must have to the untrained auditor, 0 to 1.
        clusters: how many clusters of questions are told apart, by their text.
    """
    sound = [probe for some in candidates for probe in some if is_sound(probe, min_token_probability)]
    if not sound:
        return [some[0] for some in candidates]
    certain = [probe for probe in certain if is_sound(probe, min_token_probability)]
    every = [*sound, *certain]
    wording = {probe.key: probe.question for probe in every if probe.question is not None}
    text_clusters = TextClusters([wording[probe.key] for probe in sound], clusters, seed)
    cluster = dict(zip(wording, text_clusters.of(list(wording.values())), strict=True))
    chance = dict(
        zip((probe.key for probe in every), find_chances([probe.text for probe in every], rollouts), strict=True)
    )
    expected = dict.fromkeys(cluster.values(), 0.0)  # cluster -> finds of what is asked so far
    for probe in certain:
        expected[cluster[probe.key]] += chance[probe.key]

    asked = {(probe.picture, normalise(probe.question)) for probe in certain}

    def worth(probe: Probe) -> float:
        if probe.key not in chance or (probe.picture, normalise(probe.question)) in asked:
            return -1.0
        return chance[probe.key] / (1 + expected[cluster[probe.key]]) ** EVENNESS

    taken = []
    for some in candidates:
        best = max(some, key=worth)
        if best.key in chance:
            expected[cluster[best.key]] += chance[best.key]
            asked.add((best.picture, normalise(best.question)))
        taken.append(best)
    return taken


def find_chances(texts: Sequence[str], rollouts: Sequence[Mapping]) -> list[float]:
    """How likely each text, note and question, finds a failure: by its words and word pairs, as in the rollouts.

    >>> tried = [{"way": "question", "question": f"is {a} {b}?", "text": f"{a}\\nis {a} {b}?", "success": a == "it"}
    ...          for a in ("it", "that") for b in ("red", "blue", "old")]
    >>> it, that = find_chances(["it\\nis it new?", "that\\nis that new?"], tried)
    >>> it > 0.5 > that
    True
    """
    tried = [row for row in rollouts if row["way"] == "question" and row["question"] is not None]
    found = [row["success"] for row in tried]
    if len(set(found)) < 2:  # nothing to tell one from the other by
        return [0.5] * len(texts)
    reader = word_vectorizer()
    learnt = LogisticRegression(C=10, max_iter=500).fit(reader.fit_transform(row["text"] for row in tried), found)
    return learnt.predict_proba(reader.transform(texts))[:, 1].tolist()


def is_sound(probe: Probe, least: float) -> bool:
    """Whether the audit's first gates would let a probe through: a question, plausible to the untrained auditor."""
    return probe.question is not None and (probe.rarest is None or probe.rarest >= least)
