"""The audit: the auditor asks about pictures it never saw, target and references answer, and every word is kept.

(paper, Sec. 3.2: one pass per picture, no further search.) Departs from the paper in one way: probes come from several
checkpoints of the auditor, the untrained one among them (audit/allocation.py).

Three files grow in the audit's folder, so it can be killed anywhere and started again: proposals.jsonl (what the
auditors wrote), answers.jsonl (what each model said), records.jsonl (one row a probe). Answers are saved before they
are scored; `score_probes` needs no model.

Probes come in three ways. A question is asked of the picture it was written about. For the other two the auditor first
wishes for a picture, by a caption or an edit command; it is made (counterfactual/store.py) and looked at, and then the
auditor writes a question about what came out, (Q*, I*). The source's own question about the original, where it has one,
is asked of the new picture too, (Q, I*), and after an edit also of the original: a target that was right before, and is
not after an edit that left the consensus as it was, has failed on an *irrelevant edit*.

Of several questions written about a picture one is asked where `candidates` says so (audit/selection.py). Where `search`
says so, the audit goes in rounds instead, and what it has heard decides what it asks (audit/rounds.py, audit/search.py).

The work is cut into batches that depend on nothing but the parameters, each with its own seed. So it does not matter
who does them: `WriteProbes` and `AnswerProbes` (audit/batches.py) do one after another here, or on many GPUs and
machines (audit/ray_backend.py), and the records are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from auditkit.audit.allocation import SOURCE, candidate_batches, checkpoint_shares, pool_size, probe_batches
from auditkit.audit.batches import AnswerProbes, AuditorLoader, Loader, WriteProbes
from auditkit.audit.rounds import ask_in_rounds
from auditkit.audit.selection import select_questions
from auditkit.auditor.write import refuse_nonsense
from auditkit.counterfactual.store import (
    IMAGES_FILE,
)
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.probe import Probe
from auditkit.runs.progress import Progress

CHUNK = 512  # probes answered by all models before the next ones


def run_audit(
    auditors: Mapping[str, AuditorLoader],
    target: Loader,
    references: Sequence[Loader],
    pictures: Sequence[Picture],
    p: Params,
    out: Path,
    counts: Mapping[str, int] | None = None,
    ways: Sequence[str] | None = None,
    own: Callable[[str], str | None] = lambda key: None,
    again: bool = False,
    rollouts: Sequence[Mapping] = (),
) -> list[dict]:
    """Ask about each picture once, and return one record a probe.

    Models are loaded when they are needed and dropped after: of the auditors, the first and one more at a time, then
    target and references.

    Args:
        auditors: checkpoint name -> what loads that auditor, the untrained one first, the trained one last.
            SOURCE alone stands for the questions that come with the pictures: a control without any auditor.
        target, references: what loads the models that answer.
        pictures: pictures the auditors never saw, all different; with fewer than p.audit_probes there are fewer probes.
        p: uses audit_probes, candidates, search, seed, batch_size, temperature, max_question_tokens, max_answer_tokens, engine;
            under "ray" also workers, device and images, from which the workers take the pictures.
        out: the folder; what is there already is not asked again.
        counts: pictures of each checkpoint, if not by `checkpoint_shares`.
        ways: that take turns, if not p.ways.
        own: the source's own question about a picture, as Source.question.
        again: a picture may come more than once, as one with several labelled questions does on the labeled route.
        rollouts: of the auditor's training. With them p.candidates questions are written about each picture but those
            of the last checkpoint, by all the others in their proportions, and one is asked (audit/selection.py).

    Returns records {"key", "picture", "question", "text", "way", "pairing", "checkpoint", "target": answer,
    "references": {name: answer}} and what else a Probe has; one without a question has target None and no references.
    On a picture that was made, "checked" holds the references' answers to the wish's check; after an edit
    "checked_before" holds those to the same check of the original, and "before" those of all models to the source's
    own question about it.

    Raises AuditError for models of the same name, for no references, for more counts than pictures, for auditors of
    whom none writes a question, and under "ray" for a cluster that cannot do it.
    """
    _refuse_confusion(references, pictures, auditors, again)
    if p.search != "once":
        pool = min(pool_size(p), len(pictures)) if SOURCE in auditors else pool_size(p)
        counts = counts or checkpoint_shares(list(auditors), pool)
        pictures = [pictures[i % len(pictures)] for i in range(pool)]
    if counts is None:
        counts = checkpoint_shares(list(auditors), min(p.audit_probes, len(pictures)))
    if sum(counts.values()) > len(pictures):
        raise AuditError(f"audit: {sum(counts.values())} probes need as many pictures, but there are {len(pictures)}.")
    out = Path(out).absolute()  # workers may stand elsewhere
    dealt, start = {}, 0
    for name in auditors:
        dealt[name] = pictures[start : start + counts.get(name, 0)]
        start += counts.get(name, 0)
    where = {picture.key: picture for picture in pictures}
    if p.search != "once":
        batches = probe_batches(dealt, ["question"], own, p.batch_size)
        return ask_in_rounds(_propose(auditors, batches, where, p, out), target, references, where, p, out)
    batches, names = probe_batches(dealt, list(ways or p.ways), own, p.batch_size), list(auditors)
    more, first = candidate_batches(batches, names, p.candidates if rollouts else 1, p.batch_size)
    batches = sorted(batches + more, key=lambda batch: names.index(batch["checkpoint"]))  # each is loaded once
    probes = _propose(auditors, batches, where, p, out)
    if first:
        probes = _chosen(probes, first, rollouts, p, out / "chosen.jsonl")
    return _answer(probes, target, references, where, p, out)


def _chosen(
    probes: Sequence[Probe], first: Mapping[str, str], rollouts: Sequence[Mapping], p: Params, path: Path
) -> list[Probe]:
    """The probes without those that were written beside another about the same picture, and not chosen.

    What was chosen is filed, for on another machine a tie might fall the other way.
    """
    beside: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.key in first:
            beside.setdefault(first[probe.key], []).append(probe)
    certain = [probe for probe in probes if probe.key not in first]
    if not path.is_file():
        chosen = select_questions(
            list(beside.values()),
            certain,
            rollouts,
            min_token_probability=p.min_token_probability,
            clusters=p.replay_clusters,
            seed=p.seed,
        )
        jsonl.replace(path, [{"key": probe.key} for probe in chosen])
    kept = {row["key"] for row in jsonl.read(path)}
    return [probe for probe in probes if probe.key not in first or probe.key in kept]


def _propose(
    auditors: Mapping[str, AuditorLoader], batches: Sequence[dict], where: Mapping[str, Picture], p: Params, out: Path
) -> list[Probe]:
    """The probes of all batches, each saved as it is written; a batch on file is not asked for again."""
    path, known = out / "proposals.jsonl", {}
    filed = {row["key"] for row in jsonl.read(out / IMAGES_FILE)}
    for row in jsonl.read(path):
        known.setdefault(row["key"].removesuffix("/own"), {})[row["key"]] = Probe(**row)
    todo = [batch for batch in batches if any(key not in known for key in batch["keys"])]
    with Progress("written by the auditor", sum(len(batch["keys"]) for batch in todo)) as line:
        for done in _each(todo, WriteProbes(auditors, p, out), where, p):
            jsonl.append(out / IMAGES_FILE, (row for row in done["pictures"] if row["key"] not in filed))
            filed |= {row["key"] for row in done["pictures"]}  # two workers may have made the same one
            fresh = [row for row in done["probes"] if row["key"].removesuffix("/own") not in known]
            jsonl.append(path, fresh)
            for row in fresh:
                known.setdefault(row["key"].removesuffix("/own"), {})[row["key"]] = Probe(**row)
            line.add(sum(not row["key"].endswith("/own") for row in done["probes"]))
    probes = []
    for batch in batches:
        for key, picture in zip(batch["keys"], batch["pictures"], strict=True):
            if (known[key][key].base or known[key][key].picture) != picture:
                raise AuditError(f"{path} holds probes about other pictures; start the audit over in an empty folder.")
            probes += known[key].values()
    names = dict.fromkeys(batch["checkpoint"] for batch in batches)
    refuse_nonsense(", ".join(names), probes)
    return probes


def _answer(
    probes: list[Probe],
    target: Loader,
    references: Sequence[Loader],
    where: Mapping[str, Picture],
    p: Params,
    out: Path,
) -> list[dict]:
    """Put the probes to all models, chunk by chunk, and append a record for each."""
    path = out / "records.jsonl"
    records = {row["key"]: row for row in jsonl.read(path)}
    chunks = [{"probes": [asdict(probe) for probe in probes[i : i + CHUNK]]} for i in range(0, len(probes), CHUNK)]
    todo = [chunk for chunk in chunks if any(probe["key"] not in records for probe in chunk["probes"])]
    book, before = AnswerBook(out / "answers.jsonl"), len(probes) - sum(len(chunk["probes"]) for chunk in todo)
    with Progress("answered by all models", len(probes), before) as line:
        for done in _each(todo, AnswerProbes(target, references, p, out), where, p, book):
            new = {row["key"]: row for row in done["records"] if row["key"] not in records}
            jsonl.append(path, new.values())
            records |= new
            line.add(len(done["records"]))
    ordered = [records[probe.key] for probe in probes]
    if list(records) != [row["key"] for row in ordered]:  # workers are done when they are done
        jsonl.replace(path, ordered)
    return ordered


def _each(todo: Iterable[dict], work: Callable, where: Mapping[str, Picture], p: Params, book=None) -> Iterator[dict]:
    """What `work` makes of each batch, as it comes: one after another here, or in any order from Ray's workers."""
    if p.engine == "ray":
        from auditkit.audit.ray_backend import each_batch

        yield from each_batch(list(todo), work, p, book)
    else:
        for batch in todo:
            yield work(batch, where.__getitem__, *([] if book is None else [book]))


def _refuse_confusion(references: Sequence, pictures: Sequence[Picture], auditors: Mapping, again: bool) -> None:
    if not auditors:
        raise AuditError("audit: there is no auditor.")
    if not references:
        raise AuditError("references: name at least one; with none there is no consensus to depart from.")
    if not pictures:
        raise AuditError("audit: there are no pictures.")
    if not again and len({picture.key for picture in pictures}) < len(pictures):
        raise AuditError("audit: a picture comes twice; each probe is to have its own.")
