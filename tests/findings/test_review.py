"""A person's word: what is shown, what is kept of it, what it measures, and what the repair makes of it."""

import json
import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from browser import browse
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from auditkit import stats
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.findings import review
from auditkit.params import load_params
from auditkit.repair.finetune import _purpose, train_repair
from auditkit.repair.training_set import build_training_set, training_pairs
from auditkit.report.review_widget import HERE, ReviewWidget
from auditkit.report.summary import write_report
from auditkit.runs import jsonl
from auditkit.runs.folder import _unlock, open_stage

GATES = ["finding"] * 40 + ["agrees"] * 30 + ["no consensus"] * 6 + ["implausible"] * 4
GATES += ["duplicate"] * 5 + ["malformed"] * 5


def record(number: int, gate: str) -> dict:
    """A scored record whose target and references say what its gate stands for."""
    asked = {"key": f"a/{number:05d}", "picture": f"p{number}", "question": f"what is {number}?", "outcome": gate}
    said = {"target": "blue", "consensus": "blue" if gate == "agrees" else "red", "references": {"x": "red"}}
    if gate == "no consensus":
        said["consensus"] = None
    if gate == "malformed":
        said |= {"target": None, "consensus": None, "references": {}}
        asked["question"] = None
    return asked | said


@pytest.fixture
def scored() -> list[dict]:
    return [record(number, gate) for number, gate in enumerate(GATES)]


SOURCE = SimpleNamespace(picture=lambda key: Picture(key, Image.new("RGB", (8, 8), (key.startswith("o") * 255, 0, 0))))


def sit(scored, folder, seed=0, blind=False) -> ReviewWidget:
    return ReviewWidget(scored, SOURCE, folder, seed, blind)


def press(one: ReviewWidget, do: str, answer="", note="", at=None) -> None:
    """As the page sends it."""
    one._heard(one, {"do": do, "at": one.at if at is None else at, "answer": answer, "note": note}, [])


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_all_findings_are_there_and_one_card_in_four_is_none(scored):
    order = review.queue(scored, 0)
    gates = Counter(row["outcome"] for row in order)
    assert gates["finding"] == 40 and len(order) == 54 and not {"duplicate", "malformed"} & set(gates)
    assert 3 < sum(row["outcome"] == "finding" for row in order[:16]) < 16, "mixed, not one kind after the other"


def test_the_order_is_the_seed_s_and_the_keys_alone(scored):
    keys = [row["key"] for row in review.queue(scored, 0)]
    assert keys == [row["key"] for row in review.queue(scored[::-1], 0)]
    assert keys != [row["key"] for row in review.queue(scored, 1)]
    assert review.queue([row for row in scored if row["outcome"] != "finding"], 0) == []


def test_the_first_cards_are_a_random_sample():
    """Whatever the order of the records, each finding is as likely to be among the first cards as any other."""
    scored = [record(number, "finding") for number in range(20)]
    seen = Counter(row["key"] for seed in range(2000) for row in review.queue(scored, seed)[:5])
    assert len(seen) == 20 and max(abs(n - 500) for n in seen.values()) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_nothing_on_a_card_says_what_the_gate_or_the_truth_is(scored, tmp_path):
    scored = [row | {"truth": "green", "agreement": 1.0, "disagrees": True} for row in scored]
    one = sit(scored, tmp_path)
    cards = []
    for _ in range(54):
        cards.append({name for name in one.card})
        one.move(1)
    assert len({frozenset(names) for names in cards}) == 1
    assert not {"outcome", "truth", "disagrees", "key", "checkpoint", "irrelevant_edit"} & cards[0]


def test_a_made_picture_comes_with_the_original(scored, tmp_path):
    scored = [row | {"base": "original", "made": "paint it red"} for row in scored if row["outcome"] == "finding"]
    card = sit(scored, tmp_path).card
    assert card["made"] == "paint it red" and card["before"] != card["picture"]
    assert all(src.startswith("data:image/png") and tiny for src, tiny in (card["before"], card["picture"]))


