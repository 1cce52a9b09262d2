"""What training has met is found: through the audit's own outcomes and gates, once each, and in no rate."""

from dataclasses import replace

import pytest

from auditkit.audit.allocation import auditor_loaders
from auditkit.audit.baseline import score_run
from auditkit.audit.loop import run_audit
from auditkit.auditor import closed, collapse, grpo, rollouts
from auditkit.consensus.choose import choose_same
from auditkit.data.load import load_images
from auditkit.findings.failure_types import explain_types, find_failure_types
from auditkit.findings.from_training import training_findings, training_records
from auditkit.findings.grading import grade_planted_gaps, probes_until
from auditkit.findings.recheck import all_counts
from auditkit.models.load import load_model, model_loader
from auditkit.models.roles import deferred
from auditkit.params import load_params
from auditkit.repair.provenance import learnable_probes
from auditkit.runs.folder import open_stage
from auditkit.runs.probe import TRAINING, audit_probes, only_findings


@pytest.fixture
def p(repository):
    smoke = load_params(repository / "params" / "smoke.yaml")
    return replace(smoke, ways=["question"], gates=[])


def rollout(i, question, success=True, **more):
    said = {"target": "red", "references": ["blue", "blue", "blue"], "consensus": "blue", "cluster": 0}
    row = {"key": f"{i}-0", "picture": f"p{i}", "way": "question", "question": question, "text": f"a note\n{question}"}
    return row | said | {"success": success} | more


def test_only_what_succeeded_on_a_picture_that_is_kept_and_that_once():
    met = training_records(
        [
            rollout(1, "what colour is it?"),
            rollout(1, "What colour is it?", key="9-3"),
            rollout(2, "what colour is it?", success=False),
            rollout(3, "what colour is it?", way="edit", made="made-3"),
            rollout(4, "what colour is it?", key="left 1/2-0"),
        ],
        ["one", "two", "three"],
        9,
    )
    assert [row["key"] for row in met] == ["training/1-0", "training/left 1/2-0"]
    assert met[0]["references"] == {"one": "blue", "two": "blue", "three": "blue"} and met[0]["checkpoint"] == TRAINING
    assert (met[0]["way"], met[0]["pairing"], met[0]["base"]) == ("question", "(Q*, I)", "")


def test_of_too_many_the_rare_kinds_are_taken_first():
    often = [rollout(i, "what colour is it?") for i in range(20)]
    rare = [rollout(20 + i, "how many are there?", cluster=1, target=str(i)) for i in range(3)]
    met = training_records([*often, *rare], ["one", "two", "three"], 6)
    assert [row["picture"] for row in met] == ["p0", "p1", "p2", "p20", "p21", "p22"]


def probe(i, outcome, question="what colour is the star?", checkpoint="step 6"):
    said = {"target": "red", "consensus": "blue", "references": {"one": "blue"}, "agreement": 1.0, "outcome": outcome}
    return {"key": f"{checkpoint}/{i}", "picture": f"p{i}", "question": question, "checkpoint": checkpoint} | said


def test_types_count_it_and_their_rates_do_not():
    scored = [probe(i, "finding") for i in range(4)] + [probe(i, "agrees") for i in range(4, 8)]
    met = [probe(i, "finding", checkpoint=TRAINING) for i in range(9)]
    other = [
        probe(20 + i, "finding", f"how many {of} are there?", TRAINING)
        for i, of in enumerate(("circles", "squares") * 3)
    ]
    met += [row | {"target": "2", "consensus": "3"} for row in other]
    types = {kind.template: kind for kind in find_failure_types([*scored, *met], 4)}
    asked, alone = types["what colour is the star?"], types["how many circles are there?"]
    assert (asked.size, asked.from_training, asked.rate["value"], asked.rate["n"]) == (13, 9, 0.5, 8)
    assert (alone.size, alone.from_training, alone.rate, alone.rate_when, alone.asked) == (3, 3, {}, {}, [])
    words = explain_types(list(types.values()), [*scored, *met])
    assert "departed from its references on 4 of 8 questions" in words and "how many" not in words.split("To")[0]


