"""Counterfactual pictures in the audit and in the reward, by the shipped auditor, editor, generator and models."""

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from picture_checks import clip, save
from scoring import score

from auditkit.audit.loop import run_audit
from auditkit.audit.score import outcome_counts
from auditkit.auditor import grpo
from auditkit.auditor.rewards import Scorer
from auditkit.consensus.same import Same
from auditkit.counterfactual import store
from auditkit.counterfactual.make import edit_images
from auditkit.counterfactual.store import IMAGES_FILE, ImageStore, pipeline_loaders, with_counterfactuals
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.findings.by_way import image_outcomes, irrelevant_edits, outcomes_by
from auditkit.miniature import edits, grammar
from auditkit.miniature.boards import Boards, scene_of
from auditkit.models.load import model_loader
from auditkit.params import load_params
from auditkit.runs import jsonl
from auditkit.runs.probe import Wish

JUDGED = (
    "",
    "implausible",
    "not applied",
    "already so",
    "unlike the wish",
)  # what becomes of pictures that were looked at
QUORUM = {"quorum": 0.6, "same": "text", "min_token_probability": 1e-3}


@pytest.fixture(scope="module")
def p(tmp_path_factory):
    check = save(clip, tmp_path_factory.mktemp("picture_check"))
    return load_params(
        "params/smoke.yaml", audit_probes=36, batch_size=12, ways=["question", "regenerate", "edit"],
        generator="miniature:generator", editor="miniature:editor",
        picture_check=str(check), picture_gain=0.0,
    )  # fmt: skip


def run(p, out):
    load = model_loader(p)
    pictures = Boards().pictures("audit", p.audit_probes, p.seed)
    auditors = {"untrained": partial(load, p.auditor)}
    references = [partial(load, spec) for spec in p.references]
    return run_audit(auditors, partial(load, p.target), references, pictures, p, out, own=Boards().question)


