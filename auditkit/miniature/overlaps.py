"""Do the gaps of a table keep out of each other's way?  Looked at on drawn boards, before anything is planted.

The first gap of a table that holds is the one planted (gaps.find), so a later one may lose questions to an earlier. A
few are told. Where it loses half of them or more it could hardly be planted, nor found: then the table is refused.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from auditkit.errors import AuditError
from auditkit.miniature import grammar
from auditkit.miniature.gaps import Gap
from auditkit.miniature.world import random_scene

BOARDS = 20_000  # drawn in vain before a gap counts as never met
Hit = tuple[Gap, str]  # a gap that a question lies in, and what the gap says there


def check_overlaps(table: Sequence[Gap], questions: int = 20) -> list[str]:
    """Draw questions in every gap of a table; a sentence for each two gaps of which a smaller part overlaps.

    Args:
        table: the gaps, in the order in which the first that holds is planted.
        questions: drawn in each gap.

    Raises AuditError, naming the gaps, where no board has a question in one, and where at least half of the questions
    in one lie in earlier ones, which say the same (it is hidden) or something else (they contradict each other).
    """
    told = []
    for skill in dict.fromkeys(gap.skill for gap in table):
        some = [gap for gap in table if gap.skill == skill]
        drawn = _draw(some, questions)
        for gap in some:
            lost = Counter((hits[0][0].name, hits[0][1], said) for hits, said in drawn[gap.name] if hits[0][0] != gap)
            if not lost:
                continue
            (first, says, own), _ = lost.most_common(1)[0]
            part = f"{lost.total()} of {len(drawn[gap.name])} questions"
            otherwise = f"which says {says!r} where {gap.name!r} says {own!r}"
            if 2 * lost.total() >= len(drawn[gap.name]):
                what = f"contradicts {first!r}" if says != own else f"is hidden by {first!r}"
                why = f", {otherwise}" if says != own else ", which says the same"
                raise AuditError(
                    f"gap {gap.name!r} {what}: {part} in it lie in earlier gaps too, mostly in this one{why}; narrow "
                    "one of them, or put the narrower one first."
                )
            told.append(
                f"gap {gap.name!r} overlaps {first!r}: {part} in it lie in an earlier gap, which is planted there"
                + (f", {otherwise}." if says != own else ".")
            )
    return told


def gap_rates(table: Sequence[Gap], boards: int = 2000, seed: int = 0) -> dict[str | None, float]:
    """The share of random questions, every skill alike, that lies in each gap; of all gaps together under None.

    >>> round(gap_rates([Gap("dusk is called day", "background", {"truth": "dusk"}, "day")], 4000)[None], 2)
    0.02
    """
    rng, met = random.Random(f"rates-{seed}"), Counter[str | None]()
    for skill in dict.fromkeys(gap.skill for gap in table):
        some = [gap for gap in table if gap.skill == skill]
        for _ in range(boards):
            if hits := _hits(some, rng):
                met[hits[0][0].name] += 1
                met[None] += 1
    return {name: met[name] / (boards * len(grammar.SKILLS)) for name in (None, *(gap.name for gap in table))}


def _draw(some: Sequence[Gap], questions: int) -> dict[str, list[tuple[list[Hit], str]]]:
    """For each gap of one skill, questions that lie in it: all gaps each lies in, in order, and what this one says."""
    rng = random.Random(f"overlaps-{some[0].skill}")
    drawn: dict[str, list[tuple[list[Hit], str]]] = {gap.name: [] for gap in some}
    for _ in range(BOARDS):
        for gap, said in (hits := _hits(some, rng)):
            if len(drawn[gap.name]) < questions:
                drawn[gap.name].append((hits, said))
        if all(len(found) == questions for found in drawn.values()):
            break
    if never := [name for name, found in drawn.items() if not found]:
        raise AuditError(
            f"gap {never[0]!r}: no board has a question in its condition, of {BOARDS:,} drawn; check the words of "
            "`when`."
        )
    return drawn


def _hits(some: Sequence[Gap], rng: random.Random) -> list[Hit]:
    """All gaps of one skill that a question lies in, drawn about a board of its own, in the table's order."""
    scene = random_scene(rng)
    known = grammar.facts(scene, grammar.ask(scene, rng, some[0].skill))
    return [(gap, said) for gap in some if (said := gap.wrong_answer(known))]