PAGE = """<!doctype html><meta charset="utf-8"><body><script type="module">
SOURCE
const told = [], heard = [];
const model = {get: () => (CARD), send: (one) => told.push(one), on: (_, f) => heard.push(f), off: () => {}};
document.body.addEventListener("keydown", () => told.push("the notebook heard it"));
render({model, el: document.body});
const desk = document.querySelector(".auditkit-desk"), answer = document.querySelector("input.answer");
const key = (node, name, more) => node.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, ...more}));
key(desk, "a"); key(desk, "R"); key(desk, "u"); key(desk, "ArrowLeft"); key(desk, "j");
key(desk, "a", {repeat: true}); key(desk, "r", {ctrlKey: true}); key(desk, "r", {metaKey: true}); key(desk, "x");
key(desk, "l"); told.push(document.activeElement.className);
answer.value = "teal"; key(answer, "a"); key(answer, "r"); key(answer, "Enter");
answer.value = ""; document.querySelectorAll("button")[2].click(); told.push(document.activeElement.className);
document.body.dataset.told = JSON.stringify(told);
</script>"""


def test_the_page_sends_what_is_pressed_and_shows_text_as_text(tmp_path):
    """desk.js in Chromium, before a model that only listens: what is typed is no key, the browser keeps its own."""
    hostile = "<img src=x onerror=document.body.dataset.told=1>"
    card = {"at": 3, "of": 9, "decided": 2, "undo": True, "n": 1, "said": {"decision": "", "answer": "", "note": ""}}
    card |= dict.fromkeys(("message", "question", "made", "target"), hostile)
    card |= {
        "references": {hostile: hostile},
        "consensus": None,
        "picture": ["data:,", True],
        "before": ["data:,", True],
    }
    source = (HERE / "review_widget.js").read_text().replace("export default", "const page =")
    page = tmp_path / "desk.html"
    page.write_text(PAGE.replace("SOURCE", source).replace("CARD", json.dumps(card).replace("<", "\\u003c")))
    dom, console, _ = browse(page, tmp_path)
    told = json.loads(re.search(r'data-told="([^"]*)"', dom)[1].replace("&quot;", '"'))
    sent = {"at": 3, "answer": "", "note": ""}
    wanted = [sent | {"do": do} for do in ("accept", "reject", "undo")]
    wanted += [sent | {"do": "move", "step": step} for step in (-1, 1)]
    assert told == [*wanted, "answer", sent | {"answer": "teal", "do": "relabel"}, "answer"]
    assert "card 4 of 9 · 2 decided" in dom and not console
    assert 'data-lm-suppress-shortcuts="true"' in dom and dom.split("</script>")[1].count("<img") == 2


def test_a_person_decides_blind_and_then_sees_who_said_what(scored, tmp_path):
    """Neither the names nor the order of the answers tell which is the target's."""
    one, places = sit(scored, tmp_path, blind=True), []
    for place, row in enumerate(one._queue):
        one.move(place - one.at)
        assert not {"target", "references", "consensus"} & set(one.card)
        if row["outcome"] == "finding":
            assert sorted(one.card["options"]) == ["blue", "red"]
            places.append(one.card["options"].index("blue"))
    assert 10 < sum(places) < 30, "as often first as second"
    at = next(place for place, row in enumerate(one._queue) if row["outcome"] == "finding")
    one.move(at - one.at)
    one._heard(
        one, {"do": "choose", "at": at, "option": one.card["options"].index("red"), "answer": "", "note": ""}, []
    )
    assert one.at == at and one.card["said"]["decision"] == "accept"
    assert (one.card["target"], one.card["consensus"], one.card["references"]) == ("blue", "red", {"x": "red"})
    press(one, "undo")
    assert "target" not in one.card and review.decisions(tmp_path, scored) == {}


