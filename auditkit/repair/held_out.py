"""A repair is checked before it is kept: on probes of the audit of which nothing was learnt, by the consensus.

A part of the audit's pictures is held out of the training set, with all that was asked about them. There the
repaired target should answer findings as the references do (*mended*), and probes on which it agreed with them as
before; what it now gets wrong is *broken*. An audit hunts for failures, so findings are more frequent among its probes
than among questions that nobody chose. Both are therefore weighed by how often such questions fail: those of the
auditor's first checkpoint. A repair that does not mend more than it breaks is taken back in part, or not kept. No label
has a say in it, and no oracle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from auditkit import stats
from auditkit.params import Params
from auditkit.runs.files import read_json, write_json

HELD_OUT = 0.2  # share of the pictures on which nothing was found
OF_FINDINGS = 0.1  # share of those with findings, which are few and dear
LEAST = 20  # agreed probes held out, below which none is, for they would say too little; findings below which none is
STEPS = (1, 0.5, 0.25)  # shares of the step that was trained: the first that passes is kept
REFUSED = "refused"  # where an adapter lies that is not kept
CHECK = "check.json"

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
    is above 0}; {} where nothing was held out on which the target agreed. Without a finding among the held out, all
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
    return found | {"gain": round(gain, 4), "kept": gain > 0}


def keep_what_helps(
    trained: Path, ask: Callable[[Path], list[dict]], held: Sequence[dict], usual: Mapping, alike: Alike
) -> tuple[Path | None, dict]:
    """The repair as far as it passes its check: all of it, or else the half or the quarter of its step, or none.

    A part of the step is the same adapter with a smaller weight (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
    models", between weights before and after). What is kept is in the folder `adapter`, what was refused in `refused`.
    The outcome is in check.json, and a second call returns it.

    Args:
        trained: the folder of what was trained, as from `train_repair`.
        ask: a folder of an adapter -> the probes held out, put to the target with it (`ask_again`).
        held, usual, alike: as for `check_repair`.

    Returns the folder of what is kept, None for nothing, and what `check_repair` says of it, or of the last one tried,
    with "step": the share of the step.
    """
    out, config = trained.parent, trained / "adapter_config.json"
    adapter, refused, told = out / "adapter", out / REFUSED, out / CHECK
    if told.is_file():
        known = read_json(told)
        return (adapter if known.get("kept", True) else None), known
    checked: dict = {}
    for step in STEPS if config.is_file() else STEPS[:1]:  # whole weights have no adapter to take a part of
        part = trained if step == 1 else _part(trained, step)
        checked = check_repair(held, ask(part), usual, alike)
        checked |= {"step": step} if checked else {}
        if checked.get("kept", True):
            break
    if part != trained:
        os.replace(trained, refused)
        if checked["kept"]:
            os.replace(part, adapter)
    elif not checked.get("kept", True):
        os.replace(trained, refused)
    for step in STEPS[1:]:
        shutil.rmtree(_part_folder(out, step), ignore_errors=True)
    write_json(told, checked)
    return (adapter if checked.get("kept", True) else None), checked


def _part(trained: Path, step: float) -> Path:
    """A copy of an adapter whose weight is a share of the whole one's."""
    part = _part_folder(trained.parent, step)
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(trained, part)
    config = read_json(part / "adapter_config.json")
    write_json(part / "adapter_config.json", config | {"lora_alpha": config["lora_alpha"] * step})
    return part


def _part_folder(out: Path, step: float) -> Path:
    return out / f"step{step}"


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
    if checked.get("step", 1) != 1:
        told = f"All of the step broke more than it mended. A share of {checked['step']:g} of it: {told}"
    return told if checked["kept"] else f"{told} The repair does not mend more than it breaks, so it is not kept."
