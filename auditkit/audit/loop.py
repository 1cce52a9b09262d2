"""The audit: the auditor asks about pictures it never saw, target and references answer, and every word is kept.

(paper, Sec. 3.2: one pass per picture, no further search.) Departs from the paper in one way: probes come from several
checkpoints of the auditor, the untrained one among them (audit/allocation.py).

Three files grow in the audit's folder, so it can be killed anywhere and started again: proposals.jsonl (what the
auditors wrote), answers.jsonl (what each model said), records.jsonl (one row a probe). Answers are saved before they
are scored; `score_probes` needs no model.

Probes come in three ways. A question is asked of the picture it was written about. For the other two the auditor first
wishes for a picture, by a caption or an edit command; it is made (counterfactual/store.py) and looked at, and then the auditor writes
a question about what came out, (Q*, I*). The source's own question about the original, where it has one, is asked of
the new picture too, (Q, I*), and after an edit also of the original: a target that was right before, and is not after
an edit that left the consensus as it was, has failed on an *irrelevant edit*.

Of several questions written about a picture one is asked where `candidates` says so (audit/selection.py).

The work is cut into batches that depend on nothing but the parameters, each with its own seed. So it does not matter
who does them: `WriteProbes` and `AnswerProbes` do one after another here, or on many GPUs and machines (audit/ray_backend.py), and
the records are the same.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from auditkit.audit.allocation import SOURCE, candidate_batches, checkpoint_shares, probe_batches
from auditkit.audit.selection import select_questions
from auditkit.auditor.write import rarest_token, refuse_nonsense, write_texts
from auditkit.counterfactual.store import (
    IMAGES_FILE,
    MADE,
    ImageStore,
    load_counterfactual,
    make_wished,
    pipeline_loaders,
    seed_of,
)
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.models.offload import free_memory
from auditkit.runs import jsonl
from auditkit.runs.probe import Probe, parse_question

CHUNK = 512  # probes answered by all models before the next ones

Loader = Callable[[], Writer]  # loads a model when it is called: partial(model_loader(p), spec), or lambda: model


def run_audit(
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
            SOURCE alone stands for the questions that come with the pictures: a control without any auditor.
        target, references: what loads the models that answer.
        pictures: pictures the auditors never saw, all different; with fewer than p.audit_probes there are fewer probes.
        p: uses audit_probes, candidates, seed, batch_size, temperature, max_question_tokens, max_answer_tokens, engine;
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
    On a picture that was made, "checked" holds the references' answers to the wish's check, and after an edit "before"
    those of all models to the source's own question about the original.

    Raises AuditError for models of the same name, for no references, for more counts than pictures, for auditors of
    whom none writes a question, and under "ray" for a cluster that cannot do it.
    """
    _refuse_confusion(references, pictures, auditors, again)
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
    batches, names = probe_batches(dealt, list(ways or p.ways), own, p.batch_size), list(auditors)
    more, first = candidate_batches(batches, names, p.candidates if rollouts else 1, p.batch_size)
    batches = sorted(batches + more, key=lambda batch: names.index(batch["checkpoint"]))  # each is loaded once
    probes = _propose(auditors, batches, where, p, out)
    if first:
        probes = _chosen(probes, first, rollouts, p, out / "chosen.jsonl")
    return _answer(probes, target, references, where, p, out)