@pytest.mark.parametrize(
    ("outcome", "written", "decided", "answer"),
    [
        ("finding", "Red.", "accept", None),
        ("finding", "blue", "reject", None),
        ("finding", "green", "relabel", "green"),
        ("no consensus", "red", "relabel", "red"),
        ("agrees", "blue", "reject", None),
    ],
)
def test_what_is_right_decides_whoever_said_it(scored, tmp_path, outcome, written, decided, answer):
    one = sit(scored, tmp_path, blind=True)
    one.move(next(place for place, row in enumerate(one._queue) if row["outcome"] == outcome) - one.at)
    press(one, "relabel", written, "a note")
    (row,) = jsonl.read(tmp_path / "reviews.jsonl")
    assert (row["decision"], row.get("answer"), row["note"]) == (decided, answer, "a note")


def test_a_desk_keeps_its_id_so_that_a_reloaded_page_finds_it(scored, tmp_path):
    """The page was saved before the cell was run again; the desk of before is closed."""
    first = sit(scored, tmp_path)
    again = sit(scored, tmp_path)
    assert first.comm is None and again.comm is not None and len(again.model_id) == 32
    assert (
        sit(scored, tmp_path, seed=1).model_id != again.model_id == ReviewWidget(scored, SOURCE, tmp_path, 0).model_id
    )


BLIND_PAGE = """<!doctype html><meta charset="utf-8"><body><script type="module">
SOURCE
const told = [];
const model = {get: () => (CARD), send: (one) => told.push(one), on: () => {}, off: () => {}};
render({model, el: document.body});
const desk = document.querySelector(".auditkit-desk");
const key = (name, more) => desk.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, ...more}));
key("2"); key("3"); key("a"); key("r"); document.querySelector("button.option").click();
document.body.dataset.told = JSON.stringify(told);
document.body.dataset.shown = [...desk.querySelectorAll("button")].filter((one) => !one.hidden).map(
  (one) => one.textContent).join("|");
</script>"""


def test_the_page_of_a_blind_card_has_answers_without_names(tmp_path):
    card = {"at": 3, "of": 9, "decided": 2, "undo": True, "n": 1, "said": {"decision": "", "answer": "", "note": ""}}
    card |= {"message": "", "question": "what colour?", "made": None, "picture": ["data:,", True]}
    card["options"] = ["red", "<b>blue</b>"]
    source = (HERE / "review_widget.js").read_text().replace("export default", "const page =")
    page = tmp_path / "desk.html"
    page.write_text(BLIND_PAGE.replace("SOURCE", source).replace("CARD", json.dumps(card).replace("<", "\\u003c")))
    dom, console, _ = browse(page, tmp_path)
    told = json.loads(re.search(r'data-told="([^"]*)"', dom)[1].replace("&quot;", '"'))
    sent = {"at": 3, "answer": "", "note": ""}
    assert told == [sent | {"do": "choose", "option": 1}, sent | {"do": "reject"}, sent | {"do": "choose", "option": 0}]
    shown = re.search(r'data-shown="([^"]*)"', dom)[1]
    assert shown.startswith("1  red|2  &lt;b&gt;blue&lt;/b&gt;|Makes no sense (r)|Another answer (l)|Undo (u)")
    after = dom.split("</script>")[1]
    assert not console and "target" not in after.split("Which answer is right")[0] and "<b>" not in after


# ---- what is kept --------------------------------------------------------------------------------------------------


def test_every_decision_is_a_line_and_the_last_one_counts(scored, tmp_path):
    one = sit(scored, tmp_path)
    first = one._queue[0]["key"]
    press(one, "relabel", "green", " a  note ")
    assert one.at == 1
    one.move(-1)
    assert one.card["said"] == {"decision": "relabel", "answer": "green", "note": "a  note"}
    press(one, "reject")
    rows = jsonl.read(tmp_path / "reviews.jsonl")
    assert [(row["key"], row["decision"], row.get("answer")) for row in rows] == [
        (first, "relabel", "green"),
        (first, "reject", None),
    ]
    assert all(row["when"].endswith("+00:00") for row in rows)
    assert review.decisions(tmp_path, scored)[first]["decision"] == "reject"


