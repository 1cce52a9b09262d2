"""A search asks what was heard to be worth asking: it finds more kinds with the same questions, and never the truth."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from scripted_models import Killed, P, World

from auditkit.audit import loop
from auditkit.audit.frames import Frames
from auditkit.audit.leads import ENOUGH, TRIES, Lead, np
from auditkit.audit.loop import run_audit
from auditkit.audit.rounds import search_summary, summary_in_words, written_counts
from auditkit.audit.search import Search
from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.miniature import gaps, grammar
from auditkit.miniature.boards import Boards, scene_of
from auditkit.models.load import load_model
from auditkit.params import load_params
from auditkit.runs import jsonl
from auditkit.runs.probe import Probe

WAYS = ("adaptive", "follow")
FOUR = [
    gaps.Gap("red stars", "colour", {"truth": "red", "shape": "star"}, "orange"),
    gaps.Gap("blue circles", "shape", {"truth": "circle", "colour": "blue"}, "square"),
    gaps.Gap("four in fog", "counting", {"objects": 4, "background": "fog"}, "5"),
    gaps.Gap("up in fog", "sign", {"truth": "up", "background": "fog"}, "left"),
    gaps.Gap("c1", "location", {"truth": "c1"}, "b1"),
]


@pytest.fixture(scope="module")
def pool() -> list[Probe]:
    """Questions about boards, as the source draws them."""
    boards = Boards()
    keys = [f"audit-7-{i}" for i in range(2400)]
    return [Probe(key, key, boards.question(key), boards.question(key)) for key in keys]


def hunt(pool: list[Probe], way: str, budget: int) -> tuple[Search, Counter]:
    """Search with references that are always right and a target that is wrong in four narrow places only."""

    def consensus(pairs):
        return [grammar.answer(scene_of(key), question) for key, question in pairs]

    search, found = Search(pool, consensus, adaptive=way == "adaptive", seed=1), Counter()
    while len(search.asked) < budget:
        for i, why in search.choose(min(32, budget - len(search.asked))):
            probe = search.probes[i]
            gap = gaps.find(FOUR, scene_of(probe.picture), probe.question)
            found[gap and gap[0].name] += 1
            search.tell(i, grammar.answer(scene_of(probe.picture), probe.question), gap is not None, why)
    return search, found


@pytest.mark.parametrize("way", WAYS)
def test_it_finds_more_kinds_than_asking_once(pool, way):
    once = Counter(
        gap[0].name for probe in pool[:300] if (gap := gaps.find(FOUR, scene_of(probe.picture), probe.question))
    )
    search, found = hunt(pool, way, 300)
    assert sum(found.values()) == 300 == len(set(search.asked))

    def kinds(counts):
        return sum(n >= ENOUGH for name, n in counts.items() if name)

    assert kinds(found) > kinds(once), (found, once)
    assert sum(lead.is_known() for lead in search.leads) >= kinds(once)
    assert all(lead.tries <= TRIES and lead.hits <= ENOUGH for lead in search.leads)


def test_the_same_seed_chooses_the_same(pool):
    (one, _), (two, _) = (hunt(pool[:600], "adaptive", 100) for _ in range(2))
    assert one.asked == two.asked and one.facts == two.facts


def test_nothing_is_asked_twice_of_a_picture_and_nothing_without_a_consensus(pool):
    asked = []

    def none_about_signs(pairs):
        asked.extend(pairs)
        return [None if "sign" in question else "yes" for _, question in pairs]

    search = Search([*pool[:200], *pool[:200]], none_about_signs, adaptive=True, seed=0)
    assert search.size == 200
    while chosen := search.choose(32):
        for i, why in chosen:
            search.tell(i, "yes", False, why)
    said = [(search.probes[i].picture, search.probes[i].question) for i in search.asked]
    first = said[:32]
    assert len(set(said)) == len(said) and not any("sign" in question for _, question in said[32:])
    assert len(said) >= 200 - sum("sign" in question for _, question in asked[:200]) and first


def test_a_lead_learns_which_facts_matter():
    lead = Lead(0, ["red", "star", "c3"])
    masks = np.array([0b111, 0b011, 0b001, 0b101, 0b110])  # red star c3, red star, red, red c3, star c3
    lead.weigh(masks, np.array([True, True, False, False, False]))
    assert lead.chance_of({"red", "star"}) > 3 * lead.chance_of({"red", "c3"})
    for failed in (True, True):
        lead.tell(failed)
    assert lead.is_known() and not lead.open


def test_frames_need_no_grammar():
    asked = [f"welche {was} hat das Ding bei {ort}?" for was in ("Farbe", "Form") for ort in ("a1", "b2", "c3", "d4")]
    frames = Frames(asked)
    assert [question for _, question in frames.probing("welche Farbe hat das Ding bei c3?")] == [
        "welche Form hat das Ding bei c3?"
    ]
    assert "welche Farbe hat das Ding bei b2?" in frames.neighbours("welche Farbe hat das Ding bei c3?")
    assert Frames(["这是什么颜色?", "有几只狗?"]).probing("有几只狗?") == []


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_batch_and_started_again_it_ends_in_the_same_records(monkeypatch, tmp_path, way):
    monkeypatch.setattr(loop, "CHUNK", 6)
    p = SimpleNamespace(**{**vars(P), "search": way, "audit_probes": 70, "candidates": 2, "batch_size": 16})
    calm = World(monkeypatch)
    wanted = calm.run(tmp_path / "calm", p)
    assert len(wanted) == 70 and len(jsonl.read(tmp_path / "calm" / "rounds.jsonl")) == 4  # 32, 32, 6, and the end
    for batch in range(2, calm.batches, 7):
        world, out = World(monkeypatch), tmp_path / str(batch)
        world.kill_at = batch
        with pytest.raises(Killed):
            world.run(out, p)
        for path in out.glob("*.jsonl"):
            path.write_bytes(path.read_bytes() + b'{"key": "torn", "pic')
        assert world.run(out, p) == wanted and world.calls == calm.calls
        for name in ("records", "rounds"):
            assert (out / f"{name}.jsonl").read_bytes() == (tmp_path / "calm" / f"{name}.jsonl").read_bytes()
    loaded = calm.loaded.copy()
    assert calm.run(tmp_path / "calm", p) == wanted and calm.loaded == loaded


def test_a_search_on_the_miniature_never_asks_for_the_truth(monkeypatch, repository, tmp_path):
    def forbidden(*_):
        raise AssertionError("the oracle only grades")

    for name in ("truth", "accepted", "gap", "gaps"):
        monkeypatch.setattr(Boards, name, forbidden)
    small = {"audit_probes": 40, "candidates": 3, "asks": "source", "ways": ["question"], "search": "adaptive"}
    p = load_params(repository / "params" / "smoke.yaml", **small, references=["miniature:gemma3", "miniature:llava"])
    pictures = load_images("miniature").pictures("audit", 120, 0)
    target, *references = [partial(load_model, spec) for spec in (p.target, *p.references)]
    records = run_audit({"source": None}, target, references, pictures, p, tmp_path, own=Boards().question)
    assert len(records) == 40 and all(row["target"] and len(row["references"]) == 2 for row in records)
    found = search_summary(tmp_path)
    assert found["curve"][-1]["asked"] == 40 and found["pool"] == 120
    named = [row["model"] for row in jsonl.read(tmp_path / "answers.jsonl")]
    assert named.count("target") == 40, "the target is asked what is chosen, and nothing else"
    assert written_counts(tmp_path)["references_for_choosing"] == len(named) - 3 * 40 > 2 * 80
    assert found["kinds_tried"] < found["kinds"] and "The budget ended before every kind" in summary_in_words(found)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"engine": "ray"}, "search: adaptive goes in small rounds.*engine: local"),
        ({"ways": ["question", "edit"], "editor": "miniature:editor"}, "search: adaptive asks questions"),
        ({"route": "labeled"}, "search: adaptive asks questions"),
        ({"candidates": 1}, "candidates: 1 leaves search: adaptive nothing to choose"),
    ],
)
def test_what_a_search_cannot_do_is_said_at_the_start(repository, wrong, says):
    with pytest.raises(AuditError, match=says):
        load_params(
            repository / "params" / "demo.yaml",
            **({"search": "adaptive", "ways": ["question"], "candidates": 3} | wrong),
        )
