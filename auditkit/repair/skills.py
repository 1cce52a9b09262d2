"""The skills, before and after: held-out questions with known answers, the same ones for every model.

All skills are asked in one batched call through the AnswerBook, so no model is ever asked the same thing twice, not
even by another run of the same notebook. Differences are tested on pairs: the same question, answered by two models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from auditkit import stats
from auditkit.consensus.normalise import is_one_of
from auditkit.data.source import Example, Picture, Task
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer

MEAN = "mean"  # the row of the mean over all skills


class SkillScores(dict):
    """{skill: rate, ..., "mean": rate} as `evaluate_skills` returns it, and which answers were right, for paired tests.

    `right`: {skill: [True where the answer was right, ...]}, in the order of the benchmark's examples.
    """

    def __init__(self, right: Mapping[str, list[bool]]):
        self.right = dict(right)
        rates = {skill: stats.rate(sum(answers), len(answers)) for skill, answers in self.right.items()}
        super().__init__(rates | {MEAN: stats.mean(rates.values())})


def evaluate_skills(
    vlm: Writer, benchmarks: Mapping[str, list[Example]], book: AnswerBook, max_answer_tokens: int = 32
) -> SkillScores:
    """How often a model is right, skill by skill, and in the mean over the skills.

    Args:
        benchmarks: a source's `benchmarks(n)`: labelled examples by skill.
        book: remembers the answers; a model's name must stand for one set of weights.
        max_answer_tokens: longest answer.

    Raises AuditError for a skill without examples, and where there are no skills at all.
    """
    if not benchmarks:
        raise AuditError("the images come without benchmarks: there are no held-out questions with known answers.")
    if empty := [skill for skill, examples in benchmarks.items() if not examples]:
        raise AuditError(f'the benchmark "{empty[0]}" has no examples; raise benchmark_examples.')
    examples = [(skill, example) for skill, some in benchmarks.items() for example in some]
    # one object for each picture: the same picture in several skills is one picture
    pictures = {}
    for _, example in examples:
        key = example.key.split("/q")[0]
        pictures.setdefault(key, Picture(key, example.held))
    asked = [pictures[example.key.split("/q")[0]] for _, example in examples]
    answers = book.ask(vlm, asked, [example.question for _, example in examples], max_answer_tokens)
    right = {skill: [] for skill in benchmarks}
    for (skill, example), said in zip(examples, answers, strict=True):
        right[skill].append(is_one_of(said, example.accepted))
    return SkillScores(right)


def evaluate_task(vlm: Writer, given: Task, book: AnswerBook) -> dict:
    """The share of the pieces of a task that a model gets right; pieces of one picture are counted one by one."""
    pictures = [Picture(example.key, example.held) for example in given.examples]
    said = book.ask(vlm, pictures, [example.question for example in given.examples], given.max_answer_tokens)
    pieces = [
        right for text, example in zip(said, given.examples, strict=True) for right in given.right(text, example.answer)
    ]
    return stats.rate(sum(pieces), len(pieces))


def compare_skills(before: SkillScores, after: SkillScores, peer: SkillScores | None = None) -> list[dict]:
    """Every skill before and after the repair, and the mean: the table of notebook 08.

    Returns rows {"skill", "before": rate, "after": rate, "peer"?: rate, "change": paired difference with interval,
    "gained", "lost": answers that turned right or wrong, "p": exact McNemar, "p_holm": corrected for the number of
    skills}. The mean's test takes all questions together.

    Raises AuditError where the models were not asked the same questions.
    """
    if before.right.keys() != after.right.keys() or (peer is not None and peer.right.keys() != before.right.keys()):
        raise AuditError("these scores are of different skills and cannot be compared.")
    rows = []
    for skill in before:
        if skill == MEAN:
            pairs = sum(before.right.values(), []), sum(after.right.values(), [])
        else:
            pairs = before.right[skill], after.right[skill]
        row = {"skill": skill, "before": before[skill], "after": after[skill]}
        row |= {"peer": peer[skill]} if peer is not None else {}
        rows.append(row | {"change": stats.difference(*pairs), **stats.mcnemar(*pairs)})
    skills = [row for row in rows if row["skill"] != MEAN]
    for row, p in zip(skills, stats.holm([row["p"] for row in skills]), strict=True):
        row["p_holm"] = p
    return rows


def repair_gain(scores: Mapping[str, SkillScores], departs: Mapping[str, Sequence[bool]]) -> dict[str, dict]:
    """What a repair has gained, question by question (stats.difference, so each with its interval).

    Args:
        scores: "before", "after" and "peer", as `evaluate_skills` returns them; what was not measured is absent.
        departs: "before" and "after", whether the target departs from the consensus, of the same probes in one order.

    Returns {"agreement"?: how much oftener it says what the references agree on, "skills"?: how much oftener it is
    right, "over_peer"?: how much oftener than the peer}.
    """
    if "after" not in departs:
        return {}
    found = {"agreement": stats.difference(departs["after"], departs["before"])}
    right = {side: sum(its.right.values(), []) for side, its in scores.items()}
    found |= {
        name: stats.difference(right[than], right["after"])
        for name, than in (("skills", "before"), ("over_peer", "peer"))
        if {than, "after"} <= right.keys()
    }
    return found
