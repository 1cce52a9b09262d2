"""The audit: the auditor asks about pictures it never saw, target and references answer, and every word is kept.

(paper, Sec. 3.2: one pass per picture, no further search.) Departs from the paper in one way: probes come from several
checkpoints of the auditor, the untrained one among them (dealing.py).

Three files grow in the audit's folder, so it can be killed anywhere and started again: proposals.jsonl (what the
auditors wrote), answers.jsonl (what each model said), records.jsonl (one row a probe). Answers are saved before they
are scored; `score` needs no model.

Probes come in three ways. A question is asked of the picture it was written about. For the other two the auditor first
wishes for a picture, by a caption or an edit command; it is made (album.py) and looked at, and then the auditor writes
a question about what came out, (Q*, I*). The source's own question about the original, where it has one, is asked of
the new picture too, (Q, I*), and after an edit also of the original: a target that was right before, and is not after
an edit that left the consensus as it was, has failed on an *irrelevant edit*.

Of several questions written about a picture one is asked where `candidates` says so (covering.py).

The work is cut into batches that depend on nothing but the parameters, each with its own seed. So it does not matter
who does them: `Proposing` and `Answering` do one after another here, or on many GPUs and machines (audit_ray.py), and
the records are the same.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from auditkit import auditor as auditing
from auditkit import covering, dealing, lines
from auditkit.album import FILE, MADE, Album, granted, kept, painters, seed_of
from auditkit.auditor import Probe
from auditkit.disagreement import Same, Verdict, normalise, same, unfulfilled, verdicts
from auditkit.errors import AuditError
from auditkit.images import Picture
from auditkit.likeness import unlike
from auditkit.memory import free
from auditkit.vlm import AnswerBook, Writer

CHUNK = 512  # probes answered by all models before the next ones

Loader = Callable[[], Writer]  # loads a model when it is called: partial(vlm.loader(p), spec), or lambda: model


def run(
    auditors: Mapping[str, Loader],
    target: Loader,
    references: Sequence[Loader],
    pictures: Sequence[Picture],
    p,
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
            dealing.SOURCE alone stands for the questions that come with the pictures: a control without any auditor.
        target, references: what loads the models that answer.
        pictures: pictures the auditors never saw, all different; with fewer than p.audit_probes there are fewer probes.
        p: uses audit_probes, candidates, seed, batch_size, temperature, max_question_tokens, max_answer_tokens, engine;
            under "ray" also workers, device and images, from which the workers take the pictures.
        out: the folder; what is there already is not asked again.
        counts: pictures of each checkpoint, if not by `dealing.shares`.
        ways: that take turns, if not p.ways.
        own: the source's own question about a picture, as Source.question.
        again: a picture may come more than once, as one with several labelled questions does on the labeled route.
        rollouts: of the auditor's training. With them p.candidates questions are written about each picture but those
            of the last checkpoint, by all the others in their proportions, and one is asked (covering.py).

    Returns records {"key", "picture", "question", "text", "way", "pairing", "checkpoint", "target": answer,
    "references": {name: answer}} and what else a Probe has; one without a question has target None and no references.
    On a picture that was made, "checked" holds the references' answers to the wish's check, and after an edit "before"
    those of all models to the source's own question about the original.

    Raises AuditError for models of the same name, for no references, for more counts than pictures, for auditors of
    whom none writes a question, and under "ray" for a cluster that cannot do it.
    """
    _refuse_confusion(references, pictures, auditors, again)
    if counts is None:
        counts = dealing.shares(list(auditors), min(p.audit_probes, len(pictures)))
    if sum(counts.values()) > len(pictures):
        raise AuditError(f"audit: {sum(counts.values())} probes need as many pictures, but there are {len(pictures)}.")
    out = Path(out).absolute()  # workers may stand elsewhere
    dealt, start = {}, 0
    for name in auditors:
        dealt[name] = pictures[start : start + counts.get(name, 0)]
        start += counts.get(name, 0)
    where = {picture.key: picture for picture in pictures}
    batches, names = dealing.batches(dealt, list(ways or p.ways), own, p.batch_size), list(auditors)
    more, first = dealing.further(batches, names, p.candidates if rollouts else 1, p.batch_size)
    batches = sorted(batches + more, key=lambda batch: names.index(batch["checkpoint"]))  # each is loaded once
    probes = _propose(auditors, batches, where, p, out)
    if first:
        probes = _chosen(probes, first, rollouts, p, out / "chosen.jsonl")
    return _answer(probes, target, references, where, p, out)


