"""An audit asks everything once, whatever happens to it, and its scores say what was dropped."""

import weakref
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
from scoring import score
from scripted_models import NAMES, PICTURES, Killed, P, World, _Model

from auditkit.audit import loop
from auditkit.audit.allocation import candidate_batches, checkpoint_shares, probe_batches
from auditkit.audit.loop import run_audit
from auditkit.audit.score import outcome_counts
from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.models import transformers
from auditkit.models.load import load_model
from auditkit.models.transformers import VLM
from auditkit.runs import jsonl


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_one_record_a_probe_each_on_a_picture_of_its_own(world, tmp_path):
    records = world.run(tmp_path)
    assert len(records) == len({r["key"] for r in records}) == len({r["picture"] for r in records}) == 20
    assert Counter(r["checkpoint"] for r in records) == {"untrained": 8, "60": 6, "trained": 6}
    assert jsonl.read(tmp_path / "records.jsonl") == records
    asked = [r for r in records if r["question"]]
    assert 0 < len(asked) < 20
    assert all(set(r["references"]) == {"gemma3", "idefics3", "llava"} and r["target"] for r in asked)
    for malformed in (r for r in records if not r["question"]):
        assert malformed["target"] is None and malformed["references"] == {} and malformed["text"] == "mumble"
    assert set(world.calls.values()) == {1} and len(world.calls) == 4 * len(asked)


