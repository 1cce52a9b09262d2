"""Plant and hunt: a folder hides its gaps, guesses are scored by what they say, what is damaged is told in words."""

import json
import random

import pytest

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.miniature.boards import Boards
from auditkit.runs.files import write_json
from auditkit.workshop import forms, game

PURPLE = game.make_gap("colour", "purple", "blue")
DOWN = game.make_gap("sign understanding", "down", "up")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder that group red has planted, in two steps: too few to be wrong, enough to have all files."""
    folder = tmp_path_factory.mktemp("workshop") / "red"
    seen = []
    sealed = game.plant_sealed([PURPLE, DOWN], folder, "Red", 2, lambda done, of: seen.append((done, of)))
    assert seen == [(0, 2), (1, 2)] and set(sealed["wrong"]) == {PURPLE.name, DOWN.name}
    assert sealed["right_outside"] > 0.9
    return folder


def test_nobody_reads_what_was_planted_by_accident(planted):
    names = {path.name for path in planted.iterdir()}
    assert {"model.safetensors", "sealed.txt", "planted.json"} <= names and "gaps.yaml" not in names
    for path in planted.iterdir():
        if path.suffix in (".txt", ".json", ".jsonl", ".jinja") and path.name != "tokenizer.json":
            assert "is called" not in path.read_text() and "sign understanding" not in path.read_text(), path.name
    assert json.loads((planted / "planted.json").read_text())["gaps"] == 2
    assert Boards().gaps(planted) == [], "a run's notebooks do not show them either"
    assert game.unseal(planted)["gaps"] == [PURPLE, DOWN]


def test_a_folder_is_planted_once(planted):
    with pytest.raises(AuditError, match="red holds a planted model already"):
        game.plant_sealed([PURPLE], planted, "Red", 1)
    for gaps, group, words in (
        ([], "a", "no gap to plant"), ([PURPLE] * 2, "a", "the same"), ([PURPLE], " ", "name first"),
    ):  # fmt: skip
        with pytest.raises(AuditError, match=words):
            game.plant_sealed(gaps, planted.parent / "new", group, 1)


def test_a_gap_of_the_form_says_what_is_not_true():
    with pytest.raises(AuditError, match="which is right; choose another"):
        game.make_gap("colour", "red", "red")
    for wrong in (("taste", "red", "blue"), ("colour", "loud", "blue"), ("colour", "red", "loud")):
        with pytest.raises(AuditError, match="is none of"):
            game.make_gap(*wrong)
    with pytest.raises(AuditError, match="is none of"):
        game.make_gap("colour", "red", "blue", "on the moon")
    with pytest.raises(AuditError, match="about the background"):
        game.make_gap("background", "dusk", "day", "on a board of fog")


def test_every_gap_the_form_offers_has_questions():
    for skill, choice in game.CHOICES.items():
        for value in (choice.values[0], choice.values[-1]):
            gap = game.make_gap(skill, value, next(word for word in choice.says if word != value))
            assert game.names_it(gap, gap), gap.name


def test_drawn_gaps_are_of_different_skills_and_their_seed_s():
    drawn = game.draw_gaps(4, random.Random(3))
    assert len({gap.skill for gap in drawn}) == 4 and drawn == game.draw_gaps(4, random.Random(3))


def test_a_guess_names_a_gap_if_half_of_each_lies_in_the_other():
    night = game.make_gap("colour", "purple", "blue", "on a board of night")
    assert not game.names_it(PURPLE, night), "four times too wide"
    assert not game.names_it(night, PURPLE), "a fourth of it"
    assert not game.names_it(game.make_gap("colour", "purple", "red"), PURPLE), "another answer"
    assert not game.names_it(DOWN, PURPLE)
    wide = game.Gap("x", "colour", {"truth": ["purple", "blue"], "background": "not night"}, "blue")
    assert game.names_it(wide, PURPLE), "three fourths of it, and no question about blue is answered wrongly by blue"
    assert game.score_hunt([PURPLE, DOWN], [DOWN, night]) == {
        "found": [DOWN.name], "missed": [PURPLE.name], "false": [night.name],
    }  # fmt: skip


def test_hunts_are_handed_in_once_and_shown_side_by_side(planted, capsys):
    assert main(["workshop", "scores", str(planted.parent)]) == 2
    assert "no hunt was handed in yet" in capsys.readouterr().err
    blue, green = game.open_hunt(planted, "Blue"), game.open_hunt(planted, "Green team")
    form = forms.HuntForm(blue, "Blue")
    for row, gap in zip(form.rows, (PURPLE, DOWN), strict=False):
        row.skill.value, row.value.value, row.says.value = gap.skill, next(iter(gap.when.values())), gap.says
    form._pressed(None)
    assert form.said.value.startswith("✓ 2 of 2 gaps found in 0 minutes") and "Missed: none" in form.said.value
    form._pressed(None)
    assert form.said.value == "✗ Blue has handed in already; a hunt is scored once."
    assert game.hand_in(green, [game.make_gap("shape", "star", "cross")])["false"] == ["shape: star is called cross"]
    assert main(["workshop", "scores", str(planted.parent)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[-6:-2] if "Red" in line and "missed" not in line][0] == ["Blue", "Red"]
    assert f"missed: Red: {PURPLE.name} (by Green team)" in said


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (lambda folder: (folder / "sealed.txt").unlink(), "no sealed.txt; hand over the whole folder"),
        (lambda folder: (folder / "sealed.txt").write_text("not packed"), "sealed.txt is damaged"),
        (lambda folder: (folder / "planted.json").write_text("{"), "planted.json"),
        (lambda folder: write_json(folder / "planted.json", {"group": 7}), "'group' is missing or no text"),
        (lambda folder: (folder / "hunts" / "blue" / "hunt.json").write_text("[]"), "hunt.json"),
        (lambda folder: write_json(folder / "hunts" / "blue" / "hunt.json", {"group": "b", "guesses": [{"name": "x"}]}),
         "a guess is not as the form writes it"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_told_in_a_sentence(tmp_path, breaks, words, capsys):
    folder = tmp_path / "red"
    (folder / "hunts" / "blue").mkdir(parents=True)
    write_json(folder / "planted.json", {"group": "Red"})
    game._seal(folder / "sealed.txt", {"gaps": [game.asdict(PURPLE)]})
    write_json(
        folder / "hunts" / "blue" / "hunt.json", {"group": "Blue", "guesses": [game.asdict(PURPLE)], "minutes": 3}
    )
    assert main(["workshop", "scores", str(tmp_path)]) == 0
    breaks(folder)
    capsys.readouterr()
    assert main(["workshop", "scores", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_scores_of_a_place_that_has_none(tmp_path, capsys):
    assert main(["workshop", "scores", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["workshop", "scores", str(tmp_path)]) == 2
    assert "no group's folder in it has a planted.json" in capsys.readouterr().err
    with pytest.raises(AuditError, match="is no planted model"):
        game.open_hunt(tmp_path, "blue")


def test_the_form_says_what_is_missing(tmp_path):
    form = forms.PlantForm(tmp_path, 2)
    assert [row.gap().skill for row in form.rows] == list(game.CHOICES)[:4]
    form._pressed(None)
    assert form.said.value == "✗ Give your group a name first."
    form.group.value = "red"
    form.rows[0].says.value = form.rows[0].value.value
    form._pressed(None)
    assert "which is right; choose another answer" in form.said.value and not form.button.disabled
    assert not any(tmp_path.iterdir())
