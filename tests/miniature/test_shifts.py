"""Benchmarks from shifted distributions, and a task no audit asks about."""

import random

import pytest

from auditkit.data.folder import ImageFolder
from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.miniature import grammar, shifts
from auditkit.miniature.boards import Boards, scene_of
from auditkit.miniature.world import BACKGROUNDS
from auditkit.models.answers import AnswerBook
from auditkit.models.load import load_model
from auditkit.repair.skills import evaluate_task


@pytest.mark.parametrize("shift", shifts.SHIFTS)
def test_each_shift_changes_one_thing_and_keeps_the_truth(shift):
    usual, later = Boards().benchmarks(40), load_images(f"miniature:{shift}").benchmarks(40)
    assert set(usual) - set(later) == ({"background"} if shift == "backgrounds" else set())
    rows = [example for examples in later.values() for example in examples]
    scenes = [scene_of(example.key) for example in rows]
    assert not {example.key for example in rows} & {e.key for examples in usual.values() for e in examples}
    objects = sum(len(scene.objects) for scene in scenes) / len(scenes)
    assert objects > 6 if shift == "dense" else 2.5 < objects < 4.5
    assert {scene.background in BACKGROUNDS for scene in scenes} == {shift != "backgrounds"}
    known = [grammar.read(example.question) is not None for example in rows]
    assert not any(known) if shift == "reworded" else all(known)
    if shift != "reworded":
        assert all(grammar.answer(scene, e.question) == e.answer for scene, e in zip(scenes, rows, strict=True))


def test_every_question_can_be_reworded_and_none_loses_what_it_is_about():
    for skill in grammar.SKILLS:
        for i in range(30):
            question = grammar.ask(scene_of(f"x-{i}"), random.Random(i), skill)
            said = shifts.reworded(question)
            assert said != question and said.endswith("?")
            places = [w.strip("?.") for w in question.split() if w.strip("?.") in grammar.POSITIONS]
            assert sorted(places) == sorted(w.strip("?.") for w in said.split() if w.strip("?.") in grammar.POSITIONS)


def test_an_unknown_shift_is_refused_with_those_there_are():
    with pytest.raises(
        AuditError, match=r'"miniature:denser" is not one of miniature, miniature:later, miniature:dense'
    ):
        load_images("miniature:denser")


def test_the_target_describes_boards_which_no_audit_asks_for(tmp_path):
    boards, target = Boards(), load_model("miniature:target", device="cpu", dtype="float32")
    (task,) = boards.tasks(5)
    found = evaluate_task(target, task, AnswerBook(tmp_path / "answers.jsonl"))
    assert found["n"] == 5 * 16 and found["value"] > 0.95
    assert ImageFolder.tasks(None, 5) == [], "a folder of pictures knows of no other task"
