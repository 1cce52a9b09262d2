"""From an audit to a training set, step by step as notebook 07 shows it: whose findings, which originals, what of them.

`findings_to_learn` reads the probes and a person's word on them; `prepare_training_set` makes of these and of what the
target knows the examples it is trained on (training_set.py says by which rules), and writes down where each comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from auditkit.consensus.same import Same
from auditkit.data.source import Example, Source
from auditkit.findings import review
from auditkit.models.answers import AnswerBook
from auditkit.models.transformers import VLM
from auditkit.params import Params
from auditkit.repair import held_out
from auditkit.repair.finetune import why_not_trainable
from auditkit.repair.near_duplicates import near_duplicates
from auditkit.repair.provenance import KINDS, draw_originals, gather_probes, learnable_probes, write_trace
from auditkit.repair.training_set import build_training_set, known_originals, training_pairs
from auditkit.runs import jsonl
from auditkit.runs.probe import only_findings
from auditkit.text import counted

NOTHING = "Nothing was found, so nothing is repaired."
REJECTED = "A person rejected every finding, so nothing is repaired."


@dataclass(frozen=True)
class ToLearn:
    """The probes of an audit, as a person corrected them, and what there is to learn from them."""

    scored: list[dict]
    findings: list[dict]  # none where nothing was found, or the target cannot be trained
    why_not: str  # one sentence on why there is nothing to learn; "" where there is
    reviewed: dict  # as from review.told: {} where no person changed anything

    def in_words(self) -> str:
        told = [self.why_not or f"{counted(len(self.findings), 'finding')} to learn from"]
        if self.reviewed:
            left_out, relabelled = self.reviewed["left_out"], self.reviewed["relabelled"]
            out, others = counted(left_out, "finding"), counted(relabelled, "probe")
            told.append(f"a person left out {out} and relabelled {others}")
        return "\n".join(told)


def findings_to_learn(audit: Path, findings: Path, p: Params) -> ToLearn:
    """What an audit, those before it and a person's review leave to learn from.

    Args:
        audit: the folder of notebook 05, with scored.jsonl.
        findings: the folder of notebook 06, with reviews.jsonl if a person was there.
        p: uses run_name, earlier, images and target.
    """
    scored = gather_probes(jsonl.each(audit / "scored.jsonl"), p)
    changed = review.changes(scored, review.decisions(findings, scored))
    scored = review.corrected(scored, changed)
    kept, untrainable = only_findings(scored), why_not_trainable(p.target)
    why_not = untrainable or ("" if kept else NOTHING)
    if not kept and changed:
        why_not = REJECTED
    return ToLearn(scored, [] if untrainable else kept, why_not, review.told(changed))


@dataclass(frozen=True)
class TrainingSet:
    """The examples a target is repaired with, in their order, and what they were made of."""

    examples: list[Example]
    drawn: int  # original examples that were looked at
    near_duplicates: int  # probes left out because they nearly repeat another
    learnt_from: set[str]  # keys of the examples to be learnt; the others are there against forgetting
    kinds: dict[str, int]  # different examples that are a finding, agreed, original
    kind_of: dict[str, str]  # key of an example -> which of these it is
    held_out: list[dict]  # scored probes on pictures of which nothing is learnt

    def in_words(self, learnt: str) -> str:
        """Two sentences; `learnt` is what is to be learnt, as Params has it in rectify_on."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
        kept_back = f"; {counted(len(self.held_out), 'probe')} held out" if self.held_out else ""
        return (
            f"{counted(self.drawn, 'original')} drawn; {counted(self.near_duplicates, 'near-duplicate')} left out"
            f"{kept_back}\n"
            f"{counted(len(self.examples), 'example')}, {len(self.learnt_from):,} of them to learn ({learnt}); "
            f"different ones: {kinds}"
        )


def prepare_training_set(
    found: ToLearn, source: Source, target: VLM, book: AnswerBook, alike: Same, p: Params, folder: Path
) -> TrainingSet:
    """The training set of a repair; an empty one where there is nothing to learn.

    Args:
        found: as `findings_to_learn` gives it.
        source: images of the run, made ones of this and of earlier audits among them (with_counterfactuals).
        target: as it is before the repair; it is asked which originals it knows, on the unlabeled route.
        book: holds its answers, so that nothing is asked again.
        alike: whether what it says to an original is right (`choose_same`).
        p: uses route, seed and what begins with rectify_, failure_types, types_by and max_answer_tokens.
        folder: gets training.jsonl, where each example comes from.
    """
    if not found.findings:
        write_trace([], [], folder)
        return TrainingSet([], 0, 0, set(), _kinds([]), {}, [])
    drawn = draw_originals(source, p)
    originals = drawn if p.route == "labeled" else known_originals(target, drawn, book, alike, p.max_answer_tokens)
    worth = learnable_probes(found.scored, p)
    nearly = near_duplicates(worth, source.picture)
    distinct, held = held_out.hold_out([row for row in worth if row["key"] not in nearly], p)
    how = {name: getattr(p, name) for name in ("rectify_on", "rectify_pairs", "failure_types", "types_by", "seed")}
    types = training_pairs(distinct, drawn, source.picture, **how)  # a list for each failure type
    examples = build_training_set(types, distinct, originals, p, source.picture)
    learnt_from = {e.key for of_type in types for e in of_type} & {e.key for e in examples}
    traced = write_trace(examples, distinct, folder)
    kind_of = {row["key"]: row["kind"] for row in traced}
    return TrainingSet(examples, len(drawn), len(nearly), learnt_from, _kinds(traced), kind_of, held)


def _kinds(traced: Sequence[dict]) -> dict[str, int]:
    counted = Counter(row["kind"] for row in traced)
    return {kind: counted[kind] for kind in (*KINDS.values(), "original")}
