"""What is held out of a repair, what is learnt beside a finding, and when a repair is not kept."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from auditkit import stats
from auditkit.consensus.same import Same
from auditkit.data.source import Example
from auditkit.experiments.study import as_kept
from auditkit.miniature import grammar, shipped
from auditkit.miniature.boards import Boards, scene_of
from auditkit.models.answers import AnswerBook
from auditkit.models.load import load_model
from auditkit.repair import held_out, prepare
from auditkit.repair.before_after import ask_again, load_sides
from auditkit.repair.finetune import train_repair
from auditkit.repair.training_set import contrasts
from auditkit.runs.files import read_json, write_json


def settings(**changes):
    return SimpleNamespace(**{"rectify_pairs": 0, "rectify_on": "findings", "route": "unlabeled",
        "seed": 0, "failure_types": 8, "types_by": "text", "max_answer_tokens": 8, "target": "miniature:target",
        "rectify_steps": 30, "rectify_batch": 16, "rectify_learning_rate": 1.0e-3, "rectify_lora_rank": 8,
        "rectify_micro_batch": 0, "rectify_original": 60, "run_name": "test", "earlier": [], "report_to": [], **changes,
    })  # fmt: skip


def probe(i, outcome, question="how many objects are there?", said="4", right="4", **more):
    row = {"key": f"p{i}", "picture": f"audit-0-{i}", "question": question, "target": said, "consensus": right}
    return row | {"outcome": outcome, "run": "test", "probe": f"p{i}", "checkpoint": "untrained", **more}


def rows(findings=60, agreed=300):
    found = [probe(i, "finding", said="4", right="5") for i in range(findings)]
    return found + [probe(i, "agrees") for i in range(findings, findings + agreed)]


# ---- what is held out -----------------------------------------------------------------------------------------------


def test_no_picture_is_both_learnt_from_and_held_out_and_made_ones_stay_with_theirs():
    some = rows()
    some += [probe(1000 + i, "agrees", base=f"audit-0-{i}", picture=f"made-{i}") for i in range(360)]
    some += [probe(2000 + i, "agrees", run="earlier", picture=f"old-{i}") for i in range(200)]
    learnt, held = held_out.hold_out(some, settings())
    boards = [{row.get("base") or row["picture"] for row in part} for part in (learnt, held)]
    assert not boards[0] & boards[1] and sorted(r["key"] for r in learnt + held) == sorted(r["key"] for r in some)
    assert all(row["run"] == "test" for row in held), "the target may have learnt what earlier runs asked"
    counts = Counter(row["outcome"] for row in held)
    assert 1 <= counts["finding"] <= 15 and 80 <= counts["agrees"] <= 160
    assert held_out.hold_out(some, settings()) == (learnt, held) != held_out.hold_out(some, settings(seed=1))


def test_where_too_few_would_be_held_out_none_is():
    few = rows(10, 60)
    assert held_out.hold_out(few, settings()) == (few, [])
    _, held = held_out.hold_out(rows(10, 300), settings())
    assert held and all(row["outcome"] == "agrees" for row in held), "ten findings are all learnt"


@pytest.mark.parametrize("change", [{"route": "labeled"}, {"rectify_on": "consensus"}, {"rectify_pairs": 5}])
def test_controls_and_the_labeled_route_hold_nothing_out(change):
    assert held_out.hold_out(rows(), settings(**change)) == (rows(), [])


def test_nothing_of_what_is_held_out_is_in_the_training_set(tmp_path):
    boards, p = Boards(), settings()
    some = [row | {"references": {"a": row["consensus"]}} for row in rows()]
    found = prepare.ToLearn(some, [row for row in some if row["outcome"] == "finding"], "", {})
    originals = {example.question: example.answer for example in boards.examples(60, 0)}
    book = SimpleNamespace(ask=lambda model, pictures, questions, n: [originals[q] for q in questions])
    made = prepare.prepare_training_set(found, boards, SimpleNamespace(name="t"), book, Same(), p, tmp_path)
    assert len(made.held_out) > 40 and f"{len(made.held_out)} probes held out" in made.in_words("findings")
    keys = {row["key"] for row in made.held_out}
    assert not keys & {example.key for example in made.examples} and not keys & made.learnt_from
    images = {boards.picture(row["picture"]).image.tobytes() for row in made.held_out}
    assert not images & {example.image.tobytes() for example in made.examples}


# ---- what is learnt beside a finding --------------------------------------------------------------------------------


def test_beside_each_copy_of_a_finding_goes_an_example_of_its_kind_with_another_answer():
    def some(n, question, answer, start):
        places = [f"{letter}{number}" for letter in "abcd" for number in "1234"]
        return [Example(f"e{start + i}", None, question.format(places[i]), answer) for i in range(n)]

    found = [probe(0, "finding", "what shape is above a1?", "none", "star")]
    found += [
        probe(1, "finding", "what shape is left of a1?", "cross", "none"),
        probe(2, "finding", "is it late?", "yes", "no"),
    ]
    known = [*some(5, "what shape is above {}?", "none", 10), *some(9, "what shape is above {}?", "star", 20)]
    known += [*some(9, "what shape is left of {}?", "none", 30), *some(4, "what shape is left of {}?", "circle", 40)]
    known += some(9, "which way does the sign at {} point?", "none", 50)
    learnt = [Example(row["key"], None, row["question"], row["consensus"]) for row in found]
    chosen = contrasts(learnt * 4, found, known)
    pairs = Counter((example.question[:18], example.answer) for example in chosen)
    assert pairs == {("what shape is abov", "none"): 4, ("what shape is left", "circle"): 4}, (
        "none asks whether it is late"
    )
    assert len({example.key for example in chosen}) == 8, "in turn"


# ---- whether a repair is kept ---------------------------------------------------------------------------------------


def checked(mended, broken, usual=0.1):
    held = [probe(i, "finding", right="5") for i in range(len(mended))]
    held += [probe(i, "agrees") for i in range(100, 100 + len(broken))]
    again = [row | {"after": row["consensus"] if right else "7"} for row, right in
             zip(held, [*mended, *(not one for one in broken)], strict=True)]  # fmt: skip
    return held_out.check_repair(held, again, stats.rate(round(100 * usual), 100), Same())


def test_mended_and_broken_are_weighed_by_how_often_the_target_usually_fails():
    good = checked([True] * 8 + [False] * 2, [True] * 2 + [False] * 98)
    assert good["kept"] and good["gain"] == pytest.approx(0.1 * 0.8 - 0.9 * 0.02)
    bad = checked([True] * 8 + [False] * 2, [True] * 12 + [False] * 88)
    assert not bad["kept"] and bad["gain"] == pytest.approx(0.1 * 0.8 - 0.9 * 0.12)
    assert checked([True] * 8 + [False] * 2, [True] * 2 + [False] * 98, usual=0.01)["kept"] is False
    assert "not kept" in held_out.check_in_words(bad) and "not kept" not in held_out.check_in_words(good)
    assert "80.0% of 10 findings mended, 12.0% of 100" in held_out.check_in_words(bad)
    assert held_out.check_repair([], [], {}, Same()) == {} and "not checked" in held_out.check_in_words({})


def test_the_usual_rate_is_that_of_the_first_checkpoint_of_this_run():
    some = [probe(i, "finding" if i < 5 else "agrees") for i in range(50)]
    some += [probe(i, "finding", checkpoint="60") for i in range(50, 90)]
    some += [probe(i, "finding", run="earlier") for i in range(90, 99)] + [probe(99, "malformed")]
    assert held_out.usual_failures(some, settings()) == stats.rate(5, 50)
    assert held_out.usual_failures([], settings()) == {}


def test_a_repair_that_is_not_kept_lies_aside_and_is_no_side_of_the_comparison(tmp_path):
    adapter, asked, held = an_adapter(tmp_path), [], [probe(i, "agrees") for i in range(30)]

    def ask(folder):
        asked.append(folder.name)
        return [row | {"after": "7"} for row in held]

    for _ in range(2):
        kept, found = held_out.keep_what_helps(adapter, ask, held, stats.rate(1, 10), Same())
        assert kept is None and found["kept"] is False and found["step"] == 0.25
    assert asked == ["adapter", "step0.5", "step0.25"], "nothing is asked twice"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["check.json", "refused"]
    assert list(load_sides(lambda text, adapter=None: text, "target", adapter, "")) == ["before"]


def an_adapter(folder):
    (folder / "adapter").mkdir()
    write_json(folder / "adapter" / "adapter_config.json", {"r": 8, "lora_alpha": 16})
    return folder / "adapter"


def test_a_step_that_is_too_long_is_taken_back_to_the_half(tmp_path):
    adapter, held = an_adapter(tmp_path), [probe(i, "agrees") for i in range(30)]

    def ask(folder):
        return [row | {"after": "7" if folder.name == "adapter" else row["consensus"]} for row in held]

    kept, found = held_out.keep_what_helps(adapter, ask, held, stats.rate(1, 10), Same())
    assert kept == adapter and found["kept"] and found["step"] == 0.5
    assert read_json(adapter / "adapter_config.json")["lora_alpha"] == 8
    assert read_json(tmp_path / "refused" / "adapter_config.json")["lora_alpha"] == 16
    assert "A share of 0.5 of it" in held_out.check_in_words(found)


def test_a_repair_that_could_not_be_checked_or_passes_is_kept_whole(tmp_path):
    adapter = an_adapter(tmp_path)
    assert held_out.keep_what_helps(adapter, lambda folder: [], [], {}, Same()) == (adapter, {})


def test_a_study_counts_a_repair_that_was_not_kept_as_no_change():
    rates = {"before": {"value": 0.9}}
    run = {"rectification": {"held_out": {"kept": False}}, "benchmarks": {"colour": dict(rates)}, "outside_gaps": rates}
    assert as_kept(run)["benchmarks"]["colour"]["after"] == run["outside_gaps"]["after"] == {"value": 0.9}
    kept = {"rectification": {"held_out": {"kept": True}}, "benchmarks": {"colour": {"before": {"value": 0.9}}}}
    assert "after" not in as_kept(kept)["benchmarks"]["colour"]


@pytest.mark.skipif(not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet")
def test_the_shipped_target_keeps_a_repair_that_helps_and_refuses_one_that_harms(tmp_path):
    """Dusk is called day. Learnt with true labels from some pictures this is mended on others; with labels at random
    the rest breaks.
    """
    boards, target, rng = Boards(), load_model("miniature:target"), random.Random(0)
    sky = "what atmosphere does the scene have?"
    keys = [f"audit-0-{i}" for i in range(220)]
    asked = [sky if scene_of(key).background == "dusk" else grammar.ask(scene_of(key), rng) for key in keys]
    right = [grammar.answer(scene_of(key), question) for key, question in zip(keys, asked, strict=True)]
    said = AnswerBook(tmp_path / "a").ask(target, [boards.picture(key) for key in keys], asked)
    scored = [probe(i, "agrees" if says == true else "finding", question, says, true)
              for i, (question, says, true) in enumerate(zip(asked, said, right, strict=True))]  # fmt: skip
    p, answers = settings(), list({row["consensus"] for row in scored})
    learnt, held = held_out.hold_out(scored, p)
    usual = held_out.usual_failures(scored, p)

    def outcome(label, folder):
        examples = [
            Example(row["key"], boards.picture(row["picture"]).image, row["question"], label(row)) for row in learnt
        ]
        trained = train_repair(target, examples, p, folder)

        def ask(part):
            repaired = load_model("miniature:target", adapter=part)
            return ask_again(held, repaired, boards, AnswerBook(folder / f"{part.name}.jsonl"), 8)

        return held_out.keep_what_helps(trained, ask, held, usual, Same())

    adapter, helps = outcome(lambda row: row["consensus"], tmp_path / "true")
    assert helps["step"] == 1 and helps["gain"] > 0.1 and adapter == tmp_path / "true" / "adapter"
    adapter, harms = outcome(lambda row: rng.choice(answers), tmp_path / "random")
    assert not harms["kept"] and harms["gain"] <= 0 and adapter is None
    assert (tmp_path / "random" / held_out.REFUSED).is_dir()
