"""Round after round: audit, repair, and audit what was repaired with an auditor refreshed against it (paper, Sec. 3.3).

    auditkit rounds params/demo.yaml --most 4

Every round is an ordinary run: the first outputs/RUN, then outputs/RUN.round2 and so on, each with a report of its own.
A round's target is the repaired one of the round before, its auditor begins as that round's trained one, its seed is
another, so that it probes pictures no round has seen (of a folder, others as far as there are), and the repair learns
from the findings of all rounds so far, which keep their labels (`earlier`).

It ends with the first round whose gain is not above 0 with its whole interval. The gain that decides is agreement with
the references on held-out pictures, before and after the round's repair, probe by probe: it needs no label, and where
there are labels they only grade.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.experiments.study import NEEDED, as_texts
from auditkit.findings.keep import kept_planted
from auditkit.params import Params, load_params, parse_setting, project_root
from auditkit.report.page import means, render_rounds
from auditkit.runs.checkpoints import last_checkpoint
from auditkit.runs.files import read_json, write_json, write_text
from auditkit.runs.folder import is_done, run_folder, shown_path
from auditkit.text import counted

FAR = 1000  # between the seeds of two rounds, so that they are no seeds somebody would run beside the first
AUDITOR, REPAIR, LAST = "04_auditor", "07_rectify", "08_benchmark"


@dataclass(frozen=True)
class Round:
    """One round: its parameters, and what it sets of them beside the file and the command line."""

    number: int
    p: Params
    own: dict

    @property
    def folder(self) -> Path:
        return run_folder(self.p)


def run_rounds(
    path: str | Path, settings: Sequence[str], most: int, work: Callable[[list[str]], int], tell: Callable = print
) -> Path:
    """Do the rounds that are not done, and write their table after each; returns the report's path.

    Args:
        path: the parameter file of all rounds.
        settings: "key=value", as on the command line, of all rounds.
        most: rounds at most.
        work: runs a command of ours and returns its exit code (`command`).
        tell: says how it goes.

    Raises AuditError where the target cannot be repaired, where a stage failed, and for a round that was built on one
    that has been made anew since.
    """
    from auditkit.repair.finetune import why_not_trainable

    base = load_params(path, **dict(map(parse_setting, settings)))
    if why := why_not_trainable(base.target):
        raise AuditError(why)
    folder = run_folder(base).with_name(f"{base.run_name}.rounds")
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Round] = []
    for number in range(1, most + 1):
        this = following(path, settings, base, done)
        _hold_to(folder, this, done)
        tell(f"round {number}: {this.p.run_name}, target {specs.parse(this.p.target).name}")
        for stage in NEEDED:
            if not is_done(this.p, stage) and (code := work(command(this, settings, stage))):
                if code == 130:
                    raise KeyboardInterrupt
                raise AuditError(f"round {number} stopped at {stage}, as said above; the same command goes on.")
        done.append(this)
        summary = summarise_rounds(done, most)
        written = write_rounds_report(folder, summary)
        tell(f"round {number}: {in_words(summary['rounds'][-1])}")
        if "ended" in summary:
            tell(summary["ended"])
            break
    return written


def following(path: str | Path, settings: Sequence[str], base: Params, done: Sequence[Round]) -> Round:
    """The round after those that are done, from the folders they have left."""
    own: dict = {}
    if done:
        last, names = done[-1], [one.p.run_name for one in done]
        own = {"run_name": f"{base.run_name}.round{len(done) + 1}", "seed": base.seed + FAR * len(done)}
        own |= {"target": repaired(last), "auditor": refreshed(last), "earlier": [*base.earlier, *names]}
    return Round(len(done) + 1, load_params(path, **dict(map(parse_setting, settings)) | own), own)


def repaired(one: Round) -> str:
    """The text that names a round's target after its repair; as it was where there was nothing to repair."""
    adapter = one.folder / REPAIR / "adapter"
    return specs.adapted(one.p.target, shown_path(adapter)) if adapter.is_dir() else one.p.target


def refreshed(one: Round) -> str:
    """The text that names a round's auditor at the end of its training."""
    last = last_checkpoint(one.folder / AUDITOR)
    assert last is not None  # its training is done
    return specs.adapted(one.p.auditor, shown_path(Path(last)))


def command(one: Round, settings: Sequence[str], stage: str) -> list[str]:
    """The command that does a stage of a round."""
    texts = [*settings, *as_texts(one.own)]
    return [
        *(sys.executable, "-m", "auditkit.cli", "run", one.p.params_file, "--only", stage[:2]),
        *itertools.chain.from_iterable(("--set", text) for text in texts),
    ]


def run_command(words: list[str]) -> int:
    """Run a command in the project's folder, its output being ours; its exit code."""
    return subprocess.run(words, cwd=project_root()).returncode


