"""The audit: the auditor asks about pictures it never saw, target and references answer, and every word is kept.

(paper, Sec. 3.2: one pass per picture, no further search.) Departs from the paper in one way: probes come from several
checkpoints of the auditor, the untrained one among them. The last succeeds most often, but training narrows what an
auditor asks about, and the earlier checkpoints still reach what the last one forgot. Of the miniature's 28 gaps, 2,000
probes found 25 and 26 (two seeds, auditors trained for 240 steps) with 40 % of them by the untrained auditor and 30 %
by the last one; with 15 % and 50 % they found 19 and 25.

Three files grow in the audit's folder, so it can be killed anywhere and started again: proposals.jsonl (what the
auditors wrote), answers.jsonl (what each model said), records.jsonl (one row a probe). Answers are saved before they
are scored; `score` needs no model.

The work is cut into batches that depend on nothing but the parameters, each with its own seed. So it does not matter
who does them: `Proposing` and `Answering` do one after another here, or on many GPUs and machines (audit_ray.py), and
the records are the same.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from auditkit import auditor as auditing
from auditkit import lines
from auditkit.auditor import Probe
from auditkit.disagreement import normalise, same, verdicts
from auditkit.errors import AuditError
from auditkit.images import Picture
from auditkit.memory import free
from auditkit.vlm import AnswerBook, Writer

UNTRAINED, LAST = 0.4, 0.3  # shares of the first and the last checkpoint; those between share the rest
CHUNK = 512  # probes answered by all models before the next ones

Loader = Callable[[], Writer]  # loads a model when it is called: partial(vlm.loader(p), spec), or lambda: model


def shares(checkpoints: Sequence[str], probes: int) -> dict[str, int]:
    """How many probes each checkpoint writes: 40 % the first, 30 % the last, the others the rest, all of them if one.

    >>> shares(["untrained", "60", "120", "180"], 2000)
    {'untrained': 800, '60': 300, '120': 300, '180': 600}
    >>> shares(["untrained", "180"], 10)
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


def run(
    auditors: Mapping[str, Loader],
    target: Loader,
    references: Sequence[Loader],
    pictures: Sequence[Picture],
    p,
    out: Path,
    counts: Mapping[str, int] | None = None,
) -> list[dict]:
    """Ask about each picture once, and return one record a probe.

    Models are loaded when they are needed and dropped after: of the auditors, the first and one more at a time, then
    target and references.

    Args:
        auditors: checkpoint name -> what loads that auditor, the untrained one first, the trained one last.
        target, references: what loads the models that answer.
        pictures: pictures the auditors never saw, all different; with fewer than p.audit_probes there are fewer probes.
        p: uses audit_probes, seed, batch_size, temperature, max_question_tokens, max_answer_tokens, engine; under
            "ray" also workers, device and images, from which the workers take the pictures.
        out: the folder; what is there already is not asked again.
        counts: probes of each checkpoint, if not by `shares`.

    Returns records {"key", "picture", "question", "text", "way", "pairing", "checkpoint", "target": answer,
    "references": {name: answer}}; a malformed probe has question and target None and no references.

    Raises AuditError for models of the same name, for no references, for more counts than pictures, for auditors of
    whom none writes a question, and under "ray" for a cluster that cannot do it.
    """
    _refuse_confusion(references, pictures, auditors)
    if counts is None:
        counts = shares(list(auditors), min(p.audit_probes, len(pictures)))
    if sum(counts.values()) > len(pictures):
        raise AuditError(f"audit: {sum(counts.values())} probes need as many pictures, but there are {len(pictures)}.")
    out = Path(out)
    dealt, start = {}, 0
    for name in auditors:
        dealt[name] = pictures[start : start + counts.get(name, 0)]
        start += counts.get(name, 0)
    where = {picture.key: picture for picture in pictures}
    probes = _propose(auditors, dealt, where, p, out)
    return _answer(probes, target, references, where, p, out)