def score(records: Sequence[dict], p, folder: Path | None = None) -> list[dict]:
    """The records with consensus, agreement, disagrees and gate, in their order; those given are left as they are.

    The gate is the first reason why a probe is no finding: "malformed", "bad picture" (none was made, or it is not what
    was wished for; `why` says more), "implausible" (a word of the question is less probable to the untrained auditor
    than p.min_token_probability), "duplicate" (the same question on the same picture came before), "no consensus" or
    "agrees"; "ok" is a finding. A finding with `irrelevant_edit` is one where only the target moved: see the module.

    Args:
        p: uses min_token_probability, quorum, picture_gain and same, and device, dtype, batch_size and memory where a
            model judges what means the same.
        folder: where the verdicts of such a model are kept; those on file need no model.

    Raises AuditError when the target was never asked, and when the references never agree.
    """
    alike = same(p, folder)
    said = [(r["question"], r["target"], list(r["references"].values())) for r in records if r["question"] is not None]
    found, scored = iter(verdicts(said, alike, p.quorum)), []
    seen, why, before = set(), _unfulfilled(records, alike, p), _before(records, alike, p)
    for record in records:
        row = {**record, "consensus": None, "agreement": 0.0, "disagrees": False} | why.get(record["key"], {})
        asked = (record["picture"], normalise(record["question"] or ""))
        if record["question"] is None:
            row["gate"] = "bad picture" if row.get("why") else "malformed"
        else:
            verdict = next(found)
            row |= {"consensus": verdict.consensus, "agreement": verdict.agreement, "disagrees": verdict.disagrees}
            rarest = record.get("rarest")  # 0.0 where softmax underflows: as implausible as can be
            row["gate"] = (
                "bad picture" if row.get("why") else
                "implausible" if rarest is not None and rarest < p.min_token_probability else
                "duplicate" if asked in seen else
                "no consensus" if verdict.consensus is None else
                "ok" if verdict.disagrees else "agrees"
            )  # fmt: skip
            seen.add(asked)
            if earlier := before.get(record["key"]):
                stays = verdict.consensus is not None and alike(earlier.consensus, verdict.consensus, row["question"])
                row |= {"consensus_before": earlier.consensus, "irrelevant_edit": stays and row["gate"] == "ok"}
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


def _unfulfilled(records: Sequence[dict], alike: Same, p) -> dict[str, dict]:
    """By key, why a picture that was made is not what was wished for: the references' word, then the judge's."""
    checked = [record for record in records if record.get("checked")]
    rows = [(record["check"], record["expected"], list(record["checked"].values())) for record in checked]
    found = zip(checked, unfulfilled(rows, alike, p.quorum), strict=True)
    why = {record["key"]: why or unlike(record.get("gain"), p) for record, why in found}
    return {key: {"why": reason} for key, reason in why.items() if reason}


def _before(records: Sequence[dict], alike: Same, p) -> dict[str, Verdict]:
    """By key, the verdict on the original picture, where target and references agreed there."""
    asked = [record for record in records if record.get("before")]
    rows = [(r["question"], r["before"]["target"], list(r["before"]["references"].values())) for r in asked]
    found = zip(asked, verdicts(rows, alike, p.quorum), strict=True)
    return {r["key"]: verdict for r, verdict in found if verdict.consensus is not None and not verdict.disagrees}


def counts(scored: Sequence[dict]) -> dict[str, int]:
    """What was asked, answered and dropped, from scored records: the same however often the audit was interrupted.

    A question that came twice on one picture was put to the models once, so calls count distinct ones.
    """
    gates, target, references = [row["gate"] for row in scored], set(), set()
    for row in scored:
        if row["question"] is None:
            continue
        target.add((row["picture"], row["question"]))
        references |= {(name, row["picture"], row["question"]) for name in row["references"]}
        references |= {(name, row["picture"], row["check"]) for name in row.get("checked") or ()}
        if row.get("before"):
            target.add((row["base"], row["question"]))
            references |= {(name, row["base"], row["question"]) for name in row["references"]}
    return {
        "asked": len(scored),
        "parsed": sum(row["question"] is not None for row in scored),
        "target_called": len(target),
        "references_called": len(references),
        "scored": gates.count("ok") + gates.count("agrees"),
        "malformed": gates.count("malformed"),
        "bad_pictures": gates.count("bad picture"),
        "implausible": gates.count("implausible"),
        "no_consensus": gates.count("no consensus"),
        "duplicates": gates.count("duplicate"),
    }