def test_a_gap_may_be_found_in_training_but_not_by_fewer_probes():
    class Known:
        complete = True

        def gap(self, key, question, gaps):
            return "stars"

        def accepted(self, key, question):
            return ("blue",)

    class Gap:
        name, skill, when, says = "stars", "colour", {}, "red"

    records = [probe(1, "finding"), probe(2, "agrees")] + [probe(i, "finding", checkpoint=TRAINING) for i in range(3)]
    (gap,) = grade_planted_gaps(records, Known(), [Gap])["gaps"]
    assert (gap["found"], gap["findings"], gap["probes"], gap["from_training"]) == (True, 4, 2, 3)
    assert probes_until([gap], 2, 1.0) is None
    (gap,) = grade_planted_gaps(records[:2], Known(), [Gap])["gaps"]
    assert not gap["found"] and "from_training" not in gap


def test_the_labeled_route_keeps_to_a_sample_for_each_example(p):
    rows = [probe(1, "finding"), probe(2, "finding", checkpoint=TRAINING)]
    assert len(learnable_probes(rows, p)) == 2
    assert [row["checkpoint"] for row in learnable_probes(rows, replace(p, route="labeled"))] == ["step 6"]


def test_after_a_collapse_the_stage_is_finished_and_audited_and_what_was_left_is_found(project, p, monkeypatch):
    """The whole way on the real miniature: any two steps are called a collapse here, so the training ends early."""
    small = {"grpo_steps": 3, "grpo_images": 4, "train_images": 16, "grpo_patience": 2, "grpo_checkpoints": 1}
    p = replace(p, audit_probes=12, candidates=1, gates=["reproduces", "sound"], repeats=1, **small)
    monkeypatch.setattr(collapse, "ONE_TEXT", 0.0)
    run, source, load = open_stage(p, "04_auditor"), load_images(p.images), model_loader(p)
    models = [load(spec) for spec in (p.target, *p.references)]
    history = grpo.train_auditor(
        load_model(p.auditor), models[0], models[1:], source.pictures("train", p.train_images, p.seed), p, run.folder
    )
    run.count(**rollouts.rollout_counts(run.folder, models[0].name))
    kept = run.finish({"steps": history[-1]["step"]} | closed.collapse_metrics(run.folder))
    assert [row.get("back_to") for row in kept["collapses"]] == [0, None] and history[-1]["step"] == 2

    audit = open_stage(p, "05_audit")
    trained_in, answering = audit.need("04_auditor"), deferred(load, p.target, *p.references)
    rows = rollouts.read_rollouts(trained_in)
    auditors = auditor_loaders(p.asks, load, p.auditor, trained_in)
    assert list(auditors) == ["untrained", "step 2"]
    pictures = source.pictures("audit", p.audit_probes, p.seed)
    records = run_audit(auditors, answering[0], answering[1:], pictures, p, audit.folder, rollouts=rows)
    alike = choose_same(p, audit.folder)
    scored = score_run(records, alike, p)
    how = alike, p, source.picture, audit.folder
    met, again = training_findings(rows, records, answering[0], answering[1:], *how)
    assert len(rows) == 2 * 2 * 16 and any(row["key"].startswith("training/left 1/") for row in met)
    distinct = {(row["picture"], row["question"].lower()) for row in rows if row["success"]}
    assert len(met) == len(distinct) and {row["key"] for row in met} == set(again) and only_findings(met)
    assert {row["outcome"] for row in met} <= {"finding", "not reproduced", "ill-posed"}
    assert all(row["target"] != row["consensus"] for row in met) and audit_probes([*scored, *met]) == scored
    called, alone = all_counts(scored, again, met), all_counts(scored, {})
    assert called["asked"] == alone["asked"] == 12
    assert called["target_called"] - alone["target_called"] == len(met), "once more each, and counted"
    assert called["references_called"] - alone["references_called"] == 3 * len(met)
