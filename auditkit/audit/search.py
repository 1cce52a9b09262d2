"""Which probe to ask next, by what all answers so far have shown: a search that learns during the audit.

    search: once        every probe is written and asked, as the paper has it
    search: follow      a finding is a lead: the same question is put to other pictures, and the question's neighbours
    search: adaptive    as follow, and what is asked between leads is chosen from a pool by what the references say

A reward for failing narrows: what fails most is soon asked only. So nothing here looks for the likeliest failure. The
audit goes in rounds. Up to SHARE of a round follows leads (audit/leads.py), each until it has three findings or eight
tries, when its kind is known or given up; a new finding which a closed lead explains opens none. The rest explores:
under `follow` the questions as they were written, under `adaptive` those that bring together facts which were never
asked together (every two facts of a probe are a pair, a pair counts 1 / (1 + times it was asked), an upper bound on
what may be new there), over kinds of question in the proportions in which they were written.

The references are asked first where their answers decide: about a lead's candidates, and under `adaptive` about the
whole pool. These calls are counted apart. The target is asked only what is chosen, one call a probe; the truth, never.

Sources: Revelio (arXiv 2605.12674) searches failure modes with a diversity-aware beam and Thompson sampling over a
Gaussian process; Domino (arXiv 2203.14960) and AdaVision (arXiv 2212.02774) group failures, then probe the groups;
pairs of facts are covered as in combinatorial testing (Kuhn, Wallace and Gallo, 2004). Here the model of failures is
one of conjunctions, weighed by Bayes' rule for each lead alone, and what explores is never paid for failing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice

import numpy as np

from auditkit.audit.frames import Frames
from auditkit.audit.leads import Lead
from auditkit.auditor.clusters import TextClusters
from auditkit.consensus.normalise import normalise
from auditkit.counterfactual.store import seed_of
from auditkit.runs.probe import Probe

SHARE = 0.7  # of a round that may follow leads
A_ROUND = 2  # tries of one lead in one round, so that the second learns from the first
NEAR = 20  # candidates of a lead whose facts are asked of the references at first
LATER = 5  # and before each further try
ELSEWHERE = 12  # other pictures to which a lead's question is put
BESIDE = 12  # neighbours of a lead's question that are put to pictures
WORDS = 7  # of a lead's question that are facts of it, the rarest
EXPLAINED = 0.25  # a failure to which a closed lead gave this chance belongs to it
EXPECTED = 0.5  # what a closed lead gives this chance is not explored
ALIKE = 1e-3  # what a fact that is shared adds to a candidate's chance, to order those that promise the same
TOO_SLIM = 0.1  # a lead is closed where nothing promises more than this
CHOICE = 6  # probes of a kind among which what explores is chosen
KINDS = 40  # kinds of question, by their words

Consensus = Callable[
    [Sequence[tuple[str, str]]], list[str | None]
]  # (picture, question) pairs -> what references agree on


class Search:
    """All that is known of the probes of a pool, and the choice of the next ones.

    Args:
        pool: probes with a question, none twice about a picture.
        consensus: asks the references.
        adaptive: explore by facts; else in a random order.
        seed: of all that is drawn.
    """

    def __init__(self, pool: Sequence[Probe], consensus: Consensus, *, adaptive: bool, seed: int):
        self.consensus, self.adaptive, self.seed = consensus, adaptive, seed
        self.probes: list[Probe] = []
        self.facts: list[set[str]] = []
        self.agreed: dict[int, str | None] = {}  # what the references agree on, once they were asked
        self.probed: set[int] = set()  # whose probing questions were asked
        self.holding: dict[str, list[int]] = defaultdict(list)  # fact -> probes
        self.at: dict[str, int] = {}  # key -> place
        self.done: set[int] = set()  # that were asked
        self.known: set[tuple[str, str]] = set()  # (picture, question), as they are compared
        self.leads: list[Lead] = []
        self.asked: list[int] = []
        self.failed: list[bool] = []
        self.owners: list[Lead | None] = []  # the lead that each failure belongs to
        for probe in pool:
            self._add(probe)
        self.size = len(self.probes)
        questions = [probe.question or "" for probe in self.probes]
        self.frames, self.pictures = Frames(questions), sorted({probe.picture for probe in self.probes})
        self.kinds = self._kinds_of(questions)
        self.written = Counter(self.kinds)
        self.passed: set[int] = set()  # that are not explored, since a closed lead explains them
        self.order = np.random.default_rng(seed).permutation(self.size).tolist()
        self.pairs: dict[int, Counter] = defaultdict(Counter)  # kind -> pairs of facts, and how often asked
        self.tried: Counter[int] = Counter()
        if adaptive:
            self._agree(range(self.size))

    # ---- what is known

    def _add(self, probe: Probe) -> None:
        """Take in a probe, if the same was not asked of the same picture before."""
        asked = (probe.picture, normalise(probe.question or ""))
        if asked in self.known:
            return
        self.known.add(asked)
        self.at[probe.key] = len(self.probes)
        self.probes.append(probe)
        self.facts.append(set())
        self._learn(len(self.probes) - 1, re.findall(r"\w+", (probe.question or "").lower()))

    def _learn(self, i: int, facts: Sequence[str]) -> None:
        for fact in set(facts) - self.facts[i]:
            self.holding[fact].append(i)
        self.facts[i].update(facts)

    def _kinds_of(self, questions: list[str]) -> list[int]:
        some = np.random.default_rng(self.seed).permutation(len(questions))[:3000]
        return TextClusters([questions[i] for i in sorted(some)], KINDS, self.seed % 2**32).of(questions)

    def _agree(self, places: Sequence[int]) -> None:
        """Ask the references about these probes, if they were not yet."""
        new = [i for i in dict.fromkeys(places) if i not in self.agreed]
        said = self.consensus([(self.probes[i].picture, self.probes[i].question or "") for i in new])
        for i, answer in zip(new, said, strict=True):
            self._note(i, answer)

    def _note(self, i: int, consensus: str | None) -> None:
        self.agreed[i] = consensus
        if consensus is not None:
            self._learn(i, [f"= {normalise(consensus)}"])

    def _probe(self, places: Sequence[int]) -> None:
        """Ask the references the probing questions about these probes, if they were not yet."""
        new = [i for i in dict.fromkeys(places) if i not in self.probed]
        asked = [(i, *probing) for i in new for probing in self.frames.probing(self.probes[i].question or "")]
        said = self.consensus([(self.probes[i].picture, question) for i, _, question in asked])
        for (i, name, _), answer in zip(asked, said, strict=True):
            if answer is not None:
                self._learn(i, [f"{name} = {normalise(answer)}"])
        self.probed.update(new)

    # ---- a round

    def choose(self, n: int) -> list[tuple[int, str]]:
        """The next n probes, by their places, and why each is asked: "first", "explores", or the key of its lead.

        Fewer where the pool is exhausted. The first round is not chosen: it is a sample of the pool.
        """
        free = [i for i in self.order if self._is_free(i) and i not in self.passed]
        if not self.asked:
            return [(i, "first") for i in free[:n]]
        room = round(SHARE * n)
        following = [lead for lead in self.leads if lead.open][: max(1, room // A_ROUND)]
        near = [self._candidates(lead) for lead in following]
        fresh = self._explorable(free, n) if self.adaptive else []
        self._agree([i for some in near for i in some])
        self._probe([*(i for some in near for i in some if self.agreed[i] is not None), *self.asked, *fresh])
        chosen: dict[int, str] = {}
        for lead, some in zip(following, near, strict=True):
            chosen |= dict.fromkeys(self._follow(lead, some, chosen, room - len(chosen)), self.probes[lead.first].key)
        rest = [i for i in (fresh or free) if i not in chosen]
        chosen |= dict.fromkeys(self._explore(rest, n - len(chosen)), "explores")
        return list(chosen.items()) if chosen or not rest else self.choose(n)

    def tell(self, i: int, consensus: str | None, failed: bool, why: str) -> None:
        """What became of a probe that was asked; of those of a round, in their order."""
        if i not in self.agreed:
            self._note(i, consensus)
        self.asked.append(i)
        self.done.add(i)
        self.failed.append(failed)
        if i < self.size:
            self.tried[self.kinds[i]] += 1
            self.pairs[self.kinds[i]].update(self._pairs(i))
        self.owners.append(None)
        for lead in self.leads:
            if self.probes[lead.first].key == why:
                self.owners[-1] = lead
                lead.tell(failed)
                if lead.is_known():
                    self._weigh(lead)
                return
        if failed:
            self._probe([i])
            self.owners[-1] = self._explaining(i, EXPLAINED) or self._open(i)

    def place(self, probe: Probe) -> int:
        """The place of a probe that was asked before; it is added where it is not among the others."""
        if probe.key not in self.at:
            self._add(probe)
        return self.at[probe.key]

    def _is_free(self, i: int) -> bool:
        return i not in self.done and self.agreed.get(i, "") is not None

    # ---- leads

    def _open(self, i: int) -> Lead:
        """Make a finding a lead; its question's neighbours, and other pictures for it, join the candidates."""
        words = re.findall(r"\w+", (self.probes[i].question or "").lower())
        rarest = sorted(set(words), key=lambda word: (len(self.holding[word]), word))[:WORDS]
        self.leads.append(Lead(i, rarest + sorted(self.facts[i] - set(words))))
        probe, rng = self.probes[i], np.random.default_rng(seed_of(self.seed, self.probes[i].key))
        others = self.frames.neighbours(probe.question or "")
        for n in range(ELSEWHERE + BESIDE):
            picture = self.pictures[rng.integers(len(self.pictures))]
            question = probe.question if n < ELSEWHERE or not others else others[rng.integers(len(others))]
            self._add(replace(probe, key=f"{probe.key}/+{n}", picture=picture, question=question, text=question or ""))
        return self.leads[-1]

    def _masks(self, lead: Lead) -> np.ndarray:
        """Which of a lead's facts each probe holds, a bit each."""
        masks = np.zeros(len(self.probes), np.int64)
        for bit, fact in enumerate(lead.facts):
            masks[self.holding[fact]] |= 1 << bit
        return masks

    def _weigh(self, lead: Lead) -> np.ndarray:
        """Weigh what makes a lead fail by all that was asked but the failures that belong to another known kind."""
        masks = self._masks(lead)
        own = [
            j
            for j, lead_of in enumerate(self.owners)
            if lead_of in (None, lead) or not lead_of.is_known() or not self.failed[j]
        ]
        lead.weigh(masks[self.asked][own], np.array(self.failed)[own])
        return masks

    def _candidates(self, lead: Lead) -> list[int]:
        """What may be asked next to follow a lead: what promises most, and what is most like it by its words and the
        references' consensus alone, whose other facts are still to be asked.
        """
        masks = self._weigh(lead)
        worth = lead.chance(masks) + ALIKE * np.bitwise_count(masks)
        known, new, fresh = [], [], LATER if lead.tries else NEAR
        for i in np.argsort(-worth, kind="stable").tolist():
            if not self._is_free(i):
                continue
            some, most = (known, NEAR // 2) if i in self.probed else (new, fresh)
            if len(some) < most:
                some.append(i)
            elif len(known) >= NEAR // 2 and len(new) >= fresh:
                break
        return known + new

    def _follow(self, lead: Lead, candidates: Sequence[int], taken: dict[int, str], room: int) -> list[int]:
        masks = self._weigh(lead)
        some = [i for i in candidates if self._is_free(i) and i not in taken]
        chances = lead.chance(masks[some]) if some else np.zeros(0)
        if not some or chances.max() <= TOO_SLIM:
            lead.open = False
            return []
        best = np.argsort(-(chances + ALIKE * np.bitwise_count(masks[some])), kind="stable")
        return [some[j] for j in best[: max(0, min(A_ROUND, lead.wants(), room))] if chances[j] > TOO_SLIM]

    def _explaining(self, i: int, chance: float) -> Lead | None:
        """A closed lead whose kind is known and that gives a failure here this chance."""
        return next((lead for lead in self.leads if lead.is_known() and lead.chance_of(self.facts[i]) >= chance), None)

    # ---- exploring

    def _explorable(self, free: Sequence[int], n: int) -> list[int]:
        """The next few probes of each kind that is due, in the order in which they were shuffled."""
        left = self._by_kind(free)
        due = Counter(self._due(left, n, {kind: len(some) for kind, some in left.items()}))
        return [i for kind in due for i in left[kind][: CHOICE + due[kind]]]

    def _explore(self, some: Sequence[int], n: int) -> list[int]:
        """Up to n of these that no closed lead explains."""
        fresh = (i for i in some if not self._passes(i))
        if not self.adaptive:
            return list(islice(fresh, n))
        left, chosen = self._by_kind(fresh), []
        covered = {kind: Counter(self.pairs[kind]) for kind in left}
        for kind in self._due(left, n, {kind: len(some) for kind, some in left.items()}):
            best = max(left[kind], key=lambda i: self._novelty(i, covered[kind]))
            left[kind].remove(best)
            covered[kind].update(self._pairs(best))
            chosen.append(best)
        return chosen

    def _passes(self, i: int) -> bool:
        """Whether a probe is passed over from now on: what it would find is known."""
        if self._explaining(i, EXPECTED):
            self.passed.add(i)
        return i in self.passed

    def _by_kind(self, some: Iterable[int]) -> dict[int, list[int]]:
        left: dict[int, list[int]] = defaultdict(list)
        for i in some:
            left[self.kinds[i]].append(i)
        return left

    def _due(self, kinds: Iterable[int], n: int, most: Mapping[int, int]) -> list[int]:
        """The kinds of the next n probes, so that all kinds are asked in the proportions in which they were written.

        Args:
            most: how many probes of each kind are left.
        """
        ahead, due, taken = Counter(self.tried), [], Counter[int]()
        open_kinds = set(kinds)
        for _ in range(n):
            open_kinds -= {kind for kind in open_kinds if taken[kind] == most[kind]}
            if not open_kinds:
                break
            kind = min(open_kinds, key=lambda kind: ((ahead[kind] + 0.5) / self.written[kind], kind))
            ahead[kind] += 1
            taken[kind] += 1
            due.append(kind)
        return due

    def _pairs(self, i: int) -> list[tuple[str, str]]:
        return list(combinations(sorted(self.facts[i]), 2))

    def _novelty(self, i: int, covered: Counter) -> float:
        pairs = self._pairs(i)
        return sum(1 / (1 + covered[pair]) for pair in pairs) / max(1, len(pairs))
