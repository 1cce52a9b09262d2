"""A repair is checked before it is kept: on probes of the audit of which nothing was learnt, by the consensus.

A part of the audit's pictures is held out of the training set, with all that was asked about them. There the
repaired target should answer findings as the references do (*mended*), and probes on which it agreed with them as
before; what it now gets wrong is *broken*. An audit hunts for failures, so findings are more frequent among its probes
than among questions that nobody chose. Both are therefore weighed by how often such questions fail: those of the
auditor's first checkpoint. A repair that breaks more than it mends is not kept. No label and no oracle has a say.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from auditkit import stats
from auditkit.params import Params

HELD_OUT = 0.2  # share of the pictures on which nothing was found
OF_FINDINGS = 0.1  # share of those with findings, which are few and dear
LEAST = 20  # agreed probes held out, below which none is, for they would say too little; findings below which none is
REFUSED = "refused"  # where an adapter lies that is not kept

Alike = Callable[[str, str, str], bool]


def is_checked(p: Params) -> bool:
    """Whether probes are held out: not on the labeled route, whose originals are of the same pictures, nor in
    controls.
    """
    return p.route == "unlabeled" and p.rectify_on == "findings" and not p.rectify_pairs


def hold_out(rows: Sequence[dict], p: Params) -> tuple[list[dict], list[dict]]:
    """Probes to learn from, and those held out: none where they would be too few to say anything.

    A picture's probes, and those of pictures that were made from it, stay together.

    Args:
        rows: as from `learnable_probes`. Only the run's own are held out: the target may have learnt the earlier ones.
        p: uses run_name, seed and what `is_checked` does.
    """
    if not is_checked(p):
        return list(rows), []
    found = [_board(row) for row in rows if row["outcome"] == "finding"]
    of_findings = OF_FINDINGS if len(found) >= LEAST else 0.0
    failed = set(found)

    def is_held(row: dict) -> bool:
        share = int(hashlib.sha256(f"{p.seed}/held out/{_board(row)}".encode()).hexdigest()[:8], 16) / 2**32
        own = row.get("run", p.run_name) == p.run_name
        return own and share < (of_findings if _board(row) in failed else HELD_OUT)

    held = [row for row in rows if is_held(row)]
    if sum(row["outcome"] == "agrees" for row in held) < LEAST:
        return list(rows), []
    keys = {row["key"] for row in held}
    return [row for row in rows if row["key"] not in keys], held


def _board(row: Mapping) -> str:
    """The picture that a probe's own was made from, or is."""
    return row.get("base") or row["picture"]


def usual_failures(scored: Sequence[dict], p: Params) -> dict:
    """How often questions fail that nobody chose for it: the rate of the first checkpoint's probes that were compared;
    {} where there are none.
    """
    own = [
        row for row in scored if row["outcome"] in ("finding", "agrees") and row.get("run", p.run_name) == p.run_name
    ]
    first = [row for row in own if row.get("checkpoint") == own[0].get("checkpoint")]
    return stats.rate(sum(row["outcome"] == "finding" for row in first), len(first)) if first else {}


def check_repair(held: Sequence[dict], again: Sequence[Mapping], usual: Mapping, alike: Alike) -> dict:
    """What a repair did to the probes held out.

    Args:
        held: scored records.
        again: the same, put to the repaired target (`ask_again`).
        usual: as from `usual_failures`.

    Returns {"mended"?: rate of the findings held out that are answered as the references do, "broken": rate of the
    others that no longer are, "usual", "gain": expected on questions that nobody chose, a share, "kept": whether that
    is not below 0}; {} where nothing was held out on which the target agreed. Without a finding among the held out, all
    are taken as mended.
    """
    said = [alike(row["after"], row["consensus"], row["question"]) for row in again]
    mended = [right for right, row in zip(said, held, strict=True) if row["outcome"] == "finding"]
    broken = [not right for right, row in zip(said, held, strict=True) if row["outcome"] != "finding"]
    if not broken or not usual:
        return {}
    found: dict = {"mended": stats.rate(sum(mended), len(mended))} if mended else {}
    found |= {"broken": stats.rate(sum(broken), len(broken)), "usual": dict(usual)}
    better = sum(mended) / len(mended) if mended else 1.0
    gain = usual["value"] * better - (1 - usual["value"]) * sum(broken) / len(broken)
    return found | {"gain": round(gain, 4), "kept": gain >= 0}


def keep_or_refuse(adapter: Path, checked: Mapping) -> Path | None:
    """The adapter where its check lets it be kept; else None, and it is moved aside, into refused/."""
    if checked.get("kept", True):
        return adapter
    refused = adapter.parent / REFUSED
    if adapter != refused:
        shutil.rmtree(refused, ignore_errors=True)
        os.replace(adapter, refused)
    return None


def check_in_words(checked: Mapping) -> str:
    """One sentence, and whether the repair is kept."""
    if not checked:
        return "The repair was not checked: no probe was held out on which the target agreed with its references."
    parts = [
        f"{checked[name]['value']:.1%} of {checked[name]['n']:,} {what}"
        for name, what in (("mended", "findings mended"), ("broken", "probes on which all agreed broken"))
        if name in checked
    ]
    told = f"On probes held out: {', '.join(parts)}; expected gain {100 * checked['gain']:+.1f} points."
    return told if checked["kept"] else f"{told} The repair breaks more than it mends, so it is not kept."