class WriteProbes:
    """Has auditors write probes, batch after batch; beside the untrained one it holds one checkpoint at a time."""

    def __init__(self, auditors: Mapping[str, Loader], p, out: Path):
        self.auditors, self.p, self.out = auditors, p, out
        self.untrained = self.name = self.auditor = self.album = None

    def __call__(self, batch: dict, picture: Callable[[str], Picture]) -> dict:
        """The probes of a batch {"checkpoint", "way", "keys", "pictures": their keys, "own": questions or None}.

        Each batch has a seed of its own: an auditor writes the same whoever was asked what before.

        Returns {"probes": rows, "pictures": rows for pictures.jsonl}.
        """
        if batch["checkpoint"] == SOURCE:
            asked = zip(batch["keys"], batch["pictures"], batch["own"], strict=True)
            probes = [Probe(key, seen, own, own or "", checkpoint=SOURCE) for key, seen, own in asked]
            return {"probes": list(map(asdict, probes)), "pictures": []}
        first = next(iter(self.auditors))
        self.untrained = self.untrained or self.auditors[first]()
        if batch["checkpoint"] != self.name:
            self.name, self.auditor = batch["checkpoint"], None  # the last one goes before the next one comes
            free_memory()
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
        texts = write_texts(self.auditor, pictures, ways, p.temperature, p.max_question_tokens, seed)
        rarest = rarest_token(self.untrained, pictures, texts)
        return [
            Probe(key, picture.key, parse_question(text), text, rarest=least)
            for key, picture, text, least in zip(keys, pictures, texts, rarest, strict=True)
        ]

    def _wishes(self, batch: dict, shown: Sequence[Picture], seed: int) -> list[Probe]:
        """Wishes for pictures; of each that was made, a question about it and the source's own about the original."""
        self.album = self.album or ImageStore(pipeline_loaders(self.p), self.p, self.out)
        p, way, ways = self.p, batch["way"], [batch["way"]] * len(shown)
        texts = write_texts(self.auditor, shown, ways, p.temperature, p.max_question_tokens, seed)
        rarest = rarest_token(self.untrained, shown, texts, ways)
        made = make_wished(self.album, shown, ways, texts)
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


class AnswerProbes:
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
        return load_counterfactual(self.out, key) if key.startswith(MADE) else picture(key)


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
    auditors: Mapping[str, Loader], batches: Sequence[dict], where: Mapping[str, Picture], p, out: Path
) -> list[Probe]:
    """The probes of all batches, each saved as it is written; a batch on file is not asked for again."""
    path, known = out / "proposals.jsonl", {}
    filed = {row["key"] for row in jsonl.read(out / IMAGES_FILE)}
    for row in jsonl.read(path):
        known.setdefault(row["key"].removesuffix("/own"), {})[row["key"]] = Probe(**row)
    todo = [batch for batch in batches if any(key not in known for key in batch["keys"])]
    begun, new = time.monotonic(), 0
    for done in _each(todo, WriteProbes(auditors, p, out), where, p):
        jsonl.append(out / IMAGES_FILE, (row for row in done["pictures"] if row["key"] not in filed))
        filed |= {row["key"] for row in done["pictures"]}  # two workers may have made the same one
        fresh = [row for row in done["probes"] if row["key"].removesuffix("/own") not in known]
        jsonl.append(path, fresh)
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
    refuse_nonsense(", ".join(names), probes)
    return probes


def _answer(
    probes: list[Probe], target: Loader, references: Sequence[Loader], where: Mapping[str, Picture], p, out: Path
) -> list[dict]:
    """Put the probes to all models, chunk by chunk, and append a record for each."""
    path = out / "records.jsonl"
    records = {row["key"]: row for row in jsonl.read(path)}
    chunks = [{"probes": [asdict(probe) for probe in probes[i : i + CHUNK]]} for i in range(0, len(probes), CHUNK)]
    todo = [chunk for chunk in chunks if any(probe["key"] not in records for probe in chunk["probes"])]
    book, begun = AnswerBook(out / "answers.jsonl"), time.monotonic()
    answered = len(probes) - sum(len(chunk["probes"]) for chunk in todo)
    for done in _each(todo, AnswerProbes(target, references, p, out), where, p, book):
        new = {row["key"]: row for row in done["records"] if row["key"] not in records}
        jsonl.append(path, new.values())
        records |= new
        answered, seconds = answered + len(done["records"]), time.monotonic() - begun
        print(f"audit: {answered} of {len(probes)} probes answered by all models, {seconds:.0f} s", flush=True)
    ordered = [records[probe.key] for probe in probes]
    if list(records) != [row["key"] for row in ordered]:  # workers are done when they are done
        jsonl.replace(path, ordered)
    return ordered


def _each(todo: Iterable[dict], work: Callable, where: Mapping[str, Picture], p, book=None) -> Iterator[dict]:
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
