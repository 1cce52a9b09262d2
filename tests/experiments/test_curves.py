"""A study's curves: what each audit had found after so many questions, in the order asked or in random ones."""

from pathlib import Path

import pytest

from auditkit.experiments import curves
from auditkit.experiments.curves import HALF, compare_curves, found_after, run_curves
from auditkit.miniature import build, gaps
from auditkit.miniature.boards import Boards
from auditkit.params import load_params
from auditkit.runs import jsonl

TABLE = gaps.load(Path(build.__file__).parent / "longtail.yaml")[:2]


@pytest.fixture(scope="module")
def asked():
    """Four questions in one gap, two in another, each of a board of its own, and six outside: five wrong, one not."""
    rows, source = [], Boards()
    for gap, n in zip(TABLE, (4, 2), strict=True):
        i = 0
        while n:
            key, i = f"audit-{gap.name}-{i}", i + 1
            question = source.question(key)
            if source.gap(key, question, TABLE) == gap.name:
                rows.append({"picture": key, "question": question, "target": gap.says, "finding": True})
                n -= 1
    for i in range(6):
        question = "how many objects are there?"
        truth = source.truth(f"audit-{i}", question)
        rows.append({"picture": f"audit-{i}", "question": question, "target": truth, "finding": i == 0})
    return [row | {"key": str(i), "step": 1, "references": ["a", "b", "c"]} for i, row in enumerate(rows)]


def test_what_is_found_is_counted_in_the_order_asked(asked):
    found = found_after(asked, Boards(), TABLE, [2, 3, 12, 13], fixed=12)
    assert [found[n]["gaps"] for n in (2, 3, 12)] == [0, 1, 1] and found[HALF] == 3
    assert 13 not in found, "nobody asked so many"
    assert found[3] == {"gaps": 1, "failures": 3, "references": 9, "precision": 1}
    assert found[12]["precision"] == pytest.approx(6 / 7), "a finding on which the target was right"


def test_what_was_asked_by_one_checkpoint_after_another_is_read_in_random_orders(asked):
    found = found_after(asked, Boards(), TABLE, [3, 6, 12], fixed=0)
    assert found[12]["gaps"] == 1 and found[12]["failures"] == 6
    assert 0 <= found[3]["gaps"] < found[6]["gaps"] < 1 and 2 < found[6]["failures"] < 4
    assert 6 < found[HALF] < 12
    after = found_after(asked, Boards(), TABLE, [4], fixed=4)
    assert after[4]["gaps"] == 1, "those of a training come first"


def test_a_run_counts_with_its_training_and_without(asked, project):
    p = load_params("params/smoke.yaml", run_name="study_x.a.0", images="miniature", target="target")
    folder = project / "outputs" / p.run_name
    for name in ("04_auditor", "05_audit"):
        (folder / name).mkdir(parents=True)
    (project / "target").mkdir()
    (project / "target" / "gaps.yaml").write_text((Path(build.__file__).parent / "longtail.yaml").read_text())
    rollouts = [row | {"success": row["finding"], "made": None} for row in (asked[0], asked[0], asked[1])]
    jsonl.append(folder / "04_auditor" / "rollouts.jsonl", rollouts)
    scored = [
        row | {"outcome": "finding" if row["finding"] else "agrees", "references": dict(zip("abc", "abc", strict=True))}
        for row in asked[1:]
    ]
    jsonl.append(folder / "05_audit" / "scored.jsonl", [*scored, scored[0] | {"target": None, "outcome": "malformed"}])
    found = run_curves(p, [2, 11, 12])
    assert found["audit"][11] == {"gaps": 1, "failures": 5, "references": 33, "precision": pytest.approx(5 / 6)}
    both = found["training and audit"]
    assert both[2]["failures"] == 2, "what is asked twice is asked once"
    assert both[12]["failures"] == 6 and 12 not in found["audit"]
    assert list(found["audit after training"]) == [2], "two of the training, and ten more"
    assert found["audit after training"][2]["failures"] > 2, "what the training found comes for nothing"
    assert HALF not in found["audit"], "of 56 gaps"


def test_arms_are_compared_with_the_last_one(asked):
    two = [found_after(asked[:n], Boards(), TABLE, [3, 12], fixed=n) for n in (12, 11)]
    table = compare_curves({arm: [{name: one for name in curves.COUNTED} for one in two] for arm in ("a", "b")})
    assert list(table) == ["a", "b"]
    assert table["a"]["audit"][3]["gaps"]["mean"] == 1 and table["a"]["audit"][3]["gaps"]["against"]["mean"] == 0
    assert 12 not in table["a"]["audit"], "only one seed asked so many"
    assert table["b"]["audit"][HALF]["questions"]["seeds"] == [3, 3]
    assert "against" not in table["b"]["audit"][3]["gaps"]
