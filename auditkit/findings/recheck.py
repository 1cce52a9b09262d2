"""Is a finding one?  Gates beyond the consensus: findings are put to target and references again.

The paper takes whatever departs from the consensus. Here a finding may be asked to show more, as `gates` in the
parameter file says:

reproduces: the target, asked again with chance (`repeats` times, at `temperature`) and, where a `paraphraser` is named,
    in other words, departs again; what it gets wrong once in a while is noise, not a gap
sound: the references, asked again likewise, keep their consensus; what they agree on by accident may be no question
visual: the references do not give the same answer on pictures that have nothing to do with it, an empty one among them;
    what can be answered without looking is no failure to see

How strong the consensus must be is `quorum`. `gate_effects` says of each gate by itself what it keeps, and, where the
source of the images knows the truth, how much of that is true. Every answer is kept in crossed.jsonl before it is
compared.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from auditkit.audit.batches import Loader
from auditkit.audit.score import outcome_counts
from auditkit.consensus.same import Same
from auditkit.consensus.vote import vote
from auditkit.counterfactual.store import seed_of
from auditkit.data.source import Picture, Source
from auditkit.findings.grading import grade_planted_gaps
from auditkit.models.answers import AnswerBook
from auditkit.models.base import generate_texts
from auditkit.models.load import model_loader
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.probe import only_findings, parse_question

REASONS = {
    "reproduces": "not reproduced",
    "sound": "ill-posed",
    "visual": "not visual",
}  # gate -> the outcome of what falls through it
RECHECK_FILE = "crossed.jsonl"
HOLDS = 0.75  # share of the repeats in which target, or references, must stay with what they said (our choice)
ELSEWHERE = 5  # pictures on which a question is asked that was written about another one, besides an empty one
CHUNK = 512  # findings put to all models before the next ones
PROMPT = Path(__file__).parent / "prompts" / "paraphrase.txt"


def recheck_findings(
    scored: Sequence[dict],
    target: Loader,
    references: Sequence[Loader],
    p: Params,
    picture: Callable[[str], Picture],
    out: Path,
    elsewhere: Sequence[dict] | None = None,
) -> dict[str, dict]:
    """Put the findings among scored records to the models again, as far as p.gates want it; what is on file is not.

    Args:
        scored: records of score_probes.
        target, references: what loads the models, as for run_audit.
        p: uses gates, repeats, paraphraser, temperature, seed, max_question_tokens and max_answer_tokens.
        picture: a key -> the picture, those that were made among them.
        out: the audit's folder.
        elsewhere: records about whose pictures a question is asked that has nothing to do with them; `scored` if not
            given.

    Returns by key {"key", "target": [answers], "references": {name: [answers]}, "elsewhere": {name: [answers]},
    "paraphrase": text or None}: `repeats` answers each, one more to the paraphrase; elsewhere the empty picture first.
    """
    kept = only_findings(scored)
    known = {row["key"]: row for row in jsonl.read(out / RECHECK_FILE)}
    chunks = [kept[start : start + CHUNK] for start in range(0, len(kept), CHUNK)]
    todo = [chunk for chunk in chunks if any(row["key"] not in known for row in chunk)] if p.gates else []
    if todo:
        book = AnswerBook(out / "answers.jsonl")
        others = _elsewhere(scored if elsewhere is None else elsewhere, picture, p.seed)
        paraphrases = _paraphrases(kept, picture, p)
        models = [load() for load in (target, *references)]
        for chunk in todo:
            rows = _answers(chunk, models, paraphrases, others, picture, book, p)
            jsonl.append(out / RECHECK_FILE, [row for row in rows if row["key"] not in known])
            known |= {row["key"]: row for row in rows}
    return {row["key"]: known[row["key"]] for row in kept if row["key"] in known}


def recheck_counts(rechecked: Mapping[str, dict], scored: Sequence[dict]) -> dict[str, int]:
    """How many answers target and references gave again: {"target_called", "references_called"}.

    What was asked of other pictures was asked once for each wording.
    """
    asked = {row["key"]: row["question"] for row in scored if row["key"] in rechecked}
    elsewhere = {
        (asked[key], name): len(far) for key, row in rechecked.items() for name, far in row["elsewhere"].items()
    }
    again = sum(len(said) for row in rechecked.values() for said in row["references"].values())
    target = sum(len(row["target"]) for row in rechecked.values())
    return {"target_called": target, "references_called": again + sum(elsewhere.values())}


def all_counts(scored: Sequence[dict], rechecked: Mapping[str, dict], met: Sequence[dict] = ()) -> dict[str, int]:
    """`outcome_counts` of an audit, with what was asked again of its findings, and of those met in training (`met`)."""
    counted = outcome_counts(scored)
    for name, more in recheck_counts(rechecked, [*scored, *met]).items():
        counted[name] += more
    return counted


def apply_gates(
    scored: Sequence[dict], rechecked: Mapping[str, dict], gates: Sequence[str], alike: Same, quorum: float
) -> list[dict]:
    """The scored records; a finding that does not hold gets the outcome of the first of the gates it falls through.

    Args:
        rechecked: what `recheck_findings` returns.
        alike, quorum: as for `score_probes`.
    """

    def gated(row: dict) -> dict:
        if row["outcome"] != "finding" or row["key"] not in rechecked:
            return row
        for gate in gates:
            if not passes_gate(gate, row, rechecked[row["key"]], alike, quorum):
                return row | {"outcome": REASONS[gate], "irrelevant_edit": False}
        return row

    return [gated(row) for row in scored]


def passes_gate(gate: str, row: Mapping, again: Mapping, alike: Same, quorum: float) -> bool:
    """Whether one finding passes one gate, by what was said to it again (a row of `recheck_findings`)."""
    question, consensus = row["question"], row["consensus"]
    if gate == "reproduces":
        departs = [not alike(said, consensus, question) for said in again["target"]]
        return sum(departs) >= HOLDS * len(departs)
    if gate == "sound":
        together = zip(*again["references"].values(), strict=True)
        said = [vote("", answers, alike, quorum, question).consensus for answers in together]
        stays = [one is not None and alike(one, consensus, question) for one in said]
        return sum(stays) >= HOLDS * len(stays)
    together = zip(*again["elsewhere"].values(), strict=True)
    said = [vote("", answers, alike, quorum, question).consensus for answers in together]
    return not all(one is not None and alike(one, consensus, question) for one in said)


def gate_effects(
    scored: Sequence[dict],
    rechecked: Mapping[str, dict],
    source: Source,
    gates: Sequence[str],
    alike: Same,
    quorum: float,
) -> dict[str, dict]:
    """What each gate alone does to the findings, and all that are switched on together.

    Args:
        scored: records of score_probes, before `apply_gates`.
        source: grades, where it can.

    Returns {gate: {"kept": findings, "dropped": findings, "precision"?: rate, "dropped_true"?: rate}}: precision is the
    share of those kept that are true, dropped_true that of those dropped; the gates are "none", "consensus" (all
    references agree), those given, and "all" of these together.
    """
    kept = only_findings(scored)
    passes = {"none": [True] * len(kept), "consensus": [row["agreement"] > 1 - 1e-9 for row in kept]}
    for gate in gates:
        passes[gate] = [passes_gate(gate, row, rechecked[row["key"]], alike, quorum) for row in kept]
    if gates:
        passes["all"] = [all(of) for of in zip(*(passes[gate] for gate in gates), strict=True)]
    return {gate: _effect(kept, passed, source) for gate, passed in passes.items()}


def _effect(kept: Sequence[dict], passed: Sequence[bool], source) -> dict:
    stays = [row for row, ok in zip(kept, passed, strict=True) if ok]
    falls = [row for row, ok in zip(kept, passed, strict=True) if not ok]
    found = {"kept": len(stays), "dropped": len(falls)}
    for name, rows in (("precision", stays), ("dropped_true", falls)):
        if (share := grade_planted_gaps(rows, source, []).get("precision")) is not None:
            found[name] = share
    return found


def _answers(
    chunk: Sequence[dict],
    models: Sequence,
    paraphrases: Mapping[str, str | None],
    others: Sequence[Picture],
    picture: Callable[[str], Picture],
    book: AnswerBook,
    p: Params,
) -> list[dict]:
    """The rows of a chunk of findings; a model at a time, with all that it is to answer."""
    images = [picture(row["picture"]).image for row in chunk]
    questions = [row["question"] for row in chunk]
    worded = {i: words for i, row in enumerate(chunk) if (words := paraphrases.get(row["key"]))}
    rows = [
        {"key": row["key"], "target": [], "references": {}, "elsewhere": {}, "paraphrase": paraphrases.get(row["key"])}
        for row in chunk
    ]
    for model in models:
        is_target = model is models[0]
        again: list[list[str]] = [[] for _ in chunk]
        if ("reproduces" if is_target else "sound") in p.gates:
            seed = seed_of(p.seed, model.name, chunk[0]["key"])
            all_of = [i for _ in range(p.repeats) for i in range(len(chunk))]
            shown, asked = [images[i] for i in all_of], [questions[i] for i in all_of]
            said = generate_texts(model, shown, asked, p.max_answer_tokens, p.temperature, seed)
            pictures = [picture(chunk[i]["picture"]) for i in worded]
            said += book.ask(model, pictures, list(worded.values()), p.max_answer_tokens)
            for i, one in zip([*all_of, *worded], said, strict=True):
                again[i].append(one)
        elsewhere: list[list[str]] = [[] for _ in chunk]
        if not is_target and "visual" in p.gates:
            pairs = [(other, question) for question in questions for other in others]
            said = book.ask(model, [o for o, _ in pairs], [q for _, q in pairs], p.max_answer_tokens)
            elsewhere = [said[i * len(others) : (i + 1) * len(others)] for i in range(len(chunk))]
        for row, of, far in zip(rows, again, elsewhere, strict=True):
            if is_target:
                row["target"] = of
            else:
                row["references"][model.name], row["elsewhere"][model.name] = of, far
    return rows


def _elsewhere(scored: Sequence[dict], picture: Callable[[str], Picture], seed: int) -> list[Picture]:
    """An empty picture and a few of the audit's."""
    keys = sorted({row["base"] or row["picture"] for row in scored})
    some = [picture(key) for key in random.Random(f"{seed}/elsewhere").sample(keys, min(ELSEWHERE, len(keys)))]
    return [Picture("empty", Image.new("RGB", some[0].image.size, (128, 128, 128))), *some]


def _paraphrases(kept: Sequence[dict], picture: Callable[[str], Picture], p: Params) -> dict[str, str | None]:
    """By key, each finding's question in other words, None where none came; nothing without a paraphraser."""
    if not p.paraphraser:
        return {}
    model, template = model_loader(p)(p.paraphraser), PROMPT.read_text(encoding="utf-8")
    prompts = [template.replace("{question}", row["question"]).strip() for row in kept]
    images = [picture(row["picture"]).image for row in kept]
    texts = generate_texts(model, images, prompts, p.max_question_tokens)
    return {row["key"]: parse_question(text) for row, text in zip(kept, texts, strict=True)}
