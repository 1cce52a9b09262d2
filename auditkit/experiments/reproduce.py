"""Every claim of the paper in a table: what it says, what the miniature gives, and what agrees.

    python -m auditkit.experiments.reproduce          # runs what has not been run, then writes docs/reproduce.md
    python -m auditkit.experiments.reproduce --write  # writes it from the runs that are there

claims.yaml says what to run and which figures of the runs' summary.json to show; nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.experiments.rounds import run_command
from auditkit.runs.files import write_text
from auditkit.runs.folder import project_root
from auditkit.yaml_file import read_yaml

CLAIMS = Path(__file__).with_name("claims.yaml")
PAGE, BEGIN, END = Path("docs/reproduce.md"), "<!-- table: begin -->\n", "<!-- table: end -->"
HEADER = ("claim", "the paper", "at full size", "in miniature", "result in miniature", "what agrees")


def read_claims() -> list[dict]:
    """The rows of claims.yaml: {"claim", "paper", "full", "miniature", "verdict"}, and "result", a text with names of
    figures in braces, or "study" (names of arms) with "measure".
    """
    return read_yaml(CLAIMS)


def claims_table(summaries: Mapping[str, Mapping]) -> str:
    """The table of all claims, in Markdown.

    Args:
        summaries: a claim's command -> summary.json of the run or study it makes; a claim whose run is not there
            is told to be so.
    """
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for row in read_claims():
        found = summaries.get(row["miniature"])
        result = "[measured before](studies.md#study_ways)" if found is None else claim_result(row, found)
        cells = (row["claim"], row["paper"], f"`{row['full']}`", f"`{row['miniature']}`", result, row["verdict"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claim_result(row: Mapping, summary: Mapping) -> str:
    """What a claim's run has measured, in words.

    Raises AuditError naming a figure that the summary does not have.
    """
    if "study" in row:
        return "; ".join(f"{arm}: {_figure(summary['arms'][arm], row['measure'])}" for arm in row["study"])
    known = {**summary, **counted_skills(summary), **counted_types(summary)}
    return re.sub(r"{([^{}:]+)(:points)?}", lambda name: _figure(known, name[1], bool(name[2])), row["result"])


def counted_skills(summary: Mapping) -> dict[str, int]:
    """How many skills there are, rise, fall, and stand above the peer after the repair."""
    sides = [{side: rate["value"] for side, rate in skill.items()} for skill in summary["benchmarks"].values()]
    return {
        "skills": len(sides),
        "skills_up": sum(one["after"] > one["before"] for one in sides),
        "skills_down": sum(one["after"] < one["before"] for one in sides),
        "skills_above_peer": sum(one["after"] > one.get("peer", 1.0) for one in sides),
    }


def counted_types(summary: Mapping) -> dict[str, int]:
    """How many failure types there are, were put to the peer, and see it fail more often than the target."""
    types = list(summary["findings"]["by_type"].values())
    both = [one for one in types if "peer" in one and "target" in one]
    worse = sum(one["peer"]["value"] > one["target"]["value"] for one in both)
    return {"types": len(types), "types_with_peer": len(both), "peer_worse": worse}


def _figure(known: Mapping, name: str, points: bool = False) -> str:
    """A figure by its dotted name, such as gain.skills; a rate in per cent with its interval and n."""
    value: object = known
    for part in re.split(r"\.(?![^(]*\))", name):  # not at a dot in parentheses
        if not isinstance(value, Mapping) or part not in value:
            raise AuditError(f"claims.yaml: {name} is not in summary.json; run the claim's command again.")
        value = value[part]
    if not isinstance(value, Mapping):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if "mean" in value:  # over seeds
        mean, low, high = (f"{100 * value[part]:.1f}" for part in ("mean", "low", "high"))
        return f"{mean} points ({low} to {high})"
    low, high = (f"{100 * value[end]:.1f}" for end in ("low", "high"))
    unit = "" if points else " %"
    return f"{100 * value['value']:.1f}{unit} ({low} to {high}, n {value['n']:,})"


def summaries_of(commands: Sequence[str], outputs: Path) -> dict[str, Mapping]:
    """Command -> summary.json of what it makes, as far as it is there: `run params/X.yaml` makes outputs/X."""
    found = {}
    for command in commands:
        path = outputs / Path(shlex.split(command)[2]).stem / "summary.json"
        if path.is_file():
            found[command] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_page(summaries: Mapping[str, Mapping], page: Path) -> None:
    """Put the table in its place in the page.

    Raises AuditError where the page has no place for it.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise AuditError(f"{page}: the lines {BEGIN.strip()} and {END}, between which the table stands, are not there.")
    write_text(page, before + begin + claims_table(summaries) + end + after)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; 0, or the exit code of a run that failed."""
    parser = argparse.ArgumentParser(prog="python -m auditkit.experiments.reproduce", description=__doc__)
    parser.add_argument("--write", action="store_true", help="only write the page from what is there")
    given, root = parser.parse_args(arguments), project_root()
    commands = list(dict.fromkeys(row["miniature"] for row in read_claims()))
    if not given.write:
        for command in commands:
            if failed := run_command([sys.executable, "-m", "auditkit.cli", *shlex.split(command)[1:]]):
                return failed
    write_page(summaries_of(commands, root / "outputs"), root / PAGE)
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
