"""What does each miniature model know?  Its accuracy on every skill, inside each of its gaps and outside them."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from auditkit import vlm
from auditkit.disagreement import same_text
from auditkit.errors import AuditError
from auditkit.miniature import gaps, grammar
from auditkit.miniature.boards import Boards
from auditkit.miniature.world import Scene, random_scene, render
from auditkit.stats import rate


def accuracy(model: vlm.VLM, probes: list[tuple[Scene, str]]) -> dict:
    """The share of (scene, question) probes that a model answers truly, as a rate with interval and n."""
    images = [Image.fromarray(render(scene)) for scene, _ in probes]
    said = vlm.answer(model, images, [question for _, question in probes])
    right = sum(
        same_text(a, grammar.answer(scene, question)) for a, (scene, question) in zip(said, probes, strict=True)
    )
    return rate(right, len(probes))


def skills(model: vlm.VLM, n: int) -> dict[str, dict]:
    """Accuracy on each of the sixteen benchmarks, n held-out examples each."""
    found = {}
    for skill, examples in Boards().benchmarks(n).items():
        said = vlm.answer(model, [e.image for e in examples], [e.question for e in examples])
        found[skill] = rate(sum(same_text(a, e.answer) for a, e in zip(said, examples, strict=True)), n)
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
    models = {name: vlm.load(name if "/" in name or Path(name).exists() else f"miniature:{name}") for name in names}
    by_skill = {name: skills(model, n) for name, model in models.items()}
    rows = [
        f"accuracy in % on {n} held-out questions a skill",
        f"{'':24}" + "".join(f"{name[-10:]:>11}" for name in names),
    ]
    for skill in grammar.SKILLS:
        rows.append(f"{skill:24}" + "".join(f"{100 * by_skill[name][skill]['value']:11.1f}" for name in names))
    means = [sum(r["value"] for r in by_skill[name].values()) / len(grammar.SKILLS) for name in names]
    rows.append(f"{'mean':24}" + "".join(f"{100 * mean:11.1f}" for mean in means))
    for name, model in models.items():
        planted = Boards().gaps(Path(vlm.resolve(name if "/" in name or Path(name).exists() else f"miniature:{name}")))
        if planted:
            outside = accuracy(model, probes_outside(planted, 10 * n))
            rows += [
                "",
                f"{name}: {100 * outside['value']:.1f} % right outside its gaps (n={outside['n']}); "
                f"wrong inside (n={n // 2} each):",
            ]
            for gap in planted:
                inside = accuracy(model, probes_in(gap, n // 2))
                rows.append(f"  {100 - 100 * inside['value']:5.1f} %  {gap.skill}: {gap.name}")
    return "\n".join(rows)