def score(records: Sequence[dict], p, folder: Path | None = None) -> list[dict]:
    """The records with consensus, agreement, disagrees and gate, in their order; those given are left as they are.

    The gate is the first reason why a probe is no finding: "malformed", "implausible" (a word of the question is less
    probable to the untrained auditor than p.min_token_probability), "duplicate" (the same question on the same picture
    came before), "no consensus" or "agrees"; "ok" is a finding.

    Args:
        p: uses min_token_probability, quorum and same, and device, dtype, batch_size and memory where a model judges.
        folder: where the verdicts of such a model are kept; those on file need no model.

    Raises AuditError when the target was never asked, and when the references never agree.
    """
    said = [(r["question"], r["target"], list(r["references"].values())) for r in records if r["question"] is not None]
    found, seen, scored = iter(verdicts(said, same(p, folder), p.quorum)), set(), []
    for record in records:
        row = {**record, "consensus": None, "agreement": 0.0, "disagrees": False}
        asked = (record["picture"], normalise(record["question"] or ""))
        if record["question"] is None:
            row["gate"] = "malformed"
        else:
            verdict = next(found)
            row |= {"consensus": verdict.consensus, "agreement": verdict.agreement, "disagrees": verdict.disagrees}
            rarest = record.get("rarest")  # 0.0 where softmax underflows: as implausible as can be
            row["gate"] = (
                "implausible" if rarest is not None and rarest < p.min_token_probability else
                "duplicate" if asked in seen else
                "no consensus" if verdict.consensus is None else
                "ok" if verdict.disagrees else "agrees"
            )  # fmt: skip
            seen.add(asked)
        scored.append(row)
    answered = [row for row in scored if row["question"] is not None]
    if not answered:
        raise AuditError(f"none of {len(scored)} probes holds a question, so the target was never asked; "
                         "look at what the auditor wrote in proposals.jsonl.")  # fmt: skip
    if all(row["consensus"] is None for row in answered):
        names = ", ".join(answered[0]["references"])
        raise AuditError(f"the references ({names}) never agree on any of {len(answered)} probes, so nothing can be "
                         f"scored; lower `quorum` (now {p.quorum}) or name other references.")  # fmt: skip
    return scored


def counts(scored: Sequence[dict]) -> dict[str, int]:
    """What was asked, answered and dropped, from scored records: the same however often the audit was interrupted.

    A question that came twice on one picture was put to the models once, so calls count distinct ones.
    """
    gates = [row["gate"] for row in scored]
    calls = {(row["picture"], row["question"]): len(row["references"]) for row in scored if row["question"] is not None}
    return {
        "asked": len(scored),
        "parsed": len(scored) - gates.count("malformed"),
        "target_called": len(calls),
        "references_called": sum(calls.values()),
        "scored": gates.count("ok") + gates.count("agrees"),
        "malformed": gates.count("malformed"),
        "implausible": gates.count("implausible"),
        "no_consensus": gates.count("no consensus"),
        "duplicates": gates.count("duplicate"),
    }


class Proposing:
    """Has auditors write probes, batch after batch; beside the untrained one it holds one checkpoint at a time."""

    def __init__(self, auditors: Mapping[str, Loader], p):
        self.auditors, self.p, self.untrained, self.name, self.auditor = auditors, p, None, None, None

    def __call__(self, batch: dict, picture: Callable[[str], Picture]) -> dict:
        """The probes of a batch {"checkpoint", "keys", "pictures": their keys}, as {"probes": rows}.

        Each batch has a seed of its own: an auditor writes the same whoever was asked what before.
        """
        first = next(iter(self.auditors))
        self.untrained = self.untrained or self.auditors[first]()
        if batch["checkpoint"] != self.name:
            self.name, self.auditor = batch["checkpoint"], None  # the last one goes before the next one comes
            free()
            self.auditor = self.untrained if self.name == first else self.auditors[self.name]()
        p, pictures = self.p, [picture(key) for key in batch["pictures"]]
        seed = int(hashlib.sha256(f"{p.seed}/{batch['keys'][0]}".encode()).hexdigest()[:8], 16)
        written = auditing.write(self.auditor, pictures, p.temperature, p.max_question_tokens, seed)
        rarest = auditing.rarest(self.untrained, pictures, [probe.text for probe in written])
        probes = [
            replace(probe, key=key, checkpoint=self.name, rarest=least)
            for key, probe, least in zip(batch["keys"], written, rarest, strict=True)
        ]
        return {"probes": [asdict(probe) for probe in probes]}


class Answering:
    """Puts probes to the target and the references, chunk after chunk."""

    def __init__(self, target: Loader, references: Sequence[Loader], p):
        self.target, self.references, self.p, self.models = target, references, p, None

    def __call__(self, chunk: dict, picture: Callable[[str], Picture], book: AnswerBook) -> dict:
        """The records of a chunk {"probes": rows}, as {"records": rows}.

        Raises AuditError when two models have one name, by which records tell them apart.
        """
        if self.models is None:
            models = [self.target(), *(load() for load in self.references)]
            names = [model.name for model in models]
            if twice := {name for name in names if names.count(name) > 1}:
                raise AuditError(
                    f"target and references: two are called {min(twice)}; rename a folder, or name it once."
                )
            self.models = models
        target, *references = self.models
        asked = [probe for probe in chunk["probes"] if probe["question"] is not None]
        pictures, questions = [picture(probe["picture"]) for probe in asked], [probe["question"] for probe in asked]
        said = {vlm.name: book.ask(vlm, pictures, questions, self.p.max_answer_tokens) for vlm in self.models}
        rows = {probe["key"]: {**probe, "target": None, "references": {}} for probe in chunk["probes"]}
        for i, probe in enumerate(asked):
            rows[probe["key"]]["target"] = said[target.name][i]
            rows[probe["key"]]["references"] = {vlm.name: said[vlm.name][i] for vlm in references}
        return {"records": list(rows.values())}


