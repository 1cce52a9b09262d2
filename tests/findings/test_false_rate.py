"""The estimate of false findings holds the truth, as long as those who are asked err on their own."""

import random

import pytest

from auditkit.consensus.same import Same
from auditkit.errors import AuditError
from auditkit.findings.false_rate import held_out, leave_one_out


def audit(seed: int, false: float, knows=0.95, shared=0.0, n=1200):
    """An audit as if made of a target with faults, three references that err on their own, and two of them together.

    Returns its records, what a held-out model says to each, and the share of its findings that are false.
    """
    rng, rows, said, wrong = random.Random(seed), [], {}, []
    for i in range(2 * n):
        key = f"a/{i}"
        row = {"key": key, "question": "what is it?", "outcome": "finding" if i < n else "agrees"}
        blind = i < n and rng.random() < false
        target = "right" if blind or i >= n else "target's"
        consensus = "theirs" if blind else "right"

        def own(fault: str) -> str:
            return "right" if rng.random() < knows else fault if rng.random() < shared else f"other {rng.random()}"  # noqa: B023

        third = own("theirs")
        references = {"a": consensus, "b": consensus, "c": third}
        agreement = 1.0 if third == consensus else 0.67
        rows.append(row | {"target": target, "consensus": consensus, "references": references, "agreement": agreement})
        said[key] = own(target)
        wrong.append(blind)
    return rows, said, sum(wrong[:n]) / n


@pytest.mark.parametrize("false", [0.0, 0.02, 0.3])
def test_the_interval_holds_the_truth(false):
    inside = {"leave one out": 0, "held out": 0}
    for seed in range(40):
        rows, said, truth = audit(seed, false)
        for name, found in (
            ("leave one out", leave_one_out(rows, Same())),
            ("held out", held_out(rows, said, Same())),
        ):
            inside[name] += found["low"] <= truth <= found["high"]
            assert found["n"] == 1200 and found["knows"]["value"] > 0.9
    assert min(inside.values()) >= 36, inside


def test_a_judge_that_shares_the_targets_faults_takes_true_findings_for_false():
    rows, said, truth = audit(0, 0.02, shared=1.0)
    found = held_out(rows, said, Same())
    assert found["value"] > truth + 0.02, "it errs on the safe side, and says so in the module"
    assert found["low"] <= truth <= found["high"], "but it cannot know what it sees against all references"
    assert 0 < found["against_all"] < found["contested"]
    lone = leave_one_out([row | {"references": {"c": said[row["key"]]}} for row in rows], Same())
    assert lone["low"] > truth, "as one who votes is taken to know"


def test_where_nobody_can_side_with_the_target_nothing_is_estimated():
    rows, _, _ = audit(0, 0.02)
    united = [row | {"agreement": 1.0} for row in rows]
    with pytest.raises(AuditError, match="all of them always agree"):
        leave_one_out(united, Same())
    with pytest.raises(AuditError, match="cannot be estimated from 0 findings"):
        leave_one_out([row for row in rows if row["outcome"] == "agrees"], Same())