@pytest.fixture(scope="module")
def out(p, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    run(p, folder)
    return folder


@pytest.fixture(scope="module")
def records(out):
    return jsonl.read(out / "records.jsonl")


@pytest.fixture(scope="module")
def scored(records, p):
    """As if every picture had moved towards its wish: the picture check here has random weights."""
    return score(records, p, picture_gain=-1.0)


def test_each_way_has_its_share_and_each_pairing_its_own_records(records, p):
    firsts = [row for row in records if not row["key"].endswith("/own")]
    assert Counter(row["way"] for row in firsts) == {"question": 12, "regenerate": 12, "edit": 12}
    both = {(way, pairing) for way in ("regenerate", "edit") for pairing in ("(Q*, I*)", "(Q, I*)")}
    assert {(row["way"], row["pairing"]) for row in records} == {("question", "(Q*, I)"), *both}
    for row in records:
        if row["pairing"] == "(Q, I*)":  # the source's question about the original, word for word
            assert row["question"] == Boards().question(row["base"])
        if row["way"] != "question" and row["question"]:
            assert (
                row["picture"].startswith("made-") and row["base"].startswith("audit-") and row["made"] in row["wish"]
            )
            assert set(row["checked"]) == set(row["references"]) and row["check"].endswith("?")
            assert set(row.get("checked_before", [])) == (set(row["references"]) if row["way"] == "edit" else set())
        assert ("before" in row) == (row["way"] == "edit" and row["pairing"] == "(Q, I*)")


def test_a_made_picture_shows_what_was_wished_for(scored, out, p):
    """Read off its pixels by the world's own reader: the gates let no other picture through."""
    source, shows = with_counterfactuals(Boards(), out), []
    for row in scored:
        if row["way"] == "edit" and row["pairing"] == "(Q*, I*)" and row["outcome"] in ("finding", "agrees"):
            wanted = edits.apply(scene_of(row["base"]), row["made"])
            shows.append(wanted == scene_of(Boards().read(source.picture(row["picture"]).image)))
            assert source.made[row["picture"]].box and source.made[row["picture"]].share <= p.edit_region
    assert len(shows) >= 6 and sum(shows) >= 0.9 * len(shows)


def test_the_oracle_grades_what_a_picture_shows_and_not_what_was_asked_for(out, scored):
    source = with_counterfactuals(Boards(), out)
    row = next(row for row in scored if row["way"] == "edit" and row["outcome"] in ("finding", "agrees"))
    shown = scene_of(Boards().read(source.picture(row["picture"]).image))
    assert source.truth(row["picture"], row["question"]) == grammar.answer(shown, row["question"])
    assert source.truth(row["base"], row["question"]) == grammar.answer(scene_of(row["base"]), row["question"])
    assert source.benchmarks(2).keys() == Boards().benchmarks(2).keys()  # all else is the source's


def test_a_finished_audit_is_not_painted_again_and_a_torn_one_ends_the_same(out, records, p, tmp_path, monkeypatch):
    assert run(p, out) == records
    painted, edit = [], edit_images

    class Killed(BaseException):
        pass

    def killed(*arguments):
        painted.append(1)
        if len(painted) == 1:
            raise Killed
        return edit(*arguments)

    monkeypatch.setattr(store, "edit_images", killed)
    with pytest.raises(Killed):
        run(p, tmp_path)
    assert run(p, tmp_path) == records
    timeless = [[{**row, "seconds": 0} for row in jsonl.read(where / IMAGES_FILE)] for where in (out, tmp_path)]
    assert timeless[0] == timeless[1]
    asked = [tuple(row.values())[:3] for row in jsonl.read(tmp_path / "answers.jsonl")]
    assert len(asked) == len(set(asked))


def test_every_picture_that_may_be_used_was_judged_and_another_bound_needs_no_model(scored, records, p):
    for row in records:
        used = row["way"] != "question" and row["made"] and not row["why"]
        assert (row["gain"] is not None) == bool(used)
    unlike = [row for row in score(records, p) if row.get("why") == "unlike the wish"]
    assert unlike and all(row["gain"] <= p.picture_gain and row["outcome"] == "bad picture" for row in unlike)
    strict = Counter(row.get("why") for row in score(records, p, picture_gain=0.99))
    assert strict["unlike the wish"] > len(unlike) and strict["not applied"] == Counter(
        row.get("why") for row in scored)["not applied"]  # fmt: skip


def test_every_picture_is_accounted_for(scored, out, p):
    made = jsonl.read(out / IMAGES_FILE)
    account = image_outcomes(scored, made, edit_region=p.edit_region, edit_rest=p.edit_rest, picture_gain=-1.0)
    images_, wishes = account["images"], [row for row in scored if row["pairing"] == "(Q*, I*)" and row["made"]]
    assert images_["asked"] == len(wishes) == images_["made"] + sum(images_["dropped"].values())
    assert account["editor"]["command_applied"]["value"] > 0.8 and account["editor"]["rest_unchanged"]["value"] > 0.8
    assert account["generator"]["objects_present"]["value"] > 0.7
    counts = outcome_counts(scored)
    assert counts["bad_pictures"] == sum(row["outcome"] == "bad picture" for row in scored)
    assert counts["target_called"] == len({(r["model"], r["picture"], r["question"]) for r in _asked(out, "target")})
    assert counts["references_called"] == sum(len(_asked(out, name)) for name in ("gemma3", "idefics3", "llava"))
    ways = outcomes_by(scored, "way", with_counterfactuals(Boards(), out))
    assert {way: part["probes"] for way, part in ways.items()} == Counter(row["way"] for row in scored)


def _asked(out, model):
    return [row for row in jsonl.read(out / "answers.jsonl") if row["model"] == model]


# ---- scores of records made by hand ---------------------------------------------------------------------------------


def record(key="a", pairing="(Q, I*)", **more):
    row = {
        "key": key,
        "picture": f"made-{key}",
        "question": "what is it?",
        "text": "",
        "way": "edit",
        "base": "audit-0",
    }
    row |= {"pairing": pairing, "made": "paint it", "check": "what colour is it?", "expected": "red", "why": ""}
    row |= {"target": "dog", "references": {"one": "cat", "two": "cat"}, "checked": {"one": "red", "two": "Red."}}
    row |= {"before": {"target": "cat", "references": {"one": "cat", "two": "cat"}}}
    return row | more


@pytest.mark.parametrize(
    "change, gate, why, irrelevant",
    [
        ({}, "finding", "", True),
        ({"target": "cat"}, "agrees", "", False),
        ({"references": {"one": "cow", "two": "cow"}}, "finding", "", False),  # the edit did matter
        (
            {"before": {"target": "dog", "references": {"one": "cat", "two": "cat"}}},
            "finding",
            "",
            None,
        ),  # wrong before
        ({"checked": {"one": "blue", "two": "blue"}}, "bad picture", "not applied", False),
        ({"checked": {"one": "red", "two": "blue"}}, "bad picture", "implausible", False),
        ({"checked_before": {"one": "Red.", "two": "red"}}, "bad picture", "already so", False),
        ({"checked_before": {"one": "blue", "two": "blue"}}, "finding", "", True),
        ({"checked_before": {"one": "red", "two": "blue"}}, "finding", "", True),  # nobody knows what was there before
        (
            {"checked": {"one": "blue", "two": "blue"}, "checked_before": {"one": "red", "two": "red"}},
            "bad picture",
            "not applied",
            False,
        ),
        ({"question": None, "why": "black"}, "bad picture", "black", None),
        ({"question": None}, "malformed", "", None),
    ],
)
def test_gates_of_a_picture(change, gate, why, irrelevant, p):
    plain = record(
        "b", "(Q*, I)", way="question", picture="audit-1", made="", check="", why="", checked={}, before=None
    )
    scored, _ = score([record(**change), plain], replace(p, **QUORUM))
    assert (scored["outcome"], scored["why"], scored.get("irrelevant_edit")) == (gate, why, irrelevant)
    found = irrelevant_edits([scored])
    assert bool(found) == bool(irrelevant)


def test_an_edit_that_was_so_already_is_counted_and_says_nothing_of_the_editor(p):
    same, other = {"one": "red", "two": "red"}, {"one": "blue", "two": "blue"}
    rows = [record("a", "(Q*, I*)", checked_before=same), record("b", "(Q*, I*)", checked_before=other)]
    scored = score(rows, replace(p, **QUORUM))
    account = image_outcomes(scored, [], edit_region=p.edit_region, edit_rest=p.edit_rest, picture_gain=-1.0)
    assert account["images"] == {"asked": 2, "made": 1, "dropped": {"already so": 1}, "cut": 0}
    assert account["editor"]["command_applied"]["n"] == 1
    counted = outcome_counts(scored)
    assert (counted["bad_pictures"], counted["references_called"]) == (1, 2 * (2 + 2 + 1 + 1))  # of one original


# ---- an album --------------------------------------------------------------------------------------------------------


def test_an_album_paints_a_request_once_and_drops_what_is_no_targeted_change(p, tmp_path):
    boards = Boards().pictures("audit", 4, 0)
    scenes = [scene_of(board.key) for board in boards]
    place = next(edits.POSITIONS[i] for i in scenes[0].objects)
    command = f"remove what is at {place}"
    paints = ImageStore(pipeline_loaders(p), p, tmp_path)
    one, again, ground = paints.make(
        "edit", [boards[0], boards[0], boards[0]], [command, command, "change the background to night"]
    )
    assert one == again and one.why == "" and len(paints.unfiled()) == 2 and not paints.unfiled()
    x0, y0, x1, y1 = one.box
    at = edits.POSITIONS.index(place)
    assert x0 >= at % 4 * 16 - 3 and y0 >= at // 4 * 16 - 3 and x1 <= at % 4 * 16 + 19 and y1 <= at // 4 * 16 + 19
    assert scenes[0].background == "night" or ground.why == "not targeted"
    other = paints.make("edit", [boards[0]], [command], seed=5)[0]
    assert other.key != one.key and other.seed == 5
    jsonl.append(tmp_path / IMAGES_FILE, [])
    with pytest.raises(AuditError, match="generator: name a pipeline to regenerate"):
        ImageStore({}, replace(p, generator="", ways=["question"]), tmp_path).make("regenerate", boards[:1], ["a dog"])
    with pytest.raises(AuditError, match="there is no picture 'made-nothing'"):
        paints.picture("made-nothing")


# ---- the reward ------------------------------------------------------------------------------------------------------


def test_an_edit_of_what_was_so_already_earns_nothing(p):
    """The original is asked about in the same batch, of edits alone."""
    asked = []

    def ask(model, pictures, checks, limit):
        asked.append([picture.key for picture in pictures])
        return [
            {"new": "red", "so": "red", "other": "blue", "torn": f"red {model}"}[picture.key] for picture in pictures
        ]

    keys = {"edit": ["so", "other", "torn"], "regenerate": ["so"]}
    made, seen = {}, {}
    for way, base in ((way, base) for way, some in keys.items() for base in some):
        one = store.Counterfactual("new", way, base, "paint it red", 0, "editor")
        made[len(made)] = (Wish("paint it red", "what colour is it?", "red"), one, None)
        seen[len(seen)] = Picture("new", None)
    scorer = SimpleNamespace(book=SimpleNamespace(ask=ask), references=["a", "b"], same=Same(), p=p)
    scorer.pictures = {key: Picture(key, None) for key in keys["edit"]}
    assert Scorer._unfulfilled(scorer, made, seen) == {0: "already so", 1: "", 2: "", 3: ""}
    assert asked == [["new"] * 4 + keys["edit"]] * 2


def test_grpo_paints_inside_the_step(p, tmp_path):
    p = replace(p, grpo_steps=3, grpo_images=4, group_size=2, grpo_checkpoints=1, train_images=12, replay_clusters=4)
    load = model_loader(p)
    auditor, target, *references = map(load, (p.auditor, p.target, *p.references))
    pictures = load_images(p.images).pictures("train", p.train_images, p.seed)
    grpo.train_auditor(auditor, target, references, pictures, p, tmp_path)
    rows = jsonl.read(tmp_path / "rollouts.jsonl")
    steps = Counter((row["step"], row["way"]) for row in rows)
    assert steps == {(0, "question"): 8, (1, "regenerate"): 8, (2, "edit"): 8}, "a step is of one way"
    for row in rows:
        wished = row["way"] != "question" and row["wrote"]
        assert bool(row["made"]) == bool(wished)
        assert (row["gain"] is None) == (not row["made"] or row["why"] not in JUDGED)
        assert row["why"] != "unlike the wish" or row["gain"] <= p.picture_gain
        assert not (row["success"] and row["why"]), "a picture that is not what it should be earns nothing"
        if row["success"] and wished:
            assert row["question"] and row["question"] not in row["text"], "asked of what came out, not of what went in"
    assert sum(bool(row["made"] and row["why"] in ("", "already so")) for row in rows) >= 8