def _propose(
    auditors: Mapping[str, Loader],
    dealt: Mapping[str, Sequence[Picture]],
    where: Mapping[str, Picture],
    p,
    out: Path,
) -> list[Probe]:
    """One probe a picture, batch after batch, each saved as it is written; a batch on file is not asked for again."""
    path = out / "proposals.jsonl"
    known, batches = {row["key"]: Probe(**row) for row in lines.read(path)}, []
    for name, pictures in dealt.items():
        for start in range(0, len(pictures), p.batch_size):
            batch = [picture.key for picture in pictures[start : start + p.batch_size]]
            keys = [f"{name}/{start + i:05d}" for i in range(len(batch))]
            batches.append({"checkpoint": name, "keys": keys, "pictures": batch})
    todo = [batch for batch in batches if any(key not in known for key in batch["keys"])]
    begun, new = time.monotonic(), 0
    for done in _each(todo, Proposing(auditors, p), where, p):
        fresh = {row["key"]: Probe(**row) for row in done["probes"] if row["key"] not in known}
        lines.append(path, map(asdict, fresh.values()))
        known |= fresh
        new += len(fresh)
        name = done["probes"][0]["checkpoint"]
        print(f"audit: {name} wrote, {new} new probes in {time.monotonic() - begun:.0f} s", flush=True)
    for batch in batches:
        if [known[key].picture for key in batch["keys"]] != batch["pictures"]:
            raise AuditError(f"{path} holds probes about other pictures; start the audit over in an empty folder.")
    probes = [known[key] for batch in batches for key in batch["keys"]]
    auditing.refuse_nonsense(", ".join(name for name in dealt if dealt[name]), probes)
    return probes


def _answer(
    probes: list[Probe], target: Loader, references: Sequence[Loader], where: Mapping[str, Picture], p, out: Path
) -> list[dict]:
    """Put the probes to all models, chunk by chunk, and append a record for each."""
    path = out / "records.jsonl"
    records = {row["key"]: row for row in lines.read(path)}
    chunks = [{"probes": [asdict(probe) for probe in probes[i : i + CHUNK]]} for i in range(0, len(probes), CHUNK)]
    todo = [chunk for chunk in chunks if any(probe["key"] not in records for probe in chunk["probes"])]
    book, begun = AnswerBook(out / "answers.jsonl"), time.monotonic()
    answered = len(probes) - sum(len(chunk["probes"]) for chunk in todo)
    for done in _each(todo, Answering(target, references, p), where, p, book):
        new = {row["key"]: row for row in done["records"] if row["key"] not in records}
        lines.append(path, new.values())
        records |= new
        answered, seconds = answered + len(done["records"]), time.monotonic() - begun
        print(f"audit: {answered} of {len(probes)} probes answered by all models, {seconds:.0f} s", flush=True)
    ordered = [records[probe.key] for probe in probes]
    if list(records) != [row["key"] for row in ordered]:  # workers are done when they are done
        lines.replace(path, ordered)
    return ordered


def _each(todo: Iterable[dict], work: Callable, where: Mapping[str, Picture], p, book=None) -> Iterator[dict]:
    """What `work` makes of each batch, as it comes: one after another here, or in any order from Ray's workers."""
    if p.engine == "ray":
        from auditkit import audit_ray

        yield from audit_ray.each(list(todo), work, p, book)
    else:
        for batch in todo:
            yield work(batch, where.__getitem__, *([] if book is None else [book]))


def _refuse_confusion(references: Sequence, pictures: Sequence[Picture], auditors: Mapping) -> None:
    if not auditors:
        raise AuditError("audit: there is no auditor.")
    if not references:
        raise AuditError("references: name at least one; with none there is no consensus to depart from.")
    if not pictures:
        raise AuditError("audit: there are no pictures.")
    if len({picture.key for picture in pictures}) < len(pictures):
        raise AuditError("audit: a picture comes twice; each probe is to have its own.")
