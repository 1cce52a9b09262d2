"""The audit: the auditor asks about pictures it never saw, target and references answer, and every word is kept.

(paper, Sec. 3.2: one pass per picture, no further search.) Departs from the paper in one way: probes come from several
checkpoints of the auditor, the untrained one among them. The last succeeds most often, but training narrows what an
auditor asks about, and the earlier checkpoints still reach what the last one forgot. Of the miniature's 28 gaps, 2,000
probes found 25 and 26 (two seeds, auditors trained for 240 steps) with 40 % of them by the untrained auditor and 30 %
by the last one; with 15 % and 50 % they found 19 and 25.

Three files grow in the audit's folder, and each is only appended to, so it can be killed anywhere and started again:
proposals.jsonl (what the auditors wrote), answers.jsonl (what each model said), records.jsonl (one row a probe).
Answers are saved before they are scored; `score` needs no model.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from auditkit import auditor as auditing
from auditkit import lines
from auditkit.auditor import Probe
from auditkit.disagreement import normalise, same, verdicts
from auditkit.errors import AuditError
from auditkit.images import Picture
from auditkit.vlm import VLM, AnswerBook

UNTRAINED, LAST = 0.4, 0.3  # shares of the first and the last checkpoint; those between share the rest
CHUNK = 512  # probes answered by all models before the next ones


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
    auditors: Mapping[str, VLM],
    target: VLM,
    references: Sequence[VLM],
    pictures: Sequence[Picture],
    p,
    out: Path,
    counts: Mapping[str, int] | None = None,
) -> list[dict]:
    """Ask about each picture once, and return one record a probe.

    Args:
        auditors: checkpoint name -> auditor, the untrained one first, the trained one last.
        target, references: the models that answer.
        pictures: pictures the auditors never saw, all different; with fewer than p.audit_probes there are fewer probes.
        p: uses audit_probes, seed, temperature, max_question_tokens, max_answer_tokens.
        out: the folder; what is there already is not asked again.
        counts: probes of each checkpoint, if not by `shares`.

    Returns records {"key", "picture", "question", "text", "way", "pairing", "checkpoint", "target": answer,
    "references": {name: answer}}; a malformed probe has question and target None and no references.

    Raises AuditError for models of the same name, for no references, for more counts than pictures, and for auditors of
    whom none writes a question.
    """
    _refuse_confusion(target, references, pictures, auditors)
    if counts is None:
        counts = shares(list(auditors), min(p.audit_probes, len(pictures)))
    if sum(counts.values()) > len(pictures):
        raise AuditError(f"audit: {sum(counts.values())} probes need as many pictures, but there are {len(pictures)}.")
    out = Path(out)
    dealt, start = {}, 0
    for name in auditors:
        dealt[name] = pictures[start : start + counts.get(name, 0)]
        start += counts.get(name, 0)
    probes = _propose(auditors, dealt, p, out / "proposals.jsonl")
    where = {picture.key: picture for picture in pictures}
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


def _propose(auditors: Mapping[str, VLM], dealt: Mapping[str, Sequence[Picture]], p, path: Path) -> list[Probe]:
    """One probe a picture, batch after batch, each saved as it is written; a batch on file is not asked for again."""
    known = {row["key"]: Probe(**row) for row in lines.read(path)}
    probes: list[Probe] = []
    untrained = next(iter(auditors.values()))
    for name, vlm in auditors.items():
        begun, new = time.monotonic(), 0
        for start in range(0, len(dealt[name]), vlm.batch_size):
            batch = dealt[name][start : start + vlm.batch_size]
            keys = [f"{name}/{start + i:05d}" for i in range(len(batch))]
            if any(key not in known for key in keys):
                # its own seed: an auditor writes the same whether or not the batches before were asked in this process
                seed = int(hashlib.sha256(f"{p.seed}/{keys[0]}".encode()).hexdigest()[:8], 16)
                written = auditing.write(vlm, batch, p.temperature, p.max_question_tokens, seed)
                rarest = auditing.rarest(untrained, batch, [probe.text for probe in written])
                fresh = {
                    key: replace(probe, key=key, checkpoint=name, rarest=least)
                    for key, probe, least in zip(keys, written, rarest, strict=True)
                    if key not in known
                }
                lines.append(path, map(asdict, fresh.values()))
                known |= fresh
                new += len(fresh)
            probes += [known[key] for key in keys]
            if [known[key].picture for key in keys] != [picture.key for picture in batch]:
                raise AuditError(f"{path} holds probes about other pictures; start the audit over in an empty folder.")
        if new:
            print(f"audit: {name} wrote {new} probes in {time.monotonic() - begun:.0f} s", flush=True)
    auditing.refuse_nonsense(", ".join(dict.fromkeys(vlm.name for vlm in auditors.values())), probes)
    return probes


def _answer(
    probes: list[Probe],
    target: VLM,
    references: Sequence[VLM],
    where: Mapping[str, Picture],
    p,
    out: Path,
) -> list[dict]:
    """Put the probes to all models, chunk by chunk, and append a record for each."""
    path = out / "records.jsonl"
    records = {row["key"]: row for row in lines.read(path)}
    book, begun = AnswerBook(out / "answers.jsonl"), time.monotonic()
    for start in range(0, len(probes), CHUNK):
        chunk = probes[start : start + CHUNK]
        if all(probe.key in records for probe in chunk):
            continue
        asked = [probe for probe in chunk if probe.question is not None]
        said = {
            vlm.name: book.ask(
                vlm, [where[probe.picture] for probe in asked], [probe.question for probe in asked], p.max_answer_tokens
            )
            for vlm in (target, *references)
        }
        rows = {probe.key: {**asdict(probe), "target": None, "references": {}} for probe in chunk}
        for i, probe in enumerate(asked):
            rows[probe.key]["target"] = said[target.name][i]
            rows[probe.key]["references"] = {vlm.name: said[vlm.name][i] for vlm in references}
        new = {key: row for key, row in rows.items() if key not in records}
        lines.append(path, new.values())
        records |= new
        done, seconds = min(start + CHUNK, len(probes)), time.monotonic() - begun
        print(f"audit: {done} of {len(probes)} probes answered by all models, {seconds:.0f} s", flush=True)
    return [records[probe.key] for probe in probes]


def _refuse_confusion(
    target: VLM, references: Sequence[VLM], pictures: Sequence[Picture], auditors: Mapping[str, VLM]
) -> None:
    if not auditors:
        raise AuditError("audit: there is no auditor.")
    if not references:
        raise AuditError("references: name at least one; with none there is no consensus to depart from.")
    names = [target.name, *(vlm.name for vlm in references)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise AuditError(f"target and references: two are called {min(twice)}; rename a folder, or name it once.")
    if not pictures:
        raise AuditError("audit: there are no pictures.")
    if len({picture.key for picture in pictures}) < len(pictures):
        raise AuditError("audit: a picture comes twice; each probe is to have its own.")
