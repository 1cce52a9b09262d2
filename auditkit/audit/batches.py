"""What is done with one batch: an auditor writes its probes, or target and references answer them.

A batch depends on nothing but the parameters, and has a seed of its own, so it does not matter who does it: the loop
here (audit/loop.py) or a worker elsewhere (audit/ray_backend.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from auditkit.audit.allocation import SOURCE
from auditkit.auditor.write import rarest_token, write_texts
from auditkit.counterfactual.store import (
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
from auditkit.models.transformers import VLM
from auditkit.params import Params
from auditkit.runs.probe import Probe, parse_question

Loader = Callable[[], Writer]  # loads a model when it is called: partial(model_loader(p), spec), or lambda: model
AuditorLoader = Callable[[], VLM]


class WriteProbes:
    """Has auditors write probes, batch after batch; beside the untrained one it holds one checkpoint at a time."""

    def __init__(self, auditors: Mapping[str, AuditorLoader], p: Params, out: Path):
        self.auditors, self.p, self.out = auditors, p, out
        self.name = ""  # of the checkpoint that is loaded
        self.untrained: VLM | None = None
        self.auditor: VLM | None = None
        self.store: ImageStore | None = None

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
        made = self.store.unfiled() if self.store else []
        return {"probes": [asdict(replace(probe, checkpoint=self.name)) for probe in probes], "pictures": made}

    def _questions(self, keys: Sequence[str], pictures: Sequence[Picture], seed: int) -> list[Probe]:
        assert self.auditor is not None and self.untrained is not None
        p, ways = self.p, ["question"] * len(pictures)
        texts = write_texts(self.auditor, pictures, ways, p.temperature, p.max_question_tokens, seed)
        rarest = rarest_token(self.untrained, pictures, texts)
        return [
            Probe(key, picture.key, parse_question(text), text, rarest=least)
            for key, picture, text, least in zip(keys, pictures, texts, rarest, strict=True)
        ]

    def _wishes(self, batch: dict, shown: Sequence[Picture], seed: int) -> list[Probe]:
        """Wishes for pictures; of each that was made, a question about it and the source's own about the original."""
        assert self.auditor is not None and self.untrained is not None
        self.store = self.store or ImageStore(pipeline_loaders(self.p), self.p, self.out)
        p, way, ways = self.p, batch["way"], [batch["way"]] * len(shown)
        texts = write_texts(self.auditor, shown, ways, p.temperature, p.max_question_tokens, seed)
        rarest = rarest_token(self.untrained, shown, texts, ways)
        made = make_wished(self.store, shown, ways, texts)
        used = [i for i, (_, one, _) in made.items() if not one.why]
        pictures = [self.store.picture(made[i][1].key) for i in used]
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
            least = None if least is None or question.rarest is None else min(least, question.rarest)
            probe = replace(probe, picture=question.picture)
            probes.append(replace(probe, question=question.question, text=question.text, rarest=least))
            if batch["own"][i]:
                own = replace(probe, key=f"{key}/own", pairing="(Q, I*)", question=batch["own"][i], rarest=None)
                probes.append(replace(own, text=batch["own"][i]))
        return probes


class AnswerProbes:
    """Puts probes to the target and the references, chunk after chunk."""

    def __init__(self, target: Loader, references: Sequence[Loader], p: Params, out: Path):
        self.target, self.references, self.p, self.out = target, references, p, out
        self.models: list[Writer] = []

    def __call__(self, chunk: dict, picture: Callable[[str], Picture], book: AnswerBook) -> dict:
        """The records of a chunk {"probes": rows}, as {"records": rows}.

        Raises AuditError when two models have one name, by which records tell them apart.
        """
        target, *references = self._loaded()
        asked = [probe for probe in chunk["probes"] if probe["question"] is not None]
        checks = [probe for probe in asked if probe["check"]]
        before = [probe for probe in asked if probe["way"] == "edit" and probe["pairing"] == "(Q, I*)"]
        put = [(probe["picture"], probe["question"]) for probe in asked]
        put_before = [(probe["base"], probe["question"]) for probe in before]
        edits = [probe for probe in checks if probe["way"] == "edit"]
        put_checks = [(probe["picture"], probe["check"]) for probe in checks]
        put_checks += [(probe["base"], probe["check"]) for probe in edits]  # was it so already?
        where = {key: self._picture(key, picture) for key, _ in (*put, *put_before, *put_checks)}
        said, said_before, checked, checked_before = {}, {}, {}, {}
        for vlm in self.models:  # once each, with all they are to answer
            mine = [*put, *put_before, *(put_checks if vlm is not target else [])]
            answers = book.ask(
                vlm, [where[key] for key, _ in mine], [question for _, question in mine], self.p.max_answer_tokens
            )
            said[vlm.name], said_before[vlm.name] = answers[: len(put)], answers[len(put) : len(put) + len(before)]
            to_checks = answers[len(put) + len(before) :]
            checked[vlm.name], checked_before[vlm.name] = to_checks[: len(checks)], to_checks[len(checks) :]
        names = [vlm.name for vlm in references]
        rows = {probe["key"]: {**probe, "target": None, "references": {}} for probe in chunk["probes"]}
        for i, probe in enumerate(asked):
            rows[probe["key"]]["target"] = said[target.name][i]
            rows[probe["key"]]["references"] = {name: said[name][i] for name in names}
        for i, probe in enumerate(checks):
            rows[probe["key"]]["checked"] = {name: checked[name][i] for name in names}
        for i, probe in enumerate(edits):
            rows[probe["key"]]["checked_before"] = {name: checked_before[name][i] for name in names}
        for i, probe in enumerate(before):
            earlier = {"references": {name: said_before[name][i] for name in names}}
            rows[probe["key"]]["before"] = {"target": said_before[target.name][i]} | earlier
        return {"records": list(rows.values())}

    def references_say(
        self, pairs: Sequence[tuple[str, str]], picture: Callable[[str], Picture], book: AnswerBook
    ) -> list[list[str]]:
        """The references' answers to n (picture's key, question), [n][references]; the target is not asked."""
        _, *references = self._loaded()
        shown, questions = [self._picture(key, picture) for key, _ in pairs], [question for _, question in pairs]
        said = [book.ask(vlm, shown, questions, self.p.max_answer_tokens) for vlm in references]
        return [list(answers) for answers in zip(*said, strict=True)]

    def _loaded(self) -> list[Writer]:
        """The target and its references, which are loaded when they are first asked."""
        if not self.models:
            models = [self.target(), *(load() for load in self.references)]
            names = [model.name for model in models]
            if twice := {name for name in names if names.count(name) > 1}:
                raise AuditError(
                    f"target and references: two are called {min(twice)}; rename a folder, write ?name=NAME behind "
                    "one, or name it once."
                )
            self.models = models
        return self.models

    def _picture(self, key: str, picture: Callable[[str], Picture]) -> Picture:
        return load_counterfactual(self.out, key) if key.startswith(MADE) else picture(key)