def test_undo_takes_back_one_decision_after_the_other_and_leaves_every_line(scored, tmp_path):
    one = sit(scored, tmp_path)
    first = one._queue[0]["key"]
    for what in ("relabel", "reject"):
        one.at = 0
        one.decide(what, "green" if what == "relabel" else "")
    press(one, "undo")
    assert one.at == 0 and review.decisions(tmp_path, scored)[first]["answer"] == "green"
    press(one, "undo")
    press(one, "undo")  # nothing is left to take back
    assert review.decisions(tmp_path, scored) == {} and len(jsonl.read(tmp_path / "reviews.jsonl")) == 4


def test_a_review_goes_on_at_the_first_card_that_nobody_judged(scored, tmp_path):
    one = sit(scored, tmp_path)
    press(one, "reject")
    one.move(1)
    press(one, "reject")
    again = sit(scored, tmp_path)
    assert again.at == 1 and again.card["decided"] == 2
    with (tmp_path / "reviews.jsonl").open("a") as file:
        file.write('{"key": "a/0000')  # killed in the middle of a line
    assert sit(scored, tmp_path).card["decided"] == 2


def test_two_quick_keys_judge_one_card(scored, tmp_path):
    """The second was pressed before the next card could be seen."""
    one = sit(scored, tmp_path)
    press(one, "reject", at=0)
    press(one, "reject", at=0)
    assert len(jsonl.read(tmp_path / "reviews.jsonl")) == 1 and one.at == 1


@pytest.mark.parametrize(
    ("outcome", "do", "answer", "says"),
    [
        ("finding", "relabel", " ", "Write the right answer first"),
        ("finding", "relabel", "Blue.", "That is what the target says"),
        ("agrees", "accept", "", "The target says what the references say"),
        ("no consensus", "accept", "", "The references do not agree here"),
    ],
)
def test_a_decision_that_contradicts_the_card_is_a_sentence_and_no_line(scored, tmp_path, outcome, do, answer, says):
    one = sit(scored, tmp_path)
    one.at = next(place for place, row in enumerate(one._queue) if row["outcome"] == outcome)
    at = one.at
    press(one, do, answer)
    assert says in one.card["message"] and one.at == at and not (tmp_path / "reviews.jsonl").exists()
    press(one, "undo")
    assert not (tmp_path / "reviews.jsonl").exists(), "what was refused is nothing to take back"


def test_nothing_found_is_nothing_to_review(scored, tmp_path):
    one = sit([row for row in scored if row["outcome"] != "finding"], tmp_path)
    press(one, "accept")
    press(one, "undo")
    assert one.card["of"] == 0 and "nothing to review" in one.card["message"]


def test_what_was_said_of_another_probe_counts_no_more(scored, tmp_path):
    """After a new audit a key may stand for something else; rows a person wrote by hand count by their key alone."""
    one = sit(scored, tmp_path)
    key = one._queue[0]["key"]
    press(one, "reject")
    other = [row | {"target": "teal"} if row["key"] == key else row for row in scored]
    assert key in review.decisions(tmp_path, scored) and key not in review.decisions(tmp_path, other)
    jsonl.append(tmp_path / "reviews.jsonl", [{"key": key, "decision": "reject"}])
    assert key in review.decisions(tmp_path, other)


@pytest.mark.parametrize("row", [{"key": "a/00001", "decision": "maybe"}, {"key": "a/00001", "decision": "relabel"}])
def test_a_line_that_is_no_decision_is_named(scored, tmp_path, row):
    jsonl.append(tmp_path / "reviews.jsonl", [{"key": "a/00000", "decision": "reject"}, row])
    with pytest.raises(AuditError, match=r"reviews.jsonl, line 2 \('a/00001'\) is no decision"):
        review.decisions(tmp_path, scored)


def test_starting_a_stage_over_keeps_what_a_person_said(project):
    p = load_params("params/demo.yaml")
    run = open_stage(p, "06_findings")
    run.append({"key": "a"})
    jsonl.append(run.path(review.FILE), [{"key": "a/00001", "decision": "reject"}])
    run.finish()
    again = open_stage(load_params("params/demo.yaml", failure_types=5), "06_findings", resume=False)
    assert again.records() == [] and not again.done
    assert jsonl.read(again.folder / review.FILE) == [{"key": "a/00001", "decision": "reject"}]
    _unlock(again.folder)


