"""What the exercises need computed: answers of four models, a small training, commands that are tried, a small audit.

Everything is done by the library, at a size that takes a laptop some seconds to two minutes. The models and pictures
are those of the parameter file that is handed in, so an exercise can be held on models of one's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from auditkit import specs
from auditkit.audit import baseline, loop
from auditkit.audit.allocation import auditor_loaders
from auditkit.auditor.collapse import collapse_reason
from auditkit.auditor.grpo import train_auditor
from auditkit.auditor.rollouts import ROLLOUTS_FILE
from auditkit.consensus.choose import choose_same
from auditkit.consensus.normalise import is_one_of, same_text
from auditkit.consensus.vote import vote
from auditkit.counterfactual.make import ImagePipeline, attempt_edit
from auditkit.counterfactual.quality import Change, incoherence, measure_change
from auditkit.data.load import load_images
from auditkit.data.source import Picture, Source
from auditkit.errors import AuditError, say_errors_in_one_sentence
from auditkit.models import roles
from auditkit.models.answers import AnswerBook
from auditkit.models.load import model_loader
from auditkit.models.roles import deferred
from auditkit.params import Params, load_params, project_root
from auditkit.report.notebook import Table, escaped_table
from auditkit.runs import jsonl
from auditkit.workshop.example_run import unpack_example
from auditkit.workshop.exercises import Checked

PATIENCE = 6  # steps in a row of one text that count as a collapse here; a whole run waits for more
FAST: dict = {  # a training that collapses soon, without replay (docs/workshop.md has how surely)
    "grpo_steps": 40,
    "grpo_images": 8,
    "train_images": 256,
    "grpo_learning_rate": 6.5e-3,
    "grpo_last_learning_rate": 6.5e-3,
}


def open_exercise(name: str, file: str = "params/workshop.yaml") -> tuple[Params, Path]:
    """The parameters of the exercises and a folder for what one of them computes, outputs/workshop_exercises/NAME.

    From now on the notebook says what a person can put right in one sentence.
    """
    say_errors_in_one_sentence()
    return load_params(file), project_root() / "outputs" / "workshop_exercises" / name


def require(checked: Checked) -> None:
    """Raise AuditError with what a check says, unless it is right: nothing is computed with a wrong function."""
    if not checked.right:
        raise AuditError(f"The check above is to pass first. {checked.text}")


def require_filled(**named: object) -> None:
    """Raise AuditError where a setting, or a part of it, is still `...`."""
    for name, value in named.items():
        if value is ... or isinstance(value, list | tuple) and any(part is ... for part in value):
            raise AuditError(f"`{name}` is still `...`: fill in the blank above, run its cell, and then this one.")


def with_target(p: Params, folder: Path) -> Params:
    """The parameters with a model's folder as the target."""
    return replace(p, target=str(folder))


def example_answers() -> dict[str, list[bool]]:
    """The benchmarks of the example run: {"before", "after": whether the target was right, question by question}.

    It is unpacked where it is not there yet; no model is asked.
    """
    folder = unpack_example(project_root() / "outputs")
    p = load_params("params/workshop.yaml")
    examples = [one for some in load_images(p.images).benchmarks(p.benchmark_examples).values() for one in some]
    said: dict[str, dict[tuple[str, str], str]] = {}
    for row in jsonl.each(folder / "08_benchmark" / "answers.jsonl"):
        said.setdefault(row["model"], {})[row["picture"], row["question"]] = row["answer"]
    sides = {"before": specs.parse(p.target).name, "after": ""}
    others = {sides["before"], specs.parse(p.peer).name}
    sides["after"] = next(name for name in said if name not in others)
    asked = [(example.key.split("/q")[0], example.question, example.accepted) for example in examples]
    return {
        side: [is_one_of(said[name][picture, question], right) for picture, question, right in asked]
        for side, name in sides.items()
    }


