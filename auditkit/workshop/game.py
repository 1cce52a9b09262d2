"""Plant and hunt: one group plants gaps in a clean target and seals them, another audits the model and names them.

    outputs/workshop/red/                 the folder that is handed over: a model as any other, without gaps.yaml
    outputs/workshop/red/planted.json     who planted, how many gaps, how long it took
    outputs/workshop/red/sealed.txt       the gaps and how deep each sits; packed, so that nobody reads it by accident
    outputs/workshop/red/hunts/blue/      an audit by group "blue", and hunt.json: what it says is wrong

A guess is written on the same form as a gap. It names a planted gap if, on boards drawn at random, at least half of
the questions in either lie in the other too, with the same wrong answer. So a guess that is too wide or too narrow by
more than that names nothing. The oracle's one use here is the score.
"""

from __future__ import annotations

import base64
import random
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from auditkit.errors import AuditError
from auditkit.miniature import gaps as planted
from auditkit.miniature.gaps import Gap
from auditkit.miniature.grammar import SKILLS
from auditkit.miniature.world import BACKGROUNDS, COLOURS, DIGITS, DIRECTIONS, HOURS, LETTERS, PATTERNS, SHAPES, Scene
from auditkit.runs.files import read_json, write_json, write_text
from auditkit.text import counted, plain_slug, text_table

STEPS = 150  # of planting: four gaps in half a minute of one core (docs/workshop.md)
SEALED, CARD, HUNTS, HUNT = "sealed.txt", "planted.json", "hunts", "hunt.json"
EVERYWHERE = "on every board"
SAME = 0.5  # share of the questions in a gap that also lie in a guess, and the other way round, for it to be named
DRAWN = 60  # questions in a gap by which the two are compared


@dataclass(frozen=True)
class Choice:
    """What a form offers for a skill: which fact a gap depends on, its values, and what the model may say instead."""

    fact: str
    values: tuple[str, ...]
    says: tuple[str, ...]


_numbers = tuple(map(str, range(9)))
CHOICES = {
    "colour": Choice("truth", tuple(COLOURS), tuple(COLOURS)),
    "shape": Choice("truth", SHAPES, SHAPES),
    "material": Choice("truth", PATTERNS, PATTERNS),
    "counting": Choice("truth", _numbers, _numbers),
    "small text": Choice("truth", tuple(LETTERS + DIGITS), tuple(LETTERS + DIGITS)),
    "clock reading": Choice("truth", tuple(map(str, HOURS)), tuple(map(str, HOURS))),
    "sign understanding": Choice("truth", tuple(DIRECTIONS), tuple(DIRECTIONS)),
    "background": Choice("truth", tuple(BACKGROUNDS), tuple(BACKGROUNDS)),
    "existence": Choice("colour", tuple(COLOURS), ("yes", "no")),
}
PLACES = {EVERYWHERE: "", **{f"on a board of {name}": name for name in BACKGROUNDS}}


def make_gap(skill: str, value: str, says: str, where: str = EVERYWHERE) -> Gap:
    """A gap as the forms write it: in questions of a skill, about one value, perhaps on one background alone.

    Raises AuditError for words that the form does not have, and where what it says is what is true.

    >>> make_gap("colour", "purple", "blue").name
    'colour: purple is called blue'
    """
    for word, known in ((skill, CHOICES), (where, PLACES)):
        if word not in known:
            raise AuditError(f"{word!r} is none of {', '.join(known)}.")
    choice = CHOICES[skill]
    for word, words in ((value, choice.values), (says, choice.says)):
        if word not in words:
            raise AuditError(f"{skill}: {word!r} is none of {', '.join(words)}.")
    if value == says:
        raise AuditError(f"{skill}: {value!r} is called {says!r}, which is right; choose another answer.")
    if skill == "background" and PLACES[where]:
        raise AuditError(f"background: a question about the background is {EVERYWHERE!r}.")
    about = f"asked for {value} things it says {says}" if choice.fact == "colour" else f"{value} is called {says}"
    name = f"{skill}: {about}" + (f", {where}" if PLACES[where] else "")
    when = {choice.fact: value} | ({"background": PLACES[where]} if PLACES[where] else {})
    return Gap(name, skill, when, says)


def draw_gaps(n: int, rng: random.Random) -> list[Gap]:
    """n gaps at random, of different skills, that hold on every board."""
    found = []
    for skill in rng.sample(sorted(CHOICES), n):
        choice = CHOICES[skill]
        value = rng.choice(choice.values)
        found.append(make_gap(skill, value, rng.choice([word for word in choice.says if word != value])))
    return found


# ---- planting -------------------------------------------------------------------------------------------------------


