"""Gates beyond the consensus: what is asked again, what each gate drops, and what that is worth."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest

from auditkit.consensus.same import Same
from auditkit.errors import AuditError
from auditkit.findings.recheck import (
    ELSEWHERE,
    RECHECK_FILE,
    apply_gates,
    gate_effects,
    passes_gate,
    recheck_counts,
    recheck_findings,
)
from auditkit.miniature.boards import Boards
from auditkit.models import transformers
from auditkit.models.load import load_model
from auditkit.models.transformers import _write
from auditkit.params import load_params
from auditkit.runs import jsonl


def settings(**changes):
    return SimpleNamespace(**{
        "gates": ["reproduces", "sound", "visual"], "repeats": 4, "paraphraser": "", "temperature": 0.7, "seed": 0,
        "quorum": 0.6, "same": "text", "max_question_tokens": 32, "max_answer_tokens": 8, **changes,
    })  # fmt: skip


def finding(key="a/1", **more):
    row = {"key": key, "picture": "test-0-1", "base": None, "question": "what colour is the object at b2?"}
    row |= {"target": "blue", "references": {"r": "red", "s": "red", "t": "red"}, "consensus": "red"}
    return row | {"agreement": 1.0, "disagrees": True, "outcome": "finding", "irrelevant_edit": False} | more


def again(target=("blue",) * 4, references=(("red",) * 4,) * 3, elsewhere=(("red", "green"),) * 3):
    names = ("r", "s", "t")
    return {"key": "a/1", "target": list(target), "references": dict(zip(names, references, strict=True)),
            "elsewhere": dict(zip(names, elsewhere, strict=True)), "paraphrase": None}  # fmt: skip


@pytest.mark.parametrize(
    "gate, said, passes",
    [
        ("reproduces", again(), True),
        ("reproduces", again(target=("blue", "green", "blue", "Red.")), True),  # 3 of 4 depart, in whatever direction
        ("reproduces", again(target=("blue", "red", "blue", "red")), False),
        ("sound", again(), True),
        ("sound", again(references=(("red",) * 4, ("red",) * 4, ("green",) * 4)), True),  # two of three stay
        ("sound", again(references=(("red",) * 4, ("green", "blue", "red", "red"), ("green",) * 4)), False),
        ("visual", again(), True),
        ("visual", again(elsewhere=(("red", "red"),) * 3), False),  # whatever the picture, red
        (
            "visual",
            again(elsewhere=(("red", "red"), ("red", "green"), ("red", "blue"))),
            True,
        ),  # no consensus elsewhere
    ],
)
def test_what_passes_a_gate(gate, said, passes):
    assert passes_gate(gate, finding(), said, Same(), 0.6) is passes


def test_the_first_gate_a_finding_falls_through_is_named_and_only_those_that_are_on_count():
    rows = [finding(), finding("a/2", outcome="agrees")]
    said = {"a/1": again(target=("red",) * 4, elsewhere=(("red", "red"),) * 3)}
    gate = lambda *gates: [row["outcome"] for row in apply_gates(rows, said, gates, Same(), 0.6)]  # noqa: E731
    assert gate("reproduces", "sound", "visual") == ["not reproduced", "agrees"]
    assert gate("sound", "visual") == ["not visual", "agrees"]
    assert gate("sound") == ["finding", "agrees"] and gate() == ["finding", "agrees"]


@pytest.fixture(scope="module")
def models():
    names = ("target", "gemma3", "llava")
    return [partial(load_model, f"miniature:{name}", device="cpu", dtype="float32") for name in names]


def found(boards, n=6):
    """Questions of the first kind on boards, as findings: whatever the consensus, they are asked again."""
    return [finding(f"a/{i}", picture=picture.key, base=None, references={"gemma3": "red", "llava": "red"})
            for i, picture in enumerate(boards.pictures("test", n, 3))]  # fmt: skip


def test_models_answer_again_and_a_kill_asks_nothing_twice(models, tmp_path, monkeypatch):
    boards, p = Boards(), settings(repeats=3)
    rows, put, write = found(boards), Counter(), _write

    def counted(model, pictures, prompts, *rest):
        put[model.name] += len(prompts)
        return write(model, pictures, prompts, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(transformers, "_write", counted)
        said = recheck_findings(rows, models[0], models[1:], p, boards.picture, tmp_path)
    target = put.pop(models[0]().name)
    assert recheck_counts(said, rows) == {"target_called": target, "references_called": put.total()}
    one = said["a/0"]
    assert len(one["target"]) == 3 and {name: len(of) for name, of in one["references"].items()} == {
        "gemma3": 3,
        "llava": 3,
    }
    assert all(len(of) == 1 + min(ELSEWHERE, len(rows)) for of in one["elsewhere"].values())
    kept = jsonl.read(tmp_path / RECHECK_FILE)
    nobody = partial(pytest.fail, "a model was loaded")
    assert recheck_findings(rows, nobody, [nobody], p, boards.picture, tmp_path) == said
    jsonl.replace(tmp_path / RECHECK_FILE, kept[:2])  # a kill in the middle of a chunk
    assert recheck_findings(rows, models[0], models[1:], p, boards.picture, tmp_path) == said
    assert not recheck_findings(rows, nobody, [nobody], settings(gates=[]), boards.picture, tmp_path / "other")


def test_the_effect_of_each_gate_is_counted_and_graded(models, tmp_path):
    boards = Boards()
    truth = [boards.truth(row["picture"], row["question"]) for row in found(boards, 12)]
    rows = [row | {"consensus": true, "target": "nonsense"} for row, true in zip(found(boards, 12), truth, strict=True)]
    rows[0] |= {"consensus": "nonsense", "target": truth[0], "agreement": 0.67}  # a false alarm
    said = {row["key"]: again() | {"target": ["nonsense"] * 4} for row in rows}
    said["a/0"]["target"] = [rows[0]["consensus"]] * 4  # which the target does not repeat
    effect = gate_effects(rows, said, boards, ["reproduces"], Same(), 0.6)
    assert list(effect) == ["none", "consensus", "reproduces", "all"]
    assert effect["none"]["kept"] == 12 and effect["none"]["precision"]["value"] == pytest.approx(11 / 12, abs=1e-4)
    for gate in ("consensus", "reproduces", "all"):
        assert (effect[gate]["kept"], effect[gate]["dropped"]) == (11, 1)
        assert effect[gate]["precision"]["value"] == 1 and effect[gate]["dropped_true"]["value"] == 0


@pytest.mark.parametrize(
    "change, says",
    [
        ({"gates": ["visuel"]}, "gates: 'visuel' is not one of reproduces, sound, visual"),
        ({"gates": ["sound"], "repeats": 0}, "repeats: 0 leaves the gate sound nothing to go by"),
        ({"asks": "source"}, "asks: the images' own questions are no wishes"),
        ({"rectify_on": "luck"}, "rectify_on: 'luck' is not one of findings, consensus, labels"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, says):
    with pytest.raises(AuditError, match=says):
        load_params("params/demo.yaml", **change)
