"""What does each miniature model know?  Its accuracy on every skill, inside each of its gaps and outside them; and of
what auditors write, what is well-formed and true of the picture.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from PIL import Image

from auditkit import stats
from auditkit.auditor.write import PROMPTS, write_texts
from auditkit.consensus.normalise import same_text
from auditkit.errors import AuditError
from auditkit.miniature import edits, gaps, grammar
from auditkit.miniature.boards import Boards, scene_of
from auditkit.miniature.overlaps import gap_rates
from auditkit.miniature.world import Scene, random_scene, render
from auditkit.models import downloads
from auditkit.models.base import Writer, answer_questions
from auditkit.models.load import load_model
from auditkit.runs.probe import parse_question, parse_wish
from auditkit.text import text_table


def accuracy(model: Writer, probes: list[tuple[Scene, str]]) -> dict:
    """The share of (scene, question) probes that a model answers truly, as a rate with interval and n."""
    images = [Image.fromarray(render(scene)) for scene, _ in probes]
    said = answer_questions(model, images, [question for _, question in probes])
    right = sum(
        same_text(a, grammar.answer(scene, question)) for a, (scene, question) in zip(said, probes, strict=True)
    )
    return stats.rate(right, len(probes))


def skills(model: Writer, n: int) -> dict[str, dict]:
    """Accuracy on each of the sixteen benchmarks, n held-out examples each."""
    found = {}
    for skill, examples in Boards().benchmarks(n).items():
        said = answer_questions(model, [e.image for e in examples], [e.question for e in examples])
        found[skill] = stats.rate(sum(same_text(a, e.answer) for a, e in zip(said, examples, strict=True)), n)
    return found


def probes_in(gap: gaps.Gap, n: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """n scenes with a question that lies in a gap. Raises AuditError when 20,000 boards have none."""
    rng, found, vain = random.Random(f"{gap.name}-{seed}"), [], 0
    while len(found) < n:
        if vain == 20_000:
            raise AuditError(f"gap {gap.name!r}: no board has a question in its condition; check the words of `when`.")
        vain += 1
        scene = random_scene(rng)
        question = grammar.ask(scene, rng, gap.skill)
        if gaps.find([gap], scene, question):
            found.append((scene, question))
            vain = 0
    return found


def probes_outside(table: list[gaps.Gap], n: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """n scenes with a question, every skill alike, that lies in no gap."""
    rng, found = random.Random(f"outside-{seed}"), []
    while len(found) < n:
        scene = random_scene(rng)
        question = grammar.ask(scene, rng)
        if not gaps.find(table, scene, question):
            found.append((scene, question))
    return found


def table(names: list[str], n: int = 200) -> str:
    """A printed table: models across, skills down; then, for each model with planted gaps, how true they are."""
    models = {name: load_model(name if "/" in name or Path(name).exists() else f"miniature:{name}") for name in names}
    by_skill = {name: skills(model, n) for name, model in models.items()}
    skill_rows = [
        [skill, *(f"{100 * by_skill[name][skill]['value']:.1f}" for name in names)] for skill in grammar.SKILLS
    ]
    means = [sum(r["value"] for r in by_skill[name].values()) / len(grammar.SKILLS) for name in names]
    skill_rows.append(["mean", *(f"{100 * mean:.1f}" for mean in means)])
    lines = [f"accuracy in % on {n} held-out questions a skill", text_table(["skill", *names], skill_rows)]
    for name, model in models.items():
        planted = Boards().gaps(
            Path(downloads.resolve(name if "/" in name or Path(name).exists() else f"miniature:{name}"))
        )
        if planted:
            outside = accuracy(model, probes_outside(planted, 10 * n))
            wrong = [(gap, 1 - accuracy(model, probes_in(gap, n // 2))["value"]) for gap in planted]
            met = gap_rates(planted)
            rows = [[gap.skill, gap.name, f"{100 * share:.1f}", f"{100 * met[gap.name]:.2f}"] for gap, share in wrong]
            rows.append(
                ["all", "", f"{100 * sum(share for _, share in wrong) / len(wrong):.1f}", f"{100 * met[None]:.2f}"]
            )
            lines += [
                "",
                f"{name}: {100 * outside['value']:.1f} % right outside its gaps (n={outside['n']}); "
                f"wrong inside (n={n // 2} each):",
                text_table(["skill", "gap", "% wrong", "% of random questions"], rows, "llrr"),
            ]
    return "\n".join(lines)


def written(model: Writer, n: int, temperature: float = 0.7, seed: int = 0) -> dict[str, dict]:
    """What an auditor writes in each way about n boards it has not seen: {way: {fact of FACTS: rate, "kinds": counts}}.

    The kinds are the skills of questions, the kinds of edit commands, and how many things a caption holds.
    """
    pictures, found = Boards().pictures("test", n, seed), {}
    for way in PROMPTS:
        texts = write_texts(model, pictures, [way] * n, temperature, 48, seed)
        judge = _question if way == "question" else _wish
        facts = [judge(scene_of(picture.key), text) for picture, text in zip(pictures, texts, strict=True)]
        kinds = Counter(str(fact["kind"]) for fact in facts if fact.get("kind") is not None)
        found[way] = {name: stats.rate(sum(bool(fact.get(name)) for fact in facts), n) for name in FACTS} | {
            "kinds": kinds
        }
    return found


# Each implies those before it, so that the last is the share of texts an audit can use.
FACTS = ("well-formed", "in the language", "true of the picture", "right answer")


def _question(scene: Scene, text: str) -> dict:
    """Which of FACTS hold of a question and its note; what is noted has to be there, and the answer among it."""
    question = parse_question(text)
    known = grammar.facts(scene, question) if question else None
    if known is None:
        return {"well-formed": question}
    noted = set(text.strip().split("\n")[0].split())
    true = noted <= set(" ".join(map(str, known.values())).split())
    return {
        "well-formed": True,
        "in the language": True,
        "true of the picture": true,
        "right answer": true and known["truth"] in noted,
        "kind": known["skill"],
    }


def _wish(scene: Scene, text: str) -> dict:
    """Which of FACTS hold of a command or caption and its check.

    A command has to change something that is there. A caption has to be of things and the background that are there
    but for one thing, where nothing is. The check has to be right of the new board and wrong of the old one.
    """
    wish = parse_wish(text)
    if wish is None:
        return {}
    command, captioned = edits.kind(wish.text), edits.read_caption(wish.text)
    if command is None and captioned is None:
        return {"well-formed": True}
    if command:
        after, kind = edits.apply(scene, wish.text), command
        true = after is not None and after != scene
    else:
        new = [(old, cell) for old, cell in zip(scene.cells, captioned.cells, strict=True) if cell.kind != "empty"]
        added = [old.kind == "empty" for old, cell in new if old != cell]
        after, kind = captioned, f"{len(new)} things"
        true = added == [True] and captioned.background == scene.background
    said = [grammar.answer(board, wish.check) for board in (scene, after)] if true else [None, None]
    return {
        "well-formed": True,
        "in the language": True,
        "true of the picture": true,
        "right answer": said[1] == wish.expected != said[0],
        "kind": kind,
    }


def writings(names: list[str], n: int = 500) -> str:
    """A printed table: of n texts a way by each auditor, sampled at temperature 0.7, the share of which each of FACTS
    holds, and their kinds.
    """
    rows, kinds = [], []
    for name in names:
        model = load_model(name if "/" in name or Path(name).exists() else f"miniature:{name}")
        for way, facts in written(model, n).items():
            label = f"{model.name} {way}"
            rows.append([label, *(f"{100 * facts[fact]['value']:.1f}" for fact in FACTS)])
            kinds.append(f"{label}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(facts["kinds"].items())))
    return "\n".join([text_table([f"% of {n} texts a way", *FACTS], rows), "", *kinds])
