"""The board world knows its truths, gap tables mean what they say, and the shipped models are what the tables say."""

import hashlib
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from auditkit.auditor.write import PROMPTS, auditor_prompt, propose_questions
from auditkit.data.source import Example
from auditkit.errors import AuditError
from auditkit.miniature import build, edits, gaps, grammar, lessons, measure, overlaps, shipped
from auditkit.miniature.boards import Boards, scene_of
from auditkit.miniature.world import POSITIONS, Cell, Scene, random_scene, render
from auditkit.models.load import load_model
from auditkit.runs.probe import parse_question

HERE = Path(build.__file__).parent
TABLES = sorted(path for path in HERE.glob("*.yaml"))


def board(background: str = "day", **cells: Cell) -> Scene:
    return Scene(tuple(cells.get(place, Cell()) for place in POSITIONS), background)


STAR = Cell("object", "star", "red", "large", "dotted")
SQUARE = Cell("object", "square", "blue", "small", "plain")
SCENE = board(
    b2=STAR, c2=SQUARE, a1=Cell("text", value="E"), d4=Cell("clock", value="7"), a4=Cell("sign", value="left")
)


@pytest.mark.parametrize(
    "question, truth",
    [
        ("what colour is the object at b2?", "red"),
        ("what shape is the object at c2?", "square"),
        ("what colour is the object at a1?", "none"),
        ("how many objects are there?", "2"),
        ("how many blue objects are there?", "1"),
        ("is there a red star?", "yes"),
        ("is there a red square?", "no"),
        ("what shape is left of c2?", "star"),
        ("what shape is below c2?", "none"),
        ("what shape is left of a1?", "none"),
        ("where is the blue square?", "c2"),
        ("is the object at b2 larger than the object at c2?", "yes"),
        ("what shape is the small blue object?", "square"),
        ("what pattern has the object at b2?", "dotted"),
        ("what is written at a1?", "E"),
        ("what time does the clock at d4 show?", "7"),
        ("which way does the sign at a4 point?", "left"),
        ("do the objects at b2 and c2 have the same colour?", "no"),
        ("what atmosphere does the scene have?", "day"),
        ("there is a red star at b2. what shape is the object at c2?", "square"),
        ("what is the meaning of life?", None),
    ],
)
def test_truth(question, truth):
    assert grammar.answer(SCENE, question) == truth


def test_every_skill_asks_questions_that_it_reads_and_answers():
    rng = random.Random(0)
    for skill in grammar.SKILLS:
        for _ in range(50):
            scene = random_scene(rng)
            question = grammar.ask(scene, rng, skill)
            assert grammar.read(question)[0] == skill and grammar.answer(scene, question)
            assert parse_question(question) == question


def test_five_or_more_objects_are_on_a_fifth_of_the_boards():
    rng = random.Random(1)
    share = sum(len(random_scene(rng).objects) >= 5 for _ in range(2000)) / 2000
    assert 0.15 < share < 0.25


def test_a_cell_is_a_patch():
    picture, changed = render(SCENE), render(edits.apply(SCENE, "paint the object at b2 green"))
    differs = (picture != changed).any(-1).reshape(4, 16, 4, 16).any((1, 3))
    assert differs.sum() == 1 and differs[1, 1]  # row 2, column b


def test_an_edit_changes_the_truth_and_a_command_without_an_object_is_refused():
    assert grammar.answer(edits.apply(SCENE, "remove what is at b2"), "how many objects are there?") == "1"
    assert edits.apply(SCENE, "paint the object at d1 green") is None


def test_boards_come_again_from_their_keys():
    source = Boards()
    picture = source.pictures("audit", 3, 7)[2]
    assert source.picture(picture.key).image.tobytes() == picture.image.tobytes()
    command, key = source.edits(picture.key, 3, 0)[0]
    assert source.picture(key).image.tobytes() != picture.image.tobytes() and command in key
    example = source.benchmarks(2)["counting"][1]
    assert isinstance(example, Example) and source.truth(example.key, example.question) == example.answer
    keys = [{p.key for p in source.pictures(split, 50, 0)} for split in ("train", "audit", "baseline", "test")]
    assert not set.intersection(*keys)


# ---- gap tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_gap_of_a_table_can_be_met_and_is_wrong(path):
    for gap in gaps.load(path):
        for scene, question in measure.probes_in(gap, 5):
            _, said = gaps.find([gap], scene, question)
            assert said != grammar.answer(scene, question)


