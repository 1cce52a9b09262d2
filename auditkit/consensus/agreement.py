"""What a judge of answers is worth: its agreement with pairs labelled by hand (same_pairs.jsonl).

The labels are ours, by this rule: two answers are the same if whoever asked would learn the same from both. So "poodle"
and "dog" differ, whatever the one implies of the other.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from auditkit import stats
from auditkit.consensus.choose import choose_same
from auditkit.text import text_table, with_interval


def judge_agreement(kind: str, **how) -> dict:
    """How often a judge says of the labelled pairs what their labels say.

    Args:
        kind: text, embedding, or a model's spec.
        how: device, dtype, batch_size and memory for a model.

    Returns {"all": rate, "said_same_wrongly": rate over the pairs that differ, "said_different_wrongly": rate over
    those that are the same, "kinds": {kind: rate}, "unclear": replies neither yes nor no, None where none is asked}.
    """
    rows = labelled_pairs()
    own = {"device": "auto", "dtype": "auto", "batch_size": 64, "memory": "together"} | how
    p: Any = SimpleNamespace(**own, same=kind)  # what `choose_same` reads of Params
    alike = choose_same(p)
    alike.prepare((row["question"], row["a"], row["b"]) for row in rows)
    right = [alike(row["a"], row["b"], row["question"]) == row["same"] for row in rows]
    wrong = {
        label: [not ok for ok, row in zip(right, rows, strict=True) if row["same"] is label] for label in (True, False)
    }
    kinds: dict[str, list[bool]] = {}
    for ok, row in zip(right, rows, strict=True):
        kinds.setdefault(row["kind"], []).append(ok)
    return {
        "all": stats.rate(sum(right), len(right)),
        "said_same_wrongly": stats.rate(sum(wrong[False]), len(wrong[False])),
        "said_different_wrongly": stats.rate(sum(wrong[True]), len(wrong[True])),
        "kinds": {name: stats.rate(sum(some), len(some)) for name, some in kinds.items()},
        "unclear": getattr(alike.decide, "unclear", None),
    }


def labelled_pairs() -> list[dict]:
    """The labelled pairs: {"question", "a", "b", "same": bool, "kind"}."""
    file = Path(__file__).parent / "same_pairs.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def agreement_table(kinds: Sequence[str], **how) -> str:
    """What each judge is worth, as text: agreement in % with its 95 % interval, over all and by kind of pair."""
    found = {kind: judge_agreement(kind, **how) for kind in kinds}
    first = next(iter(found.values()))
    heads = [f"{len(labelled_pairs())} pairs labelled by hand, % right", *kinds]
    body = [["all", *(with_interval(f["all"]) for f in found.values())]]
    for name in ("said_same_wrongly", "said_different_wrongly"):
        body.append([name.replace("_", " "), *(with_interval(f[name]) for f in found.values())])
    for name, some in first["kinds"].items():
        shares = [100 * f["kinds"][name]["value"] for f in found.values()]
        body.append([f"  {name} (n = {some['n']})", *(f"{share:.1f}" for share in shares)])
    if any(f["unclear"] is not None for f in found.values()):
        body.append(
            ["replies neither yes nor no", *("" if f["unclear"] is None else str(f["unclear"]) for f in found.values())]
        )
    return text_table(heads, body)