# ---- what it measures ----------------------------------------------------------------------------------------------


def judged(scored, failures, first=None, seed=0) -> dict:
    """Decisions of a person who calls failures what `failures` says, on the first so many cards."""
    order = review.queue(scored, seed)[:first]
    return {row["key"]: {"key": row["key"], "decision": "accept" if failures(row) else "reject"} for row in order}


def test_without_a_review_nothing_is_measured(scored):
    assert review.measures(scored, {}, 0) == {}


def test_precision_and_counts_are_those_of_the_cards_judged(scored):
    order = review.queue(scored, 0)
    decided = judged(scored, lambda row: row["outcome"] == "finding" and int(row["key"][2:]) % 4 > 0, 30)
    del decided[order[3]["key"]]
    found = review.measures(scored, decided, 0)
    seen = [row for row in order[:30] if row["key"] in decided and row["outcome"] == "finding"]
    right = sum(int(row["key"][2:]) % 4 > 0 for row in seen)
    assert found["precision_by_human"] == found["by_gate"]["ok"] == stats.rate(right, len(seen))
    assert found["reviewed"] == 29 == found["accepted"] + found["rejected"] and found["passed_over"] == 1
    assert sum(r["n"] for r in found["by_gate"].values()) == 29


def test_agreement_and_kappa_speak_of_all_probes_and_not_of_the_cards():
    """More probes agree than are shown. What the cards say, averaged over orders, is what judging all would say."""
    scored = [record(n, "finding" if n < 60 else "agrees") for n in range(300)]

    def failure(row):  # a fifth of the findings are none, a tenth of the others are
        number = int(row["key"][2:])
        return number % 5 > 0 if row["outcome"] == "finding" else number % 10 == 0

    gates, person = [row["outcome"] == "finding" for row in scored], [failure(row) for row in scored]
    truly = sum(g == f for g, f in zip(gates, person, strict=True)) / 300
    found = [review.measures(scored, judged(scored, failure, 60, seed), seed) for seed in range(200)]
    inside = sum(one["agreement"]["low"] <= truly <= one["agreement"]["high"] for one in found)
    assert abs(sum(one["agreement"]["value"] for one in found) / 200 - truly) < 0.01
    assert abs(sum(one["kappa"] for one in found) / 200 - cohen_kappa_score(gates, person)) < 0.03
    assert inside >= 180, "an interval of 95 %"
    raw = sum(r["n"] for r in found[0]["by_gate"].values())
    assert raw == found[0]["agreement"]["n"] == 60


def test_a_review_of_one_kind_of_card_says_nothing_of_agreement(scored):
    decided = {row["key"]: {"key": row["key"], "decision": "accept"} for row in scored if row["outcome"] == "finding"}
    found = review.measures(scored, decided, 0)
    assert found["precision_by_human"]["n"] == 40 and not {"agreement", "kappa"} & set(found)
    alone = [row for row in scored if row["outcome"] == "finding"]
    assert review.measures(alone, decided, 0)["agreement"] == stats.rate(40, 40), "there is no other kind"
    assert "kappa" not in review.measures(alone, decided, 0)


# ---- what the repair and the report make of it ---------------------------------------------------------------------


def repairing(**more):
    settings = {"rectify_original": 0, "rectify_on": "findings", "route": "unlabeled", "rectify_pairs": 0, "seed": 0}
    return SimpleNamespace(**settings, failure_types=1, types_by="text", **more)


def training_set(scored, p):
    return build_training_set(
        training_pairs(
            scored,
            [],
            SOURCE.picture,
            **{name: getattr(p, name) for name in ("rectify_on", "rectify_pairs", "failure_types", "types_by", "seed")},
        ),
        scored,
        [],
        p,
        SOURCE.picture,
    )


