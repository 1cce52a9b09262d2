"""A short name for each failure type, by a model that is asked for one: "clock reading", not what its questions share.

It is put the fixed prompt of prompts/name.txt, without a picture: what the type's questions share, some of them, and
what the target says for what. It may be anything that writes, as a judge may (consensus/llm_judge.py). What it replies
names, and nothing else: no finding changes its type. A reply that is no short name is refused; the type then keeps the
name that is made of its own words (findings/grouping.py). So is a name that most of the types get: it tells nothing
apart. Where two types have one name, what is said for what is added.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from auditkit import specs
from auditkit.errors import Unfinished
from auditkit.findings.failure_types import FailureType, find_failure_types
from auditkit.findings.grouping import DASH
from auditkit.models.base import Writer
from auditkit.models.batching import in_batches
from auditkit.models.language import language_model_loader
from auditkit.models.offload import at_work
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.costs import NAMED_FILE
from auditkit.text import quoted, visible

REPLY_TOKENS = 16
WORDS, LETTERS = 6, 48  # a longer reply is no name
NO_NAMES = ("yes", "no", "none", "it", "the", "i", "says")  # an answer, or how a sentence begins
QUESTIONS, CONFUSIONS = 5, 4  # of a type, shown to the model


def name_types(
    types: Sequence[FailureType], namer: str, load: Callable[[str, str], Writer], folder: Path
) -> tuple[list[FailureType], dict[str, int]]:
    """The types under the names that a model gives them, in their order, and how many it named.

    Args:
        namer: the text that names the model; "" for none.
        load: that text and its key -> the model (`language_model_loader`); called when something is to be asked.
        folder: where replies are kept (named.jsonl): what is on file is not asked again.

    Returns (types, {"named", "refused"}); ({the types as they are}, {}) without a namer.
    """
    if not namer:
        return list(types), {}
    replies = _asked([naming_prompt(kind) for kind in types], namer, load, folder)
    short = [name_in(replies[naming_prompt(kind)]) for kind in types]
    often = Counter(name.lower() for name in short if name)
    short = [name if name and often[name.lower()] <= max(2, len(types) / 2) else None for name in short]
    names = [_unlike(kind, name, often) for kind, name in zip(types, short, strict=True)]
    twice = Counter(names)
    names = [name if twice[name] == 1 else kind.name for kind, name in zip(types, names, strict=True)]
    refused = short.count(None)
    return [replace(kind, name=name) for kind, name in zip(types, names, strict=True)], {
        "named": len(short) - refused,
        "refused": refused,
    }


def named_failure_types(scored: Sequence[dict], p: Params, folder: Path) -> tuple[list[FailureType], dict[str, int]]:
    """The failure types of an audit under the names they get; returns as `name_types`.

    Args:
        p: uses failure_types, types_by and namer, and what `language_model_loader` does.
    """
    found = find_failure_types(scored, p.failure_types, p.types_by)
    return name_types(found, p.namer, language_model_loader(p), folder)


def naming_prompt(kind: FailureType) -> str:
    """What the model is asked about a type; what models wrote is `quoted`: nothing in it looks like the prompt."""
    said = [f"{pair['target'] or 'nothing'} for {pair['consensus']}" for pair in kind.confusion[:CONFUSIONS]]
    texts = " ".join(dict.fromkeys([kind.template, *kind.questions[:QUESTIONS]])), f"says {', '.join(said)}"
    questions, wrong = map(quoted, texts)
    return _prompt().format(questions=questions, wrong=wrong)


def name_in(reply: str) -> str | None:
    """The short name in a reply; None where there is none: a sentence, a question, or no letters at all.

    >>> [name_in(reply) for reply in ('"Clock reading".', "Name: colour of hats", "It says six for seven.", "yes", "6")]
    ['Clock reading', 'colour of hats', None, None, None]
    """
    first = next((line for line in reply.splitlines() if line.strip()), "")
    name = re.sub(r"^(?:name|topic|answer)\s*:\s*", "", first.strip(), flags=re.I).strip(" \t\"'“”‘’*`.")
    words = name.split()
    wordy = len(words) > WORDS or len(name) > LETTERS or max(map(len, words), default=0) > LETTERS // 2
    said = bool(words) and words[0].lower() in NO_NAMES
    strange = re.search(r"[?:;!<>{}\[\]=@#$%^|\\\"`]|www\.", name) or visible(name, keep="") != name
    return None if wordy or said or strange or not re.search(r"[^\W\d_]{3}", name) else name


def _unlike(kind: FailureType, name: str | None, often: Counter) -> str:
    """Its short name, with what is said for what where another type has the same."""
    if name is None:
        return kind.name
    return name if often[name.lower()] == 1 else f"{name} {DASH} {kind.name.rpartition(f' {DASH} ')[2]}"


def _asked(prompts: Sequence[str], namer: str, load: Callable[[str, str], Writer], folder: Path) -> dict[str, str]:
    """The model's reply to each prompt; each batch is filed as soon as it is done."""
    path = folder / NAMED_FILE
    replies = {row["prompt"]: row["reply"] for row in jsonl.read(path) if specs.same_model(row["namer"], namer)}
    todo = [text for text in dict.fromkeys(prompts) if text not in replies]
    if not todo:
        return replies
    model = load(namer, "namer")

    def keep(texts: Sequence[str], said: Sequence[str | None]) -> None:
        new = [(text, reply) for text, reply in zip(texts, said, strict=True) if reply is not None]
        about = {"namer": namer, "model": model.name}
        jsonl.append(path, (about | {"prompt": t, "reply": str(r)} | getattr(r, "beside", {}) for t, r in new))
        replies.update((text, str(reply)) for text, reply in new)

    def ask(rows: list[int]) -> None:
        batch = [todo[i] for i in rows]
        try:
            keep(batch, model.write([None] * len(batch), batch, REPLY_TOKENS))
        except Unfinished as error:  # a request among others failed; what came back has been paid for
            keep(batch, error.answers)
            raise

    with at_work(model):
        for _ in in_batches(model, todo, ask):
            pass
    return replies


@cache
def _prompt() -> str:
    return (Path(__file__).parent / "prompts" / "name.txt").read_text(encoding="utf-8").strip()