class Proposing:
    """Has auditors write probes, batch after batch; beside the untrained one it holds one checkpoint at a time."""

    def __init__(self, auditors: Mapping[str, Loader], p, out: Path):
        self.auditors, self.p, self.out = auditors, p, out
        self.untrained = self.name = self.auditor = self.album = None

    def __call__(self, batch: dict, picture: Callable[[str], Picture]) -> dict:
        """The probes of a batch {"checkpoint", "way", "keys", "pictures": their keys, "own": questions or None}.

        Each batch has a seed of its own: an auditor writes the same whoever was asked what before.

        Returns {"probes": rows, "pictures": rows for pictures.jsonl}.
        """
        if batch["checkpoint"] == dealing.SOURCE:
            asked = zip(batch["keys"], batch["pictures"], batch["own"], strict=True)
            probes = [Probe(key, seen, own, own or "", checkpoint=dealing.SOURCE) for key, seen, own in asked]
            return {"probes": list(map(asdict, probes)), "pictures": []}
        first = next(iter(self.auditors))
        self.untrained = self.untrained or self.auditors[first]()
        if batch["checkpoint"] != self.name:
            self.name, self.auditor = batch["checkpoint"], None  # the last one goes before the next one comes
            free()
            self.auditor = self.untrained if self.name == first else self.auditors[self.name]()
        shown = [picture(key) for key in batch["pictures"]]
        seed = seed_of(self.p.seed, batch["keys"][0])
        if batch["way"] == "question":
            probes = self._questions(batch["keys"], shown, seed)
        else:
            probes = self._wishes(batch, shown, seed)
        made = self.album.unfiled() if self.album else []
        return {"probes": [asdict(replace(probe, checkpoint=self.name)) for probe in probes], "pictures": made}

    def _questions(self, keys: Sequence[str], pictures: Sequence[Picture], seed: int) -> list[Probe]:
        p, ways = self.p, ["question"] * len(pictures)
        texts = auditing.written(self.auditor, pictures, ways, p.temperature, p.max_question_tokens, seed)
        rarest = auditing.rarest(self.untrained, pictures, texts)
        return [
            Probe(key, picture.key, auditing.parse(text), text, rarest=least)
            for key, picture, text, least in zip(keys, pictures, texts, rarest, strict=True)
        ]

    def _wishes(self, batch: dict, shown: Sequence[Picture], seed: int) -> list[Probe]:
        """Wishes for pictures; of each that was made, a question about it and the source's own about the original."""
        self.album = self.album or Album(painters(self.p), self.p, self.out)
        p, way, ways = self.p, batch["way"], [batch["way"]] * len(shown)
        texts = auditing.written(self.auditor, shown, ways, p.temperature, p.max_question_tokens, seed)
        rarest = auditing.rarest(self.untrained, shown, texts, ways)
        made = granted(self.album, shown, ways, texts)
        used = [i for i, (_, one, _) in made.items() if not one.why]
        pictures = [self.album.picture(made[i][1].key) for i in used]
        asked = dict(zip(used, self._questions([batch["keys"][i] for i in used], pictures, seed), strict=True))
        probes = []
        for i, (key, picture, text, least) in enumerate(zip(batch["keys"], shown, texts, rarest, strict=True)):
            probe = Probe(key, picture.key, None, text, way, "(Q*, I*)", rarest=least, base=picture.key, wish=text)
            if i in made:
                wish, one, gain = made[i]
                probe = replace(probe, made=wish.text, check=wish.check, expected=wish.expected, why=one.why, gain=gain)
            if i not in asked:
                probes.append(probe)
                continue
            question = asked[i]
            least = None if None in (least, question.rarest) else min(least, question.rarest)
            probe = replace(probe, picture=question.picture)
            probes.append(replace(probe, question=question.question, text=question.text, rarest=least))
            if batch["own"][i]:
                own = replace(probe, key=f"{key}/own", pairing="(Q, I*)", question=batch["own"][i], rarest=None)
                probes.append(replace(own, text=batch["own"][i]))
        return probes


