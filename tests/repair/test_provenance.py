"""What is learnt can be traced to the probe it came from, and each probe to what was learnt of it."""

import json
from collections import Counter

import pytest

from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.miniature.boards import Boards
from auditkit.params import load_params
from auditkit.repair.near_duplicates import near_duplicates
from auditkit.repair.provenance import (
    AUDIT,
    audit_pictures,
    draw_originals,
    earlier_audits,
    example_of,
    gather_probes,
    learnable_probes,
    probe_of,
    write_trace,
)
from auditkit.repair.training_set import build_training_set, training_pairs
from auditkit.runs import jsonl

BOARDS = Boards()


def probe(run, i, gate="finding", key=None, **more):
    asked = {"key": key or f"untrained/{i:05d}", "picture": f"{run}-0-{i}", "question": f"how many are in row {i}?"}
    return asked | {"target": "0", "consensus": str(i), "outcome": gate} | more


def training_set(rows, originals, p):
    return build_training_set(
        training_pairs(
            rows,
            [],
            BOARDS.picture,
            **{name: getattr(p, name) for name in ("rectify_on", "rectify_pairs", "failure_types", "types_by", "seed")},
        ),
        rows,
        originals,
        p,
        BOARDS.picture,
    )


@pytest.fixture
def p(project):
    """Two finished audits, `before` and `demo`, whose probes have the same keys."""
    for run in ("before", "demo"):
        folder = project / "outputs" / run / AUDIT
        gates = ["finding", "agrees", "no consensus", "finding", "agrees", "malformed"]
        jsonl.append(folder / "scored.jsonl", [probe(run, i, gate) for i, gate in enumerate(gates)])
        (folder / "manifest.json").write_text(json.dumps({"parameters": {"images": "miniature"}}))
        (folder / "DONE").touch()
    return load_params("params/demo.yaml", earlier=["before"])


def test_every_training_example_leads_to_its_probe_and_every_probe_to_its_example(p, project):
    scored = jsonl.read(project / "outputs/demo/05_audit/scored.jsonl")
    rows = learnable_probes(gather_probes(scored, p), p)
    examples = training_set(rows, BOARDS.examples(20, 0), p)
    folder = project / "outputs/demo/07_rectify"
    write_trace(examples, rows, folder)
    traced = jsonl.read(folder / "training.jsonl")
    assert Counter(row["kind"] for row in traced) == {"finding": 4, "agreed": 4, "original": 20}
    assert {row["key"]: row["times"] for row in traced} == Counter(example.key for example in examples)
    for example in examples:
        found = probe_of(folder, example.key)
        if "/q" in example.key:
            assert found is None
            continue
        run = "before" if example.key.startswith("before/") else "demo"
        assert found in jsonl.read(project / "outputs" / run / "05_audit/scored.jsonl")
        assert (found["question"], found["consensus"]) == (example.question, example.answer)
        assert found["picture"].startswith(run)
    for run in ("before", "demo"):
        for row in jsonl.read(project / "outputs" / run / "05_audit/scored.jsonl"):
            example = example_of(folder, run, row["key"])
            if row["outcome"] in ("finding", "agrees"):
                assert probe_of(folder, example["key"]) == row
                assert (example["question"], example["answer"]) == (row["question"], row["consensus"])
            else:
                assert example is None
    with pytest.raises(AuditError, match="outputs/demo/07_rectify/training.jsonl has no training example 'x'"):
        probe_of(folder, "x")


def test_an_earlier_run_must_have_audited_the_same_images(p, project):
    with pytest.raises(AuditError, match="earlier: outputs/gone/05_audit is not done; run gone"):
        earlier_audits(load_params("params/demo.yaml", earlier=["gone"]))
    (project / "outputs/before/05_audit/manifest.json").write_text('{"parameters": {"images": "photos"}}')
    with pytest.raises(AuditError, match='earlier: before audited "photos", not "miniature"'):
        gather_probes([], p)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"earlier": ["demo"]}, "earlier: demo has this run itself"),
        ({"earlier": ["a", "a"]}, "one of them twice"),
        ({"route": "both"}, "route: 'both' is not one of unlabeled, labeled"),
        ({"route": "labeled", "rectify_pairs": 5}, "rectify_pairs: on the labeled route"),
    ],
)
def test_what_cannot_be_meant_is_refused(project, settings, says):
    with pytest.raises(AuditError, match=says):
        load_params("params/demo.yaml", **settings)


def test_the_labeled_route_adds_one_sample_to_each_example_and_keeps_all_of_them(project):
    p = load_params("params/demo.yaml", route="labeled", audit_probes=6)
    pictures, originals = audit_pictures(BOARDS, p), draw_originals(BOARDS, p)
    assert [picture.key for picture in pictures] == [e.key.split("/q")[0] for e in originals] and len(originals) == 6
    scored = [
        probe("audit", 0),
        probe("audit", 1, "agrees"),
        probe("audit", 2, "no consensus"),
        probe("audit", 3, "bad picture", key="60/0"),
        probe("audit", 3, key="60/0/own"),  # its picture was dropped, the source's question held
        probe("audit", 4, key="60/1"),
        probe("audit", 4, "agrees", key="60/1/own"),
    ]
    rows = learnable_probes(gather_probes(scored, p), p)
    assert [row["key"] for row in rows] == ["untrained/00000", "60/0/own", "60/1", "untrained/00001"]
    examples = training_set(rows, originals, p)
    assert Counter(e.key for e in examples) == Counter([*(e.key for e in originals), *(row["key"] for row in rows)])
    assert {e.answer for e in examples if "/q" in e.key} == {e.answer for e in originals}


def test_the_labeled_route_wants_labels(project, tmp_path):
    for i in range(60):
        BOARDS.picture(f"x-0-{i}").image.save(tmp_path / f"{i}.png")
    p = load_params("params/demo.yaml", route="labeled", images=str(tmp_path))
    with pytest.raises(AuditError, match="route: labeled adds a sample to each labelled training example.*has none"):
        audit_pictures(load_images(p.images), p)


def test_what_an_earlier_round_found_already_is_not_learnt_twice(p, project):
    scored = jsonl.read(project / "outputs/demo/05_audit/scored.jsonl")
    rows = gather_probes([row | {"picture": row["picture"].replace("demo", "before")} for row in scored], p)
    repeats = near_duplicates(learnable_probes(rows, p), BOARDS.picture)
    keys = [f"untrained/{i:05d}" for i in (0, 3, 1, 4)]
    assert repeats == {f"before/{key}": key for key in keys}