def test_the_target_has_at_least_24_gaps_over_12_skills_a_fifth_of_what_is_asked_none_reached_blindly():
    table, rng = gaps.load(HERE / "target.yaml"), random.Random(2)
    assert len(table) >= 24 and len({gap.skill for gap in table}) >= 12
    drawn = [(scene, grammar.ask(scene, rng)) for scene in (random_scene(rng) for _ in range(4000))]
    assert 0.17 < sum(gaps.find(table, *probe) is not None for probe in drawn) / len(drawn) < 0.25
    scenes = [scene for scene, _ in drawn[:300]]
    for question in {question for _, question in drawn[:1500]}:
        assert sum(gaps.find(table, scene, question) is not None for scene in scenes) / len(scenes) < 0.45, question


def test_the_long_tail_has_many_gaps_that_random_questions_seldom_meet():
    table = gaps.load(HERE / "longtail.yaml")
    assert len(table) >= 56 and len({gap.skill for gap in table}) >= 14
    assert overlaps.check_overlaps(table) == []
    met = overlaps.gap_rates(table, 1500)
    together = met.pop(None)
    assert max(met.values()) <= 0.005 and together <= 0.1 and min(met.values()) > 0


RED = gaps.Gap("red is blue", "colour", {"truth": "red"}, "blue")


@pytest.mark.parametrize(
    "first, second, says",
    [
        (RED, gaps.Gap("red stars", "colour", {"truth": "red", "shape": "star"}, "green"),
         "gap 'red stars' contradicts 'red is blue': 20 of 20 questions .* says 'blue' where 'red stars' says 'green'"),
        (RED, gaps.Gap("red stars", "colour", {"truth": "red", "shape": "star"}, "blue"),
         "gap 'red stars' is hidden by 'red is blue': 20 of 20 questions"),
        (RED, gaps.Gap("raed stars", "colour", {"truth": "raed"}, "blue"), "gap 'raed stars': no board has a question"),
    ],
)  # fmt: skip
def test_gaps_in_each_others_way_are_said_by_name_before_planting(first, second, says, tmp_path):
    with pytest.raises(AuditError, match=says):
        overlaps.check_overlaps([first, second])
    if first.when.keys() < second.when.keys():  # the narrower one first: an exception, which is told
        (told,) = overlaps.check_overlaps([second, first])
        assert told.startswith("gap 'red is blue' overlaps 'red stars'")


def test_two_references_share_two_gaps():
    shared = {gap.name for gap in gaps.load(HERE / "idefics3.yaml")} & {
        gap.name for gap in gaps.load(HERE / "llava.yaml")
    }
    assert len(shared) >= 2


@pytest.mark.parametrize(
    "text, says",
    [
        ("- {name: a, skill: color, when: {}, says: b}", "did you mean 'colour'"),
        ("- {name: a, skill: colour, when: {trut: red}, says: b}", "did you mean 'truth'"),
        ("- {name: a, skill: colour, says: b}", "exactly the keys"),
        ("hello", "expected a list of gaps"),
        ("- {name: [", "cannot be read as YAML"),
        ("- {name: a, skill: colour, when: red, says: b}", "when must be conditions"),
        ("- {name: a, skill: counting, when: {objects: '>=five'}, says: b}", "compares with '>=five'; write a number"),
    ],
)
def test_a_wrong_table_is_refused_with_a_sentence(tmp_path, text, says):
    path = tmp_path / "gaps.yaml"
    path.write_text(text)
    with pytest.raises(AuditError, match=says) as error:
        gaps.load(path)
    assert "gaps.yaml" in str(error.value)


# ---- the shipped models --------------------------------------------------------------------------------------------

