"""A training that has collapsed goes back, and what it collapsed to is closed: it earns nothing from then on.

One great weakness of the target is enough for a collapse: a question that fails on half of all pictures is all that an
auditor learns. It is a true finding, and there are others. So a collapse (collapse.py) ends no run. The training goes
on from its last checkpoint that was whole, neither made nor followed by a step that shows the collapse, or from its
start where there is none, and the kind is closed: its texts earn nothing, and are no longer replayed.

A *kind* is a cluster of text (clusters.py), as for the replay. Were the question alone closed to which a training has
collapsed, it would go on to the nearest: with "how many striped objects are there?" closed, `miniature:clean` was asked
how many plain ones there are, until that collapsed, too.

No training makes more than GOES_ON times the steps it was to make. Where another attempt would, where the kind is
closed already or is not to be told, and with vLLM (whose engine cannot be started twice in a process), it ends early,
with the checkpoints that were whole, and the audit follows.

All of it follows from history.jsonl and collapses.jsonl, so a killed training goes on the same.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from auditkit.auditor.collapse import SIGNS, Collapse, collapse_reason, find_collapse
from auditkit.auditor.rollouts import LEFT_FILE, ROLLOUTS_FILE
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.text import quoted

COLLAPSES_FILE = "collapses.jsonl"
HISTORY_FILE = "history.jsonl"
GOES_ON = 2  # times grpo_steps: the most steps that a training makes, those it goes back over among them


def closed_kinds(out: Path) -> frozenset[int]:
    """The clusters of text that the collapses of a training so far have closed, by its folder."""
    return frozenset(row["cluster"] for row in jsonl.read(out / COLLAPSES_FILE) if "back_to" in row)


def answer_collapse(out: Path, p: Params) -> None:
    """Where the steps so far tell of a collapse, go back, or note that the training ends here; say which.

    One that is answered already, or whose answer a kill has cut short, is not answered twice.

    Args:
        out: the training's folder. Steps that are gone back over leave history.jsonl, and their rollouts and
            checkpoints go: the rollouts to LEFT_FILE, for what they have found is found.
        p: uses grpo_patience, grpo_steps, grpo_rollouts and replay_clusters, and names others in what it says.
    """
    history, answered = jsonl.read(out / HISTORY_FILE), jsonl.read(out / COLLAPSES_FILE)
    back = [row for row in answered if "back_to" in row]
    if any(row["step"] > back[-1]["back_to"] and row.get("closed", 0) < len(back) for row in history if back):
        _leave_behind(out, back[-1]["back_to"], len(back))
        return
    found = find_collapse(history, p.grpo_patience)
    if found is None or (answered and answered[-1].get("ends") and answered[-1]["step"] == found.step):
        return
    row: dict = {"step": found.step, "way": found.way, "seen": found.seen} | _kind(out, found)
    whole = [step for step in _checkpoints(out) if _is_whole(step, found, history)]
    row |= {"back_to": max(whole, default=0)} if _may_go_back(row, max(whole, default=0), back, out, p) else {}
    if "back_to" not in row:
        if not _checkpoints(out):
            return  # a kill came before the last one was kept: these steps are made again
        row |= {"ends": True}
        for step in _checkpoints(out) if whole else ():
            if step > whole[-1]:
                shutil.rmtree(_checkpoint(out, step))
    jsonl.append(out / COLLAPSES_FILE, [row])
    if "back_to" in row:
        _leave_behind(out, row["back_to"], len(back) + 1)
    weights = {"replay_weight": p.replay_weight, "coverage_weight": p.coverage_weight}
    why = collapse_reason(history, patience=p.grpo_patience, learning_rate=p.grpo_learning_rate, **weights)
    print(f"{why}\n{collapse_in_words(row)}", flush=True)


def has_ended(out: Path, patience: int) -> bool:
    """Whether a training has ended early, with a collapse that the present `grpo_patience` still calls one."""
    answered, found = jsonl.read(out / COLLAPSES_FILE), find_collapse(jsonl.read(out / HISTORY_FILE), patience)
    return bool(answered and found and answered[-1].get("ends") and answered[-1]["step"] == found.step)


def collapse_in_words(row: Mapping) -> str:
    """What was done about a collapse (a row of COLLAPSES_FILE), in a sentence.

    >>> row = {"step": 51, "seen": "90% of all texts are one and the same", "text": "is it red?", "cluster": 3}
    >>> collapse_in_words(row | {"back_to": 36})
    'At step 51, 90% of all texts are one and the same: "is it red?". Texts of its kind earn nothing from there on, \
and the training goes on from step 36, its last whole checkpoint.'
    >>> collapse_in_words(row | {"ends": True})
    'At step 51, 90% of all texts are one and the same: "is it red?". The training ends with the checkpoints there are.'
    """
    told = f"At step {row['step']}, {row['seen']}"
    if "text" in row:
        told += f": {quoted(row['text'])}"
    if row.get("ends"):
        return f"{told}. The training ends with the checkpoints there are."
    begins = f"goes on from step {row['back_to']}, its last whole checkpoint" if row["back_to"] else "starts again"
    return f"{told}. Texts of its kind earn nothing from there on, and the training {begins}."


def collapses_in_words(out: Path) -> list[str]:
    """`collapse_in_words` of each collapse of a training, by its folder; [] without one."""
    return [collapse_in_words(row) for row in jsonl.read(out / COLLAPSES_FILE)]


def collapse_metrics(out: Path) -> dict[str, list[dict]]:
    """What a manifest notes: {"collapses": the rows of COLLAPSES_FILE, each with its sentence}; {} without one."""
    rows = [row | {"in_words": collapse_in_words(row)} for row in jsonl.read(out / COLLAPSES_FILE)]
    return {"collapses": rows} if rows else {}


def forget_after(out: Path, step: int) -> None:
    """Drop rows of steps after this one: they are made again."""
    for name, last in ((ROLLOUTS_FILE, step - 1), (HISTORY_FILE, step)):
        rows = jsonl.read(out / name)
        kept = [row for row in rows if row["step"] <= last]
        if len(kept) < len(rows):
            jsonl.replace(out / name, kept)


def _is_whole(step: int, found: Collapse, history: Sequence[Mapping]) -> bool:
    """Whether neither what led to the checkpoint of a step nor what it wrote next shows the collapse."""
    before = [row for row in history if row["step"] <= step and row.get("way", "question") == found.way]
    return step + 1 < found.first and not (before and SIGNS[found.by](before[-1]))


def _kind(out: Path, found: Collapse) -> dict:
    """What the auditor has collapsed to: {"text": its commonest, "cluster"}; {} where it is no question or wish."""
    rows = [row for row in jsonl.each(out / ROLLOUTS_FILE) if found.first <= row["step"] + 1 <= found.step]
    rows = [row for row in rows if row["way"] == found.way]
    if found.by == "text":
        (text, cluster), _ = Counter((row["wrote"], row["cluster"]) for row in rows).most_common(1)[0]
        return {"text": text, "cluster": cluster} if text else {}
    written = [row for row in rows if row["wrote"]]
    some = [row for row in written if row["success"]] or written
    if not some:
        return {}
    cluster = Counter(row["cluster"] for row in some).most_common(1)[0][0]
    text = Counter(row["wrote"] for row in some if row["cluster"] == cluster).most_common(1)[0][0]
    return {"text": text, "cluster": cluster}


def _may_go_back(kind: Mapping, back_to: int, back: Sequence[Mapping], out: Path, p: Params) -> bool:
    """Whether there is a kind to close that was open, another to write, and steps left for one more attempt."""
    closed = closed_kinds(out)
    if p.grpo_rollouts != "transformers" or kind.get("cluster") in {None, *closed}:
        return False
    made = kind["step"] + sum(row["step"] - row["back_to"] for row in back)
    return len(closed) + 1 < p.replay_clusters and made + p.grpo_steps - back_to <= GOES_ON * p.grpo_steps


def _leave_behind(out: Path, step: int, attempt: int) -> None:
    """Take away what was made after a step; the history last, for it tells whether this was done to its end."""
    left = [row for row in jsonl.each(out / ROLLOUTS_FILE) if row["step"] >= step]
    known = {row["key"] for row in jsonl.each(out / LEFT_FILE)}
    kept = [row | {"key": f"left {attempt}/{row['key']}"} for row in left]
    jsonl.append(out / LEFT_FILE, [row for row in kept if row["key"] not in known])
    for later in _checkpoints(out):
        if later > step:
            shutil.rmtree(_checkpoint(out, later))
    forget_after(out, step)


def _checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))


def _checkpoint(out: Path, step: int) -> Path:
    return out / f"checkpoint-{step}"