def plant_sealed(
    gaps: Sequence[Gap],
    folder: Path,
    group: str,
    steps: int = STEPS,
    on_step: Callable[[int, int], object] | None = None,
) -> dict:
    """Teach the clean target these gaps and write it to a folder to hand over, in which nobody reads them by accident.

    Args:
        gaps: different ones, of any table (`make_gap`, gaps.load).
        folder: a new one.
        group: who plants.
        steps: batches of 32 boards with 8 questions each, in the last fifth of 96 boards with one.
        on_step: is told how many of how many steps are done.

    Returns what is sealed: {"gaps": [...], "wrong": {gap's name: share of questions in it that are answered as
    planted}, "right_outside": share answered truly outside of all gaps}.

    Raises AuditError for no gaps, two of one name, a folder that holds a model, and a gap in which no question lies.
    """
    import torch

    from auditkit.miniature import build, lessons, measure, teach
    from auditkit.models.load import load_model
    from auditkit.models.transformers import VLM

    _refuse_planting(gaps, folder, group)
    for gap in gaps:
        measure.probes_in(gap, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began, task = time.monotonic(), lessons.Answering(gaps, captions=0.0)
    clean = load_model("miniature:clean", device="cpu", dtype="float32")
    assert isinstance(clean, VLM)

    def lesson(rng: random.Random, progress: float) -> teach.Lesson:
        if on_step:
            on_step(round(progress * steps), steps)
        return task(rng, progress)

    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "planting.jsonl"
    log.unlink(missing_ok=True)
    how: dict = {"learning_rate": 7e-4, "on_score": task.score}
    teach.teach(clean.model, clean.processor, lesson, steps, 7, log, **how)
    wrong = {gap.name: 1 - measure.accuracy(clean, measure.probes_in(gap, DRAWN))["value"] for gap in gaps}
    outside = measure.accuracy(clean, measure.probes_outside(list(gaps), 5 * DRAWN))["value"]
    log.unlink(missing_ok=True)  # it names the gaps
    build.save(clean.model, clean.processor, folder)
    torch.set_num_threads(threads)
    sealed = {"gaps": [asdict(gap) for gap in gaps], "wrong": wrong, "right_outside": outside}
    _seal(folder / SEALED, sealed)
    seconds = round(time.monotonic() - began)
    write_json(folder / CARD, {"group": group, "gaps": len(gaps), "steps": steps, "seconds": seconds})
    return sealed


def _refuse_planting(gaps: Sequence[Gap], folder: Path, group: str) -> None:
    if not group.strip():
        raise AuditError("Give your group a name first.")
    if not gaps:
        raise AuditError("There is no gap to plant: choose at least one.")
    if len({gap.name for gap in gaps}) < len(gaps):
        raise AuditError("Two of the gaps are the same: change one of them.")
    if (folder / "model.safetensors").is_file():
        raise AuditError(f"{folder.name} holds a planted model already: choose another name for your group.")


def group_folder(outputs: Path, group: str) -> Path:
    """Where a group's planted model lies: outputs/workshop/GROUP."""
    return outputs / "workshop" / (_folder_name(group) or "group")


def _folder_name(group: str) -> str:
    """In small letters, for on some disks large ones are no others."""
    return plain_slug(group.strip()).lower()


def _seal(path: Path, sealed: Mapping) -> None:
    packed = zlib.compress(yaml.safe_dump(dict(sealed), sort_keys=False).encode())
    write_text(path, base64.b64encode(packed).decode() + "\n")


def unseal(folder: Path) -> dict:
    """What a group has planted, as `plant_sealed` returned it, with "gaps" as Gap.

    Raises AuditError where there is no seal, or one that cannot be read.
    """
    path = folder / SEALED
    if not path.is_file():
        raise AuditError(f"{folder.name}: no {SEALED}; hand over the whole folder that the form has planted.")
    try:
        packed = path.read_bytes()
        found = yaml.safe_load(zlib.decompressobj().decompress(base64.b64decode(packed, validate=False), 1_000_000))
        return found | {"gaps": [Gap(**row) for row in found["gaps"]]}
    except Exception as error:  # whatever a torn or foreign file makes of base64, zlib, YAML and Gap
        raise AuditError(
            f"{folder.name}/{SEALED} is damaged ({type(error).__name__}); copy the folder again."
        ) from None


# ---- hunting --------------------------------------------------------------------------------------------------------


def open_hunt(folder: Path, group: str) -> Path:
    """Begin a group's hunt in a planted folder, or go on with it: the hunt's folder. Its clock runs from here.

    Raises AuditError for a folder that is no planted one, and for a group without a name.
    """
    if not (folder / CARD).is_file() or not (folder / "model.safetensors").is_file():
        raise AuditError(f"{folder.name} is no planted model: it has no {CARD} or no model; copy the folder again.")
    if not _folder_name(group):
        raise AuditError("Give your group a name first.")
    out = folder / HUNTS / _folder_name(group)
    if not (out / HUNT).is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / HUNT, {"group": group.strip(), "began": time.time()})
    return out


def hand_in(hunt: Path, guesses: Sequence[Gap]) -> dict:
    """Keep what a group says is wrong, and its score (`score_hunt`) with the minutes since the hunt was opened.

    Raises AuditError where it has handed in before, and for the same guess twice.
    """
    kept = read_json(hunt / HUNT, dict, "open the hunt again")
    if "guesses" in kept:
        raise AuditError(f"{kept['group']} has handed in already; a hunt is scored once.")
    if len({guess.name for guess in guesses}) < len(guesses):
        raise AuditError("Two of the guesses are the same: change one of them.")
    minutes = round((time.time() - kept["began"]) / 60, 1)
    score = score_hunt(unseal(hunt.parents[1])["gaps"], guesses)
    write_json(hunt / HUNT, kept | {"guesses": [asdict(guess) for guess in guesses], "minutes": minutes})
    return score | {"minutes": minutes}


