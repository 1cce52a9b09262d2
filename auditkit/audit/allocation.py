"""What each checkpoint of the auditor writes: its share of the pictures, in batches that anybody can do.

Probes come from several checkpoints, the untrained one among them. The last succeeds most often, but training narrows
what an auditor asks about, and the earlier checkpoints still reach what the last one forgot. Of the miniature's 28
gaps, 2,000 probes found 25 and 26 (two seeds, auditors trained for 240 steps) with 40 % of them by the untrained
auditor and 30 % by the last one; with 15 % and 50 % they found 19 and 25.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from auditkit.data.source import Picture
from auditkit.params import Params

SOURCE = "source"  # stands for an auditor where the probes are the images' own questions
UNTRAINED, LAST = 0.4, 0.3  # shares of the first and the last checkpoint; those between share the rest


def auditor_loaders(asks: str, load: Callable, auditor: str, trained_in: Path | None) -> dict[str, Callable]:
    """What loads each auditor of an audit, by its checkpoint's name; each is loaded when its turn comes.

    Args:
        asks: as in Params; with "source" the first stands for the images' own questions, and is never loaded.
        load: (text that names a model, adapter=) -> the model (`model_loader(p)`).
        trained_in: the folder of the auditor's training; None where the untrained auditor alone asks, or none does.
    """
    from auditkit.auditor.grpo import auditor_checkpoints  # with it comes TRL

    first = SOURCE if asks == "source" else "untrained"
    folders = auditor_checkpoints(trained_in) if trained_in else {}
    return {first: partial(load, auditor)} | {name: partial(load, auditor, adapter=at) for name, at in folders.items()}


def checkpoint_shares(checkpoints: Sequence[str], probes: int) -> dict[str, int]:
    """How many pictures each checkpoint gets: 40 % the first, 30 % the last, the others the rest, all of them if one.

    >>> checkpoint_shares(["untrained", "60", "120", "180"], 2000)
    {'untrained': 800, '60': 300, '120': 300, '180': 600}
    >>> checkpoint_shares(["untrained", "180"], 10)
    {'untrained': 4, '180': 6}
    """
    names = list(checkpoints)
    if len(names) == 1:
        return {names[0]: probes}
    counts = dict.fromkeys(names, 0)
    counts[names[0]] = round(UNTRAINED * probes + 1e-9)
    between = names[1:-1]
    for i, name in enumerate(between):
        rest = round((1 - LAST - UNTRAINED) * probes)
        counts[name] = rest * (i + 1) // len(between) - rest * i // len(between)
    counts[names[-1]] = probes - sum(counts.values())
    return counts


def pool_size(p: Params) -> int:
    """How many probes are written: under a search `candidates` for each that is asked.

    Args:
        p: uses audit_probes, candidates and search.
    """
    return p.audit_probes * (1 if p.search == "once" else p.candidates)


def probe_batches(
    dealt: Mapping[str, Sequence[Picture]], ways: Sequence[str], own: Callable[[str], str | None], size: int
) -> list[dict]:
    """The pictures of each checkpoint in batches of one way; the ways take turns over the pictures.

    Args:
        dealt: checkpoint name -> its pictures.
        ways: of making a probe, as in Params.
        own: the source's own question about a picture, as Source.question.
        size: pictures in a batch, at most.

    Returns rows {"checkpoint", "way", "keys": of the probes, "pictures": their keys, "own": questions or None}.
    """
    made = []
    for name, pictures in dealt.items():
        for way in dict.fromkeys(ways):
            places = [i for i in range(len(pictures)) if ways[i % len(ways)] == way]
            for start in range(0, len(places), size):
                some = places[start : start + size]
                keys = [pictures[i].key for i in some]
                made.append(
                    {"checkpoint": name, "way": way, "keys": [f"{name}/{i:05d}" for i in some], "pictures": keys}
                    | {"own": [own(key) if name == SOURCE or way != "question" else None for key in keys]}
                )
    return made


def candidate_batches(
    dealt: Sequence[dict], names: Sequence[str], candidates: int, size: int
) -> tuple[list[dict], dict]:
    """Batches for the further questions about the pictures of all checkpoints but the last, in the same proportions.

    Args:
        dealt: the batches so far.
        names: the checkpoints, the untrained one first, the trained one last.
        candidates: questions about each of these pictures, that of `dealt` among them.
        size: pictures in a batch, at most.

    Returns the new batches, and the key of each of these pictures' questions -> that of the first about the same.
    """
    open_to_choice = [batch for batch in dealt if batch["way"] == "question" and batch["checkpoint"] in names[:-1]]
    slots = [slot for batch in open_to_choice for slot in zip(batch["keys"], batch["pictures"], strict=True)]
    if candidates < 2 or not slots:
        return [], {}
    made, first, more, start = [], {key: key for key, _ in slots}, slots * (candidates - 1), 0
    for name in names[:-1]:
        own = (candidates - 1) * sum(len(batch["keys"]) for batch in open_to_choice if batch["checkpoint"] == name)
        for at in range(start, start + own, size):
            some = more[at : min(at + size, start + own)]
            keys = [f"{name}/+{at + i:05d}" for i in range(len(some))]
            first |= dict(zip(keys, (key for key, _ in some), strict=True))
            made.append({"checkpoint": name, "way": "question", "keys": keys, "own": [None] * len(some)}
                        | {"pictures": [picture for _, picture in some]})  # fmt: skip
        start += own
    return made, first