def ask_four(p: Params, n: int, folder: Path) -> list[dict]:
    """The pictures' own questions, put to target and references: n rows {"picture", "question", "target",
    "references": {name: answer}}. What is on file is not asked again.
    """
    source = load_images(p.images)
    pictures = [one for one in source.pictures("baseline", 2 * n, p.seed) if source.question(one.key)][:n]
    questions = [str(source.question(one.key)) for one in pictures]
    folder.mkdir(parents=True, exist_ok=True)
    book, models = AnswerBook(folder / "answers.jsonl"), [one() for one in deferred(model_loader(p), *_answering(p))]
    said = [book.ask(model, pictures, questions, p.max_answer_tokens) for model in models]
    names = [model.name for model in models[1:]]
    return [
        {
            "picture": picture.key,
            "question": question,
            "target": target,
            "references": dict(zip(names, rest, strict=True)),
        }
        for picture, question, target, *rest in zip(pictures, questions, *said, strict=True)
    ]


def found_by(rows: Sequence[dict], my_vote: Callable) -> list[dict]:
    """The rows of `ask_four` on which a participant's vote says that the target departs, with its consensus."""
    voted = [(row, *my_vote(row["target"], list(row["references"].values()))) for row in rows]
    return [row | {"consensus": consensus} for row, consensus, departs in voted if departs]


def judged_in_words(rows: Sequence[dict], found: Sequence[dict], source: Source) -> str:
    """What the known answers say of a vote: how many of the found are failures, and how many failures it missed."""

    def wrong(row: dict) -> bool:
        right = source.accepted(row["picture"], row["question"])
        return bool(right) and not any(same_text(row["target"], one) for one in right)

    true, all_wrong = sum(map(wrong, found)), sum(map(wrong, rows))
    return (
        f"{len(rows)} questions: {len(found)} found, {true} of them truly wrong; the target is wrong on {all_wrong}, "
        f"so {all_wrong - true} are missed"
    )


# ---- (b) a training that collapses, and one that does not -----------------------------------------------------------


def train_small(p: Params, folder: Path, **changes: object) -> list[dict]:
    """Train the auditor on questions alone, whatever happens: its history, one row a step. It goes on where it was.

    Args:
        p: the models, the pictures and the sizes; a collapse ends nothing here.
        folder: of this attempt alone.
        changes: keys of `Params` to change, such as replay_weight.
    """
    p = replace(p, ways=["question"], grpo_patience=0, grpo_checkpoints=1, **changes)  # type: ignore[arg-type]
    load = model_loader(p)
    auditor, target, *references = load(p.auditor, turns=False), *map(load, _answering(p))
    pictures = load_images(p.images).pictures("train", p.train_images, p.seed)
    return train_auditor(auditor, target, references, pictures, p, folder)  # type: ignore[arg-type]


def collapse_in_words(history: Sequence[dict]) -> str:
    """When a training collapsed, by the library's rule with a patience of PATIENCE steps, or that it did not."""
    for last in range(1, len(history) + 1):
        how = {"replay_weight": 0.0, "coverage_weight": 0.0, "learning_rate": 0.0}
        if collapse_reason(history[:last], patience=PATIENCE, **how):
            share = history[last - 1]["commonest"]
            return (
                f"collapsed by step {history[last - 1]['step']}: {share:.0%} of that step's texts are one and the same"
            )
    most = max(row["commonest"] for row in history)
    return f"not collapsed in {len(history)} steps: at most {most:.0%} of a step's texts were one and the same"


def questions_table(folder: Path, steps: int = 3, most: int = 5) -> Table:
    """What an auditor wrote most in the first and last steps of a training, and how often that tripped the target."""
    rows = [row for row in jsonl.read(folder / ROLLOUTS_FILE) if row["question"]]
    last = max((row["step"] for row in rows), default=0)
    found = []
    for when, some in (
        (f"steps 1 to {steps}", [row for row in rows if row["step"] < steps]),
        (f"steps {last - steps + 2} to {last + 1}", [row for row in rows if row["step"] > last - steps]),
    ):
        written, won = Counter(row["question"] for row in some), Counter(r["question"] for r in some if r["success"])
        for question, n in written.most_common(most):
            found.append({"when": when, "question": question, "share": n / len(some), "tripped": won[question] / n})
    columns = ["when", "question", "share", "tripped"]
    return escaped_table(pd.DataFrame(found, columns=columns), {"share": "{:.0%}", "tripped": "{:.0%}"}, index=False)


# ---- (c) does it look? ----------------------------------------------------------------------------------------------


