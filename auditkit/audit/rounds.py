"""An audit in rounds, where `search` is not `once`: what the last rounds have shown decides what the next one asks.

What a round asks is filed in rounds.jsonl before anybody is asked, so a killed audit goes on with the same round, and
ends in the same records. The references' answers by which is chosen lie in answers.jsonl with all others, and are not
paid for twice. The last row of rounds.jsonl says what the search did (`search_summary`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from auditkit.audit.batches import AnswerProbes, Loader
from auditkit.audit.search import Search
from auditkit.audit.selection import is_sound
from auditkit.consensus.choose import choose_same
from auditkit.consensus.same import Same
from auditkit.consensus.vote import Vote, vote_all
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models.answers import AnswerBook
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.probe import Probe
from auditkit.runs.progress import Progress

ROUNDS_FILE = "rounds.jsonl"
SMALLEST, ROUNDS = 32, 100  # probes of a round, at least; rounds of a large audit
NAMED = 20  # kinds not tried, and leads left open, that are named


def ask_in_rounds(
    probes: Sequence[Probe],
    target: Loader,
    references: Sequence[Loader],
    where: Mapping[str, Picture],
    p: Params,
    out: Path,
) -> list[dict]:
    """Ask p.audit_probes probes, chosen round by round from these and from what leads add; return their records.

    Args:
        probes: what the auditors wrote; what the first gates would drop anyway is left out.
        where: the pictures by their keys.
        p: uses audit_probes, search, seed, min_token_probability, quorum, max_answer_tokens, and what `choose_same`
            uses.

    Raises AuditError where no probe is sound.
    """
    filed, path = jsonl.read(out / ROUNDS_FILE), out / "records.jsonl"
    records = {row["key"]: row for row in jsonl.read(path)}
    if filed and "end" in filed[-1]:
        return list(records.values())
    pool = [probe for probe in probes if is_sound(probe, p.min_token_probability)]
    if not pool:
        raise AuditError(
            f"search: of {len(probes)} texts none is a question that may be asked; lower `min_token_probability`."
        )
    panel = Panel(AnswerProbes(target, references, p, out), where.__getitem__, choose_same(p, out), p.quorum, out)
    search = Search(pool, panel.consensus, adaptive=p.search == "adaptive", seed=p.seed)
    curve: list[dict] = []
    with Progress("asked in rounds", p.audit_probes) as line:
        while len(search.asked) < p.audit_probes:
            chosen = _chosen(search, filed, len(curve), p, out)
            if not chosen:
                print(f"search: the pool has no more probes to ask; {len(search.asked):,} of {p.audit_probes:,} asked.")
                break
            new = [search.probes[i] for i, _ in chosen if search.probes[i].key not in records]
            if new:
                rows = panel.answers([search.probes[i] for i, _ in chosen])
                jsonl.append(path, (row for row in rows if row["key"] not in records))
                records |= {row["key"]: row for row in rows if row["key"] not in records}
            votes = panel.votes([records[search.probes[i].key] for i, _ in chosen])
            for (i, why), vote in zip(chosen, votes, strict=True):
                search.tell(i, vote.consensus, vote.disagrees, why)
            known = sum(lead.is_known() for lead in search.leads)
            curve.append({"asked": len(search.asked), "findings": sum(search.failed), "kinds": known})
            line.add(len(chosen))
    jsonl.append(out / ROUNDS_FILE, [{"round": len(curve), "end": _summary(search, curve, records, out)}])
    return list(records.values())


def _chosen(search: Search, filed: Sequence[dict], at: int, p: Params, out: Path) -> list[tuple[int, str]]:
    """What the round asks, as filed, or chosen now and filed.

    Where the round is on file it is chosen again nevertheless, from answers on file, so that the search knows what it
    knew; what counts is the file, for on another machine a tie might fall the other way.
    """
    left = p.audit_probes - len(search.asked)
    chosen = search.choose(min(left, max(SMALLEST, p.audit_probes // ROUNDS)))
    if at < len(filed):
        asked = [Probe(**probe) for probe in filed[at]["probes"]]
        return list(zip(map(search.place, asked), filed[at]["why"], strict=True))
    if chosen:
        row = {"probes": [asdict(search.probes[i]) for i, _ in chosen], "why": [why for _, why in chosen]}
        jsonl.append(out / ROUNDS_FILE, [{"round": at, **row}])
    return chosen


class Panel:
    """Target and references, as the search asks them."""

    def __init__(
        self, answering: AnswerProbes, picture: Callable[[str], Picture], alike: Same, quorum: float, out: Path
    ):
        self.answering, self.picture, self.alike, self.quorum = answering, picture, alike, quorum
        self.book = AnswerBook(out / "answers.jsonl")

    def consensus(self, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
        """What the references agree on for n (picture's key, question); None where they do not. The target is not
        asked.
        """
        if not pairs:
            return []
        said = self.answering.references_say(pairs, self.picture, self.book)
        rows = [(question, "", answers) for (_, question), answers in zip(pairs, said, strict=True)]
        return [vote.consensus for vote in vote_all(rows, self.alike, self.quorum)]

    def answers(self, probes: Sequence[Probe]) -> list[dict]:
        """The records of these probes, all models asked."""
        return self.answering({"probes": [asdict(probe) for probe in probes]}, self.picture, self.book)["records"]

    def votes(self, records: Sequence[dict]) -> list[Vote]:
        rows = [(row["question"], row["target"], list(row["references"].values())) for row in records]
        return vote_all(rows, self.alike, self.quorum)


def _summary(search: Search, curve: Sequence[dict], records: Mapping[str, dict], out: Path) -> dict:
    """What the search did, in numbers, and what its budget did not reach."""
    asked = Counter(search.kinds[i] for i in search.asked if i < search.size)
    example = {kind: search.probes[i].question for i, kind in reversed(list(enumerate(search.kinds)))}
    untried = [example[kind] for kind in sorted(example) if not asked[kind]]
    open_leads = [search.probes[lead.first].question for lead in search.leads if lead.open]
    used = {(row["picture"], row["question"]) for row in records.values()}
    names = {name for row in records.values() for name in row["references"]}
    choosing = sum(
        row["model"] in names and (row["picture"], row["question"]) not in used
        for row in jsonl.each(out / "answers.jsonl")
    )
    return {
        "pool": search.size,
        "rounds": len(curve),
        "references_for_choosing": choosing,
        "kinds": len(example),
        "kinds_tried": len(example) - len(untried),
        "not_tried": untried[:NAMED],
        "leads": len(search.leads),
        "leads_known": sum(lead.is_known() for lead in search.leads),
        "leads_open": len(open_leads),
        "left_open": open_leads[:NAMED],
        "curve": list(curve),
    }


def search_summary(folder: Path, tell: bool = False) -> dict:
    """What a search did, from its folder: counts of pool, rounds, references' calls for choosing, kinds and leads, what
    was not tried, and the curve of kinds known after each round; {} where there was none, or it is not done.

    Args:
        tell: print it, too.
    """
    last = (jsonl.read(folder / ROUNDS_FILE) or [{}])[-1]
    found = last.get("end", {})
    if tell:
        print(summary_in_words(found))
    return found


def written_counts(folder: Path) -> dict[str, int]:
    """The counts of an audit's folder for its manifest: probes written and, of a search, what it did."""
    written = sum(not row["key"].endswith("/own") for row in jsonl.each(folder / "proposals.jsonl"))
    names = ("pool", "rounds", "references_for_choosing", "kinds", "kinds_tried", "leads", "leads_known", "leads_open")
    found = search_summary(folder)
    searched = {n if n.startswith("references") else f"search_{n}": found[n] for n in names if n in found}
    return {"written": written} | searched


def summary_in_words(found: Mapping) -> str:
    """A search's summary in a few sentences, with what its budget did not reach."""
    if not found:
        return "search: once. Nothing that was heard in the audit decided what it asked."
    leads = f"Leads: {found['leads']:,}, with three findings {found['leads_known']:,}."
    said = [
        f"{found['rounds']:,} rounds, from a pool of {found['pool']:,}; {found['references_for_choosing']:,} more "
        f"calls of the references to choose by. {leads}"
    ]
    for n, things, named in (
        (found["kinds"] - found["kinds_tried"], "kind of question was tried", found["not_tried"]),
        (found["leads_open"], "lead was followed to its end", found["left_open"]),
    ):
        if n:
            some = "; ".join(named[:3]) + " ..." * (n > 3)
            said.append(f"The budget ended before every {things}; {n} left: {some}")
    return "\n".join(said)