def test_rejected_findings_are_left_out_and_relabelled_ones_learnt_with_the_person_s_answer(scored):
    said = {"a/00000": {"decision": "reject"}, "a/00002": {"decision": "accept"}, "a/00040": {"decision": "reject"}}
    for key, answer in (("a/00001", "green"), ("a/00041", "grey"), ("a/00070", "x")):
        said[key] = {"decision": "relabel", "answer": answer}
    before = json.dumps(scored)
    changed = review.changes(scored, said)
    assert changed == {"a/00000": None, "a/00001": "green", "a/00041": "grey"}
    p = repairing()
    learnt = {e.key: e.answer for e in training_set(review.corrected(scored, changed), p)}
    assert "a/00000" not in learnt and len(learnt) == 39 + 30
    assert [learnt[f"a/{n:05d}"] for n in (1, 2, 40, 41)] == ["green", "red", "blue", "grey"]
    assert json.dumps(scored) == before, "the records stay"
    kept = next(row for row in review.corrected(scored, changed) if row["key"] == "a/00001")
    assert kept["consensus_by_references"] == "red" and kept["picture"] == "p1"
    assert review.told(changed)["left_out"] == 1 and review.told(changed)["relabelled"] == 2
    assert review.told(changed)["digest"] != review.told({**changed, "a/00001": "pink"})["digest"]
    assert review.told(review.changes(scored, {"a/00002": {"decision": "accept"}})) == {}


def test_a_review_that_changes_after_the_repair_is_said_and_overwrites_nothing(scored, tmp_path):
    p = repairing(rectify_steps=3)
    target = SimpleNamespace(name="target")
    before = training_set(scored, p)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "training.json").write_text(json.dumps(_purpose(target, before, p)))
    assert train_repair(target, before, p, tmp_path) == tmp_path / "adapter"
    after = training_set(review.corrected(scored, {"a/00000": None}), p)
    with pytest.raises(AuditError, match="what a person said .* changed since.*: start notebook 07 over with resume=F"):
        train_repair(target, after, p, tmp_path)
    p.rectify_steps = 4
    with pytest.raises(AuditError, match="other examples or settings .rectify_steps 3 then, 4 now.: "):
        train_repair(target, before, p, tmp_path)
    assert (tmp_path / "adapter").is_dir()


def stage(run, name, metrics=None):
    (run / name).mkdir(parents=True)
    manifest = {"metrics": metrics or {}, "seconds": 1.0, "versions": {"python": "3"}, "parameters": {"seed": 0}}
    (run / name / "manifest.json").write_text(json.dumps(manifest))
    (run / name / "DONE").touch()
    return run / name


def test_summary_and_report_tell_of_a_review_and_whether_the_repair_has_learnt_from_it(scored, tmp_path):
    run = tmp_path / "one"
    jsonl.append(stage(run, "05_audit") / "scored.jsonl", scored)
    folder = stage(run, "06_findings")
    stage(run, "07_rectify", {"pairs": 40})
    page = write_report(run).read_text()
    assert "review" not in json.loads((run / "summary.json").read_text()) and "A person’s word" not in page

    one = sit(scored, folder)
    for _ in range(20):
        row = one._queue[one.at]
        press(one, "accept" if row["outcome"] == "finding" else "reject")
    page = write_report(run).read_text().replace("\N{NO-BREAK SPACE}", " ")
    said = json.loads((run / "summary.json").read_text())["review"]
    assert said["reviewed"] == 20 and said["precision_by_human"]["value"] == said["agreement"]["value"] == 1.0
    assert said["kappa"] == 1.0 and said["relabelled"] == 0 and said["in_the_repair"] is True
    assert "A person looked at 20 probes" in page and "Cohen’s kappa is 1.00" in page and "not learnt from" not in page

    one.at = next(place for place, row in enumerate(one._queue) if row["outcome"] == "finding")
    one.decide("relabel", "<script>green</script>")
    page = write_report(run).read_text()
    assert json.loads((run / "summary.json").read_text())["review"]["in_the_repair"] is False
    assert "has not learnt from this review as it now stands" in page and "<script>" not in page
    manifest = json.loads((run / "07_rectify" / "manifest.json").read_text())
    changed = review.changes(scored, review.decisions(folder, scored))
    manifest["metrics"] = {"pairs": 40, "review": review.told(changed)}
    (run / "07_rectify" / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    assert json.loads((run / "summary.json").read_text())["review"]["in_the_repair"] is True
