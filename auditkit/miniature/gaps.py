"""Planted gaps: what a miniature model gets wrong, as data.

A table (YAML) is a list of gaps:

    - name: purple is blue
      skill: colour
      when: {truth: purple}        # every condition must hold; names are those of grammar.facts
      says: blue

A condition is a value, a list of values, a comparison with a number (">=5"), or "not X". `says` is a word, a fact in
braces ("{opposite}"), or a table from truth to word ({E: F, F: E}). Where what the gap says happens to be true, the
question does not lie in the gap.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.miniature.grammar import SKILLS, facts
from auditkit.miniature.world import Scene
from auditkit.text import nearest, short_error
from auditkit.yaml_file import read_yaml

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FACTS = """skill truth background objects position row column kind shape colour size pattern value side opposite about
adjective asked same_shape same_colour other_position other_kind other_shape other_colour other_size other_pattern
other_value remark_colour remark_shape remark_pattern remark_position""".split()


@dataclass(frozen=True)
class Gap:
    """One planted weakness: within `skill`, where every condition of `when` holds, the model says `says`."""

    name: str
    skill: str
    when: dict
    says: str | dict

    def wrong_answer(self, known: dict | None) -> str | None:
        """What the model says to a question with these facts; None if the question lies outside the gap."""
        if (
            known is None
            or known["skill"] != self.skill
            or not all(_holds(known.get(k), v) for k, v in self.when.items())
        ):
            return None
        try:
            said = self.says.get(known["truth"]) if isinstance(self.says, dict) else str(self.says).format(**known)
        except KeyError:  # speaks of a fact that this question does not have
            return None
        return said if said and said != known["truth"] else None


def _holds(value, wanted) -> bool:
    if isinstance(wanted, list):
        return any(_holds(value, one) for one in wanted)
    wanted = str(wanted)
    if wanted.startswith("not "):
        return value is not None and not _holds(value, wanted[4:])
    for sign, compare in COMPARISONS.items():
        if wanted.startswith(sign):
            return (
                value not in (None, "", "none")
                and str(value).isdigit()
                and compare(int(value), int(wanted[len(sign) :]))
            )
    return str(value) == wanted


def load(path: Path) -> list[Gap]:
    """Read and check a table of gaps.

    Raises AuditError naming the file, the gap and the word that is not known.
    """
    try:
        table = read_yaml(Path(path))
    except (OSError, AuditError) as error:
        raise AuditError(f"{path}: cannot be read as YAML ({short_error(error)})") from None
    if not isinstance(table, list) or not table:
        raise AuditError(f"{path}: expected a list of gaps, each with name, skill, when and says")
    gaps = []
    for number, row in enumerate(table, 1):
        where = f"{path}: gap {number}" + (f" ({row['name']!r})" if isinstance(row, dict) and "name" in row else "")
        if not isinstance(row, dict) or set(row) != {"name", "skill", "when", "says"}:
            raise AuditError(f"{where} must have exactly the keys name, skill, when, says")
        if not isinstance(row["name"], str) or not isinstance(row["skill"], str):
            raise AuditError(f"{where}: name and skill must be text")
        _known(where, "skill", row["skill"], SKILLS)
        if not isinstance(row["when"], dict):
            raise AuditError(f"{where}: when must be conditions like {{truth: purple}}, not {row['when']!r}")
        for key, wanted in row["when"].items():
            _known(where, "condition", key, FACTS)
            for word in map(str, wanted if isinstance(wanted, list) else [wanted]):
                if re.match("[<>]", word) and not re.fullmatch(r"[<>]=?\d+", word):
                    raise AuditError(f"{where}: condition {key} compares with {word!r}; write a number, as in '>=5'")
        gaps.append(Gap(row["name"], row["skill"], row["when"], row["says"]))
    if len({gap.name for gap in gaps}) < len(gaps):
        raise AuditError(f"{path}: two gaps have the same name; names must differ, since results are counted by name")
    return gaps


def _known(where: str, what: str, word: str, words) -> None:
    if word not in words:
        near = nearest(word, words)
        raise AuditError(
            f"{where}: {what} {word!r} is not known"
            + (f"; did you mean {near!r}?" if near else f"; known are {', '.join(words)}")
        )


def find(gaps: list[Gap], scene: Scene, question: str) -> tuple[Gap, str] | None:
    """The first gap a question lies in, and what the model says there; None outside all gaps."""
    known = facts(scene, question)
    for gap in gaps:
        if said := gap.wrong_answer(known):
            return gap, said
    return None
