"""A finding as a lead: which of its facts make the target fail, and what to ask next to know.

What is known of a probe without asking the target are its *facts*: the words of its question, the references' consensus,
and their answers to a few probing questions about the same words and picture (audit/frames.py). A failure type is taken
to be a conjunction of up to three facts. All conjunctions of a finding's facts are weighed by Bayes' rule with every
probe that was asked so far: one that the target got right speaks against each conjunction it holds, a failure speaks
for it. So "what colour is at c3? red" in which the target failed may come down to "red and a star", once red things
elsewhere were fine.

Sources: version spaces (Mitchell, 1982), and their Bayesian form over concepts (Tenenbaum, 1999).
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

ENOUGH = 3  # findings that close a lead: a failure type is known
TRIES = 8  # probes after which a lead is closed without them
LONGEST = 3  # facts in a conjunction
BASE = 0.05  # how often the target fails outside of any conjunction
RATES = (0.9, 0.4, 0.15)  # how often it may fail inside: the last are those to which a fact is lacking


class Lead:
    """One finding that is followed, with the weights of all conjunctions of its facts."""

    def __init__(self, first: int, facts: Sequence[str]):
        self.first, self.facts = first, list(facts)
        self.hits, self.tries, self.open = 1, 0, True
        sizes = range(1, LONGEST + 1)
        bits = [1 << i for i in range(len(self.facts))]
        self.conjunctions = np.array([sum(some) for size in sizes for some in combinations(bits, size)])
        self.inside = np.zeros(len(self.conjunctions))  # weight of each, times the rate of failures in it
        self.weight = np.zeros(len(self.conjunctions))
        self._chances: dict[int, float] = {}  # mask -> chance

    def chance_of(self, facts: set[str]) -> float:
        """How likely the target fails on one probe of these facts, by what was weighed last."""
        mask = sum(1 << i for i, fact in enumerate(self.facts) if fact in facts)
        if mask not in self._chances:
            self._chances[mask] = float(self.chance(np.array([mask]))[0])
        return self._chances[mask]

    def weigh(self, asked: np.ndarray, failed: np.ndarray) -> None:
        """Weigh the conjunctions by n probes: `asked` their masks [n], `failed` whether the target did [n]."""
        masks, where = np.unique(asked, return_inverse=True)
        wrong = np.bincount(where, weights=failed, minlength=len(masks))
        right = np.bincount(where, weights=~failed, minlength=len(masks))
        holds = self._holds(masks).astype(float)  # [conjunctions, masks]
        rates = np.array(RATES)
        odds = np.outer(holds @ wrong, np.log(rates / BASE)) + np.outer(holds @ right, np.log((1 - rates) / (1 - BASE)))
        likely = np.exp(odds - odds.max())  # [conjunctions, rates]
        likely /= likely.sum()
        self._chances.clear()
        self.inside, self.weight = likely @ rates, likely.sum(axis=1)

    def chance(self, masks: np.ndarray) -> np.ndarray:
        """How likely the target fails on probes with these masks [n], 0 to 1."""
        distinct, where = np.unique(masks, return_inverse=True)
        holds = self._holds(distinct)
        return (self.inside @ holds + BASE * (1 - self.weight @ holds))[where]

    def _holds(self, masks: np.ndarray) -> np.ndarray:
        return (self.conjunctions[:, None] & masks[None, :]) == self.conjunctions[:, None]

    def tell(self, failed: bool) -> None:
        """Count a try, and close the lead after enough findings or tries."""
        self.tries += 1
        self.hits += failed
        self.open = self.hits < ENOUGH and self.tries < TRIES

    def wants(self) -> int:
        """How many tries may still be needed."""
        return min(ENOUGH - self.hits, TRIES - self.tries)

    def is_known(self) -> bool:
        return self.hits >= ENOUGH
