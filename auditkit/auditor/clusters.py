"""Kinds of text, told apart without a model: for coverage and replay in training, and for the choice of candidates."""

from collections.abc import Sequence

from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

KINDS_FROM, TEXTS_EACH = 50, 8  # pictures, and texts about each by the untrained auditor, that kinds are told apart by


def word_vectorizer() -> TfidfVectorizer:
    """What a text is read as: its words and word pairs, the rare ones counting no more than the others."""
    return TfidfVectorizer(ngram_range=(1, 2), use_idf=False, token_pattern=r"\w+")


class TextClusters:
    """Kinds of text by their words alone: k-means on words and word pairs of given texts."""

    def __init__(self, texts: Sequence[str], n: int, seed: int):
        self.words = word_vectorizer()
        features = self.words.fit_transform(texts)
        self.n = min(n, len(set(texts)))
        self.means = KMeans(self.n, n_init=4, random_state=seed).fit(features)

    def of(self, texts: Sequence[str]) -> list[int]:
        return self.means.predict(self.words.transform(texts)).tolist() if len(texts) else []
