"""What a step's completions are worth: each is put to the models once, and three rewards read the result.

A question is asked of the picture it was written about. A caption or an edit command is a wish for another picture: it
is painted, the auditor, as it is at that step, writes a question about what came out, and that question is asked; the
references also answer the wish's own check, of an edit also about the original. A wish that did not come true, or was
so already, earns nothing, whatever the target says.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from auditkit.auditor.clusters import TextClusters
from auditkit.auditor.write import rarest_token, write_texts
from auditkit.consensus.choose import choose_same
from auditkit.consensus.normalise import normalise
from auditkit.consensus.vote import unmet_wishes, vote_all
from auditkit.counterfactual.clip_direction import unlike
from auditkit.counterfactual.store import ImageStore, make_wished, seed_of
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.models.transformers import VLM
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.probe import parse_question, parse_wish

RECENT = 1000  # successes that novelty is measured against
CAP = 4.0  # a success of an unseen kind earns at most this much novelty
KEPT = 256  # successes kept for replay in each cluster
PATIENCE = 10  # steps in which the references may never agree before training is called off


@dataclass(frozen=True)
class Rollout:
    """One completion of one step: what the auditor wrote, what the models answered, and whether that is a success."""

    key: str  # step and number in the step, over all processes
    step: int
    picture: str  # the auditor was shown
    text: str
    wrote: str | None  # the question, or the wish with its check; None: neither
    question: str | None  # put to the models
    target: str | None
    references: list[str]
    consensus: str | None
    success: bool  # the target departs from a consensus, on a picture that is what it should be
    cluster: int  # kind of what it wrote by its text, -1 if it is nothing
    tokens: list[int]  # the completion, its end token included
    way: str = "question"
    made: str | None = None  # key of the picture that was painted and asked about
    why: str = ""  # why that picture is not used
    gain: float | None = None  # how far it moved towards the wish, by the picture check


def failure_kind(cluster: int, consensus: str | None, target: str | None) -> tuple[int, str, str]:
    """What makes failures alike: the kind of text, what the references say, and what the target says instead.

    On the 386 distinct failures of the demo's first 39 steps, in 28 planted gaps, such kinds have a homogeneity of 0.99
    and a completeness of 0.82; with the question's own words for its cluster 1.00 and 0.58, by the question alone 0.90
    and 0.61.
    """
    return cluster, normalise(consensus or ""), normalise(target or "")


def _kind_of(rollout: Rollout) -> tuple[int, str, str]:
    return failure_kind(rollout.cluster, rollout.consensus, rollout.target)


class Scorer:
    """Puts every completion of a step to target and references once, remembers it, and is read by all three rewards.

    Under several processes each scores its own completions, and `rollouts` holds those of all of them, in their order.

    Args:
        pictures: those the auditor is shown, by key.
        store: makes the pictures that the auditor wishes for.
        log: rollouts.jsonl.
    """

    def __init__(
        self,
        target: Writer,
        references: Sequence[Writer],
        pictures: dict[str, Picture],
        text_clusters: TextClusters,
        book: AnswerBook,
        store: ImageStore,
        p: Params,
        log: Path,
    ):
        self.target, self.references, self.pictures, self.text_clusters = target, references, pictures, text_clusters
        self.book, self.store, self.p, self.log = book, store, p, log
        self.same = choose_same(p, log.parent)
        self.recent: deque[int] = deque(maxlen=RECENT)  # clusters of the latest successes
        # cluster -> what was written -> successes
        self.bank: dict[int, dict[str, list[Rollout]]] = defaultdict(lambda: defaultdict(list))
        self.step, self.rollouts, self.own = -1, [], []
        self.closed: frozenset[int] = frozenset()  # clusters of text that earn nothing any more
        # kind of failure -> the (picture, question) pairs at which it was met
        self.known: dict[tuple, set[tuple[str, str]]] = defaultdict(set)
        self.painting_seconds = 0.0  # of the step
        self.asked, self.agreed = 0, 0  # questions so far, and those with a consensus
        self.auditor: VLM  # set with the trainer; its adapter is switched off to see what it was before training

    def score(
        self, step: int, pictures: list[str], ways: list[str], texts: list[str], tokens: list[list[int]]
    ) -> list[Rollout]:
        """The rollouts of this process's share of a step; made at the first call of the step, in one batch a model.

        Raises AuditError when the references have never agreed on anything so far, so that there is nothing to learn.
        """
        if step == self.step:
            return self.own
        here = PartialState()
        first = here.process_index * len(texts)
        self.store.forget()
        shown = [self.pictures[key] for key in pictures]
        sound = self._sound(shown, texts, ways)
        wrote = [kept_text(text, way) if ok else None for text, way, ok in zip(texts, ways, sound, strict=True)]
        questions = {i: text for i, text in enumerate(wrote) if text and ways[i] == "question"}
        began = time.perf_counter()
        made = make_wished(self.store, shown, [way if ok else "" for way, ok in zip(ways, sound, strict=True)], texts)
        seen = {i: self.store.picture(one.key) for i, (_, one, _) in made.items() if not one.why}
        self.painting_seconds = time.perf_counter() - began
        questions |= self._about(seen, seed_of(self.p.seed, step, here.process_index))
        asked = sorted(questions)
        about, wording = [seen.get(i, shown[i]) for i in asked], [questions[i] for i in asked]
        models = (self.target, *self.references)
        answers = [self.book.ask(model, about, wording, self.p.max_answer_tokens) for model in models]
        said = dict(zip(asked, zip(*answers, strict=True), strict=True))
        rows = [(questions[i], said[i][0], said[i][1:]) for i in asked]
        verdicts = dict(zip(asked, vote_all(rows, self.same, self.p.grpo_quorum), strict=True))
        why = {i: one.why for i, (_, one, _) in made.items()} | self._unfulfilled(made, seen)
        written = {i: text for i, text in enumerate(wrote) if text}
        clusters = dict(zip(written, self.text_clusters.of(list(written.values())), strict=True))
        self.own = []
        for i, text in enumerate(texts):
            target, *references = said.get(i, (None,))
            verdict = verdicts.get(i)
            self.own.append(
                Rollout(
                    f"{step}-{first + i}", step, pictures[i], text, wrote[i], questions.get(i), target, references,
                    verdict.consensus if verdict else None,
                    bool(verdict and verdict.disagrees and not why.get(i)),
                    clusters.get(i, -1), list(map(int, tokens[i])),
                    ways[i], made[i][1].key if i in made else None, why.get(i, ""), made[i][2] if i in made else None,
                )
            )  # fmt: skip
        self.rollouts = gather_object(self.own)
        if here.is_main_process:
            jsonl.append(self.log, map(asdict, self.rollouts))
        self.step = step
        self.count(self.rollouts)
        if self.asked and not self.agreed and step + 1 >= min(PATIENCE, self.p.grpo_steps):
            raise AuditError(
                f"grpo_quorum: in {step + 1} steps the references never agreed on any of {self.asked} questions, so "
                f"nothing was rewarded; lower it (now {self.p.grpo_quorum}) or name other references."
            )
        return self.own

    def _sound(self, pictures: Sequence[Picture], texts: Sequence[str], ways: Sequence[str]) -> list[bool]:
        """Whether the untrained auditor, too, might have written each text."""
        with self.auditor.model.disable_adapter():
            rarest = rarest_token(self.auditor, pictures, texts, ways)
        return [chance is not None and chance >= self.p.min_token_probability for chance in rarest]

    def _about(self, painted: dict[int, Picture], seed: int) -> dict[int, str]:
        """A question about each painted picture, by the auditor as it is, where it writes a sound one."""
        if not painted:
            return {}
        pictures, ways, p = list(painted.values()), ["question"] * len(painted), self.p
        texts = write_texts(self.auditor, pictures, ways, p.temperature, p.max_question_tokens, seed)
        sound = self._sound(pictures, texts, ways)
        read = [parse_question(text) if ok else None for text, ok in zip(texts, sound, strict=True)]
        return {i: question for i, question in zip(painted, read, strict=True) if question}

    def _unfulfilled(self, made: dict, seen: dict[int, Picture]) -> dict[int, str]:
        """Why painted pictures are not what was wished for: the references' word on the check, of an edit also about
        the original, then the picture check's.
        """
        rows = list(seen)
        edits = [i for i in rows if made[i][1].way == "edit"]
        checks = [made[i][0].check for i in (*rows, *edits)]
        pictures = [seen[i] for i in rows] + [self.pictures[made[i][1].base] for i in edits]
        said = [self.book.ask(model, pictures, checks, self.p.max_answer_tokens) for model in self.references]
        answers = list(zip(*said, strict=True))
        expected = [(made[i][0].check, made[i][0].expected, of) for i, of in zip(rows, answers, strict=False)]
        before = {rows.index(i): of for i, of in zip(edits, answers[len(rows) :], strict=True)}
        found = zip(rows, unmet_wishes(expected, self.same, self.p.quorum, before), strict=True)
        return {i: why or unlike(made[i][2], self.p.picture_gain) for i, why in found}

    def count(self, rollouts: Sequence[Rollout]) -> None:
        """Keep count of how often the references agree."""
        self.asked += sum(rollout.question is not None for rollout in rollouts)
        self.agreed += sum(rollout.consensus is not None for rollout in rollouts)

    def remember(self, rollouts: Sequence[Rollout]) -> None:
        """Take successes into the replay bank, and into what novelty and knownness are measured against. Called once a
        step, after the rewards.
        """
        self.know(rollouts)
        for rollout in rollouts:
            if self.pays(rollout) and rollout.wrote:
                self.recent.append(rollout.cluster)
                kept = self.bank[rollout.cluster]
                kept[rollout.wrote].append(rollout)
                if sum(map(len, kept.values())) > KEPT:  # forget the oldest of the question that has most
                    max(kept.values(), key=len).pop(0)

    def know(self, rollouts: Sequence[Rollout]) -> None:
        """Count failures by their kind, those of steps that the training has gone back over among them."""
        for rollout in rollouts:
            if rollout.success and rollout.question:
                self.known[_kind_of(rollout)].add((rollout.made or rollout.picture, normalise(rollout.question)))

    def pays(self, rollout: Rollout) -> bool:
        """Whether a rollout is a success of a kind that is open."""
        return rollout.success and rollout.cluster not in self.closed

    def well_formed(self, rollout: Rollout) -> bool:
        """Whether a rollout is a question or a wish, of a kind that is open."""
        return rollout.wrote is not None and rollout.cluster not in self.closed

    def earned(self, rollout: Rollout) -> float:
        """What disagreement and format pay for a rollout, 0 to 2."""
        return self.pays(rollout) + self.well_formed(rollout)

    def worth(self, rollout: Rollout) -> float:
        """What a failure is worth after n like it in earlier steps: (1 + n) to the power of minus known_discount."""
        return (1 + len(self.known.get(_kind_of(rollout), ()))) ** -self.p.known_discount

    def novelty(self, cluster: int) -> float:
        """How rare a kind is among the latest successes: 1 for its even share, up to CAP."""
        share = (Counter(self.recent)[cluster] + 1) / (len(self.recent) + self.text_clusters.n)
        return min(CAP, 1 / (self.text_clusters.n * share))

    def replay(self, n: int, rng: random.Random) -> list[Rollout]:
        """Draw n past successes: a cluster, then a text in it, then one of its pictures, each evenly."""
        drawn = []
        for cluster in rng.choices(sorted(self.bank), k=n) if self.bank else ():
            text = rng.choice(sorted(text for text, kept in self.bank[cluster].items() if kept))
            drawn.append(rng.choice(self.bank[cluster][text]))
        return drawn


def kept_text(text: str, way: str) -> str | None:
    """What counts of what the auditor wrote: the question without its note, or the wish with its check."""
    if way == "question":
        return parse_question(text)
    wish = parse_wish(text)
    return f"{wish.text} | {wish.check}" if wish else None


def reward_functions(scorer: Scorer) -> list[Callable]:
    """The rewards, in TRL's form: each gets the completions of a step and returns one number a completion.

    Three, and with `known_discount` a fourth, which takes away what is known, so that the first tells the success.
    """

    def score(completions, completion_ids, picture, way, trainer_state, **_):
        texts = [completion[0]["content"] for completion in completions]
        return scorer.score(trainer_state.global_step, picture, way, texts, completion_ids)

    def disagreement(**step) -> list[float]:
        """1 where the target departs from the references' consensus, else 0 (paper, Eq. 2), and for what is closed."""
        return [float(scorer.pays(rollout)) for rollout in score(**step)]

    def format(**step) -> list[float]:  # noqa: A001 (TRL logs a reward under its function's name)
        """1 for one well-formed question or wish, 0 for anything else, also for what was never said before training."""
        return [float(scorer.well_formed(rollout)) for rollout in score(**step)]

    def coverage(**step) -> list[float]:
        """How rare the kind of text is among the latest successes; nothing without a success."""
        return [scorer.novelty(rollout.cluster) if scorer.pays(rollout) else 0.0 for rollout in score(**step)]

    def known(**step) -> list[float]:
        """What a success loses, 0 to 1, for the failures like it in earlier steps; weighed as disagreement is."""
        return [scorer.worth(rollout) - 1.0 if scorer.pays(rollout) else 0.0 for rollout in score(**step)]

    return [disagreement, format, coverage, *([known] if scorer.p.known_discount else [])]