class Answering:
    """Puts probes to the target and the references, chunk after chunk."""

    def __init__(self, target: Loader, references: Sequence[Loader], p, out: Path):
        self.target, self.references, self.p, self.out, self.models = target, references, p, out, None

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
        checks = [probe for probe in asked if probe["check"]]
        before = [probe for probe in asked if probe["way"] == "edit" and probe["pairing"] == "(Q, I*)"]
        put = [(probe["picture"], probe["question"]) for probe in asked]
        put_before = [(probe["base"], probe["question"]) for probe in before]
        put_checks = [(probe["picture"], probe["check"]) for probe in checks]
        where = {key: self._picture(key, picture) for key, _ in (*put, *put_before)}
        said, said_before, checked = {}, {}, {}
        for vlm in self.models:  # once each, with all they are to answer
            mine = [*put, *put_before, *(put_checks if vlm is not target else [])]
            answers = book.ask(
                vlm, [where[key] for key, _ in mine], [question for _, question in mine], self.p.max_answer_tokens
            )
            said[vlm.name], said_before[vlm.name] = answers[: len(put)], answers[len(put) : len(put) + len(before)]
            checked[vlm.name] = answers[len(put) + len(before) :]
        names = [vlm.name for vlm in references]
        rows = {probe["key"]: {**probe, "target": None, "references": {}} for probe in chunk["probes"]}
        for i, probe in enumerate(asked):
            rows[probe["key"]]["target"] = said[target.name][i]
            rows[probe["key"]]["references"] = {name: said[name][i] for name in names}
        for i, probe in enumerate(checks):
            rows[probe["key"]]["checked"] = {name: checked[name][i] for name in names}
        for i, probe in enumerate(before):
            earlier = {"references": {name: said_before[name][i] for name in names}}
            rows[probe["key"]]["before"] = {"target": said_before[target.name][i]} | earlier
        return {"records": list(rows.values())}

    def _picture(self, key: str, picture: Callable[[str], Picture]) -> Picture:
        return kept(self.out, key) if key.startswith(MADE) else picture(key)


def _chosen(
    probes: Sequence[Probe], first: Mapping[str, str], rollouts: Sequence[Mapping], p, path: Path
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
        chosen = covering.chosen(list(beside.values()), certain, rollouts, p)
        lines.replace(path, [{"key": probe.key} for probe in chosen])
    kept = {row["key"] for row in lines.read(path)}
    return [probe for probe in probes if probe.key not in first or probe.key in kept]


def _propose(
    auditors: Mapping[str, Loader], batches: Sequence[dict], where: Mapping[str, Picture], p, out: Path
) -> list[Probe]:
    """The probes of all batches, each saved as it is written; a batch on file is not asked for again."""
    path, known = out / "proposals.jsonl", {}
    filed = {row["key"] for row in lines.read(out / FILE)}
    for row in lines.read(path):
        known.setdefault(row["key"].removesuffix("/own"), {})[row["key"]] = Probe(**row)
    todo = [batch for batch in batches if any(key not in known for key in batch["keys"])]
    begun, new = time.monotonic(), 0
    for done in _each(todo, Proposing(auditors, p, out), where, p):
        lines.append(out / FILE, (row for row in done["pictures"] if row["key"] not in filed))
        filed |= {row["key"] for row in done["pictures"]}  # two workers may have made the same one
        fresh = [row for row in done["probes"] if row["key"].removesuffix("/own") not in known]
        lines.append(path, fresh)
        for row in fresh:
            known.setdefault(row["key"].removesuffix("/own"), {})[row["key"]] = Probe(**row)
        new += len(fresh)
        name = done["probes"][0]["checkpoint"]
        print(f"audit: {name} wrote, {new} new probes in {time.monotonic() - begun:.0f} s", flush=True)
    probes = []
    for batch in batches:
        for key, picture in zip(batch["keys"], batch["pictures"], strict=True):
            if (known[key][key].base or known[key][key].picture) != picture:
                raise AuditError(f"{path} holds probes about other pictures; start the audit over in an empty folder.")
            probes += known[key].values()
    names = dict.fromkeys(batch["checkpoint"] for batch in batches)
    auditing.refuse_nonsense(", ".join(names), probes)
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
    for done in _each(todo, Answering(target, references, p, out), where, p, book):
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


def _refuse_confusion(references: Sequence, pictures: Sequence[Picture], auditors: Mapping, again: bool) -> None:
    if not auditors:
        raise AuditError("audit: there is no auditor.")
    if not references:
        raise AuditError("references: name at least one; with none there is no consensus to depart from.")
    if not pictures:
        raise AuditError("audit: there are no pictures.")
    if not again and len({picture.key for picture in pictures}) < len(pictures):
        raise AuditError("audit: a picture comes twice; each probe is to have its own.")