def test_killed_at_any_batch_and_started_again_it_ends_in_the_same_records_with_nothing_asked_twice(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(loop, "CHUNK", 6)
    calm = World(monkeypatch)
    wanted = calm.run(tmp_path / "calm")
    assert calm.batches > 20
    for batch in range(1, calm.batches + 1):
        world, out = World(monkeypatch), tmp_path / str(batch)
        world.kill_at = batch
        with pytest.raises(Killed):
            world.run(out)
        for path in out.glob("*.jsonl"):  # ... and the kill tore the line that was being written
            path.write_bytes(path.read_bytes() + b'{"key": "torn", "pic')
        assert world.run(out) == wanted
        assert world.calls == calm.calls
        for name in ("proposals", "answers", "records"):
            file = f"{name}.jsonl"
            assert (out / file).read_bytes() == (tmp_path / "calm" / file).read_bytes()


def test_a_finished_audit_asks_nothing_more(world, tmp_path):
    records, batches, loaded = world.run(tmp_path), world.batches, world.loaded.copy()
    assert set(loaded) == {*world.auditors, *NAMES[1:]} and set(loaded.values()) == {1}
    assert world.run(tmp_path) == records and world.batches == batches and world.loaded == loaded


def test_of_the_auditors_only_the_untrained_and_one_more_are_held_at_a_time(world, tmp_path):
    held = {}

    def load(name):
        auditor = VLM("auditor", _Model(), None, 4)
        gone = [other for other, model in held.items() if model() is None]
        assert set(held) - set(gone) <= {"untrained"}, name
        held[name] = weakref.ref(auditor.model)
        return auditor

    _, target, references = world.loaders()
    run_audit({name: partial(load, name) for name in world.auditors}, target, references, PICTURES, P, tmp_path)
    assert list(held) == ["untrained", "60", "trained"] and not any(model() for model in held.values())


def test_a_smaller_batch_than_the_audits_changes_no_record(world, tmp_path):
    """As after running out of memory: what a batch holds is the parameter file's choice, not the model's."""
    records = world.run(tmp_path / "whole")
    for model in (world.target, *world.references):
        model.batch_size = 1
    assert world.run(tmp_path / "halved") == records


def test_counts_per_checkpoint_can_be_given(world, tmp_path):
    records = world.run(tmp_path, counts={"untrained": 1, "trained": 2})
    assert [r["checkpoint"] for r in records] == ["untrained", "trained", "trained"]
    with pytest.raises(AuditError, match="25 probes need as many pictures, but there are 24"):
        world.run(tmp_path / "more", counts={"trained": 25})


def test_confusions_are_refused_before_anything_is_asked(world, tmp_path):
    one, target, two = world.loaders()
    for arguments, says in [
        ((one, target, [], PICTURES), "references"),
        ((one, target, two, [PICTURES[0]] * 2), "a picture comes twice"),
        ((one, target, two, []), "no pictures"),
        (({}, target, two, PICTURES), "no auditor"),
    ]:
        with pytest.raises(AuditError, match=says):
            run_audit(*arguments, P, tmp_path)
    assert world.batches == 0
    with pytest.raises(AuditError, match="two are called target"):
        run_audit(one, target, [*two, target], PICTURES, P, tmp_path)
    assert not world.calls


def test_a_folder_with_another_audit_is_refused(world, tmp_path):
    world.run(tmp_path)
    with pytest.raises(AuditError, match="other pictures"):
        run_audit(*world.loaders(), PICTURES[::-1], P, tmp_path)


def test_an_auditor_of_nonsense_ends_the_audit_and_what_it_wrote_is_kept(world, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers, "_write", lambda model, pictures, prompts, *how: ["mumble"] * len(prompts))
    with pytest.raises(AuditError, match='"untrained, 60, trained" wrote no question.*mumble'):
        world.run(tmp_path)
    assert len(jsonl.read(tmp_path / "proposals.jsonl")) == 20


def record(key, question, target, *references, picture=None):
    names = ("gemma3", "idefics3", "llava")
    return {"key": key, "picture": picture or key, "question": question, "text": question or "mumble", "target": target,
            "references": dict(zip(names, references, strict=False))}  # fmt: skip


RECORDS = [
    record("a", "what is it?", "red", "blue", "blue", "green"),
    record("b", "what is it?", "blue", "blue", "Blue.", "green"),
    record("c", "what is it?", "red", "blue", "pink", "green"),
    record("d", None, None),
    record("e", "What is it ?", "red", "blue", "blue", "green", picture="a"),
]


def test_scores_name_the_first_gate_that_fails():
    scored = score(RECORDS, P)
    assert [r["outcome"] for r in scored] == ["finding", "agrees", "no consensus", "malformed", "duplicate"]
    assert [r["consensus"] for r in scored] == ["blue", "blue", None, None, "blue"]
    assert [r["disagrees"] for r in scored] == [True, False, False, False, True]
    assert scored[0]["agreement"] == 0.67 and "outcome" not in RECORDS[0]


def test_a_question_the_untrained_auditor_would_never_ask_is_no_finding():
    likely, unlikely = RECORDS[0] | {"rarest": 0.01}, RECORDS[0] | {"rarest": 0.0001, "key": "f", "picture": "f"}
    assert [r["outcome"] for r in score([likely, unlikely], P)] == ["finding", "implausible"]
    assert outcome_counts(score([likely, unlikely], P))["implausible"] == 1
    assert score([likely | {"rarest": 0.0}], P)[0]["outcome"] == "implausible"


def test_a_target_that_says_nothing_has_not_failed_and_is_counted():
    silent = RECORDS[0] | {"target": "...", "key": "s", "picture": "s"}
    scored = score([RECORDS[0], silent], P)
    assert [r["outcome"] for r in scored] == ["finding", "no answer"] and not scored[1]["disagrees"]
    assert outcome_counts(scored)["no_answer"] == 1 and outcome_counts(scored)["scored"] == 1


@pytest.mark.parametrize(
    ("who", "says"), [("target", "the target said nothing to 6 of 10"), ("llava", '"llava" said nothing')]
)
def test_a_model_that_says_nothing_to_most_questions_ends_the_stage(who, says):
    rows = [RECORDS[0] | {"key": str(i), "picture": str(i)} for i in range(10)]
    for row in rows[:6]:
        row |= {"target": ""} if who == "target" else {"references": row["references"] | {who: "?"}}
    with pytest.raises(AuditError, match=says):
        score(rows, P)
    rows[0] |= {"target": "red", "references": RECORDS[0]["references"]}
    assert len(score(rows, P)) == 10


def test_counts_add_up():
    assert outcome_counts(score(RECORDS, P)) == {
        "asked": 5, "parsed": 4, "target_called": 4, "references_called": 12, "scored": 2, "malformed": 1,
        "bad_pictures": 0, "implausible": 0,
        "no_consensus": 1, "no_answer": 0, "duplicates": 1,
    }  # fmt: skip


def test_nothing_asked_and_never_agreeing_references_are_errors():
    with pytest.raises(AuditError, match="never asked"):
        score([RECORDS[3]], P)
    with pytest.raises(AuditError, match=r"\(gemma3, idefics3, llava\) never agree on any of 1 probes.*quorum"):
        score(RECORDS[2:4], P)


@pytest.mark.parametrize("probes", [1, 2, 7, 20, 1999, 2000])
def test_shares_use_every_probe(probes):
    for names in (["a"], ["a", "b"], list("abc"), list("abcde")):
        counts = checkpoint_shares(names, probes)
        assert sum(counts.values()) == probes and min(counts.values()) >= 0


@pytest.mark.skipif(
    not all((shipped.WEIGHTS / name).is_dir() for name in NAMES), reason="the miniature models are not built yet"
)
def test_an_audit_of_the_shipped_target_finds_true_failures(tmp_path):
    source = load_images("miniature")
    untrained, target, *references = [partial(load_model, f"miniature:{name}", batch_size=64) for name in NAMES]
    p = SimpleNamespace(**{**vars(P), "audit_probes": 192, "batch_size": 64})
    pictures = source.pictures("audit", 192, seed=11)
    records = run_audit({"untrained": untrained}, target, references, pictures, p, tmp_path)
    scored = score(records, p)
    counts = outcome_counts(scored)
    assert counts["asked"] == 192 and counts["scored"] >= 150
    findings = [r for r in scored if r["outcome"] == "finding"]
    true = [r for r in findings if source.truth(r["picture"], r["question"]) not in (None, r["target"])]
    assert 0.08 <= len(findings) / len(scored) <= 0.45
    assert len(true) >= 0.8 * len(findings)


def test_of_several_candidates_one_is_asked_and_the_last_checkpoint_s_are_asked_as_they_come(world, tmp_path):
    p = SimpleNamespace(**{**vars(P), "candidates": 3, "replay_clusters": 4})
    asked = [f"is object {n} red or blue?" for n in range(7)] * 10
    tried = [{"way": "question", "question": q, "text": q, "success": "object 1" in q} for q in asked]
    records = world.run(tmp_path / "chosen", p, rollouts=tried)
    plain = world.run(tmp_path / "plain")
    written = jsonl.read(tmp_path / "chosen" / "proposals.jsonl")
    assert len(written) == 14 * 3 + 6 and len(records) == 20
    assert Counter(row["checkpoint"] for row in written) == {"untrained": 24, "60": 18, "trained": 6}
    assert len({r["picture"] for r in records}) == 20, "one about each picture"
    last = [[r for r in some if r["checkpoint"] == "trained"] for some in (records, plain)]
    assert last[0] == last[1]
    assert set(world.calls.values()) <= {1, 2} and len(jsonl.read(tmp_path / "chosen" / "records.jsonl")) == 20
    hits = [sum("object 1" in (r["question"] or "") for r in some) for some in (records, plain)]
    assert hits[0] > hits[1], "what succeeded in training is preferred"
    malformed = [sum(r["question"] is None for r in some) for some in (records, plain)]
    assert malformed[0] < malformed[1], "and what is no question is left out"
    calls = sum(world.calls.values())
    assert world.run(tmp_path / "chosen", p, rollouts=tried) == records and sum(world.calls.values()) == calls


def test_only_questions_have_candidates_and_what_was_chosen_stays_so(world, tmp_path, monkeypatch):
    dealt = {"untrained": PICTURES[:12], "60": PICTURES[12:18], "trained": PICTURES[18:]}
    batches = probe_batches(dealt, ["question", "question", "edit"], lambda key: "what is it?", 4)
    more, first = candidate_batches(batches, list(dealt), 3, 4)
    assert {batch["way"] for batch in more} == {"question"} and {b["checkpoint"] for b in more} == {"untrained", "60"}
    keys = [key for batch in more for key in batch["keys"]]
    assert len(keys) == len(set(keys)) == 2 * (8 + 4) and len(first) == 3 * (8 + 4)
    of = {
        key: picture for batch in batches + more for key, picture in zip(batch["keys"], batch["pictures"], strict=True)
    }
    assert all(of[key] == of[its_first] for key, its_first in first.items())

    p = SimpleNamespace(**{**vars(P), "candidates": 2, "replay_clusters": 4})
    tried = [{"way": "question", "question": "is it?", "text": "is it?", "success": n == 0} for n in range(4)]
    records = world.run(tmp_path, p, rollouts=tried)
    monkeypatch.setattr(loop, "select_questions", lambda *_, **how: pytest.fail("chosen anew"))
    assert world.run(tmp_path, p, rollouts=tried) == records


def test_candidates_that_were_interrupted_end_in_the_same_records(monkeypatch, tmp_path):
    p = SimpleNamespace(**{**vars(P), "candidates": 2, "replay_clusters": 4})
    tried = [{"way": "question", "question": "is it?", "text": "is it?", "success": n == 0} for n in range(4)]
    calm = World(monkeypatch)
    wanted = calm.run(tmp_path / "calm", p, rollouts=tried)
    for batch in range(1, calm.batches + 1, 3):
        world, out = World(monkeypatch), tmp_path / str(batch)
        world.kill_at = batch
        with pytest.raises(Killed):
            world.run(out, p, rollouts=tried)
        assert world.run(out, p, rollouts=tried) == wanted


def test_a_picture_that_comes_again_is_not_asked_the_same_where_there_is_a_choice(world, tmp_path):
    p = SimpleNamespace(**{**vars(P), "candidates": 3, "replay_clusters": 4})
    tried = [{"way": "question", "question": "is it?", "text": "is it?", "success": n == 0} for n in range(4)]
    shown = [PICTURES[i // 5] for i in range(20)]  # as on the labeled route, where each has five examples
    runs = [
        run_audit(*world.loaders(), shown, p, tmp_path / str(len(rollouts)), again=True, rollouts=rollouts)
        for rollouts in (tried, [])
    ]
    assert all(sorted(r["picture"] for r in records) == sorted(picture.key for picture in shown) for records in runs)
    repeats = [sum(row["outcome"] == "duplicate" for row in score(records, p)) for records in runs]
    assert repeats[0] < repeats[1]