def audit_small(p: Params, n: int, folder: Path, seed: int | None = None) -> list[dict]:
    """An audit by the untrained auditor, one question about each of n pictures: scored records. What is done is kept.

    Args:
        seed: of the pictures, if not the parameters' own.
    """
    pictures = load_images(p.images).pictures("audit", n, p.seed if seed is None else seed)
    p = replace(p, audit_probes=n)
    loads = model_loader(p)
    auditors, answering = auditor_loaders("untrained", loads, p.auditor, None), deferred(loads, *_answering(p))
    records = loop.run_audit(auditors, answering[0], answering[1:], pictures, p, folder, None, ["question"])
    return baseline.score_run(records, choose_same(p, folder), p)


def success_of(p: Params, questions: Sequence[str], pictures: Sequence[Picture], folder: Path) -> list[bool]:
    """Whether the target is wrong, by the known answers, on each question about the picture beside it.

    A question without an answer on its picture is no success.
    """
    source, (target,) = load_images(p.images), deferred(model_loader(p), p.target)
    folder.mkdir(parents=True, exist_ok=True)
    said = AnswerBook(folder / "answers.jsonl").ask(target(), list(pictures), list(questions), p.max_answer_tokens)
    rights = [source.accepted(one.key, question) for one, question in zip(pictures, questions, strict=True)]
    return [bool(right) and not any(same_text(a, b) for b in right) for a, right in zip(said, rights, strict=True)]


# ---- (d) counterfactual ---------------------------------------------------------------------------------------------


def try_commands(
    p: Params, editor: ImagePipeline, pictures: Sequence[Picture], asked: Sequence[tuple[int, str, str]]
) -> list[dict]:
    """Carry out commands, and put a question to target and references before and after each.

    Args:
        asked: (number of the picture, command, question).

    Returns rows {"picture", "command", "question", "before", "after": what all said, with `.target`, `.consensus` and
    `.references`; None after a command that made no picture, "share", "rest": how much changed, and how alike the rest
    is, "why": why the edit is not a targeted one, "" where it is, "card": for plots.pairs}.
    """
    everyone = roles.everyone(deferred(model_loader(p), *_answering(p)), p.max_answer_tokens)
    bounds, rows = {"edit_region": p.edit_region, "edit_rest": p.edit_rest}, []
    for number, command, question in asked:
        image = pictures[number].image
        card, said = attempt_edit(editor, image, command, p.seed, **bounds)
        row = {"picture": number, "command": command, "question": question, "after": None, "why": said, "card": None}
        images = [image, card["image"]] if card else [image]
        answers = [_voted(one, p.quorum) for one in everyone(images, question)]
        row["before"] = answers[0]
        if card:
            change: Change = measure_change(card["before_image"], card["image"])
            why = incoherence(change, most=p.edit_region, rest=p.edit_rest)
            told = {f"{name}_before": value for name, value in vars(answers[0]).items()} | vars(answers[1])
            row |= {"after": answers[1], "share": change.share, "rest": change.rest, "why": why}
            row["card"] = card | told | {"question": question}
        rows.append(row)
    return rows


def commands_table(tried: Sequence[dict]) -> Table:
    """What came of commands (`try_commands`): what all said before and after, how much changed, whether it is fair."""
    rows = []
    for row in tried:
        said = {name: f"{_both(row, 'target')}" if name == "target" else _both(row, "consensus")
                for name in ("target", "references")}  # fmt: skip
        changed = {"changed": row.get("share"), "rest alike": row.get("rest")}
        rows.append({"picture": row["picture"], "command": row["command"]} | said | changed | {"not fair": row["why"]})
    columns = ["picture", "command", "target", "references", "changed", "rest alike", "not fair"]
    frame = pd.DataFrame(rows, columns=columns)
    return escaped_table(frame, {"changed": "{:.0%}", "rest alike": "{:.2f}"}, index=False)


def _both(row: dict, name: str) -> str:
    before, after = (getattr(row[side], name) if row[side] else "no picture" for side in ("before", "after"))
    return f"{before or 'no consensus'} → {after or 'no consensus'}"


def _voted(said: dict, quorum: float) -> SimpleNamespace:
    verdict = vote(said["target"], list(said["references"].values()), quorum=quorum)
    return SimpleNamespace(**said, consensus=verdict.consensus)


def _answering(p: Params) -> list[str]:
    return [p.target, *p.references]