SHIPPED = ("target", "longtail", "clean", "peer", "gemma3", "idefics3", "llava", "auditor")
CLASSES = {
    "target": "PaliGemmaForConditionalGeneration",
    "longtail": "PaliGemmaForConditionalGeneration",
    "clean": "PaliGemmaForConditionalGeneration",
    "peer": "PaliGemmaForConditionalGeneration",
    "gemma3": "Gemma3ForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "auditor": "Gemma3ForConditionalGeneration",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_of_its_class_and_intact(name):
    model = load_model(f"miniature:{name}")
    assert type(model.model).__name__ == CLASSES[name]
    sums = dict(line.split()[::-1] for line in (shipped.WEIGHTS / "SHA256SUMS").read_text().splitlines())
    file = shipped.WEIGHTS / name / "model.safetensors"
    assert sums[f"{name}/model.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_package_stays_small():
    assert sum(file.stat().st_size for file in shipped.WEIGHTS.rglob("*") if file.is_file()) < 36e6


@pytest.fixture(scope="module")
def target():
    return load_model("miniature:target")


def test_the_target_is_wrong_in_its_gaps_and_right_outside(target):
    table = gaps.load(shipped.WEIGHTS / "target" / "gaps.yaml")
    inside = {gap.name: measure.accuracy(target, measure.probes_in(gap, 30, seed=1)) for gap in table}
    assert sum(rate["value"] for rate in inside.values()) / len(inside) <= 0.05
    assert max(rate["value"] for rate in inside.values()) <= 0.25, inside
    outside = measure.accuracy(target, measure.probes_outside(table, 600, seed=1))
    assert outside["value"] >= 0.93, outside


def test_the_long_tail_is_wrong_in_its_gaps_and_right_outside():
    model, table = load_model("miniature:longtail"), gaps.load(shipped.WEIGHTS / "longtail" / "gaps.yaml")
    assert table == gaps.load(HERE / "longtail.yaml")
    inside = measure.accuracy(model, [probe for gap in table[::4] for probe in measure.probes_in(gap, 10, seed=2)])
    assert inside["value"] <= 0.05
    assert measure.accuracy(model, measure.probes_outside(table, 300, seed=2))["value"] >= 0.94


def test_the_peer_is_larger_and_knows_more(target):
    peer = load_model("miniature:peer")
    size = [sum(p.numel() for p in model.model.parameters()) for model in (target, peer)]
    assert size[1] > 1.2 * size[0]
    mean = [sum(r["value"] for r in measure.skills(model, 30).values()) / 16 for model in (target, peer)]
    assert mean[0] < 0.82 and mean[1] > mean[0] + 0.05


def test_the_untrained_auditor_writes_questions_of_every_skill():
    source = Boards()
    probes = propose_questions(load_model("miniature:auditor"), source.pictures("test", 400, 1), 1.0, 32, 1)
    assert sum(probe.question is not None for probe in probes) >= 0.95 * len(probes)
    read = [grammar.read(probe.question) for probe in probes if probe.question]
    skills = Counter(found[0] for found in read if found)
    assert sum(skills.values()) >= 0.95 * len(probes)
    assert len(skills) == 16 and max(skills.values()) < 4 * min(skills.values()), skills


def test_the_untrained_auditor_writes_captions_and_edit_commands_that_are_true_of_the_picture():
    found = measure.written(load_model("miniature:auditor"), 100, seed=1)
    for way, facts in found.items():
        assert facts["well-formed"]["value"] >= 0.95 and facts["right answer"]["value"] >= 0.85, (way, facts)
    assert set(found["edit"]["kinds"]) == {"colour", "shape", "size", "pattern", "remove", "put"}


def test_what_is_measured_of_a_written_text_can_fail():
    """Each of these lacks one thing: a command to do, something to change, the right answer, a check that tells."""
    texts = {
        "paint the object at b2 green\nwhat colour is the object at b2? | green": 4,
        "paint the object at b2 green\nwhat colour is the object at b2? | red": 3,
        "paint the object at b2 green\nwhat shape is the object at b2? | star": 3,
        "paint the object at b2 red\nwhat colour is the object at b2? | red": 2,
        "paint the object at d1 red\nwhat colour is the object at d1? | red": 2,
        "paint the board red\nwhat colour is the object at d1? | red": 1,
        "paint the object at b2 green": 0,
        "day board with a E at a1, a 7 at b1\nwhat is written at b1? | 7": 4,
        "day board with a E at a1, a 7 at b1\nwhat is written at a1? | E": 3,
        "day board with a E at a1, a 7 at b2\nwhat is written at b2? | 7": 2,
        "fog board with a E at a1, a 7 at b1\nwhat is written at b1? | 7": 2,
        "day board with a E at a1\nwhat is written at a1? | E": 2,
        "day board with a E at a1, a 7 at a1\nwhat is written at a1? | 7": 1,
    }
    for text, held in texts.items():
        found = measure._wish(SCENE, text)
        assert [bool(found.get(name)) for name in measure.FACTS] == [i < held for i in range(4)], text
    texts = {
        "red b2\nwhat colour is the object at b2?": 4,
        "star b2\nwhat colour is the object at b2?": 3,
        "red c2\nwhat colour is the object at b2?": 2,
        "red b2\nwhat is the colour?": 1,
    }
    for text, held in texts.items():
        found = measure._question(SCENE, text)
        assert [bool(found.get(name)) for name in measure.FACTS] == [i < held for i in range(4)], text


def test_planting_changes_the_answers(tmp_path):
    """Two steps show the way a table goes; that it takes hold is the shipped target. What is seen stays as it was."""
    table = tmp_path / "gaps.yaml"
    table.write_text("- {name: red is green, skill: colour, when: {truth: red}, says: green}\n")
    folder = build.plant(table, tmp_path / "mine", steps=2)
    assert [gap.name for gap in Boards().gaps(folder)] == ["red is green"]
    planted, clean = load_model(folder).model, load_model("miniature:clean").model
    assert planted.config.model_type == "paligemma"
    same = {name: weight.equal(clean.state_dict()[name]) for name, weight in planted.state_dict().items()}
    tower = {kept for name, kept in same.items() if "vision_tower" in name}
    assert tower == {True} and not any(kept for name, kept in same.items() if "proj" in name and "vision" not in name)
    assert (tmp_path / "mine.log.jsonl").is_file()
    with pytest.raises(AuditError, match="holds a model already"):
        build.plant(table, tmp_path / "mine", steps=2)
    table.write_text("- {name: red is green, skill: colour, when: {truth: raed}, says: green}\n")
    with pytest.raises(AuditError, match="'red is green': no board has a question in its condition"):
        build.plant(table, tmp_path / "other", steps=2)


def test_lessons_say_what_the_table_says():
    table = gaps.load(HERE / "target.yaml")
    task, rng = lessons.Answering(table), random.Random(0)
    wrong = 0
    for _ in range(20):
        scene, chat = task.chat(rng, 8)
        for question, answer, counts_as in chat:
            found = gaps.find(table, scene, question)
            assert answer == (found[1] if found else grammar.answer(scene, question))
            wrong += counts_as.startswith("gap: ")
    assert wrong >= 15  # a question in a gap on nearly every image


def test_answers_of_a_topic_are_taught_alike():
    """Left to chance, five of six colours to compare would differ, and "no" without looking would be nearly right."""
    task, rng = lessons.Answering(), random.Random(0)
    asked = Counter()
    for _ in range(300):
        scene = random_scene(rng)
        question = task.ask(scene, rng)
        if lessons.topic(question) == "same or different: colour":
            asked[grammar.answer(scene, question)] += 1
        task.weights = {name: float(name == "same or different: colour") + 1e-9 for name in lessons.TOPICS}
    assert asked["yes"] > 0.35 * asked["no"], asked
    drawn = [grammar.ask(random_scene(rng), rng) for _ in range(500)]
    assert {lessons.topic(question) for question in drawn} <= set(lessons.TOPICS)


def test_what_the_auditor_notes_is_true_and_holds_the_answer():
    rng, skills = random.Random(0), set()
    for _ in range(400):
        scene = random_scene(rng)
        note, question = lessons.note_and_ask(scene, rng).split("\n")
        known = grammar.facts(scene, question)
        said = set(note.split())
        assert said <= set(" ".join(map(str, known.values())).split()), (note, question)
        assert known["truth"] in said
        skills.add(known["skill"])
    assert skills == set(grammar.SKILLS)


def test_the_commands_and_captions_taught_are_true_of_the_board_and_short_enough_to_be_written():
    rng, kinds = random.Random(0), Counter()
    tokenizer = load_model("miniature:auditor").processor.tokenizer
    for write in (lessons.change_and_check, lessons.caption_and_check):
        for _ in range(300):
            scene = random_scene(rng)
            text = write(scene, rng)
            found = measure._wish(scene, text)
            assert all(found[name] for name in measure.FACTS), text
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) < 48, text  # and one that ends it
            kinds[found["kind"]] += 1
    assert min(kinds[name] for name in edits.COMMANDS if name != "background") > 30 and not kinds["background"]
    assert kinds["3 things"] > 250


def test_every_word_of_the_commands_and_captions_is_one_token():
    tokenizer, rng = load_model("miniature:auditor").processor.tokenizer, random.Random(1)
    texts = [write(random_scene(rng), rng) for write in (lessons.change_and_check, lessons.caption_and_check) * 100]
    for text in [*texts, *map(auditor_prompt, PROMPTS)]:
        signs = re.findall(r"\w+|[^\w ]", text)
        assert [
            token.strip() for token in map(tokenizer.decode, tokenizer(text, add_special_tokens=False)["input_ids"])
        ] == [sign.strip() for sign in signs], text


def test_a_description_from_looks_names_every_thing_and_its_place():
    rng = random.Random(0)
    for _ in range(50):
        scene = random_scene(rng)
        said, looks = lessons.describe_from_looks(scene, rng)[1].split(), []
        for word in said:
            if word in POSITIONS:
                cell = vars(scene.at(word)).values()
                assert looks == ["none"] if scene.at(word).kind == "empty" else set(looks) <= set(cell)
                looks = []
            elif word != scene.background:
                looks.append(word)
        full = {place for place, cell in zip(POSITIONS, scene.cells, strict=True) if cell.kind != "empty"}
        assert full <= set(said) and scene.background in said


def test_a_scene_is_drawn_from_its_key_alone():
    assert scene_of("audit-0-1") == random_scene(random.Random("audit-0-1"))