def write_rounds_report(folder: Path, summary: Mapping) -> Path:
    """Write `summary.json` and `report.html` of several rounds and return the report's path."""
    write_json(folder / "summary.json", summary, indent=2)
    write_text(folder / "report.html", render_rounds(summary))
    return folder / "report.html"


def summarise_rounds(done: Sequence[Round], most: int) -> dict:
    """{"run_name", "most", "rounds": rows of `round_row`, "repaired": the target after the last round that gained,
    "ended"?: why there is no further round}.
    """
    rows: list[dict] = []
    found: set[str] = set()
    for one in done:
        summary, first = (read_json(of.folder / "summary.json") for of in (one, done[0]))
        rows.append(round_row(one, summary, first))
        if "planted_gaps" in summary:
            gaps = kept_planted(one.folder / "06_findings").get("gaps", [])
            found |= {gap["name"] for gap in gaps if gap["found"]}
            rows[-1]["planted_gaps"] = {"planted": len(gaps), "found_so_far": len(found)}
    gained = [one for one, row in zip(done, rows, strict=True) if has_gained(row)]
    result = {"run_name": done[0].p.run_name, "most": most, "rounds": rows}
    result["repaired"] = repaired(gained[-1]) if gained else done[0].p.target
    if not has_gained(rows[-1]):
        change = rows[-1].get("gain", {}).get("agreement")
        why = f"its gain has an interval of {_points(change)}" if change else "nothing was found to repair"
        result["ended"] = f"ended after round {len(done)}: {why}"
    elif len(done) == most:
        result["ended"] = f"ended after round {len(done)}, the most that was asked for; it still gained"
    return result


def has_gained(row: dict) -> bool:
    """Whether a round's gain is above 0 with its whole interval."""
    return row.get("gain", {}).get("agreement", {}).get("low", 0) > 0


def round_row(one: Round, summary: dict, first: dict) -> dict:
    """A row of the table, from the summary of a round and that of the first: {"round", "run_name", "seed", "target",
    "auditor", "search_success"?: {"untrained", "trained"} (by consensus where nobody knows the truth), "findings",
    "learnt"?: different findings learnt from, "near_duplicates"?, "gain"?: repair_gain, "skills"?: means {"before",
    "after", "peer"}, "fall"?: {"skill", "points"}, the most any skill has lost since before the first round}.
    """
    p, rectified = one.p, summary.get("rectification", {})
    row = {"round": one.number, "run_name": p.run_name, "seed": p.seed, "target": p.target, "auditor": p.auditor}
    success = summary.get("search_success") or summary.get("search_success_by_consensus", {})
    row["search_success"] = {name: success[name] for name in ("untrained", "trained") if name in success}
    row["findings"] = summary.get("findings", {}).get("total", 0)
    counts = summary.get("counts", {}).get(REPAIR, {})
    row |= {"learnt": rectified["trained_on"]} if "trained_on" in rectified else {}
    row |= {"near_duplicates": counts["near_duplicates"]} if "near_duplicates" in counts else {}
    row |= {"gain": summary["gain"]} if "gain" in summary else {}
    if skills := summary.get("benchmarks"):
        row["skills"] = means(skills)
        lost = {
            skill: first["benchmarks"][skill]["before"]["value"] - rates["after"]["value"]
            for skill, rates in skills.items()
            if "after" in rates
        }
        worst = max(lost, key=lambda skill: lost[skill], default=None)
        row |= {"fall": {"skill": worst, "points": round(max(0.0, 100 * lost[worst]), 1)}} if worst else {}
    return row


def in_words(row: dict) -> str:
    """A row in one line, for whoever watches."""
    said = [counted(row["findings"], "finding")]
    if gaps := row.get("planted_gaps"):
        said.append(f"{gaps['found_so_far']} of {gaps['planted']} gaps so far")
    if "after" in row.get("skills", {}):
        said.append(f"mean over the skills {row['skills']['after']['value']:.1%}")
    if "gain" in row:
        said.append(f"gain in agreement {_points(row['gain']['agreement'])}")
    return ", ".join(said)


def _points(change: dict) -> str:
    low, value, high = (100 * change[name] for name in ("low", "value", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def _hold_to(folder: Path, this: Round, done: Sequence[Round]) -> None:
    """Note which trainings a round is built on; raise AuditError where they are no longer those."""
    file = folder / "built_on.json"
    noted = read_json(file, advice="delete it and those of later rounds", of=dict) if file.is_file() else {}
    ids = {
        f"{one.p.run_name}/{stage}": read_json(one.folder / stage / "manifest.json")["id"]
        for one in done
        for stage in (AUDITOR, REPAIR)
    }
    known = noted.get(this.p.run_name)
    if known not in (None, ids) and this.folder.is_dir():
        changed = next((name for name in ids if known.get(name) != ids[name]), "round before")
        raise AuditError(
            f"{shown_path(this.folder)} was built on a {changed} that has been made anew since; delete that folder and "
            "those of later rounds."
        )
    write_json(file, noted | {this.p.run_name: ids})