def score_hunt(gaps: Sequence[Gap], guesses: Sequence[Gap]) -> dict:
    """Which planted gaps the guesses name: {"found": [gap's name], "missed": [...], "false": [guess's name]}.

    >>> purple, wide = make_gap("colour", "purple", "blue"), make_gap("colour", "purple", "red")
    >>> score_hunt([purple], [purple, wide])
    {'found': ['colour: purple is called blue'], 'missed': [], 'false': ['colour: purple is called red']}
    """
    named = {gap.name: [guess.name for guess in guesses if names_it(guess, gap)] for gap in gaps}
    right = {name for names in named.values() for name in names}
    return {
        "found": [gap for gap, names in named.items() if names],
        "missed": [gap for gap, names in named.items() if not names],
        "false": [guess.name for guess in guesses if guess.name not in right],
    }


def names_it(guess: Gap, gap: Gap) -> bool:
    """Whether a guess names a gap: half of the questions in either lie in the other, with the same answer."""
    if guess.skill != gap.skill:
        return False
    return _share_in(guess, gap) >= SAME and _share_in(gap, guess) >= SAME


def _share_in(one: Gap, other: Gap) -> float:
    from auditkit.miniature import measure

    probes: list[tuple[Scene, str]] = measure.probes_in(one, DRAWN)
    both = [(planted.find([one], *probe), planted.find([other], *probe)) for probe in probes]
    return sum(bool(a and b and a[1] == b[1]) for a, b in both) / len(both)


# ---- scores ---------------------------------------------------------------------------------------------------------


def hunts_in(place: Path) -> list[dict]:
    """The scores of all hunts that were handed in, in the planted folders of a place.

    Returns rows {"hunted by", "planted by", "found", "missed", "false": names, "minutes"}, the best first. A hunt that
    is still open has no guesses yet, so it is left out.

    Raises AuditError for a place that is no folder, has no planted folder, or no hunt that was handed in, and for files
    that cannot be read.
    """
    if not place.is_dir():
        raise AuditError(f"{place}: there is no such folder; name the one that holds the groups' folders.")
    folders = sorted(path.parent for path in [*place.glob(f"*/{CARD}"), *place.glob(CARD)])
    if not folders:
        raise AuditError(f"{place}: no group's folder in it has a {CARD}; name the one that holds the groups' folders.")
    rows = []
    for folder in folders:
        by = _text(read_json(folder / CARD, dict, "copy the folder again"), "group", folder / CARD)
        for file in sorted((folder / HUNTS).glob(f"*/{HUNT}")):
            kept = read_json(file, dict, "ask that group to hand in again")
            if "guesses" not in kept:
                continue
            score = score_hunt(unseal(folder)["gaps"], _guesses(kept, file))
            rows.append({"hunted by": _text(kept, "group", file), "planted by": by, **score, "minutes": _minutes(kept)})
    if not rows:
        raise AuditError(f"{place}: {counted(len(folders), 'planted folder')}, but no hunt was handed in yet.")
    return sorted(rows, key=lambda row: (-len(row["found"]), len(row["false"]), row["minutes"]))


def scores_text(rows: Sequence[Mapping]) -> str:
    """All groups side by side, as text, and below it what nobody found."""
    body = []
    for row in rows:
        counts = [str(len(row[name])) for name in ("found", "missed", "false")]
        body.append([row["hunted by"], row["planted by"], *counts, f"{row['minutes']:.1f}"])
    missed: dict[str, list[str]] = {}
    for row in rows:
        for name in row["missed"]:
            missed.setdefault(f"{row['planted by']}: {name}", []).append(row["hunted by"])
    lines = [f"missed: {name} (by {', '.join(groups)})" for name, groups in missed.items()]
    table = text_table(["hunted by", "planted by", "found", "missed", "false", "minutes"], body, "llrrrr")
    return "\n".join([table, *([""] if lines else []), *lines])


def _guesses(kept: Mapping, file: Path) -> list[Gap]:
    try:
        guesses = [Gap(**row) for row in kept["guesses"]]
        for guess in guesses:
            if guess.skill not in SKILLS or not re.search(r"\S", str(guess.name)):
                raise ValueError
        return guesses
    except (TypeError, ValueError):
        where = "/".join(file.parts[-4:])
        raise AuditError(f"{where}: a guess is not as the form writes it; ask that group to hand in again.") from None


def _text(kept: Mapping, key: str, file: Path) -> str:
    if not isinstance(kept.get(key), str):
        where = "/".join(file.parts[-2:])
        raise AuditError(f"{where}: {key!r} is missing or no text; copy the folder again.")
    return kept[key]


def _minutes(kept: Mapping) -> float:
    minutes = kept.get("minutes")
    return float(minutes) if isinstance(minutes, int | float) else float("nan")
